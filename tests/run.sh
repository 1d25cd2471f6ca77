#!/usr/bin/env bash
# Build the wheel, install it with its development extra into a fresh virtual environment, and check it: ruff, mypy,
# and the tests. The tests run from an empty folder, so that the installed package is tested and not the checkout:
# a file that the wheel lacks shows here.
#
#   bash tests/run.sh [pytest arguments]          PYTHON=python3.12 bash tests/run.sh
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1

step() { printf '== %s\n' "$1"; }

step "virtual environment"
"${PYTHON:-python3}" -m venv "$scratch/venv"
python=$scratch/venv/bin/python

step "wheel"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$scratch/wheel" "$checkout"
wheel=$(echo "$scratch"/wheel/nn_verifier-*.whl)

step "installation"
"$python" -m pip install --quiet -c "$checkout/constraints.txt" "$wheel[dev]"

step "ruff"
"$python" -m ruff check --no-cache "$checkout"

step "mypy"
(cd "$checkout" && "$python" -m mypy --cache-dir "$scratch/mypy")

step "tests"
mkdir "$scratch/empty"
cd "$scratch/empty"
# Each worker would otherwise use every core.
export OMP_NUM_THREADS=1
export NN_VERIFIER_INSTALLED=1
"$python" -P -m pytest -c "$checkout/pyproject.toml" --rootdir "$checkout" -n 2 -q "$@" "$checkout/tests"
