#!/usr/bin/env bash
# Everything that needs a GPU, in one run of ten minutes: does training come out right there, how fast is it, and where
# does the time go.
#
#   tests/gpu/measure.sh OUT         results in OUT, one file a stage; exit code 1 when a stage failed
#
# PYTHON (python3): has torch and transformers. KIT (gpu-kit): made by `make gpu-kit`, wheels of everything else and
# prepared rows; without wheels in it, the packages must be installed. SLOTS (16384): tokens of a step.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ $# -eq 1 ] || { echo "usage: tests/gpu/measure.sh OUT" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
python=${PYTHON:-python3}
kit=${KIT:-gpu-kit}
slots=${SLOTS:-16384}
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -d "$kit/wheels" ]; then
  packages=$(mktemp -d)
  trap 'rm -rf "$packages"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --target "$packages" "$kit"/wheels/*.whl || exit 1
  export PYTHONPATH=$PWD:$packages
fi
failed=0

# stage NAME SECONDS COMMAND…: its output in OUT/NAME.json, what it says beside that in OUT/NAME.log.
stage() {
  local name=$1 seconds=$2 began=$SECONDS code=0
  shift 2
  timeout --kill-after=10 "$seconds" "$@" > "$out/$name.json" 2> "$out/$name.log" || code=$?
  echo "$name: exit code $code after $((SECONDS - began)) s"
  if [ "$code" -ne 0 ]; then
    failed=1
    tail -n 5 "$out/$name.log"
  fi
}

nvidia-smi > "$out/nvidia-smi.txt" 2>&1 || true
stage parity 120 "$python" -m tests.gpu.parity
bench() {
  stage "$1" "$2" "$python" -m sparse_pretrain bench train --lengths 512 --ranks 1 --precisions bf16 --slots "$slots" \
    --steps 10 --data "$kit/rows" --json "${@:3}"
}
bench bert-base 110 --models bert-base
bench bert-large 120 --models bert-large
bench bert-base-compiled 140 --models bert-base --compile --profile
bench bert-large-compiled 150 --models bert-large --compile --profile
"$python" -m tests.gpu.tables "$out" | tee "$out/tables.txt"
exit "$failed"
