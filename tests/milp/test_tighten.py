"""Neurons tightened by programs: bounds that hold, whoever solves them, and that are proven again from what is kept."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from bounds import Bounds, Box, Crown, Prepared, compute_bounds, prepare, trace
from milp.encode import encode, with_cost
from milp.highs import solve
from milp.model import Model, Solution
from milp.process import ProcessRunner
from milp.recheck import Leaf, lower_bound
from milp.simplex import Simplex
from milp.tighten import End, Layer, candidates, tightened, walked

TOLERANCE = 1e-6
WIDE = 8


@dataclass(frozen=True)
class Case:
    """A network on a box, with CROWN bounds of its neurons."""

    module: nn.Sequential
    prepared: Prepared
    box: Box
    bounds: Bounds

    @property
    def all(self) -> dict[int, range]:
        """All neurons."""
        return {node: range(WIDE) for node in self.prepared.plan.watched}

    def values(self, count: int = 20_000) -> dict[int, Tensor]:
        """What the nodes take at points of the box, corners among them."""
        draw = torch.Generator().manual_seed(2)
        part = torch.rand(count, *self.box.lower.shape[1:], dtype=torch.float64, generator=draw)
        part[: count // 2] = part[: count // 2].round()
        return dict(self.prepared.graph.values(self.box.lower + (self.box.upper - self.box.lower) * part))

    def width(self, bounds: Bounds) -> float:
        """Of all neurons together."""
        return sum(float((high - low).sum()) for low, high in (bounds.intervals[n] for n in self.prepared.plan.watched))


def case(seed: int) -> Case:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for one, two in itertools.pairwise((3, WIDE, WIDE, WIDE, 2)):
        layers += [nn.Linear(one, two), nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    prepared = prepare(trace(module, torch.zeros(1, 3)))
    box = Box.around(torch.zeros(1, 3, dtype=torch.float64), 1.0)
    return Case(module, prepared, box, compute_bounds(prepared, box, Crown(), keep=prepared.plan.watched))


@pytest.fixture(scope="module")
def one() -> Case:
    return case(5)


def check(made: Case, found: Bounds) -> None:
    """Bounds hold at sampled points and are nowhere wider than before."""
    values = made.values()
    for node, (low, high) in found.intervals.items():
        old = made.bounds.intervals[node]
        assert bool((low >= old[0]).all() and (high <= old[1]).all())
        assert bool((values[node] >= low - 1e-12).all() and (values[node] <= high + 1e-12).all())
    assert torch.equal(found.lower, found.intervals[made.prepared.plan.output][0])


@pytest.mark.parametrize("nodes", [1, 15])
@pytest.mark.parametrize("seed", [5, 6])
def test_tightened_neurons_enclose_their_values(seed: int, nodes: int) -> None:
    made = case(seed)
    found = tightened(made.prepared, made.box, made.bounds, made.all, nodes=nodes)
    check(made, found)
    assert made.width(found) < made.width(made.bounds) - 0.1
    assert bool((found.upper - found.lower < made.bounds.upper - made.bounds.lower).all())


def test_more_programs_give_better_ends(one: Case) -> None:
    """A few do already: the subproblem with the least bound is split first."""
    last = max(one.prepared.plan.watched)
    widths = [
        one.width(tightened(one.prepared, one.box, one.bounds, {last: range(WIDE)}, nodes=nodes))
        for nodes in (1, 10, 100)
    ]
    assert widths[0] > widths[1] + 0.1 and widths[1] > widths[2] + 0.1


def test_ends_enclose_the_exact_optimum_and_reach_it(one: Case) -> None:
    """The relaxation's from outside, a finished search's to the tolerance."""
    node = max(one.prepared.plan.watched)
    few, many = (
        tightened(one.prepared, one.box, one.bounds, {node: range(3)}, nodes=n).intervals[node] for n in (1, 5000)
    )
    model = encode(one.prepared, one.box, one.bounds)
    for element in range(3):
        row = torch.zeros(WIDE, dtype=torch.float64)
        row[element] = 1.0
        least, most = (sign * solve(with_cost(model, node, sign * row[None])).value for sign in (1.0, -1.0))
        assert few[0].view(-1)[element] <= least + TOLERANCE and few[1].view(-1)[element] >= most - TOLERANCE
        assert float(many[0].view(-1)[element]) == pytest.approx(least, abs=1e-5)
        assert float(many[1].view(-1)[element]) == pytest.approx(most, abs=1e-5)


@pytest.mark.parametrize("nodes", [1, 6])
def test_processes_share_a_layer(one: Case, nodes: int) -> None:
    alone = tightened(one.prepared, one.box, one.bounds, one.all, nodes=nodes)
    with ProcessRunner() as first, ProcessRunner() as second:
        for runners in ([first], [first, second]):
            found = tightened(one.prepared, one.box, one.bounds, one.all, nodes=nodes, runners=runners)
            check(one, found)
            if nodes == 1:  # of several optima another may be found, and then another column is split
                for node, ends in found.intervals.items():
                    for own, other in zip(alone.intervals[node], ends, strict=True):
                        assert torch.allclose(own, other, atol=1e-5)
            assert one.width(found) < one.width(one.bounds) - 0.1


def fake(*lines: str) -> ProcessRunner:
    """A worker that answers every linear program with what these lines make of ``columns, rows, said``."""
    code = [
        "import os, sys, random, struct, time",
        "from milp import protocol",
        "def numbers(*all): return struct.pack(f'{len(all)}d', *all)",
        "columns, rows, said = 0, 0, 0",
        "while True:",
        "    header, arrays = protocol.receive(sys.stdin.buffer)",
        "    if header['type'] == 'load':",
        "        columns, rows = len(arrays[0]) // 8, len(arrays[3]) // 8",
        "        continue",
        "    said += 1",
        "    x, dual, status = numbers(*[0.0] * columns), numbers(*[0.0] * rows), 'optimal'",
        *("    " + line for line in lines),
        "    answer = {'type': 'outcome', 'status': status, 'value': 0.0, 'bound': 1e9, 'reason': ''}",
        "    protocol.send(sys.stdout.buffer, answer, [x, dual])",
    ]
    return ProcessRunner(command=[sys.executable, "-c", "\n".join(code)])


LIES = {
    "nothing": "pass",
    "random": "dual = numbers(*[random.gauss(0, 100) for _ in range(rows)])",
    "huge": "dual = numbers(*[1e300] * rows)",
    "no numbers": "dual = numbers(*[float('nan')] * rows)",
    "infinite": "dual = numbers(*[float('inf')] * rows)",
    "too few": "dual = dual[:-8]",
    "too many": "x = x * 2",
    "half a number": "dual = dual[:-3]",
    "a point that is none": "x = numbers(*[float('nan')] * columns)",
    "a false ray": "status, dual = 'infeasible', numbers(*[random.gauss(0, 100) for _ in range(rows)])",
    "no such status": "protocol.send(sys.stdout.buffer, {'type': 'outcome', 'status': '', 'value': 0}); break",
}


@pytest.mark.parametrize("lie", LIES)
def test_multipliers_that_lie_prove_what_they_prove(one: Case, lie: str) -> None:
    last = max(one.prepared.plan.watched)
    with fake(LIES[lie]) as runner:
        check(one, tightened(one.prepared, one.box, one.bounds, {last: range(3)}, nodes=3, runners=[runner]))


def test_a_worker_that_dies_costs_the_neurons_that_it_had(one: Case) -> None:
    """The next one has a new worker; those of another process do not notice."""
    node, neurons = max(one.prepared.plan.watched), {max(one.prepared.plan.watched): range(WIDE)}
    alone = tightened(one.prepared, one.box, one.bounds, neurons)
    with fake("os._exit(3)") as dying, ProcessRunner() as sound:
        found = tightened(one.prepared, one.box, one.bounds, neurons, runners=[dying])
        assert found is one.bounds
        found = tightened(one.prepared, one.box, one.bounds, neurons, runners=[dying, sound])
        check(one, found)
        same = torch.isclose(found.intervals[node][0], alone.intervals[node][0], atol=1e-5)
        plain = walked(one.prepared, one.box, one.bounds).intervals[node][0]
        old = torch.isclose(found.intervals[node][0], plain)
        assert bool((same | old).all()) and bool((same & ~old).any())


def test_a_killed_worker_is_replaced_and_knows_all_that_was_changed(one: Case) -> None:
    """Its program is as it stands, not as it was first loaded."""
    model = encode(one.prepared, one.box, one.bounds)
    here, draw = Simplex(model), torch.Generator().manual_seed(0)
    with ProcessRunner() as run:
        there, other = Simplex(model, run.load), Simplex(model, run.load)
        upper = torch.where(model.integer, 0.0, model.upper)
        for turn in range(6):
            cost = torch.randn(model.cost.shape, generator=draw, dtype=torch.float64)
            ends = (model.lower, upper if turn % 2 else model.upper)
            found, true = there.solve(*ends, cost), here.solve(*ends, cost)
            assert found.status is true.status and found.value == pytest.approx(true.value, abs=TOLERANCE)
            if found.dual is not None and turn % 2 == 0:
                assert lower_bound(replace(model, cost=cost), found.dual) == pytest.approx(true.value, abs=TOLERANCE)
            if turn == 2:
                assert run._worker is not None
                run._worker.kill()
            elif turn == 4:
                assert other.solve(cost=-cost).value == pytest.approx(here.solve(cost=-cost).value, abs=TOLERANCE)


@pytest.mark.parametrize("processes", [0, 1])
def test_no_time_is_no_gain(one: Case, processes: int) -> None:
    with fake("time.sleep(1000)") as runner:
        runners = [runner][:processes]
        none = tightened(one.prepared, one.box, one.bounds, one.all, seconds=0.0, runners=runners)
        assert none is one.bounds
        if processes:
            found = tightened(one.prepared, one.box, one.bounds, one.all, seconds=1.0, runners=runners)
            assert found is one.bounds


def test_what_is_kept_proves_the_same_again(one: Case) -> None:
    kept = list[tuple[int, list[End]]]()
    found = tightened(
        one.prepared, one.box, one.bounds, one.all, nodes=6, keep=lambda node, ends: kept.append((node, list(ends)))
    )
    again = one.bounds
    for node, ends in kept:
        again = Layer.of(one.prepared, one.box, again, node).applied(ends)
    assert len(kept) == len(one.prepared.plan.watched) - 1
    for node, ends in found.intervals.items():
        assert all(torch.equal(*pair) for pair in zip(ends, again.intervals[node], strict=True))


def test_leaves_with_a_hole_prove_nothing(one: Case) -> None:
    kept = list[End]()
    last = max(one.prepared.plan.watched)
    tightened(one.prepared, one.box, one.bounds, {last: range(WIDE)}, nodes=9, keep=lambda _, ends: kept.extend(ends))
    layer = Layer.of(one.prepared, one.box, one.bounds, last)
    end = max(kept, key=lambda end: len(end.leaves))
    assert len(end.leaves) > 2 and math.isfinite(layer.proven(end))
    for gone in range(len(end.leaves)):
        part = end.leaves[:gone] + end.leaves[gone + 1 :]
        assert math.isinf(layer.proven(replace(end, leaves=part)))
    turned = replace(end, upper=not end.upper)
    values = one.values()[last].flatten(1)[:, end.element]
    for other in (turned, replace(end, leaves=tuple(Leaf(x.splits, -x.dual) for x in end.leaves))):
        bound = layer.proven(other)
        assert bool((values <= bound).all() if other.upper else (values >= bound).all())


def test_candidates_are_relaxed_neurons_that_matter(one: Case) -> None:
    """The first half of them would gain the bound more than the second, were their phases known."""
    row, output = torch.tensor([[1.0, -1.0]]), one.prepared.plan.output

    def bound(known: Bounds) -> tuple[Model, Solution]:
        model = with_cost(encode(one.prepared, one.box, known), output, row)
        return model, Simplex(model).solve()

    def with_phase(node: int, element: int, side: int) -> float:
        ends = [end.clone() for end in one.bounds.intervals[node]]
        ends[side].view(-1)[element] = 0.0
        known = {**one.bounds.intervals, node: (ends[0], ends[1])}
        return bound(replace(one.bounds, intervals=known))[1].value

    model, solved = bound(one.bounds)
    assert solved.dual is not None
    found = candidates(one.prepared, one.bounds, model, solved.dual)
    assert list(found) == sorted(one.prepared.plan.watched)[1:]
    for node, elements in found.items():
        low, high = (end.flatten() for end in one.bounds.intervals[node])
        assert sorted(elements) == ((low < 0) & (high > 0)).nonzero().flatten().tolist()
        gains = [min(with_phase(node, element, side) for side in (0, 1)) - solved.value for element in elements]
        half = len(gains) // 2
        assert sum(gains[:half]) > sum(gains[half:])


def test_a_walk_over_better_intervals_is_better(one: Case) -> None:
    first = sorted(one.prepared.plan.watched)[1]
    better = tightened(one.prepared, one.box, one.bounds, {first: range(WIDE)}, nodes=50)
    plain = walked(one.prepared, one.box, one.bounds)
    check(one, plain)
    assert bool((better.lower > plain.lower + 1e-3).any())
    with pytest.raises(ValueError, match="known ends of"):
        compute_bounds(one.prepared, one.box, Crown(), known={first: (torch.zeros(1), torch.zeros(1))})


def test_bounds_of_another_box_are_noticed(one: Case) -> None:
    """Where they say so: by the input's intervals, by a contradiction, or by being no numbers."""
    larger, apart = (Box.around(torch.full((1, 3), at, dtype=torch.float64), 2.0) for at in (0.0, 50.0))
    with pytest.raises(ValueError, match="another box"):
        encode(one.prepared, larger, one.bounds)
    with pytest.raises(ValueError, match="other boxes"):
        compute_bounds(one.prepared, larger, Crown(), known=one.bounds.intervals)
    inner = {node: one.bounds.intervals[node] for node in one.prepared.plan.watched}
    with pytest.raises(ValueError, match="contradict"):
        compute_bounds(one.prepared, apart, Crown(), known=inner)
    node = one.prepared.plan.watched[0]
    lost = {node: (inner[node][0] * math.nan, inner[node][1])}
    with pytest.raises(ValueError, match="not numbers"):
        compute_bounds(one.prepared, one.box, Crown(), known=lost)
