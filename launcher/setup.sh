#!/usr/bin/env bash
# Make .venv in the checkout with the pinned versions, ready for `make demo` and `make test`.
#
# Checks first, with one line each about what to install; then Python packages; then the stamp
# .venv/.ready, which the Makefile compares with pyproject.toml, constraints.txt and this file. The stamp
# goes first and comes back last, so a set-up that failed or was interrupted is done again.
#
#   PYTHON=python3.12 launcher/setup.sh   takes that interpreter (default: python3, else the newest found)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

venv=.venv
stamp=$venv/.ready
log=$venv/setup.log
# Matches constraints.txt, which carries the version without the build (CPU or CUDA).
torch_pin=$(grep -E '^torch==' constraints.txt)
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 2
}

is_recent_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if is_recent_python "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "needs Python 3.11 or newer (tried ${PYTHON:-python3}: $("${PYTHON:-python3}" --version 2>&1 | tail -n 1));" \
        "install python3.11 or set PYTHON=/path/to/python"
}

# A set-up that was killed leaves a folder without pip, and an upgraded system Python a venv whose
# interpreter is gone. Both look like a venv and can only be made anew.
venv_works() { [ -x "$venv/bin/python" ] && is_recent_python "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

make_venv() {
    local python=$1
    if [ -e "$venv" ]; then
        say "$venv is incomplete, making it anew"
    else
        say "making $venv with $("$python" --version)"
    fi
    "$python" -m venv --clear "$venv" ||
        die "python -m venv failed; on Debian and Ubuntu: sudo apt install python3-venv"
}

has_gpu() { command -v nvidia-smi >/dev/null && [[ $(nvidia-smi -L 2>/dev/null) == *"GPU "* ]]; }

# pip's warnings (a configured folder that lacks a package: one line each) help nobody until it fails.
pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check "$@" >"$log" 2>&1; }

die_of_pip() {
    tail -n 25 "$log" >&2
    die "$1; its last lines are above, all of them in $log"
}

torch_is_installed() {
    "$venv/bin/python" - "${torch_pin#torch==}" 2>/dev/null <<'PYTHON_CODE'
import sys
from importlib.metadata import version
sys.exit(version("torch").split("+")[0] != sys.argv[1])
PYTHON_CODE
}

# The index's own torch for Linux is a CUDA build and pulls gigabytes. Without a GPU, in this order: a wheel
# that pip is configured to find on this machine (--no-index: seconds, no network), the CPU build of
# download.pytorch.org (tried once, briefly: an offline mirror must not cost minutes), the index's own build.
# --no-deps: the pinned install that follows brings what torch needs.
install_torch() {
    if torch_is_installed; then
        return
    fi
    if has_gpu; then
        say "a GPU is here: installing the CUDA build of $torch_pin"
        pip_install "$torch_pin" -c constraints.txt
    elif pip_install --no-index --no-deps "$torch_pin"; then
        say "no GPU: installed $torch_pin from a local wheel"
    elif [ "$(uname -s)" = Linux ] && pip_install --index-url "$cpu_index" --retries 0 --timeout 15 \
        --no-deps "$torch_pin+cpu"; then
        say "no GPU: installed the CPU build of $torch_pin"
    else
        say "no GPU, and $cpu_index is out of reach: installing $torch_pin from the package index"
        pip_install "$torch_pin" -c constraints.txt
    fi
}

main() {
    local python
    python=$(find_python)
    rm -f "$stamp"
    venv_works || make_venv "$python"
    install_torch || die_of_pip "pip could not install $torch_pin"
    say "installing the pinned packages (a few minutes on a slow network)"
    pip_install -c constraints.txt -e '.[dev]' || die_of_pip "pip could not install the packages"
    touch "$stamp"
    say "ready in ${SECONDS} s"
}

main
