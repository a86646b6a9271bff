"""Markup to prose: what a reader would read aloud stays, everything else goes."""

import pytest

from data_prep.documents import Drop
from data_prep.wikitext import article_text
from tests.data_prep.corpus import ARTICLE, ARTICLE_TEXT

HIDDEN = frozenset(["file", "image", "category", "datei"])


def text_of(wikitext: str) -> str | Drop:
    return article_text(wikitext, HIDDEN)


def test_an_article_with_everything_in_it() -> None:
    assert text_of(ARTICLE) == ARTICLE_TEXT


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("'''Bold''', ''slanted'' and '''''both''''' of it.", "Bold, slanted and both of it."),
        ("An ''unbalanced quote stays readable.", "An unbalanced quote stays readable."),
        ("The [[Datei:Bild.jpg|mini|Unterschrift]] picture is gone.", "The  picture is gone."),
        ("A [[link]] and a [[page|piped link]] end.", "A link and a piped link end."),
        ("Name (; born 1950) wrote this.", "Name (born 1950) wrote this."),
        ("Name ({{lang-el|Όνομα}}, ) wrote.", "Name (Όνομα,) wrote."),
        ("Word ({{IPA|x}}; {{lang|de|Wort}}) is said.", "Word (Wort) is said."),
        ("Empty brackets ( , ; ) vanish [].", "Empty brackets vanish."),
        ("Two {{convert|3|ft|m}} long poles.", "Two 3 ft long poles."),
        ("Stray {{unclosed template text.", "Stray unclosed template text."),
        ("Text <ref>open and never closed. It ends.", "Text open and never closed. It ends."),
        ("A &mdash; dash &lt;3 stays.", "A — dash <3 stays."),
        ("Line one<br />line two is here, longer now.", "line two is here, longer now."),
        ("One line\nof the same paragraph ends.", "One line of the same paragraph ends."),
        ("The first one.\n\nThe second one.", "The first one.\nThe second one."),
        ("Before.\n* item\nAfter.", "Before.\nAfter."),
        ("Before.\n{|\n! a\n|-\n| b\n|}\nAfter.", "Before.\nAfter."),
        ("Before.\n| a stray row of a broken table\nAfter.", "Before.\nAfter."),
        ("'''A heading in bold'''\n\nThe text follows.", "The text follows."),
        ("Visible words. <!-- never closed", "Visible words."),
        ("Formula <math>a<b</math> is gone, <code>code</code> too.", "Formula  is gone,  too."),
    ],
)
def test_piece_by_piece(wikitext: str, prose: str) -> None:
    assert text_of(wikitext) == prose


@pytest.mark.parametrize(
    ("wikitext", "reason"),
    [
        ("#REDIRECT [[Other]]", Drop.REDIRECT),
        ("  #redirect: [[Other]]", Drop.REDIRECT),
        ("It may be:\n* this\n{{Disambig}}", Drop.DISAMBIGUATION),
        ("It may be:\n* this\n{{hndis|Name, First}}", Drop.DISAMBIGUATION),
        ("It may be:\n{{Place name disambiguation}}", Drop.DISAMBIGUATION),
        ("{{Infobox|a=b}}\n* list only", Drop.NO_TEXT),
        ("", Drop.NO_TEXT),
    ],
)
def test_pages_without_prose_say_why(wikitext: str, reason: Drop) -> None:
    assert text_of(wikitext) is reason


def test_an_article_about_disambiguation_is_kept() -> None:
    wikitext = "See {{disambiguation needed}}? Word-sense disambiguation is an open problem of linguistics."
    assert text_of(wikitext) is not Drop.DISAMBIGUATION
