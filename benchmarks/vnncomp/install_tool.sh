#!/usr/bin/env bash
# install_tool.sh v1: a virtual environment beside the checkout with this package in it.
# PYTHON names the interpreter (3.11 or newer), VERIFIER_VENV the environment's folder.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "usage: install_tool.sh v1" >&2; exit 2; }
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${VERIFIER_VENV:-$checkout/.venv}
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet -c "$checkout/constraints.txt" "$checkout"
"$venv/bin/verifier" --version
