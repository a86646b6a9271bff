"""The training loop around the engine."""
