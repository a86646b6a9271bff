"""From raw dumps and books to packed token shards with a manifest."""
