"""Students, teachers, and which of their weights may be pruned."""
