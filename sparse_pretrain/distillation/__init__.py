"""The frozen teacher and the losses that follow it."""
