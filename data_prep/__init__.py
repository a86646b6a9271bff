"""From raw dumps and books to packed token shards with a manifest.

The stages, in the order in which a document meets them::

    sources/       one reader a file: raw documents, streamed
    wikitext.py    markup to plain text; gutenberg.py and the readers do the same for their formats
    clean.py       one paragraph a line, plain spaces, no invisible characters
    sentences.py   paragraphs to sentences
    tokens.py      sentences to token ids
    documents.py   what travels between the stages, and why a document is dropped
    pairs.py       BERT's segment pairs         | the two ways
    packed.py      full rows over documents     | to make rows
    shards.py      Arrow files that training maps
    prepare.py     the whole, from recipe to manifest
"""
