#!/usr/bin/env bash
# run_instance.sh v1 CATEGORY MODEL.onnx PROPERTY.vnnlib RESULTS_FILE TIMEOUT: the answer of `verifier verify` goes to
# RESULTS_FILE, the word first. MODEL may be a list of (name, path) pairs for a query over several networks. An error
# leaves the word `error`, a model or property that is not supported `unknown`; the reason is on stderr.
set -uo pipefail
[ "${1:-}" = v1 ] && [ $# -eq 6 ] || { echo "usage: run_instance.sh v1 CATEGORY MODEL PROPERTY RESULTS TIMEOUT" >&2; exit 2; }
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
verifier=${VERIFIER_VENV:-$checkout/.venv}/bin/verifier
"$verifier" verify "$3" "$4" --timeout "$6" > "$5"
case $? in
  0) ;;
  3) echo unknown > "$5" ;;
  *) echo error > "$5" ;;
esac
