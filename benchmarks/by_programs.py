"""``verifier verify`` with mixed-integer programs in place of splits, for comparisons.

    python -P -m benchmarks.by_programs MODEL.onnx PROPERTY.vnnlib SECONDS

Prints the word, and after ``sat`` the counterexample, as ``verifier verify`` does.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from verifier import pipeline
from verifier.query import read
from verifier.strategy import ProgramPlan, choose, features
from verifier.tasks import write_witness
from verifier.verdict import Violated

START_UP = 1.0
"""Seconds that a process has lived before its first line here, about."""


def main() -> None:
    """Decide one property."""
    start, (model, prop, seconds) = time.monotonic(), sys.argv[1:]
    query = read(model, prop)
    strategy = replace(choose(features(query)), programs=ProgramPlan(process=True))
    left = max(0.0, float(seconds) - START_UP - (time.monotonic() - start))
    verdict = pipeline.verify(query, timeout=left, strategy=strategy)
    print(verdict.word)
    if isinstance(verdict, Violated):
        print(write_witness(verdict.counterexample, query, None))


if __name__ == "__main__":
    main()
