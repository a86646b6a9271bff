"""What a run shows and records: console, metrics.jsonl, TensorBoard, plots."""
