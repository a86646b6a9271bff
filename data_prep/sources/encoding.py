"""Bytes to text, whatever the encoding."""

import codecs

import charset_normalizer

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Of what a guess sees: enough for its statistics, and fast.
SAMPLE = 32 * 1024
# Bad bytes among the non-ASCII ones of a text that is still taken for UTF-8.
MOST_BAD = 0.1
# English, French or German hold fewer letters beyond ASCII than this, Russian or Greek far more.
LATIN_SHARE = 0.25
LEAST_TO_GUESS = 100


def decode(content: bytes, encoding: str | None = None) -> tuple[str, bool]:
    """Return (text, whether bytes had to be replaced).

    A byte-order mark decides; then UTF-8, with single bad bytes replaced; then, for texts mostly in ASCII,
    Windows-1252 as in most old English books; else the statistics of `charset_normalizer` guess.

    Args:
        content: a whole file.
        encoding: the recipe's, when it names one.
    """
    if encoding is not None:
        return strict_or_replaced(content, encoding)
    for mark, name in MARKS.items():
        if content.startswith(mark):
            return strict_or_replaced(content, name)
    try:
        return content.decode(), False
    except UnicodeDecodeError:
        pass
    text = content.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    beyond_ascii = sum(byte >= 0x80 for byte in content)
    if bad <= MOST_BAD * beyond_ascii:
        return text, True
    if beyond_ascii < max(LEAST_TO_GUESS, LATIN_SHARE * len(content)):
        return decode_western(content), False
    guess = charset_normalizer.from_bytes(content[:SAMPLE]).best()
    return strict_or_replaced(content, guess.encoding) if guess else (decode_western(content), False)


def strict_or_replaced(content: bytes, encoding: str) -> tuple[str, bool]:
    """Decode; replace what is not valid and say so."""
    try:
        return content.decode(encoding), False
    except UnicodeDecodeError:
        return content.decode(encoding, "replace"), True


def decode_western(content: bytes) -> str:
    """Decode Windows-1252, with Latin-1 for its five holes."""
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")
