"""Several jobs that need each other: prepare data, train a teacher, prune, release, fine-tune."""
