"""Which language a text is in: the one place that knows the classifier.

py3langid (Barbaresi; after Lui & Baldwin 2012) carries its model of 97 languages in the package: no download.
"""

from data_prep.documents import Drop

# Beginnings of this length are classified as surely as whole documents.
CHARACTERS = 2000


def language_of(text: str) -> str:
    """Return the ISO 639-1 code of the likeliest language."""
    import py3langid  # its model takes seconds to load, and few recipes ask for it

    return str(py3langid.classify(text[:CHARACTERS])[0])


def in_languages(text: str, languages: frozenset[str]) -> str | Drop:
    """Return the text, or that it is in none of the languages."""
    return text if language_of(text) in languages else Drop.OTHER_LANGUAGE
