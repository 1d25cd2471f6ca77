"""``python -m bounds.ops``: the supported ONNX operators as JSON on standard output."""

import json
import sys

from bounds.ops import supported

if __name__ == "__main__":
    json.dump(supported(), sys.stdout, indent=1)
    sys.stdout.write("\n")
