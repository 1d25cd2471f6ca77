"""What rows reach is all that their bounds depend on, and nothing is asked for outside."""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.backward import State, backward
from bounds.box import Box
from bounds.concretize import concretize
from bounds.graph import Builder, Graph
from bounds.layouts import Owner, Selection
from bounds.ops.arithmetic import Add, Sub
from bounds.ops.bilinear import Product
from bounds.ops.conv import Conv
from bounds.ops.pooling import AveragePool
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.reach import reached, within
from bounds.rounding import Rounding

D = torch.float64


def network() -> Graph:
    """A residual block, a pooling and a product, on images of 12 x 12."""
    build, generator = Builder(), torch.Generator().manual_seed(3)

    def conv(x: int) -> int:
        weight = build.constant(torch.randn((2, build.shape(x)[1], 3, 3), dtype=D, generator=generator) / 3)
        return build.add(Conv((1, 1), (1, 1), (1, 1, 1, 1)), x, weight)

    x = conv(build.add(Reshape((1, 1, 12, 12)), build.input((144,))))
    x = build.add(Relu(), build.add(Add(), x, conv(build.add(Relu(), x))))
    x = build.add(AveragePool((2, 2), (2, 2)), conv(x))
    y = build.add(Product(), conv(build.add(Relu(), x)), x)
    return build.finish([build.add(Reshape((72,)), build.add(Sub(), y, x))])


def bound(plan: Plan, box: Box, rows: Tensor, tighten: object) -> tuple[State, Tensor]:
    state, _ = propagate(plan, box, tighten=tighten)  # type: ignore[arg-type]
    return state, concretize(plan, backward(plan, state, plan.output, rows, Owner.shared(rows.shape[0])), box)


def test_bounds_of_rows_are_those_with_every_element_tightened() -> None:
    plan = prepare(network(), D, rounding=Rounding.of(D))
    middle = torch.randn((2, 144), dtype=D, generator=torch.Generator().manual_seed(4))
    box, rows = Box(middle - 0.3, middle + 0.3), torch.zeros((2, 72), dtype=D)
    rows[0, 0], rows[1, 1], rows[1, 37] = 1.0, -2.0, 1.0
    reach, asked = reached(plan, rows), list[tuple[int, int]]()

    def counted(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        asked.append((node, units.count()))
        assert bool(reach[node].flatten()[units.index].all())
        return crown(plan, state, node, units, owner)

    with torch.no_grad():
        whole, tight = bound(plan, box, rows, crown)
        part, found = bound(plan, box, rows, within(counted, reach))
        _, intervals = bound(plan, box, rows, None)
    assert torch.allclose(found, tight, rtol=1e-9, atol=1e-9) and bool((found > intervals + 0.1).all())
    assert sum(count for _, count in asked) > 0
    for node in plan.watched:
        for one, two in zip(part.bounds[node], whole.bounds[node], strict=True):
            assert torch.allclose(one[:, reach[node]], two[:, reach[node]], rtol=1e-9, atol=1e-9)
    assert any(bool((part.bounds[n][0] < whole.bounds[n][0] - 1e-3).any()) for n in plan.watched)


def test_nothing_outside_the_reach_changes_a_row() -> None:
    """Every element is moved by itself: where the row's value moves, the element is in reach."""
    plan = prepare(network(), D)
    rows = torch.zeros((1, 72), dtype=D)
    rows[0, 40] = 1.0
    mask = reached(plan, rows)[plan.input]
    x = torch.randn(144, dtype=D, generator=torch.Generator().manual_seed(5))
    moved = torch.cat([x.unsqueeze(0), x + torch.eye(144, dtype=D)])
    values = plan.graph.evaluate(moved)[0][:, 40]
    changed = values[1:] != values[0]
    assert bool(changed.any()) and not bool(mask.all())
    assert bool(mask[changed].all())


def test_rows_that_read_nothing_ask_for_nothing() -> None:
    plan = prepare(network(), D)
    box = Box(torch.zeros((1, 144), dtype=D), torch.ones((1, 144), dtype=D))

    def never(*_: object) -> Tensor:
        raise AssertionError("no element is in reach")

    with torch.no_grad():
        state, _ = propagate(plan, box, tighten=within(never, reached(plan, torch.zeros((1, 72), dtype=D))))
        plain, _ = propagate(plan, box)
    assert all(torch.equal(state.bounds[n][0], plain.bounds[n][0]) for n in plan.watched)
