"""The whole story, small, on real text."""
