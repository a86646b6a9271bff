"""A small MediaWiki dump, small books and small tokenizers, made on the spot."""

import bz2
import random
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import BertTokenizerFast, DistilBertTokenizerFast, RobertaTokenizerFast

from data_prep.documents import Document, Drop, Fault
from data_prep.sources.base import Source

NOUNS = [
    "river",
    "mountain",
    "library",
    "engine",
    "garden",
    "teacher",
    "planet",
    "harbour",
    "market",
    "window",
    "letter",
    "forest",
]
VERBS = [
    "follows",
    "carries",
    "measures",
    "paints",
    "remembers",
    "builds",
    "crosses",
    "describes",
    "guards",
    "opens",
]
PLACES = ["in the north", "near the coast", "before winter", "at night", "with great care", "after the war"]

ARTICLE = """{{Infobox settlement|name=Mainz|population={{formatnum:217123}}}}
[[File:Mainz.jpg|thumb|The [[cathedral]] of Mainz]]
'''Mainz''' ({{IPA|maɪnts}}) is the [[capital city|capital]] of [[Rhineland-Palatinate]].<ref name="a">{{cite
book|title=Hidden}}</ref>
It lies on the ''Rhine'', some {{convert|40|km|mi}} from [http://example.org Frankfurt].

== History ==
The city was founded by the [[Roman Empire|Romans]] &amp; grew quickly.<ref>Another hidden note.</ref><!-- a comment -->
{| class="wikitable"
! Year !! People
|-
| 1900 || 84,000
|}
* first list item
* second list item
: an indented line
<math>E = mc^2</math> and <b>bold</b> words stay readable.

== See also ==
* [[Worms]]
[[Category:Cities in Germany]]
[[de:Mainz]]
__NOTOC__
"""
ARTICLE_TEXT = (
    "Mainz is the capital of Rhineland-Palatinate. It lies on the Rhine, some 40 km from Frankfurt.\n"
    "The city was founded by the Romans & grew quickly.\n"
    "and bold words stay readable."
)

SITE = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>enwiki</dbname>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Talk</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""


def sentence(draw: random.Random) -> str:
    """One sentence that the splitter sees as one."""
    return f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)} {draw.choice(PLACES)}."


def prose(seed: int, sentences: int) -> str:
    """A paragraph, different for every seed."""
    draw = random.Random(seed)
    return " ".join([f"Text {seed} begins here.", *(sentence(draw) for _ in range(sentences))])


def page(title: str, texts: Sequence[str], namespace: int = 0, redirect: str | None = None) -> str:
    """One page of a dump with a revision for each text."""
    redirection = f'<redirect title="{redirect}" />' if redirect else ""
    revisions = "".join(
        f"<revision><id>{number}</id><model>wikitext</model><format>text/x-wiki</format>"
        f'<text xml:space="preserve">{escape(text)}</text><sha1>x</sha1></revision>'
        for number, text in enumerate(texts, start=1)
    )
    return f"<page><title>{title}</title><ns>{namespace}</ns><id>1</id>{redirection}{revisions}</page>\n"


def small_dump(articles: int = 30) -> str:
    """A dump with one page of each kind that is dropped, the marked-up article, and plain articles."""
    pages = [
        page("Mayence", ["#REDIRECT [[Mainz]]"], redirect="Mainz"),
        page("Talk:Mainz", ["I like this article very much."], namespace=1),
        page("Mainz", [ARTICLE]),
        page("Mercury (disambiguation)", ["Mercury is a planet, and other things."]),
        page("Java", ["Java may refer to:\n* an island\n{{disambiguation|geo}}"]),
        page("Stub", ["Short."]),
        page("Nothing", ["{{only|a|template}}"]),
        page("Copy", [prose(0, 12).upper()]),
        *(page(f"Article {number}", [prose(number, 12)]) for number in range(articles)),
    ]
    return SITE + "".join(pages) + "</mediawiki>\n"


def write_raw(folder: Path) -> Path:
    """Write `dump.xml`, `dump.xml.bz2` and `books/` under `folder`."""
    (folder / "books").mkdir(parents=True)
    (folder / "dump.xml").write_text(small_dump(), encoding="utf-8")
    (folder / "dump.xml.bz2").write_bytes(bz2.compress(small_dump().encode()))
    for number in range(6):
        paragraphs = "\n\n".join(prose(100 * number + 1000 + part, 6) for part in range(5))
        (folder / "books" / f"book-{number}.txt").write_text(paragraphs, encoding="utf-8")
    return folder


def write_tokenizers(folder: Path) -> Path:
    """Write the folders `bert`, `distilbert` and `roberta` with vocabularies trained on the small text."""
    text = [prose(seed, 40) for seed in range(20)] + [ARTICLE_TEXT]
    wordpiece = BertWordPieceTokenizer()
    wordpiece.train_from_iterator(text, vocab_size=300, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    wordpiece.save_model(str(folder))
    byte_level = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    byte_level.train_from_iterator(text, vocab_size=600, show_progress=False, special_tokens=specials)
    byte_level.save_model(str(folder))
    vocabulary = str(folder / "vocab.txt")
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder / "bert")
    DistilBertTokenizerFast(vocab=vocabulary).save_pretrained(folder / "distilbert")
    roberta = RobertaTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    roberta.save_pretrained(folder / "roberta")
    return folder


def numbered(lengths: Sequence[Sequence[int]], first: int = 10) -> list[Document]:
    """Documents of sentences of the given lengths whose tokens count up from `first`, each token once."""
    documents = []
    for identity, sentences in enumerate(lengths):
        size = sum(sentences)
        tokens = np.arange(first, first + size, dtype=np.uint16)
        first += size
        documents.append(Document(identity, size, tokens, np.cumsum(sentences, dtype=np.int64)))
    return documents


def read_all(source: Source) -> list[str | Drop | Fault]:
    """What the units of a source give, one after the other: texts, drops and faults."""
    found: list[str | Drop | Fault] = []
    for unit in source.units():
        for raw in source.read(unit):
            if raw.fault is not None:
                found.append(raw.fault)
            if raw.drop is not None:
                found.append(raw.drop)
            elif raw.text or raw.fault is None:
                found.append(raw.text)
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
