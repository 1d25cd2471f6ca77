"""Rows on windows give the bounds that dense rows give, on random small networks and on every published one."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.box import Box
from bounds.graph import Builder, Graph
from bounds.layouts import Owner, Selection, Windows, is_image
from bounds.ops.arithmetic import Add, Mul, Sub
from bounds.ops.conv import Conv
from bounds.ops.extremum import Max
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import Pad, Slice
from bounds.ops.pooling import AveragePool
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding
from bounds.units import least, with_parallel_lines

D = torch.float64


def close(one: Tensor, two: Tensor) -> bool:
    return bool(torch.isclose(one, two, rtol=1e-9, atol=1e-9).all())


class Net:
    """A random network over images, layer by layer."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.build = Builder()
        self.x = self.build.add(Reshape((1, 2, 9, 8)), self.build.input((144,)))

    def random(self, *shape: int) -> int:
        return self.build.constant(torch.from_numpy(self.rng.normal(size=shape).round(2)))

    def conv(self, x: int, strides: tuple[int, int], pads: tuple[int, ...] | None = None, groups: int = 1) -> int:
        """A convolution with a random kernel; without ``pads`` they are random (and unequal)."""
        channels = self.build.shape(x)[1]
        kernel = tuple(int(k) for k in self.rng.integers(1, 4, 2)) if pads is None else (3, 3)
        dilations = (1, 1) if pads is not None else tuple(int(d) for d in self.rng.integers(1, 3, 2))
        pads = tuple(int(p) for p in self.rng.integers(0, 3, 4)) if pads is None else pads
        out = int(self.rng.choice([2, 4, 6]))
        weight = self.random(out, channels // groups, *kernel)
        return self.build.add(Conv(strides, dilations, pads, groups), x, weight, self.random(out))

    def layer(self) -> None:
        """One of the ways in which images follow each other."""
        build, x = self.build, self.x
        shape = build.shape(x)
        choice = int(self.rng.integers(0, 7))
        if choice == 0 and min(shape[2:]) > 4:
            x = self.conv(x, (2, 2), (1, 1, 1, 1))
        elif choice == 1 and min(shape[2:]) > 4:
            x = self.conv(x, (1, 2))
        elif choice == 2:
            x = self.conv(x, (1, 1), (1, 1, 1, 1), groups=2)
        elif choice == 3:  # two paths of different reach, on which the windows are not alike
            one = self.conv(x, (1, 1), (1, 1, 1, 1))
            weight = self.random(build.shape(one)[1], shape[1], 1, 1)
            x = build.add(Add(), one, build.add(Conv((1, 1), (1, 1), (0, 0, 0, 0)), x, weight))
        elif choice == 4:
            x = build.add(Sub(), x, build.add(Mul(), x, self.random(*shape)))
        elif choice == 5 and min(shape[2:]) > 3:
            x = build.add(AveragePool((2, 2), (1, 2)), x)
        elif min(shape[2:]) > 3:
            height, width = shape[2:]
            left = build.add(Slice((0, 0), (height - 1, width - 1), (2, 3), (1, 1)), x)
            x = build.add(Max(), left, build.add(Slice((1, 1), (height, width), (2, 3), (1, 1)), x))
        self.x = build.add(Relu(), x)

    def finish(self) -> Graph:
        size = int(np.prod(self.build.shape(self.x)))
        flat = self.build.add(Reshape((size,)), self.x)
        return self.build.finish([self.build.add(Gemm(), flat, self.random(size, 3))])


def network(seed: int) -> Graph:
    net = Net(seed)
    net.x = net.build.add(Relu(), net.conv(net.x, (1, 1)))
    for _ in range(4):
        net.layer()
    return net.finish()


def boxes(seed: int, count: int) -> Box:
    rng = np.random.default_rng(seed)
    middle = torch.from_numpy(rng.normal(size=(count, 144)))
    radius = torch.from_numpy(rng.random((count, 1)) * 0.1)
    return Box(middle - radius, middle + radius)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for every step of windows over a convolution: whether they were the whole image."""
    taken: list[bool] = []
    original = Conv.pullback_windows

    def counted(self: Conv, rows: Windows, *args: object) -> Windows | None:
        taken.append(rows.places.whole)
        return original(self, rows, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Conv, "pullback_windows", counted)
    return taken


@pytest.mark.parametrize("count", [1, 3])
def test_bounds_on_windows_are_those_of_dense_rows(count: int, steps: list[bool]) -> None:
    """All intermediate bounds, with and without error terms; points of the boxes never leave them."""
    for seed in range(8):
        graph, box = network(seed), boxes(seed, count)
        for rounding in (None, Rounding.of(D)):
            plan = prepare(graph, D, rounding=rounding)
            with torch.no_grad():
                found, _ = propagate(plan, box, tighten=crown)
                dense, _ = propagate(replace(plan, windows=False), box, tighten=crown)
            for node in plan.watched:
                for one, two in zip(found.bounds[node], dense.bounds[node], strict=True):
                    assert close(one, two), f"seed {seed}: node {node}, {graph.nodes[node]}"
        share = torch.rand((20, *box.lower.shape), dtype=D, generator=torch.Generator().manual_seed(seed)).round()
        for x in box.lower + share * (box.upper - box.lower):
            values = graph.evaluate(x)[0]
            low, high = found.bounds[plan.output]
            assert bool((low <= values + 1e-9).all() and (values - 1e-9 <= high).all())
    assert steps.count(False) > 50 and steps.count(True) > 20


@pytest.mark.parametrize("pads", [(1, 2, 0, 1), (-1, 0, 2, -2), (0, 0, 1, 1)])
def test_rows_stay_windows_over_a_border(pads: tuple[int, ...], steps: list[bool]) -> None:
    """A border of another value than 0, and one that crops: all bounds are those of dense rows."""
    top, left, bottom, right = pads
    net = Net(7)
    net.x = net.build.add(Relu(), net.conv(net.x, (1, 1), (1, 1, 1, 1)))
    net.x = net.build.add(Pad((0, 0, top, left, 0, 0, bottom, right), 0.5), net.x)
    net.x = net.build.add(Relu(), net.conv(net.x, (2, 2), (0, 0, 0, 0)))
    graph, box = net.finish(), boxes(7, 2)
    plan = prepare(graph, D, rounding=Rounding.of(D))
    with torch.no_grad():
        found, _ = propagate(plan, box, tighten=crown)
        windows = steps.count(False)
        dense, _ = propagate(replace(plan, windows=False), box, tighten=crown)
    for node in plan.watched:
        for one, two in zip(found.bounds[node], dense.bounds[node], strict=True):
            assert close(one, two)
    assert windows > 0


@pytest.mark.parametrize("seed", range(6))
def test_screening_changes_no_bound_that_matters(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What parallel lines settle is settled by the walk that chooses lines, and the rest has that walk's bounds."""
    graph, box = network(seed + 50), boxes(seed, 2)
    plan = prepare(graph, D, rounding=Rounding.of(D))
    with torch.no_grad():
        screened, _ = propagate(plan, box, tighten=crown)
        monkeypatch.setattr("bounds.propagate.with_parallel_lines", lambda *_: None)
        walked, _ = propagate(plan, box, tighten=crown)
    for node in plan.watched:
        (low, high), (below, above) = screened.bounds[node], walked.bounds[node]
        unstable = (below < 0) & (above > 0)
        # Bounds of settled elements are looser, and intervals behind them too: a little may be won or lost by that.
        assert bool(((low < 0) & (high > 0)).eq(unstable).float().mean() > 0.98)
        assert torch.allclose(low[unstable], below[unstable], rtol=0.05, atol=0.05)
        assert bool((low <= above).all() and (below <= high).all())


CONVOLUTIONAL = (
    "cgan",
    "cifar10_resnet",
    "collins_rul_cnn",
    "metaroom",
    "oval21",
    "sri_resnet_a",
    "sri_resnet_b",
    "traffic_signs",
    "vit",
    "yolo",
)


def published(folder: Path) -> Iterator[tuple[str, Path]]:
    for name in CONVOLUTIONAL:
        for path in sorted(folder.glob(f"{name}/onnx/*.onnx*")):
            yield f"{name}/{path.name}", path


def test_published_networks_on_windows(vnncomp_dir: Path, tmp_path: Path) -> None:
    """A few elements of every image that a ReLU reads, on a small box around a random input."""
    from verifier import load

    seen = 0
    for name, path in published(vnncomp_dir):
        plain = tmp_path / "network.onnx"
        plain.write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        seen += compare(name, prepare(load(plain), D))
    assert seen >= 15


def compare(name: str, plan: Plan) -> int:
    shape = plan.graph.nodes[plan.input].shape
    middle = torch.rand((1, *shape), dtype=D, generator=torch.Generator().manual_seed(0))
    box = Box(middle - 1e-3, middle + 1e-3)
    with torch.no_grad():
        state, _ = propagate(plan, box)
        images = [n for n in plan.watched if n not in plan.direct and is_image(plan.graph.nodes[n].shape)]
        for node in images[:: max(1, len(images) // 4)]:
            units = some_units(plan, node)
            owner = Owner.shared(units.index.shape[0])
            for known in (state, with_parallel_lines(plan, state, node)):
                if known is None:
                    continue
                one = least(plan, known, node, units, owner)
                two = least(replace(plan, windows=False), known, node, units, owner)
                scale = two.abs().clamp(min=1)
                assert bool(((one - two).abs() <= 1e-9 * scale).all()), f"{name}: node {node}"
    return bool(images)


def some_units(plan: Plan, node: int) -> Selection:
    """Two elements and their negatives, one of them in a corner."""
    shape = plan.graph.nodes[node].shape
    index = torch.tensor([0, int(np.prod(shape)) * 2 // 3])
    one = torch.ones(2, dtype=D)
    return Selection(index.repeat(2), torch.cat([one, -one]), shape, mirrored=True)
