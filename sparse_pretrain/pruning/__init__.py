"""What to prune, when, and the masks that say what was pruned. Knows nothing of DeepSpeed."""
