"""Attacks beside branch and bound: candidates near given points, and how often there is time for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import verifier
from bounds.graph import Builder
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from verifier import pipeline, run
from verifier.attacks.beside import Rhythm, near
from verifier.attacks.nearest import nearest
from verifier.attacks.plan import AttackPlan, BesidePlan
from verifier.attacks.starts import Starts
from verifier.query import Cases, Query, Specification
from verifier.strategy import AheadPlan, choose, features

DIGITS = Path(__file__).resolve().parents[3] / "benchmarks" / "digits"


def valley(lowest: float, clauses: int = 2, dtype: Any = np.float32) -> Query:
    """``|x - 0.3| + |y + 0.6| <= lowest`` on the square of radius 1 (the last clause; those before it never hold)."""
    build = Builder()
    one = build.constant(torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]))
    shift = build.constant(torch.tensor([-0.3, 0.3, 0.6, -0.6]))
    sides = build.add(Relu(), build.add(Gemm(), build.input((2,)), one, shift))
    graph = build.finish([build.add(Gemm(), sides, build.constant(torch.ones(4, 1)), build.constant(torch.zeros(1)))])
    ends = np.full((1, 2), -1, dtype), np.full((1, 2), 1, dtype)
    cases = Cases(
        lower=ends[0].astype(np.float64),
        upper=ends[1].astype(np.float64),
        inner_lower=ends[0],
        inner_upper=ends[1],
        varying=ends[0] < ends[1],
        clauses_of=np.array([0, clauses]),
        literals_of=np.arange(clauses + 1),
        form=np.zeros(clauses, dtype=np.int64),
        sign=np.ones(clauses, dtype=np.int64),
        threshold=np.array([-1.0] * (clauses - 1) + [lowest]),
        strict=np.zeros(clauses, dtype=bool),
    )
    empty = np.zeros(0, dtype=np.int64)
    return Query(graph, cases, Specification((), *[empty] * 8, (), (), ()), b"")


def starts(*points: tuple[float, float], clause: int = 1) -> Starts:
    x = torch.tensor(points)
    value = (x - torch.tensor([0.3, -0.6])).abs().sum(1).double()
    return Starts(x, torch.full((len(points),), clause), value)


def test_points_nearby_are_found_and_lie_in_the_box() -> None:
    query = valley(0.02)
    found = list(near(query, starts((0.25, -0.5), (0.4, -0.7), (3.0, -0.6)), BesidePlan()))
    assert found
    for x in torch.cat(found):
        assert x.dtype == torch.float32
        assert bool((x.abs() <= 1).all())
        assert float((x - torch.tensor([0.3, -0.6])).abs().sum()) <= 0.02 + 1e-6


def test_a_clause_keeps_its_number() -> None:
    """The clause before it can never hold, so nothing is found for it."""
    assert not list(near(valley(0.02), starts((0.3, -0.6), clause=0), BesidePlan()))
    assert list(near(valley(0.02), starts((0.3, -0.6), clause=1), BesidePlan()))


def test_better_starts_lead_further() -> None:
    """Within few steps the valley is only reached from close by: what bounds lead to is worth something."""
    plan = BesidePlan(steps=3, restarts=1, longest=0.005, shortest=0.005)
    assert list(near(valley(0.012), starts((0.31, -0.59)), plan))
    assert not list(near(valley(0.012), starts((-0.9, 0.9)), plan))


def test_half_precision_points_come_in_it() -> None:
    found = next(near(valley(0.05, dtype=np.float16), starts((0.25, -0.5)), BesidePlan()))
    assert found.dtype == torch.float16


def test_the_share_of_the_time_is_kept() -> None:
    rhythm = Rhythm(BesidePlan(share=0.1, least=0.5, points=2), began=100.0)
    assert not rhythm.due(200.0)  # nothing to start from
    rhythm.hear(None)
    rhythm.hear(starts((0.0, 0.0), (0.3, -0.5), (1.0, 1.0)))
    rhythm.hear(starts((0.3, -0.6), (0.9, 0.9)))
    assert not rhythm.due(104.9)  # 0.49 s of the share: below the least
    assert rhythm.due(105.1)
    assert torch.equal(rhythm.take().x, torch.tensor([[0.3, -0.6], [0.3, -0.5]]))
    rhythm.note(2.0)
    rhythm.hear(starts((0.0, 0.0)))
    assert not rhythm.due(139.9)  # 2 s are spent, and the next attack will cost as much
    assert rhythm.due(140.1)
    assert rhythm.count == 1


def test_no_share_keeps_nothing() -> None:
    rhythm = Rhythm(BesidePlan(share=0.0, least=0.0), began=0.0)
    rhythm.hear(starts((0.0, 0.0)))
    assert rhythm.starts is None
    assert not rhythm.due(1e9)


@pytest.mark.parametrize("split_inputs", [False, True])
def test_what_is_found_beside_decides(monkeypatch: pytest.MonkeyPatch, split_inputs: bool) -> None:
    """Without the first attack, programs and the points of the search itself, only the attack beside can find one."""
    query = verifier.read(DIGITS / "digits.onnx", DIGITS / "fragile.vnnlib")
    strategy = choose(features(query))
    beside = BesidePlan(share=1e9, least=0.0)
    splits = replace(strategy.activation_split, ahead=AheadPlan())  # no programs, whose points would do
    strategy = replace(strategy, split_inputs=split_inputs, attack_after=1e9, beside=beside, activation_split=splits)
    heard: list[Starts] = []

    def watched(query: Query, starts: Starts, *rest: Any, **named: Any) -> Iterator[torch.Tensor]:
        heard.append(starts)
        return near(query, starts, *rest, **named)

    monkeypatch.setattr(run, "candidates", lambda *args, **named: iter(()))
    monkeypatch.setattr(Starts, "fulfilling", lambda self: None)
    monkeypatch.setattr(run, "near", watched)
    verdict = pipeline.verify(query, timeout=60, strategy=strategy)
    assert verdict.word == "sat"
    assert heard
    assert verdict.stage == ("input split" if split_inputs else "activation split")


def test_attacks_load_nothing_more_of_torch(checkout: Path) -> None:
    """Of every cold start it would take half a second."""
    code = (
        "import sys, test_beside; from verifier.attacks import plan, search; "
        "list(search.candidates(test_beside.valley(-0.5), plan.AttackPlan())); print('sympy' in sys.modules)"
    )
    paths = os.pathsep.join([str(checkout), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_nearest_point_of_a_clause_that_never_holds() -> None:
    point = nearest(valley(-0.5), 1, AttackPlan())
    assert point is not None and float((point - torch.tensor([0.3, -0.6])).abs().sum()) < 0.2
    assert nearest(valley(-0.5), 1, AttackPlan(), deadline=0.0) is None
