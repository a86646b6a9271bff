"""Prepared shards -> seeded, rank-independent batches."""
