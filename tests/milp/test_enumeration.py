"""Random small networks: programs, proofs and bounds against the least value over every feasible choice of phases.

The oracle follows the network with affine functions of the input. Where a kink may lie inside the cell at hand a linear
program looks for a point on its other side, and only cells with a point are entered; the affine piece of each is then
minimised. It uses neither programs nor bounds of this project, and its answer is a value that the network takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor, nn

from bounds import Alpha, Box, Crown, Forward, Graph, Interval, compute_bounds, prepare, trace
from milp.cbc import solve_with_cbc
from milp.cuts import strengthened
from milp.encode import encode, with_cost
from milp.exact import Outcome
from milp.highs import solve
from milp.model import Model, Status
from milp.optimum import minimum

Array = NDArray[np.float64]
KINDS = ("dense", "residual", "convolution", "halves", "pooling", "deep")
TOUCH = 1e-9  # cells that are reached to within this count as reached: a network without jumps does not mind


class Keep(nn.Module):
    """Remembers the value."""


class Again(nn.Module):
    """Adds what is remembered."""


class Halves(nn.Module):
    """The larger of two halves."""


class Network(nn.Module):
    """Layers one after the other, on inputs of a shape."""

    def __init__(self, shape: tuple[int, ...], *layers: nn.Module) -> None:
        super().__init__()
        self.shape, self.layers = shape, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for layer in self.layers:
            if isinstance(layer, Keep):
                kept = x
            elif isinstance(layer, Again):
                x = x + kept
            elif isinstance(layer, Halves):
                x = torch.maximum(*x.chunk(2, 1))
            else:
                x = layer(x)
        return x


def random_network(kind: str, seed: int) -> Network:
    """At most 20 neurons that may have two phases, and one output."""
    torch.manual_seed(seed)
    n, a, b = 2 + seed % 2, 3 + seed % 5, 3 + seed // 2 % 4
    if kind == "dense":
        return Network((n,), nn.Linear(n, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 1))
    if kind == "deep":
        inner = [m for _ in range(3) for m in (nn.Linear(4, 4), nn.ReLU())]
        return Network((2,), nn.Linear(2, 4), nn.ReLU(), *inner, nn.Linear(4, 1))
    if kind == "residual":
        block = [Keep(), nn.Linear(a, a), nn.ReLU(), nn.Linear(a, a), Again(), nn.ReLU()]
        return Network((n,), nn.Linear(n, a), *block, nn.Linear(a, 1))
    if kind == "halves":
        layers = nn.Linear(n, 2 * a), Halves(), nn.Linear(a, 2 * b), Halves(), nn.Linear(b, 1)
        return Network((n,), *layers)
    if kind == "convolution":
        layers = nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)
        return Network((1, 3, 3), *layers)
    layers = nn.Conv2d(1, 1, 2, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, a), nn.ReLU(), nn.Linear(a, 1)
    return Network((1, 3, 3), *layers)


def random_box(network: Network, seed: int) -> Box:
    """Of widths from 1 to 5; of an image two or three pixels vary, the others are points of it."""
    draw = torch.Generator().manual_seed(seed)
    center = torch.randn((1, 1, *network.shape), generator=draw, dtype=torch.float64)
    radius = torch.rand((1, 1, *network.shape), generator=draw, dtype=torch.float64) * 2 + 0.5
    if len(network.shape) == 3:
        chosen = torch.randperm(9, generator=draw)[: 2 + seed % 2]
        radius = radius * torch.zeros(9, dtype=torch.float64).index_fill(0, chosen, 1.0).reshape(radius.shape)
    return Box(center - radius, center + radius)


@dataclass(slots=True)
class Cell:
    """A path through the network: the half-spaces ``rows @ x <= sides`` so far, a ``point`` of the cell, the choices
    ``given`` that lead there and those ``made``; ``others``: where else to go."""

    ends: tuple[Array, Array]
    point: Array
    given: tuple[bool, ...] = ()
    made: list[bool] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    sides: list[float] = field(default_factory=list)
    others: list[Cell] = field(default_factory=list)

    def least(self, form: Array) -> tuple[float, Array]:
        """Minimise an affine form ``[n + 1]`` (the constant is last) over the cell."""
        rows = (np.array(self.rows), np.array(self.sides)) if self.rows else (None, None)
        found = linprog(form[:-1], *rows, bounds=np.stack(self.ends, 1))
        assert found.status == 0, found.message  # the cell has a point
        return float(found.fun + form[-1]), found.x

    def positive(self, form: Array) -> bool:
        """Whether the form is at least 0 here. Where it may be either, the cell goes on at its own point's side."""
        low, high = self.ends
        middle, reach = form[:-1] @ (low + high) / 2 + form[-1], np.abs(form[:-1]) @ (high - low) / 2
        if abs(middle) > reach + TOUCH:
            return bool(middle > 0)
        if len(self.made) < len(self.given):
            side = self.given[len(self.made)]
        else:
            side = bool(form[:-1] @ self.point + form[-1] >= 0)
            beyond, point = self.least(form if side else -form)
            if beyond <= TOUCH:
                self.others.append(Cell(self.ends, point, (*self.made, not side)))
        self.made.append(side)
        self.rows.append(-form[:-1] if side else form[:-1])
        self.sides.append(float(form[-1] if side else -form[-1]) + TOUCH)
        return side

    def largest(self, forms: Array) -> Array:
        """The one of some forms ``[k, n + 1]`` that is the largest here."""
        best = forms[0]
        for form in forms[1:]:
            best = best if self.positive(best - form) else form
        return best


