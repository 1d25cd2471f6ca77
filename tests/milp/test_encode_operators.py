"""Networks of other operators than ReLU as mixed-integer programs: pools, clips, slopes, steps, whole numbers, places.

A program's values are found by an independent interface to a solver (scipy's), to its tolerances; that rows hold
without any is tested for each operator by itself (``tests/bounds/test_linear_blocks.py``).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, sparse
from torch import Tensor, nn

from bounds import Bounds, Box, Builder, Crown, Graph, Prepared, compute_bounds, prepare, trace
from bounds.ops.argmax import Greatest, Leading
from bounds.ops.arithmetic import Add
from bounds.ops.base import UnsupportedOperatorError
from bounds.ops.bilinear import MatrixProduct, Product
from bounds.ops.extremum import Max, Min
from bounds.ops.gemm import Gemm
from bounds.ops.jumps import Floor, Round, Step
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, PRelu
from bounds.ops.shaping import Reshape
from bounds.ops.softmax import LogSoftmax, Softmax
from bounds.ops.sshape import Sigmoid, Tanh
from milp.encode import encode
from milp.model import Model

D = torch.float64


class Pooled(nn.Module):
    """A convolution with overlapping pools, a shortcut around LeakyReLUs, and a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        one = nn.functional.max_pool2d(self.first(x), 2)
        two = nn.functional.leaky_relu(self.second(one), 0.125) + one
        return self.last(nn.functional.hardtanh(two, -0.25, 0.5).flatten(1))


def pooled() -> Graph:
    torch.manual_seed(1)
    return trace(Pooled().eval(), torch.zeros((1, 1, 4, 4)))


def layered(*layers: object) -> Graph:
    """Dense layers of the widths given between operators; a pair of operators reads two dense layers."""
    draw = torch.Generator().manual_seed(5)
    build = Builder()
    node = build.input((3,))

    def dense(width: int) -> int:
        weight = torch.randn((build.shape(node)[-1], width), generator=draw, dtype=D)
        bias = torch.randn(width, generator=draw, dtype=D) / 2
        return build.add(Gemm(), node, build.constant(weight), build.constant(bias))

    for layer in layers:
        if isinstance(layer, int):
            node = dense(layer)
        elif isinstance(layer, Max | Min | Product):
            width = build.shape(node)[-1]
            node = build.add(layer, dense(width), dense(width))
        elif isinstance(layer, PRelu):
            slopes = torch.tensor([0.25, -0.5, 1.0, 2.0], dtype=D)
            node = build.add(layer, node, build.constant(slopes))
        else:
            node = build.add(layer, node)  # type: ignore[arg-type]
    return build.finish([node])


def placed() -> Graph:
    """Two places of greatest elements, from the elements and from their differences, beside the elements."""
    draw = torch.Generator().manual_seed(8)
    build = Builder()
    x = build.input((3,))
    rows = build.add(Gemm(), x, *(build.constant(torch.randn(s, generator=draw, dtype=D)) for s in ((3, 4), (4,))))
    pairs = torch.tensor([[(k == j) - (k == i) for k in range(4)] for i in range(4) for j in range(i + 1, 4)])
    apart = build.add(Gemm(), rows, build.constant(pairs.to(D).T.contiguous()), build.constant(torch.zeros(6, dtype=D)))
    one = build.add(Reshape((1,)), build.add(Greatest(False), rows))
    two = build.add(Reshape((1,)), build.add(Leading(4, False), apart))
    return build.finish([build.add(Add(), one, two)])


EXACT = {
    "pooled": pooled,
    "abs and clip": lambda: layered(4, Abs(), 4, Clip(-0.5, 1.0), 2),
    "slopes": lambda: layered(4, LeakyRelu(0.125), 4, PRelu(), 2),
    "extrema": lambda: layered(3, Max(), 3, Min(), 2),
    "steps": lambda: layered(4, Step(-1.0, 0.0, 1.0), 3, Step(0.0, 1.0, 1.0), 2),
    "whole numbers": lambda: layered(3, Floor(), 3, Round(), 2),
    "places": placed,
}
ENCLOSED = {
    "s-shapes": lambda: layered(4, Sigmoid(), 3, Tanh(), 2),
    "product": lambda: layered(3, Product(), 2),
    "softmax": lambda: layered(4, Softmax(-1), 2),
    "log-softmax": lambda: layered(4, LogSoftmax(-1), 2),
}


def setting(graph: Graph, radius: float = 0.75) -> tuple[Prepared, Box, Bounds]:
    prepared = prepare(graph)
    torch.manual_seed(9)
    box = Box.around(torch.rand(graph.nodes[graph.inputs[0]].shape, dtype=D) - 0.5, radius)
    return prepared, box, compute_bounds(prepared, box, Crown(), keep=prepared.plan.watched)


def minimum(model: Model, cost: Tensor, fixed: dict[int, float] | None = None) -> float | None:
    """By scipy; None: infeasible."""
    lower, upper = model.lower.clone(), model.upper.clone()
    for column, value in (fixed or {}).items():
        lower[column] = upper[column] = value
    rows = sparse.csr_matrix(
        (model.value.numpy(), model.index.numpy(), model.start.numpy()), (model.row_lower.shape[0], lower.shape[0])
    )
    slack = model.row_error.numpy() + 1e-9
    sides = optimize.LinearConstraint(rows, model.row_lower.numpy() - slack, model.row_upper.numpy() + slack)
    ends = optimize.Bounds(lower.numpy(), upper.numpy())
    found = optimize.milp(cost.numpy(), constraints=sides, bounds=ends, integrality=model.integer.numpy())
    assert found.status in {0, 2}, found.message
    return float(found.fun) if found.status == 0 else None


