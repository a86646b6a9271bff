"""Project Gutenberg's files: the book between the header and the licence."""

import re

# The marks changed over the years: "*** START OF THE PROJECT GUTENBERG EBOOK HAMLET ***" today, and before
# 2003 a "small print" of legal text at the front that ends with "*END*THE SMALL PRINT! …*END*".
BOOK_STARTS = re.compile(
    r"^(?:\*{3}\s*START\s+OF\s+(?:THE|THIS)\s+PROJECT\s+GUTENBERG\b[^\n]*|\*END\*\s*THE\s+SMALL\s+PRINT[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
BOOK_ENDS = re.compile(
    r"^(?:\*{3}\s*END\s+OF\s+(?:THE|THIS)\s+PROJECT\s+GUTENBERG|END\s+OF\s+(?:THE\s+|THIS\s+)?PROJECT\s+GUTENBERG)\b",
    re.IGNORECASE | re.MULTILINE,
)


def strip_gutenberg(text: str) -> str:
    """Return the book without Project Gutenberg's header and licence; other texts come back unchanged."""
    starts = list(BOOK_STARTS.finditer(text))
    book = text[starts[-1].end() :] if starts else text
    end = BOOK_ENDS.search(book)
    return book[: end.start()] if end else book
