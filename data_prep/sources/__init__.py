"""Readers of raw documents, one a file."""
