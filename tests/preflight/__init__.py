"""What ranks compare before their first step."""
