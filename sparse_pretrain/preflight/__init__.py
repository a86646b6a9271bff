"""What ranks compare before their first step: what would end a run after hours, found while they meet."""
