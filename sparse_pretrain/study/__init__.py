"""The small accuracy study: sparsities x patterns x distillation, held-out loss after equal steps."""
