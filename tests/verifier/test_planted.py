"""No engine refutes a query with a hidden counterexample, and each refutes most of those that have none."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

ENGINES = (
    "screened",
    "input_split",
    "input_split_float64",
    "input_split_forward",
    "input_split_forward_alone",
    "input_split_short_of_memory",
    "input_split_recorded",
    "input_split_resumed",
    "activation_split",
    "activation_split_refined",
    "activation_split_inner",
    "activation_split_half_spaces",
    "activation_split_by_score",
    "activation_split_resumed",
    "programs",
    "programs_with_cuts",
    "programs_recorded",
    "programs_ahead",
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_engines_are_named(planted: ModuleType) -> None:
    assert set(ENGINES) == set(planted.ENGINES)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_refutes_a_planted_counterexample(planted: ModuleType, engine: str) -> None:
    count = 30 if engine.endswith(("recorded", "resumed")) else 60  # these write files
    counts = planted.gate(planted.ENGINES[engine], 1, count, planted.Budget(rounds=3, seconds=1e9), twins=count // 10)
    assert counts["planted, open"] == count
    assert counts["impossible, refuted"] >= 7, counts


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_thousand_planted_counterexamples(planted: ModuleType, engine: str) -> None:
    counts = planted.gate(planted.ENGINES[engine], 2, 2000, planted.Budget(rounds=12, seconds=1.0), twins=10)
    assert counts["planted, open"] == 2000
    assert counts["impossible, refuted"] >= 140, counts


def test_a_run_is_continued(planted: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Parts that the file has are not run again, unless they were run with other limits."""
    seen: list[tuple[str, int, int]] = []

    def work(part: Any) -> dict[str, object]:
        seen.append((part.engine, part.first, part.count))
        return asdict(part) | {"counts": {"planted, open": part.count}, "took": 0.0}

    monkeypatch.setattr(planted, "work", work)
    out = tmp_path / "parts.jsonl"
    todo = planted.parts(["screened", "input_split"], 5, planted.PART + 7, planted.Budget(3))
    planted.run(todo[:3], 1, out, False)
    lines = planted.run(todo, 1, out, True)
    assert seen == [("screened", 0, 100), ("input_split", 0, 100), ("screened", 100, 7), ("input_split", 100, 7)]
    assert [(line["engine"], line["first"]) for line in lines] == [(e, k) for e, k, _ in seen]
    planted.run(planted.parts(["screened"], 5, 1, planted.Budget(4)), 1, out, True)
    assert seen[4:] == [("screened", 0, 1)]


def test_a_false_refutation_is_written_down(planted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "ENGINES", {"hasty": lambda query, budget: True})
    line = planted.work(planted.Part("hasty", 1, 4, 3, planted.Budget()))
    assert "instance 4 of seed 1" in line["false"]


def test_the_hidden_point_fulfils_its_clause(planted: ModuleType) -> None:
    """The gate means nothing unless the points are counterexamples: forms in float64, margins far above its errors."""
    margins = set()
    for one in planted.instances(3, 40):
        cases = one.query.cases
        outputs = one.query.graph.evaluate(torch.from_numpy(one.point).double()[None])[0][0].numpy()
        inside = ((cases.inner_lower <= one.point) & (one.point <= cases.inner_upper)).all(axis=1)
        true = cases.sign * outputs[cases.form] < cases.threshold
        clauses = [true[a:b].all() for a, b in zip(cases.literals_of, cases.literals_of[1:], strict=False)]
        owner = np.repeat(np.arange(len(cases.lower)), np.diff(cases.clauses_of))
        assert any(good and inside[box] for good, box in zip(clauses, owner, strict=True))
        margins.add(one.margin)
    assert margins == set(planted.MARGINS)


def test_overflow_in_float32_refutes_nothing(planted: ModuleType) -> None:
    """Bounds overflow in the first plan, while the true values and the threshold are ordinary float64 numbers."""
    from bounds.graph import Builder
    from bounds.ops.gemm import Gemm
    from bounds.ops.relu import Relu

    build = Builder()
    x = build.input((2,))
    for _ in range(3):
        weight = build.constant(torch.tensor([[1e20, -1e20], [1e20, 2e20]], dtype=torch.float64))
        shift = build.constant(torch.tensor([1.0, -1.0], dtype=torch.float64))
        x = build.add(Relu(), build.add(Gemm(), x, weight, shift))
    graph = build.finish([build.add(Gemm(), x, build.constant(torch.ones((2, 1), dtype=torch.float64)))])
    box = (-np.ones(2, dtype=np.float32), np.ones(2, dtype=np.float32))
    for engine in ENGINES:
        assert not planted.ENGINES[engine](planted.query(graph, [box], [(0, [(0, 1, 1e25)])]), planted.Budget(rounds=4))


def test_boxes_with_different_literals_share_a_batch(planted: ModuleType) -> None:
    """What rounding keeps open in float32 goes to float64 alone, and may need other columns than the whole batch."""
    from bounds.graph import Builder
    from bounds.ops.gemm import Gemm

    build = Builder()
    weight = build.constant(torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64))
    shift = build.constant(torch.tensor([1e6, 1e6, 1e6], dtype=torch.float64))
    graph = build.finish([build.add(Gemm(), build.input((1,)), weight, shift)])
    box = (np.array([0.0], dtype=np.float32), np.array([1.0], dtype=np.float32))
    near, far = 1e6 - 1e-3, 1e6 - 10
    clauses = [(0, [(0, 1, far), (1, 1, far), (2, 1, far)]), (1, [(0, 1, near), (2, 1, near)])]
    assert planted.ENGINES["input_split"](planted.query(graph, [box, box], clauses), planted.Budget())
