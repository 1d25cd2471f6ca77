"""Ascents take no more products than there are: what is left over keeps CROWN's bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bounds import Alpha, Box, Crown, compute_bounds, shared
from bounds.ascent import optimised
from bounds.graph import Builder, Graph
from bounds.ops.base import Op
from bounds.ops.conv import Conv
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.sshape import Tanh
from bounds.patches import frames
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding
from bounds.shared import optimised_within_memory
from bounds.work import LIMIT, Account, climbing, products

D = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def network(op: Op) -> Graph:
    """Four layers of ten neurons between five inputs and three outputs."""
    build = Builder()
    x = build.input((5,))
    for k in range(4):
        wide = build.shape(x)[0]
        x = build.add(
            op, build.add(Gemm(), x, build.constant(0.5 * normal(k, wide, 10)), build.constant(normal(k + 9, 10)))
        )
    return build.finish([build.add(Gemm(), x, build.constant(normal(20, 10, 3)))])


def boxes() -> Box:
    middle = normal(30, 2, 5)
    return Box(middle - 0.3, middle + 0.3)


def plans(op: Op) -> tuple[Plan, Plan]:
    return prepare(network(op), D), prepare(network(op), D, rounding=Rounding.of(D))


@pytest.mark.parametrize("op", [Relu(), Tanh()], ids=["sign decides", "all matters"])
def test_without_products_bounds_are_those_of_crown(op: Op) -> None:
    search, plan = plans(op)
    plain, _ = propagate(plan, boxes(), tighten=crown)
    none, _ = propagate(plan, boxes(), tighten=optimised(search, 5, account=Account(0)))
    full, _ = propagate(plan, boxes(), tighten=optimised(search, 5))
    for node in plan.watched:
        assert all(torch.equal(a, b) for a, b in zip(plain.bounds[node], none.bounds[node], strict=True))
    assert any(bool((plain.bounds[n][0] < full.bounds[n][0] - 1e-6).any()) for n in plan.watched)


def test_the_first_layers_ascend_as_far_as_it_goes() -> None:
    """A limit that the second watched layer fits in, and the third one does not."""
    search, plan = plans(Tanh())
    first, second = [n for n in plan.watched if n not in plan.direct][:2]
    steps, rows = 5, 2 * 10 * 2
    limit = climbing(search, first, None, rows, steps) / 2  # of each of two boxes
    some, _ = propagate(plan, boxes(), tighten=optimised(search, steps, account=Account(limit)))
    full, _ = propagate(plan, boxes(), tighten=optimised(search, steps))
    assert torch.equal(some.bounds[first][0], full.bounds[first][0])
    assert bool((some.bounds[second][0] < full.bounds[second][0] - 1e-6).any())
    again, _ = propagate(plan, boxes(), tighten=(tighten := optimised(search, steps, account=Account(limit))))
    anew, _ = propagate(plan, boxes(), tighten=tighten)  # the account is full again
    assert torch.equal(again.bounds[first][0], anew.bounds[first][0])


def test_layers_that_share_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    search, plan = plans(Relu())
    little = replace(plan, memory=8000)
    plain, _ = propagate(little, boxes(), tighten=crown)
    full, _ = propagate(little, boxes(), tighten=optimised_within_memory(search, 5))
    monkeypatch.setattr(shared, "Account", lambda: Account(0))
    none, _ = propagate(little, boxes(), tighten=optimised_within_memory(search, 5))
    for node in plan.watched:
        assert torch.equal(plain.bounds[node][0], none.bounds[node][0])
    assert any(not torch.equal(full.bounds[n][0], none.bounds[n][0]) for n in plan.watched)


def test_products_are_counted() -> None:
    """Of two dense layers, and of a convolution over patches of its operand's image."""
    search, _ = plans(Relu())
    first, second = search.watched[:2]
    per = [search.accumulation(search.graph.nodes[n]) * 10 for n in (first, second)]
    assert products(search, second, None) == sum(per) + 10
    build = Builder()
    x = build.input((1, 1, 12, 12))
    for k in range(2):
        weight = build.constant(normal(k, 2, build.shape(x)[1], 3, 3))
        x = build.add(Relu(), build.add(Conv((1, 1), (1, 1), (1, 1, 1, 1)), x, weight))
    plan = prepare(build.finish([x]), D)
    target = plan.watched[1]
    patches = frames(plan, target)
    assert patches is not None
    whole, seen = products(plan, target, None), products(plan, target, patches)
    # An element, and the nine places of two channels that it sees; the whole image has 144 places.
    assert seen == 19 * 2 + 18 + 19 * 18
    assert whole == (19 + 1 + 19) * 288


def test_an_account_is_full_for_every_propagation() -> None:
    search, _ = plans(Relu())
    one, _ = propagate(search, boxes(), tighten=crown)
    two, _ = propagate(search, boxes(), tighten=crown)
    account = Account(10)
    assert account.grants(one, 15) and not account.grants(one, 6) and account.grants(one, 5)
    assert account.grants(two, 20) and not account.grants(two, 1)
    assert Account().limit == LIMIT


def test_alpha_is_at_least_crown_where_nothing_ascends(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network(Relu())
    monkeypatch.setattr(shared, "Account", lambda: Account(0))
    plain, found = compute_bounds(graph, boxes(), Crown()), compute_bounds(graph, boxes(), Alpha(10))
    assert bool((found.lower >= plain.lower - 1e-6).all()) and float((found.lower - plain.lower).max()) > 1e-3


def test_more_steps_leave_no_layer_out() -> None:
    """What a layer's ascent counts for does not grow beyond its usual steps: more of them are never looser."""
    search, _ = plans(Relu())
    target = search.watched[-1]
    assert climbing(search, target, None, 3, 10) == climbing(search, target, None, 3, 20) / 2
    assert climbing(search, target, None, 3, 2000) == climbing(search, target, None, 3, 20)
