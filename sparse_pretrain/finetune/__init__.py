"""Fine-tuning of sparse (or dense) models on labelled tasks, with their zeros locked."""
