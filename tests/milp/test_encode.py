"""A graph as a mixed-integer program: what the network computes satisfies every row, and nothing else does."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bounds import Bounds, Box, Builder, Crown, Graph, Interval, Prepared, compute_bounds, prepare, trace
from bounds.ops.arithmetic import Add
from bounds.ops.relu import Relu
from milp.encode import UnboundedError, encode, with_cost
from milp.model import Model


class Residual(nn.Module):
    """Two convolutions around a shortcut, a mean, a concatenation with the input, and a dense end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.last = nn.Linear(2 * 4 + 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.relu(self.first(x))
        two = torch.relu(self.second(one) + 0.5 * one)
        pooled = nn.functional.avg_pool2d(torch.cat([two, one - two], 1), 1)[:, :2]
        return self.last(torch.cat([pooled.flatten(1), x.flatten(1)], 1))


def dense(seed: int, widths: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for one, two in itertools.pairwise(widths):
        layers += [nn.Linear(one, two), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def residual(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Residual().eval()


NETWORKS = [
    pytest.param(dense(1, (3, 6, 6, 2)), (1, 3), id="dense"),
    pytest.param(dense(2, (2, 9, 4, 4, 1)), (1, 2), id="deep"),
    pytest.param(residual(3), (1, 1, 4, 4), id="residual"),
]


def setting(module: nn.Module, shape: tuple[int, ...], radius: float = 1.0) -> tuple[Prepared, Box, Bounds]:
    graph = trace(module, torch.zeros(shape))
    prepared = prepare(graph)
    torch.manual_seed(9)
    box = Box.around(torch.rand(shape, dtype=torch.float64) - 0.5, radius)
    box = Box(
        box.lower.reshape(1, *graph.nodes[graph.inputs[0]].shape),
        box.upper.reshape(1, *graph.nodes[graph.inputs[0]].shape),
    )
    return prepared, box, compute_bounds(prepared, box, Crown(), keep=prepared.plan.watched)


def columns_at(model: Model, graph: Graph, point: Tensor) -> Tensor:
    """The values of all columns that a point gives: the nodes' own, and each phase from the sign before its ReLU."""
    values = graph.values(point)
    result = torch.full_like(model.lower, torch.nan)
    for node, columns in model.columns.items():
        flat = values[node][0].flatten()
        assert bool((flat[columns < 0] == 0).all())
        result[columns[columns >= 0]] = flat[columns >= 0]
    for node in model.node[model.element < 0].unique().tolist():
        phases = ((model.node == node) & (model.element < 0)).nonzero().flatten()
        # The elements with a phase are those that have a column of their own.
        own = model.element[(model.node == node) & (model.element >= 0)]
        unstable = [e for e in own.tolist() if bool(_crosses(model, graph, node, e))]
        result[phases] = torch.tensor(
            [float(values[graph.nodes[node].inputs[0]][0].flatten()[e] > 0) for e in unstable], dtype=torch.float64
        )
    return result


def _crosses(model: Model, graph: Graph, node: int, element: int) -> bool:
    column = int(model.columns[graph.nodes[node].inputs[0]][element])
    return column >= 0 and float(model.lower[column]) < 0 < float(model.upper[column])


def exact_rows(model: Model, values: Tensor) -> list[Fraction]:
    """``A x`` without rounding."""
    return [
        sum(
            (Fraction(model.value[e].item()) * Fraction(values[model.index[e]].item()) for e in range(a, b)),
            start=Fraction(0),
        )
        for a, b in itertools.pairwise(model.start.tolist())
    ]


@pytest.mark.parametrize(("module", "shape"), NETWORKS)
def test_the_networks_values_satisfy_every_row(module: nn.Module, shape: tuple[int, ...]) -> None:
    prepared, box, bounds = setting(module, shape)
    model = encode(prepared, box, bounds)
    assert model.exact and int(model.integer.sum()) > 1
    torch.manual_seed(4)
    for share in torch.rand(5, *box.lower.shape[1:], dtype=torch.float64):
        point = box.lower + (box.upper - box.lower) * share
        values = columns_at(model, prepared.graph, point)
        assert bool(((values >= model.lower) & (values <= model.upper)).all())
        # The values are those of float64: each row may be off by what computing its element was.
        slack = 1e-13
        ends = torch.stack([model.row_lower - model.row_error, model.row_upper + model.row_error], 1).tolist()
        for row, (low, high) in zip(exact_rows(model, values), ends, strict=True):
            assert low - slack <= row <= high + slack


@pytest.mark.parametrize(("module", "shape"), NETWORKS)
def test_nothing_else_satisfies_them(module: nn.Module, shape: tuple[int, ...]) -> None:
    """With the input and all phases fixed, the output is what the network computes (by an independent solver)."""
    highspy = pytest.importorskip("highspy")
    prepared, box, bounds = setting(module, shape)
    model = encode(prepared, box, bounds)
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    torch.manual_seed(6)
    point = box.lower + (box.upper - box.lower) * torch.rand_like(box.lower)
    inputs = model.columns[prepared.plan.input]
    lower, upper = model.lower.clone(), model.upper.clone()
    lower[inputs] = upper[inputs] = point.flatten()
    output = prepared.graph.outputs[0]
    for k in range(model.columns[output].shape[0]):
        row = torch.zeros(prepared.graph.nodes[output].shape, dtype=torch.float64).flatten()
        row[k] = 1.0
        for sign in (1.0, -1.0):
            costed = with_cost(model, output, (sign * row).reshape(prepared.graph.nodes[output].shape))
            found = _solve(solver, highspy, costed, lower, upper)
            assert found == pytest.approx(sign * float(prepared.graph.evaluate(point)[0].flatten()[k]), abs=1e-6)


def _solve(solver: object, highspy: object, model: Model, lower: Tensor, upper: Tensor) -> float:
    lp = highspy.HighsLp()  # type: ignore[attr-defined]
    lp.num_col_, lp.num_row_ = model.lower.shape[0], model.row_lower.shape[0]
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = model.cost.numpy(), lower.numpy(), upper.numpy()
    lp.row_lower_, lp.row_upper_ = model.row_lower.numpy(), model.row_upper.numpy()
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise  # type: ignore[attr-defined]
    lp.a_matrix_.start_, lp.a_matrix_.index_ = model.start.numpy(), model.index.numpy()
    lp.a_matrix_.value_ = model.value.numpy()
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)  # type: ignore[attr-defined]
    lp.integrality_ = [kinds[i] for i in model.integer.tolist()]
    solver.passModel(lp)  # type: ignore[attr-defined]
    solver.run()  # type: ignore[attr-defined]
    assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal  # type: ignore[attr-defined]
    return float(solver.getInfo().objective_function_value) + model.offset  # type: ignore[attr-defined]


def test_stable_neurons_cost_nothing() -> None:
    prepared, box, bounds = setting(dense(1, (3, 6, 6, 2)), (1, 3), radius=1e-6)
    model = encode(prepared, box, bounds)
    assert not bool(model.integer.any())
    relus = [n.id for n in prepared.plan.graph.nodes if isinstance(n.op, Relu)]
    assert not bool(torch.isin(model.node, torch.tensor(relus)).any())
    moved = model.columns[relus[0]]
    before = model.columns[prepared.plan.graph.nodes[relus[0]].inputs[0]]
    assert bool(((moved == before) | (moved == -1)).all()) and bool((moved >= 0).any())


def test_one_operand_twice_is_one_entry() -> None:
    """``relu(x) + x`` with a ReLU that is active: both operands are the same column."""
    build = Builder()
    x = build.input((3,))
    total = build.add(Add(), build.add(Relu(), x), x)
    graph = build.finish((total,))
    prepared, box = prepare(graph), Box(torch.full((1, 3), 0.5), torch.full((1, 3), 1.0)).to(torch.float64)
    model = encode(prepared, box, compute_bounds(prepared, box, Crown(), keep=prepared.plan.watched))
    assert model.index.tolist() == [0, 3, 1, 4, 2, 5]
    assert sorted(model.value.tolist()) == [-2.0] * 3 + [1.0] * 3


def test_refusals_name_what_is_wrong() -> None:
    prepared, box, bounds = setting(dense(1, (3, 6, 6, 2)), (1, 3))
    with pytest.raises(ValueError, match="one box"):
        encode(prepared, Box(torch.cat([box.lower] * 2), torch.cat([box.upper] * 2)), bounds)
    with pytest.raises(ValueError, match="proven"):
        encode(prepared, box, compute_bounds(prepared.graph, box, Interval(), semantics=None))
    wide = Box(torch.full_like(box.lower, -1.7e308), torch.full_like(box.upper, 1.7e308))
    with pytest.raises(UnboundedError, match=r"element \d+ of node .* has no finite bounds"):
        encode(prepared, wide, compute_bounds(prepared, wide, Interval()))
    with pytest.raises(ValueError, match="a row of 3 coefficients for a node of 2"):
        with_cost(encode(prepared, box, bounds), prepared.plan.output, torch.zeros(3))
