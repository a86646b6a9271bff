"""The demo's own pieces."""