def inputs_at(model: Model, graph: Graph, point: Tensor) -> dict[int, float]:
    return dict(zip(model.columns[graph.inputs[0]].tolist(), point.flatten().tolist(), strict=True))


def outputs(model: Model, graph: Graph) -> list[Tensor]:
    """A cost for each output that has a column."""
    found = []
    for column in model.columns[graph.outputs[0]].tolist():
        assert column >= 0
        found.append(torch.zeros_like(model.lower))
        found[-1][column] = 1.0
    return found


def points_of(box: Box, count: int) -> Tensor:
    share = torch.rand((count, *box.lower.shape[1:]), generator=torch.Generator().manual_seed(4), dtype=D)
    return box.lower + (box.upper - box.lower) * share


@pytest.mark.parametrize("name", [*EXACT, *ENCLOSED])
def test_the_networks_values_satisfy_the_rows(name: str) -> None:
    """With all nodes' columns at the values of a point, the solver finds phases."""
    graph = (EXACT | ENCLOSED)[name]()
    prepared, box, bounds = setting(graph)
    model = encode(prepared, box, bounds, envelope=0.01)
    assert model.exact == (name in EXACT)
    for point in points_of(box, 5):
        values, fixed = graph.values(point[None]), dict[int, float]()
        for node, columns in model.columns.items():
            flat = values[node][0].flatten()
            assert bool((flat[columns < 0].abs() < 1e-12).all())
            fixed |= dict(zip(columns[columns >= 0].tolist(), flat[columns >= 0].tolist(), strict=True))
        assert minimum(model, torch.zeros_like(model.lower), fixed) is not None
        moved = dict(fixed)  # and with another output it finds none
        moved[int(model.columns[graph.outputs[0]][0])] += 0.5
        assert minimum(model, torch.zeros_like(model.lower), moved) is None


@pytest.mark.parametrize("name", EXACT)
def test_nothing_else_satisfies_them(name: str) -> None:
    """With the input fixed, each output is what the network computes."""
    graph = EXACT[name]()
    prepared, box, bounds = setting(graph)
    model = encode(prepared, box, bounds)
    assert int(model.integer.sum()) > 3
    for point in points_of(box, 3):
        value = graph.evaluate(point[None])[0].flatten().tolist()
        for cost, wanted in zip(outputs(model, graph), value, strict=True):
            for sign in (1.0, -1.0):
                found = minimum(model, sign * cost, inputs_at(model, graph, point))
                assert found == pytest.approx(sign * wanted, abs=2e-5)


@pytest.mark.parametrize("name", [*EXACT, *ENCLOSED])
def test_minima_lie_between_bounds_and_samples(name: str) -> None:
    graph = (EXACT | ENCLOSED)[name]()
    prepared, box, bounds = setting(graph, 0.4)
    model = encode(prepared, box, bounds, envelope=0.05)
    sampled = graph.evaluate(points_of(box, 500))[0].flatten(1)
    for k, cost in enumerate(outputs(model, graph)[:1]):
        found = minimum(model, cost)
        assert found is not None
        assert float(bounds.lower.flatten()[k]) - 1e-5 <= found <= float(sampled[:, k].min()) + 1e-5
        if name in EXACT:
            assert found >= float(sampled[:, k].min()) - 2.0


def test_smaller_errors_leave_less() -> None:
    graph = ENCLOSED["s-shapes"]()
    prepared, box, bounds = setting(graph)
    point = points_of(box, 1)[0]
    value = float(graph.evaluate(point[None])[0].flatten()[0])
    away = []
    for error in (0.1, 1e-2, 1e-3):
        model = encode(prepared, box, bounds, envelope=error)
        least = minimum(model, outputs(model, graph)[0], inputs_at(model, graph, point))
        assert least is not None
        away.append(value - least)
    weights = [
        graph.constants[i].value.abs().sum().item()
        for n in graph.nodes
        if isinstance(n.op, Gemm)
        for i in n.inputs[1:2]
    ]
    assert 0 <= away[2] < away[1] < away[0]
    assert away[2] < 1e-3 * weights[-1] * (1 + weights[-2])


@pytest.mark.parametrize("name", ENCLOSED)
def test_without_an_envelope_the_node_is_named(name: str) -> None:
    prepared, box, bounds = setting(ENCLOSED[name]())
    with pytest.raises(UnsupportedOperatorError, match=r"node \d+ \(\w+\) has no exact form .* 'envelope'"):
        encode(prepared, box, bounds)
    with pytest.raises(ValueError, match="positive error"):
        encode(prepared, box, bounds, envelope=0.0)


def test_matrix_products_keep_their_rows() -> None:
    """Four rows an element, each over a row and a column of the operands, with what computing them was off by."""
    draw = torch.Generator().manual_seed(2)
    one, two = (torch.randn(shape, generator=draw, dtype=D) for shape in ((1, 2, 3), (1, 3, 2)))
    operands = [(one - 0.5, one + 0.25), (two - 1, two + 0.5)]
    block = MatrixProduct().envelope(operands, 0.1)
    assert block.lower.shape[0] == 4 * 4
    assert torch.bincount(block.row).tolist() == [7] * 16
    for share in torch.rand((50, 12), generator=draw, dtype=D):
        x, y = (a + (b - a) * s.reshape(a.shape) for (a, b), s in zip(operands, (share[:6], share[6:]), strict=True))
        values = torch.cat([x.flatten(), y.flatten(), (x @ y).flatten()])
        rows = torch.zeros(16, dtype=D).index_add_(0, block.row, block.value * values[block.column])
        assert bool(
            (rows >= block.lower - block.error - 1e-14).all() & (rows <= block.upper + block.error + 1e-14).all()
        )
    assert float(block.error.max()) < 1e-12
    assert np.isfinite(block.error.numpy()).all()
