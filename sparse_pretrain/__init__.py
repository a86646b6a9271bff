"""Distributed sparse pre-training of language models (Prune Once for All, arXiv 2111.05754)."""

__version__ = "0.1.0"
