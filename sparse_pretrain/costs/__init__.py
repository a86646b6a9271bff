"""What a run costs before it runs: memory, time and money from measured or data-sheet constants."""
