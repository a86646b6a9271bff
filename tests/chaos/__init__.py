"""Kills, damages and fills the disk of real runs, and proves that nothing is lost (`python -m tests.chaos`)."""
