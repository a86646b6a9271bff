"""Plain text to clean text: one paragraph a line."""

import re
import unicodedata

from data_prep.documents import Drop, squeezed

# Control characters, soft hyphens, zero-width spaces, direction marks, byte-order marks and lone
# surrogates carry no text. The zero-width joiners U+200C and U+200D do, in Persian and Indic scripts.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ud800-\udfff]"
)
ASCII_INVISIBLE = bytes(code for code in range(128) if INVISIBLE.match(chr(code)))
# Every end of a line that `splitlines` knows becomes one, every other white space a space.
ASCII_SPACES = bytes.maketrans(b"\t\x1f\r\x0b\x0c\x1c\x1d\x1e", b"  \n\n\n\n\n\n")
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


def clean(text: str) -> str:
    """Return the text's paragraphs, one a line: composed Unicode (NFC), single spaces, nothing invisible."""
    if text.isascii():  # the same, several times as fast
        return clean_ascii(text.encode()).decode()
    visible = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    paragraphs = (" ".join(line.split()) for line in visible.splitlines())
    return "\n".join(paragraph for paragraph in paragraphs if paragraph)


def clean_ascii(text: bytes) -> bytes:
    """Return what `clean` does, of ASCII."""
    single = squeezed(text.translate(ASCII_SPACES, ASCII_INVISIBLE), b" ")
    return squeezed(single.replace(b" \n", b"\n").replace(b"\n ", b"\n"), b"\n").strip(b" \n")


def long_enough(text: str, minimum: int) -> str | Drop:
    """Return the text, or that there is none, or fewer than `minimum` characters."""
    if not text:
        return Drop.NO_TEXT
    return text if len(text) >= minimum else Drop.TOO_SHORT


def repair_unicode(text: str) -> str:
    """Undo wrong decodings ("cafÃ©"), HTML entities and terminal codes; quotes and ligatures stay as they are."""
    import ftfy  # a tenth of a second to import, and few recipes ask for it

    config = ftfy.TextFixerConfig(uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False)
    return ftfy.fix_text(text, config)


def unwrap(text: str) -> str:
    """Join the hard-wrapped lines of a book: paragraphs are what blank lines part."""
    lines = "\n".join(text.splitlines())
    return "\n".join(" ".join(paragraph.split()) for paragraph in BLANK_LINE.split(lines))
