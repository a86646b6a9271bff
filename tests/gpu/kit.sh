#!/usr/bin/env bash
# What measure.sh needs on a machine that has torch and transformers but no network: wheels of the rest, and rows.
#
#   tests/gpu/kit.sh [FOLDER]       PYTHON_VERSION (this environment's): of the Python there, such as 3.12
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
kit=${1:-gpu-kit}
python=.venv/bin/python
version=${PYTHON_VERSION:-$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
packages=(
  deepspeed einops hjson msgpack ninja packaging psutil py-cpuinfo
  pydantic pydantic_core annotated-types typing-inspection typing_extensions
  omegaconf PyYAML typer shellingham annotated-doc rich markdown-it-py mdurl Pygments
  pyarrow xxhash jinja2 MarkupSafe pytest pluggy iniconfig
)
mkdir -p "$kit/wheels"
grep -iE "^($(IFS='|'; echo "${packages[*]}"))==" constraints.txt > "$kit/packages.txt"
# Only DeepSpeed comes as source; its wheel is every Python's.
grep -i '^deepspeed==' "$kit/packages.txt" > "$kit/source.txt"
$python -m pip wheel --quiet --no-deps --wheel-dir "$kit/wheels" --requirement "$kit/source.txt"
grep -vi '^deepspeed==' "$kit/packages.txt" > "$kit/binary.txt"
platforms=()
for name in manylinux1 manylinux2014 manylinux_2_17 manylinux_2_27 manylinux_2_28; do
  platforms+=(--platform "${name}_x86_64")
done
$python -m pip download --quiet --no-deps --dest "$kit/wheels" --only-binary=:all: --python-version "$version" \
  --implementation cp "${platforms[@]}" --requirement "$kit/binary.txt"
# Prepares the rows, and shows that both sides run on them.
$python -m sparse_pretrain bench train --models tiny --lengths 512 --ranks 1 --precisions fp32 --steps 1 \
  --slots 512 --data "$kit/rows"
rm -rf "$kit"/rows/*/{work,text.jsonl} "$kit"/{packages,source,binary}.txt
du -sh "$kit"
