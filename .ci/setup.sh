#!/usr/bin/env bash
# Makes the project's environment: torch first, then everything else as constraints.txt pins it.
# Run by `make setup`, which skips it while setup.cfg, constraints.txt and pyproject.toml are unchanged.
#
#   VENV=.venv          where the environment goes
#   PYTHON=python3      the Python (3.11 or later) it is made from
#   TORCH_INDEX_URL=    package index to take torch from, for example the PyTorch project's index of CPU builds
#   USE_SYSTEM_TORCH=1  use the torch that PYTHON can already import (a module, a container, a conda environment)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}
LOG=$VENV/setup.log
CONSTRAINTS=constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "setup: $*"; }
die() { echo "setup: error: $*" >&2; exit 1; }

# Runs pip with its output in the log; a failure shows pip's own last word.
pip() {
    "$VENV/bin/python" -m pip "$@" >>"$LOG" 2>&1 && return
    die "pip failed: $(grep -E '^ *ERROR|No space left' "$LOG" | tail -n 1 | cut -c -300) (whole story: $LOG)"
}

# Prints the version of the torch that the given Python imports, or nothing; the import itself would take seconds.
torch_version() {
    "$1" -c 'from importlib import metadata; print(metadata.version("torch"))' 2>/dev/null || true
}

check_python() {
    command -v "$PYTHON" >/dev/null || die "$PYTHON not found: apt-get install python3 python3-venv, or PYTHON=/path/to/python3.11 make setup"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$PYTHON" --version) is too old, 3.11 or later is needed: PYTHON=/path/to/python3.11 make setup"
}

make_venv() {
    if [[ ! -x $VENV/bin/python ]] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
            die "$PYTHON cannot make environments: apt-get install python3-venv"
        "$PYTHON" -m venv --clear "$VENV" || die "could not make $VENV: see the line above"
    fi
    : >"$LOG"
    # an old pip fetches whole wheels where it only needs their metadata
    pip install --constraint "$CONSTRAINTS" --upgrade pip
}

# Lets the environment see the packages beside the torch that PYTHON imports; what is installed here comes first.
borrow_torch() {
    local beside
    beside=$("$PYTHON" -c 'import importlib.util as u, pathlib as p; print(p.Path(u.find_spec("torch").origin).parents[1])' 2>/dev/null) ||
        die "USE_SYSTEM_TORCH=1, but $PYTHON has no torch: install it there, or leave the variable out"
    echo "$beside" >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed_torch.pth"
}

install_torch() {
    local pinned index=()
    pinned=$(grep '^torch==' constraints.txt)
    [[ -z ${TORCH_INDEX_URL:-} ]] || index=(--index-url "$TORCH_INDEX_URL")
    say "asking the package index for $pinned ..."
    # the second try is for an index that holds torch but not what torch needs
    "$VENV/bin/python" -m pip install --dry-run --quiet --report "$VENV/torch.json" "${index[@]}" "$pinned" >>"$LOG" 2>&1 ||
        pip install --dry-run --quiet --no-deps --report "$VENV/torch.json" "${index[@]}" "$pinned"
    "$VENV/bin/python" .ci/torch_build.py "$VENV/torch.json"
    # its dependencies come with everything else, so that the constraints hold for them too
    pip install --no-deps "${index[@]}" "$pinned"
}

# Keeps an installed torch that is not the tested one: without this the constraints would replace it.
keep_torch() {
    local have=$1 tested
    tested=$(sed -n 's/^torch==//p' constraints.txt)
    "$VENV/bin/python" - "$have" <<'PY' || die "torch $have is too old, 2.10 or later is needed: remove it (or $VENV) and run make setup again"
import re, sys
sys.exit(tuple(map(int, re.findall(r"\d+", sys.argv[1])[:2])) < (2, 10))
PY
    if [[ ${have%%+*} == "$tested" ]]; then
        say "using torch $have"
    else
        say "keeps the installed torch $have (the tested one is $tested)"
    fi
    CONSTRAINTS=$VENV/constraints.txt
    sed "s/^torch==.*/torch==$have/" constraints.txt >"$CONSTRAINTS"
}

say "environment in $VENV, with torch first"
check_python
make_venv
[[ ${USE_SYSTEM_TORCH:-0} != 1 ]] || borrow_torch
installed=$(torch_version "$VENV/bin/python")
[[ -n $installed ]] || install_torch
keep_torch "$(torch_version "$VENV/bin/python")"
say "installing the other packages (about 100, 2 to 5 minutes the first time; log: $LOG) ..."
pip install --constraint "$CONSTRAINTS" --editable '.[test]'
say "ready: $VENV, $(du -sh "$VENV" | cut -f 1), $("$VENV/bin/python" --version), torch $(torch_version "$VENV/bin/python")"
