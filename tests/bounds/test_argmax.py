"""ArgMax and ArgMin: values, sets of possible places, ties, and bounds from differences of elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds import Box, Crown, compute_bounds
from bounds.graph import Builder, Graph
from bounds.ops import argmax, readers
from bounds.ops.argmax import Greatest, Leading, Place, pairs
from bounds.ops.base import NoDerivativeError, OnnxNode
from bounds.ops.gemm import Gemm
from bounds.rounding import Rounding

SIZE = 5
operators = pytest.mark.parametrize("op", [Greatest(False), Greatest(True), Leading(SIZE, False), Leading(SIZE, True)])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def place_of(x: np.ndarray, last: bool) -> np.ndarray:
    """The greatest element's place along the last axis, by the definition."""
    return x.shape[-1] - 1 - x[..., ::-1].argmax(-1) if last else x.argmax(-1)


def operand(op: Place, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The intervals that the operator reads for elements in ``[low, high]``, exact on small whole numbers."""
    if isinstance(op, Greatest):
        return low, high
    one, two = (torch.tensor(side) for side in zip(*pairs(low.shape[-1]), strict=True))
    return low[..., two] - high[..., one], high[..., two] - low[..., one]


def intervals(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``[N, 2, SIZE]``: small whole numbers, so that ends often meet."""
    rng = np.random.default_rng(0)
    low = rng.integers(-4, 5, (400, 2, SIZE))
    width = rng.integers(0, 4, low.shape) * rng.integers(0, 2, low.shape)
    return torch.from_numpy(low).to(dtype), torch.from_numpy(low + width).to(dtype)


@both_dtypes
@operators
def test_values(op: Any, dtype: torch.dtype) -> None:
    x = intervals(dtype)[0]
    found = op.forward(operand(op, x, x)[0])
    assert found.dtype == dtype
    assert np.array_equal(found.numpy(), place_of(x.numpy(), op.last))
    x[3, 1, 2] = torch.nan
    spoilt = op.forward(operand(op, x, x)[0])
    assert bool(spoilt[3, 1].isnan())
    assert int(spoilt.isnan().sum()) == 1


@both_dtypes
@operators
def test_the_set_of_possible_places_is_exact(op: Any, dtype: torch.dtype) -> None:
    """Place j is possible where it wins with its upper end against the lower ends of all others."""
    low, high = intervals(dtype)
    found = op.possible(*operand(op, low, high))
    for j in range(SIZE):
        x = low.clone()
        x[..., j] = high[..., j]
        assert np.array_equal(found[..., j].numpy(), place_of(x.numpy(), op.last) == j)
    least, most = op.interval([operand(op, low, high)], Rounding.of(dtype))
    members = found.double() * torch.arange(SIZE)
    assert torch.equal(most.double(), members.amax(-1))
    assert torch.equal(least.double(), torch.where(found, torch.arange(SIZE), SIZE).amin(-1).double())
    assert bool((least < most).any())
    assert bool((least == most).any())


@operators
def test_lines_are_the_interval(op: Any) -> None:
    ends = operand(op, *intervals(torch.float64))
    lines, (least, most) = op.relaxation([ends], None), op.interval([ends], None)
    values, rows = torch.randn_like(ends[0]), torch.randn_like(least)
    for line, end in ((lines.lower[0], least), (lines.upper[0], most)):
        assert torch.equal(line.offset, end)
        assert not op.along(line.slopes, [values]).any()
        (back,) = op.across([s.unsqueeze(1) for s in line.slopes], rows.unsqueeze(1).expand(-1, 3, -1))
        assert back.shape == (rows.shape[0], 3, *values.shape[1:])
    assert torch.equal(op.unsettled(*ends)[..., 0], least < most)
    # What is settled asks for nothing, what is not asks for something.
    assert torch.equal(op.loose(*ends).any(-1), least < most)
    with pytest.raises(NoDerivativeError, match="jumps"):
        op.gradients((rows, rows), [ends], None)


@operators
def test_where_nothing_is_known_every_place_is_possible(op: Any) -> None:
    """Behind an element without a value, and where ends contradict each other."""
    low, high = torch.tensor([[1.0, 5.0, 0.0, 2.0, -1.0]] * 2), torch.tensor([[2.0, 6.0, 1.0, 3.0, 0.0]] * 2)
    assert [float(end[0]) for end in op.interval([operand(op, low, high)], None)] == [1.0, 1.0]
    low[1, 3], high[1, 3] = -torch.inf, torch.inf
    assert [float(end[1]) for end in op.interval([operand(op, low, high)], None)] == [0.0, 4.0]
    if isinstance(op, Leading):  # 0 < 1 < 2 < 0
        ends = torch.zeros((1, len(pairs(SIZE)))) + 1
        ends[0, [pairs(SIZE).index((0, k)) for k in range(2, SIZE)]] = -1
        ends[0, [pairs(SIZE).index((j, 4)) for j in range(1, 4)]] = -1
        assert [float(end[0]) for end in op.interval([(ends, ends)], None)] == [0.0, 4.0]


def graph_of(op_type: str, shape: tuple[int, ...], attributes: dict[str, Any], matrix: Tensor | None = None) -> Graph:
    build = Builder()
    x = build.input(shape)
    x = x if matrix is None else build.add(Gemm(), x, build.constant(matrix))
    return build.finish(readers()[op_type].from_onnx(OnnxNode(op_type, "place", attributes, (x,), 1, 13), build))


@pytest.mark.parametrize("limit", [1 << 16, 0], ids=["differences", "elements"])
@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, -1, 1])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reading(
    op_type: str, axis: int, last: int, keepdims: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(argmax, "_DIFFERENCES", limit)
    graph = graph_of(op_type, (3, 4, 2), {"axis": axis, "keepdims": keepdims, "select_last_index": last})
    assert any(isinstance(n.op, Leading if limit else Greatest) for n in graph.nodes)
    x = torch.from_numpy(np.random.default_rng(1).integers(-2, 3, (50, 3, 4, 2))).double()
    where = axis + 1 if axis >= 0 else axis
    expected = place_of(np.moveaxis(x.numpy() * (1 if op_type == "ArgMax" else -1), where, -1), bool(last))
    expected = np.expand_dims(expected, where) if keepdims else expected
    assert np.array_equal(graph.evaluate(x)[0].numpy(), expected)
    constant = Builder()
    node = OnnxNode(op_type, "place", {"axis": axis, "keepdims": keepdims, "select_last_index": last},
                    (constant.constant(x[7].to(torch.int64)),), 1, 13)  # fmt: skip
    value = constant.value(readers()[op_type].from_onnx(node, constant)[0])
    assert value is not None
    assert np.array_equal(value.numpy(), expected[7])


def test_one_element_has_place_0() -> None:
    graph = graph_of("ArgMax", (3, 1), {"axis": 1})
    assert graph.nodes[graph.outputs[0]].shape == (3, 1)
    assert not graph.constants[graph.outputs[0]].value.any()


def test_what_elements_have_in_common_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One input moves all scores far and leaves their order: differences settle it, the scores' intervals do not."""
    matrix = torch.tensor([[10.0, 10.0, 10.0], [0.1, -0.2, 0.3]]).double()
    low, high = torch.tensor([[[-1.0, 0.5]], [[-1.0, -1.0]]]), torch.tensor([[[1.0, 1.0]], [[1.0, -0.5]]])
    box = Box(low.double(), high.double())
    found = compute_bounds(graph_of("ArgMax", (1, 2), {"axis": 1}, matrix), box, Crown())
    assert found.lower.flatten().tolist() == found.upper.flatten().tolist() == [2.0, 1.0]
    monkeypatch.setattr(argmax, "_DIFFERENCES", 0)
    wide = compute_bounds(graph_of("ArgMax", (1, 2), {"axis": 1}, matrix), box, Crown())
    assert wide.lower.flatten().tolist() == [0.0, 0.0]
    assert wide.upper.flatten().tolist() == [2.0, 2.0]


@pytest.mark.parametrize("op", [Greatest(False), Leading(4, True)], ids=str)
def test_exact_blocks(op: Place) -> None:
    """On whole numbers, which often tie: the rows leave every place of a greatest element, and no other (of those
    that win ties somewhere in the box)."""
    rng = np.random.default_rng(3)
    low = torch.from_numpy(rng.integers(-2, 2, (1, 40, 4))).double()
    high = low + torch.from_numpy(rng.integers(0, 4, low.shape)).double()
    one, two = (torch.tensor(side) for side in zip(*pairs(4), strict=True))
    apart = isinstance(op, Leading)
    operand = (low[..., two] - high[..., one], high[..., two] - low[..., one]) if apart else (low, high)
    block = op.exact([operand])
    least, most = (end[0] for end in op.interval([operand], None))
    unsettled = (least < most).nonzero().flatten()
    count, own = operand[0].numel(), operand[0].numel() + 40
    choices = block.integer.nonzero().flatten().reshape(-1, 4)
    tops = (~block.integer).nonzero().flatten()
    assert choices.shape[0] == unsettled.shape[0] > 20
    for _ in range(40):
        x = low[0] + torch.floor(torch.from_numpy(rng.uniform(0, 1, (40, 4))) * (high - low + 1)[0])
        values = torch.zeros(own + block.integer.shape[0], dtype=torch.float64)
        values[:count] = (x[:, two] - x[:, one] if apart else x).flatten()
        greatest = x.amax(1)
        values[own + tops] = greatest[unsettled][: tops.shape[0]]
        for place in range(4):
            values[own:][choices.flatten()] = torch.eye(4).double()[place].repeat(choices.shape[0])
            values[count + unsettled] = float(place)
            sums = torch.zeros_like(block.lower).index_add_(0, block.row, block.value * values[block.column])
            broken = (sums < block.lower) | (sums > block.upper)
            hold = torch.ones(40, dtype=torch.bool)
            for r in broken.nonzero().flatten().tolist():
                columns = block.column[block.row == r]
                phase = int(columns[columns >= own][0]) - own
                hold[unsettled[_row_of(choices, tops, phase)]] = False
            allowed = block.own_upper[choices[:, place]] > 0
            assert torch.equal(hold[unsettled] & allowed, (x[:, place] == greatest)[unsettled] & allowed)


def _row_of(choices: Tensor, tops: Tensor, column: int) -> int:
    """Which unsettled result an own column belongs to."""
    inside = (choices == column).any(1) if bool((choices == column).any()) else tops == column
    return int(inside.nonzero().flatten()[0])