def matrix_of(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Array, Array, tuple[int, ...]]:
    """An affine layer ``[m, n], [m]`` and the shape of its results: its images of unit vectors less that of 0."""
    layer, size = layer.double(), math.prod(shape)
    with torch.no_grad():
        bias = layer(torch.zeros(1, *shape, dtype=torch.float64))
        images = layer(torch.eye(size, dtype=torch.float64).reshape(size, *shape)) - bias
    return images.flatten(1).T.numpy(), bias.flatten().numpy(), tuple(bias.shape[1:])


def piece(network: Network, cell: Cell) -> Array:
    """The affine form ``[n + 1]`` of the network's output on a cell, which grows by the way."""
    shape, count = network.shape, math.prod(network.shape)
    forms = kept = np.eye(count, count + 1)
    for layer in network.layers:
        if isinstance(layer, Keep):
            kept = forms
        elif isinstance(layer, Again):
            forms = forms + kept
        elif isinstance(layer, nn.ReLU):
            forms = np.stack([form if cell.positive(form) else 0 * form for form in forms])
        elif isinstance(layer, Halves):
            forms = np.stack([cell.largest(np.stack(pair)) for pair in zip(*np.split(forms, 2), strict=True)])
            shape = (len(forms),)
        elif isinstance(layer, nn.MaxPool2d):
            channels, height, width = shape
            windows = forms.reshape(channels, height // 2, 2, width // 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
            forms = np.stack([cell.largest(window) for window in windows.reshape(-1, 4, count + 1)])
            shape = (channels, height // 2, width // 2)
        else:
            matrix, bias, shape = matrix_of(layer, shape)
            forms = matrix @ forms
            forms[:, -1] += bias
    return forms[0]


def enumerated(network: Network, box: Box) -> tuple[float, int]:
    """The least value that the network takes at an optimum of one of its pieces, and the number of pieces."""
    low, high = (end.flatten().numpy() for end in (box.lower, box.upper))
    exact, waiting = network.double(), [Cell((low, high), (low + high) / 2)]
    best, count = math.inf, 0
    while waiting:
        cell = waiting.pop()
        form = piece(exact, cell)
        value, point = cell.least(form)
        with torch.no_grad():
            there = float(exact(torch.from_numpy(point.clip(low, high)).reshape(1, *network.shape)))
        assert there == pytest.approx(value, abs=1e-7)  # the piece is the network's
        best, count = min(best, there), count + 1
        waiting += cell.others
    return best, count


def program(graph: Graph, box: Box, row: Tensor) -> Model:
    prepared = prepare(graph)
    bounds = compute_bounds(prepared, box, Crown(), keep=prepared.plan.watched)
    return with_cost(encode(prepared, box, bounds), prepared.plan.output, row)


def check(kind: str, seed: int) -> int:
    """Compare everything with the oracle; the number of pieces."""
    network, row = random_network(kind, seed), torch.ones((1, 1))
    box, graph = random_box(network, seed), trace(network, torch.zeros(1, *network.shape))
    least, count = enumerated(network, box)
    model = program(graph, box, row)
    for found in (solve(model), solve_with_cbc(model), solve(strengthened(model).model)):
        assert found.status is Status.OPTIMAL
        # Rows, and cuts among them, hold to 1e-6 in both solvers, and multipliers of rows are not above 1 by much in
        # networks this small.
        assert found.value == pytest.approx(least, abs=1e-6)
    proof = minimum(graph, box, row)
    assert proof.status is Outcome.PROVEN
    assert least - 1e-5 <= proof.bound <= least + 1e-9
    assert least - 1e-9 <= proof.value <= least + 1e-5
    for method in (Interval(), Forward(), Crown(), Alpha()):
        assert float(compute_bounds(graph, box, method, rows=row.unsqueeze(0)).lower) <= least + 1e-9
    return count


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_minima_are_those_of_all_phases(kind: str, seed: int) -> None:
    assert check(kind, seed) > 3


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_minima_of_many_networks(part: int) -> None:
    """500 networks in all."""
    counts = [check(KINDS[seed % len(KINDS)], seed) for seed in range(2 + 25 * part, 27 + 25 * part)]
    assert sum(counts) > 10 * len(counts)
