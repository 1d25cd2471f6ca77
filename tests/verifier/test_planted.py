"""No engine refutes a query with a hidden counterexample, and each refutes most of those that have none."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

ENGINES = (
    "screened",
    "input_split",
    "input_split_float64",
    "input_split_forward",
    "input_split_forward_alone",
    "activation_split",
    "activation_split_refined",
    "activation_split_by_score",
)


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    """Tensors here are tiny: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_refutes_a_planted_counterexample(planted: ModuleType, engine: str) -> None:
    counts = planted.gate(planted.ENGINES[engine], 1, 60, planted.Budget(rounds=3, seconds=1e9), twins=6)
    assert counts["planted, open"] == 60
    assert counts["impossible, refuted"] >= 7, counts


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_thousand_planted_counterexamples(planted: ModuleType, engine: str) -> None:
    counts = planted.gate(planted.ENGINES[engine], 2, 2000, planted.Budget(rounds=12, seconds=1.0), twins=10)
    assert counts["planted, open"] == 2000
    assert counts["impossible, refuted"] >= 140, counts


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
    assert planted.input_split(planted.query(graph, [box, box], clauses), planted.Budget())
