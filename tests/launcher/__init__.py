"""Starting ranks, and setting the machine up."""
