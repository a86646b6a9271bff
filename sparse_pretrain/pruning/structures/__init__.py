"""What is kept or pruned together, one structure a file: single weights, blocks, N:M, lines, coupled sets."""
