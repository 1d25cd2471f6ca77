#!/usr/bin/env bash
# prepare_instance.sh v1 CATEGORY MODEL.onnx PROPERTY.vnnlib: the files are there and the program starts. Nothing is
# analysed; starting it once leaves its libraries in the system's file cache. MODEL may be a list of (name, path) pairs.
set -euo pipefail
[ "${1:-}" = v1 ] && [ $# -eq 4 ] || { echo "usage: prepare_instance.sh v1 CATEGORY MODEL PROPERTY" >&2; exit 2; }
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${VERIFIER_VENV:-$checkout/.venv}/bin/python
[ -f "$4" ] || [ -f "$4.gz" ] || { echo "no such file: $4" >&2; exit 1; }
case $3 in
  "["*) ;;
  *) [ -f "$3" ] || [ -f "$3.gz" ] || { echo "no such file: $3" >&2; exit 1; } ;;
esac
"$python" -P -c "import verifier, torch, onnx, onnxruntime"
