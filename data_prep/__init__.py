"""From raw dumps and books to packed token shards with a manifest.

What a document meets, in this order::

    sources/            readers: parts of files (parts.py, bzip2.py), records in them (records.py), raw documents
    wikitext.py         markup to plain text; gutenberg.py and the readers do the same for their formats
    clean.py            one paragraph a line, plain spaces, no invisible characters; language.py
    sentences.py        paragraphs to sentences
    tokens.py           sentences to token ids; known_words.py
    documents.py        what travels between the stages, and why a document is dropped
    token_files.py      tokenized documents on the disk
    selection.py        which documents stay; near_duplicates.py
    pairs.py            BERT's segment pairs         |
    packed.py           full rows over documents     | the ways to make rows
    best_fit.py         full rows of whole documents |
    shards.py           Arrow files that training maps; arrow.py
    gather.py           shards of one size for the output

How it is run::

    text_steps.py       datatrove steps from a source's unit to a token file; text_stage.py makes the job
    row_steps.py        the step from token files to shards; row_stage.py makes the job
    parallel.py         worker processes; worker_imports.py is what all of them need
    engine.py           runs jobs on this machine; engine_slurm.py on a cluster
    prepare.py          the whole, from recipe to manifest
    train_tokenizer.py  a tokenizer of the user's own text
    inspect.py          what a prepared folder holds; inspect_masking.py
"""
