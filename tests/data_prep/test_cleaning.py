"""Optional cleaning: Unicode repair, languages, near-duplicates; counts and samples of what is dropped."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from data_prep.clean import repair_unicode
from data_prep.documents import Drop
from data_prep.language import in_languages, language_of
from data_prep.near_duplicates import BANDS, bands_of
from data_prep.prepare import DROPPED_FILE
from tests.data_prep.corpus import prose
from tests.data_prep.test_prepare import Preparation

GERMAN = (
    "Der Fluss fließt durch die Stadt und am Abend gehen die Menschen über die alte Brücke nach Hause. " * 3
)


def test_wrong_decodings_are_undone_and_quotes_stay() -> None:
    assert repair_unicode("cafÃ© &amp; “quotes” ﬁne") == "café & “quotes” ﬁne"


def test_languages() -> None:
    assert language_of(prose(1, 10)) == "en"
    assert language_of(GERMAN) == "de"
    assert in_languages(GERMAN, frozenset({"en", "fr"})) is Drop.OTHER_LANGUAGE
    assert in_languages(GERMAN, frozenset({"de"})) == GERMAN


def shared_bands(first: list[int], second: list[int]) -> int:
    return int((bands_of(np.array(first, np.uint16)) == bands_of(np.array(second, np.uint16))).sum())


def test_documents_share_bands_as_they_share_text() -> None:
    draw = random.Random(0)
    text = [draw.randrange(30_000) for _ in range(6000)]
    assert shared_bands(text, text) == BANDS
    assert shared_bands(text, text[30:]) > 0
    assert shared_bands(text, [draw.randrange(30_000) for _ in range(6000)]) == 0
    half = text[:3000] + [draw.randrange(30_000) for _ in range(3000)]
    assert shared_bands(text, half) <= 1
    assert shared_bands([1, 2], [1, 2]) == BANDS
    assert shared_bands([1, 2], [1, 3]) == 0


def test_counts_and_samples_of_what_is_dropped(raw: Path, tokenizers: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    long = " ".join(prose(seed, 12) for seed in range(9000, 9030))
    (more / "a.txt").write_text(long)
    (more / "b.txt").write_text(long + " One more sentence stands here.")
    (more / "c.txt").write_text("Nothing " + long)
    (more / "d.txt").write_text(GERMAN)
    (more / "e.txt").write_text(prose(9100, 12).replace("Text", "cafÃ©"))
    preparation = Preparation(raw, tokenizers, tmp_path / "out")
    manifest = preparation.run(
        f"sources.more={{kind: books, path: {more}}}",
        "drop_near_duplicates=true",
        "cleaning={repair_unicode: true, languages: [en]}",
    )
    source = manifest.sources[-1]
    assert source.documents == 2
    assert source.dropped == {"other_language": 1, "near_duplicate": 2}
    assert source.faults == {"repaired_unicode": 1}
    samples = json.loads((preparation.output / DROPPED_FILE).read_text())
    own = samples[source.name]
    assert own["other_language"] == [GERMAN[:200].strip()]
    assert len(own["near_duplicate"]) == 2
    assert "begins here" in own["near_duplicate"][0]
    dump = samples[manifest.sources[0].name]
    assert dump["redirect"] == ["Mayence"]
    assert dump["duplicate"][0].lower().startswith("text 0 begins here")


def test_a_code_that_is_none(raw: Path, tokenizers: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="'english' is no ISO 639-1 code"):
        Preparation(raw, tokenizers, tmp_path / "out").recipe("cleaning.languages=[english]")
