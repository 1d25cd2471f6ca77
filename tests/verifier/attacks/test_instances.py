"""Known counterexamples of competition instances are found by the default plan and replayed with onnxruntime."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from verifier.attacks.plan import AttackPlan
from verifier.attacks.search import candidates
from verifier.query import read
from verifier.replay import Replayer

# The first instance labelled sat of each is looked at.
BENCHMARKS = ("acasxu", "mnist_fc", "rl_benchmarks", "reach_prob_density", "collins_rul_cnn", "sri_resnet_b")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_first_violated_instance(vnncomp_dir: Path, benchmark: str) -> None:
    folder = vnncomp_dir / benchmark
    with (folder / "instances.csv").open() as lines:
        model, prop = next((row[0], row[1]) for row in csv.reader(lines) if row[3] == "sat")
    query = read(folder / f"{model}.gz", folder / f"{prop}.gz")
    replayer = Replayer(query)
    found = (replayer.replay(points.numpy()) for points in candidates(query, AttackPlan()))
    assert any(counterexample is not None for counterexample in found)
