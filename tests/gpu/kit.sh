#!/usr/bin/env bash
# What measure.sh needs on a machine that has torch and transformers but no network: wheels of the rest, and rows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
kit=${1:-gpu-kit}
python=.venv/bin/python
packages=(
  deepspeed einops hjson msgpack ninja packaging psutil py-cpuinfo
  pydantic pydantic_core annotated-types typing-inspection typing_extensions
  omegaconf PyYAML typer shellingham annotated-doc rich markdown-it-py mdurl Pygments
  pyarrow xxhash jinja2 MarkupSafe pytest pluggy iniconfig
)
mkdir -p "$kit/wheels"
grep -iE "^($(IFS='|'; echo "${packages[*]}"))==" constraints.txt > "$kit/packages.txt"
$python -m pip wheel --quiet --no-deps --wheel-dir "$kit/wheels" --requirement "$kit/packages.txt"
# Prepares the rows, and shows that both sides run on them.
$python -m sparse_pretrain bench train --models tiny --lengths 512 --ranks 1 --precisions fp32 --steps 1 \
  --slots 512 --data "$kit/rows"
rm -f "$kit/rows/text.jsonl"
rm -rf "$kit/rows/work"
du -sh "$kit"
