"""Looking after runs from outside: what they do, what they print, how to stop them."""
