"""How much a weight matters, one score a file: magnitude, movement, random, and those of other packages."""
