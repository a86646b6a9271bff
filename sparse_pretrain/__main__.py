"""`python -m sparse_pretrain` is the `sparse-pretrain` command."""

from sparse_pretrain.cli import main

main()
