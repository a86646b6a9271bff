"""Sharded checkpoints, and the Hugging Face folders released from them."""
