"""Cuts of neurons after affine nodes: every one holds, all together are ideal, and the most violated one is found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bounds import Box, Builder, Crown, Graph, compute_bounds, prepare, trace
from bounds.ops.base import Op
from bounds.ops.gemm import Gemm
from bounds.ops.piecewise import Clip, LeakyRelu
from bounds.ops.relu import Relu
from milp.cuts import Cuts, Neurons, separated, strengthened, with_cuts
from milp.encode import encode, with_cost
from milp.highs import solve
from milp.model import Model, Status
from milp.recheck import lower_bound
from milp.simplex import Simplex

BENDS = [
    pytest.param(nn.ReLU(), id="relu"),
    pytest.param(nn.LeakyReLU(0.1), id="leaky"),
    pytest.param(nn.LeakyReLU(3.0), id="concave"),
    pytest.param(nn.Hardtanh(-1e9, 0.25), id="minimum"),
]
SCALES = (1e-12, 1e-6, 1.0, 1e3, 1e6)


def dense(seed: int, widths: tuple[int, ...], bend: nn.Module, scale: float = 1.0) -> nn.Sequential:
    """Layers whose kinks lie inside: biases are small."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for one, two in itertools.pairwise(widths):
        linear = nn.Linear(one, two).double()
        with torch.no_grad():
            linear.weight.mul_(scale * 10 ** (torch.rand_like(linear.weight) * 2 - 1))
            linear.bias.mul_(scale / 4)
        layers += [linear, bend]
    return nn.Sequential(*layers[:-1])


def graph_of(network: nn.Sequential, n: int) -> Graph:
    """The same layers."""
    build = Builder()
    node = build.input((n,))
    for layer in network:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().T.contiguous(), layer.bias.detach()
            node = build.add(Gemm(), node, build.constant(weight), build.constant(bias))
        else:
            node = build.add(op_of(layer), node)
    return build.finish((node,))


def op_of(layer: nn.Module) -> Op:
    if isinstance(layer, nn.LeakyReLU):
        return LeakyRelu(layer.negative_slope)
    return Clip(None, layer.max_val) if isinstance(layer, nn.Hardtanh) else Relu()


def program(network: nn.Sequential, low: Tensor, high: Tensor) -> tuple[Model, int]:
    """The program over a box ``[n]``, without a cost, and the node of the output."""
    return encoded(graph_of(network, low.shape[0]), Box(low[None], high[None]))


def encoded(graph: Graph, box: Box) -> tuple[Model, int]:
    prepared = prepare(graph)
    known = compute_bounds(prepared, box, Crown(), keep=prepared.plan.watched)
    return encode(prepared, box, known), prepared.plan.output


def wide(n: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    middle = torch.randn(n, dtype=torch.float64) * scale / 4
    radius = (torch.rand(n, dtype=torch.float64) + 0.5) * scale
    return middle - radius, middle + radius


def random_cuts(neurons: Neurons, times: int) -> Cuts:
    return Cuts(neurons.phase.repeat(times), torch.rand(times * neurons.index.shape[0]) < 0.5)


def all_cuts(neurons: Neurons) -> Cuts:
    """Of every neuron with every subset."""
    cuts = Cuts.none()
    for phase, size in zip(neurons.phase, neurons.start.diff().tolist(), strict=True):
        subsets = torch.tensor(list(itertools.product([False, True], repeat=size)))
        cuts = cuts.and_more(Cuts(phase.expand(len(subsets)), subsets.flatten()))
    return cuts


def exact_layers(network: nn.Sequential, x: list[Fraction]) -> Iterator[list[Fraction]]:
    """What the layers compute, in real arithmetic over the stored numbers."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            x = [sum((Fraction(w) * v for w, v in zip(ws, x, strict=True)), Fraction(b)) for ws, b in rows]
        else:
            x = [bent(layer, v) for v in x]
        yield x


def bent(layer: nn.Module, v: Fraction) -> Fraction:
    if isinstance(layer, nn.LeakyReLU):
        return v if v > 0 else Fraction(layer.negative_slope) * v
    if isinstance(layer, nn.Hardtanh):
        return min(v, Fraction(layer.max_val))
    return max(v, Fraction(0))


def exact_columns(model: Model, network: nn.Sequential, x: Tensor, neurons: Neurons) -> dict[int, Fraction]:
    """The network's exact values as columns; phases by the side of the kink."""
    layers = [[Fraction(v) for v in x.tolist()]]
    layers += exact_layers(network, layers[0])
    nodes = sorted(node for node in model.columns)
    assert len(nodes) == len(layers)
    found: dict[int, Fraction] = {}
    for node, values in zip(nodes, layers, strict=True):
        for column, value in zip(model.columns[node].tolist(), values, strict=True):
            found.setdefault(column, value)
    kinks = [Fraction(layer.max_val) if isinstance(layer, nn.Hardtanh) else Fraction(0) for layer in network]
    for phase, operand in zip(neurons.phase.tolist(), neurons.operand.tolist(), strict=True):
        found[phase] = Fraction(int(found[operand] > kinks[1]))
    return found


def excess(model: Model, row: int, at: dict[int, Fraction]) -> Fraction:
    """How far the exact values are beyond a row's upper side."""
    part = slice(int(model.start[row]), int(model.start[row + 1]))
    entries = zip(model.value[part].tolist(), model.index[part].tolist(), strict=True)
    return sum((Fraction(v) * at[c] for v, c in entries), Fraction(0)) - Fraction(float(model.row_upper[row]))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bend", BENDS)
def test_every_cut_holds_for_the_exact_network(bend: nn.Module, scale: float) -> None:
    network = dense(3, (4, 6, 5, 1), bend, scale if isinstance(bend, nn.ReLU) else 1.0)
    low, high = wide(4, 1.0 if scale < 1 else scale)
    model, _ = program(network, low, high)
    neurons, base = Neurons.of(model), model.row_lower.shape[0]
    assert neurons.phase.shape[0] == int(model.integer.sum()) >= 3
    cut = with_cuts(model, random_cuts(neurons, 4))
    assert bool((cut.row_lower[base:] == -math.inf).all())
    tightest = math.inf
    corners = [torch.where(torch.rand(4) < 0.5, low, high) for _ in range(12)]
    inner = [low + (high - low) * torch.rand(4, dtype=torch.float64) for _ in range(12)]
    for x in corners + inner:
        at = exact_columns(model, network, x.clamp(low, high), neurons)
        for row in range(base, cut.row_lower.shape[0]):
            beyond = excess(cut, row, at)
            assert beyond <= Fraction(float(cut.row_error[row]))
            size = sum(abs(float(v)) for v in cut.value[cut.start[row] : cut.start[row + 1]])
            tightest = min(tightest, -float(beyond) / size)
    assert tightest < 0.2 * float((high - low).max())  # some point is near to some cut


def single(seed: int, bend: nn.Module, n: int = 4) -> tuple[Model, Neurons]:
    """One unstable neuron over n inputs, with a random cost of inputs and result."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(n, 1).double(), bend)
    low, high = wide(n)
    with torch.no_grad():
        network[0].bias.copy_(-network[0].weight @ (low + high) / 2 + 0.1)  # type: ignore[operator, union-attr]
    model, output = program(network, low, high)
    model = with_cost(model, output, 3 * torch.randn(1, dtype=torch.float64))
    inputs = model.columns[min(model.columns)]
    return replace(model, cost=model.cost.index_copy(0, inputs, torch.randn(n, dtype=torch.float64))), Neurons.of(model)


@pytest.mark.parametrize("bend", BENDS)
def test_all_cuts_of_a_neuron_are_ideal(bend: nn.Module) -> None:
    gained = 0
    for seed in range(25):
        model, neurons = single(seed, bend)
        if not neurons.phase.shape[0]:
            continue
        least = solve(model)
        assert least.status is Status.OPTIMAL
        relaxed = Simplex(model).solve().value
        strong = Simplex(with_cuts(model, all_cuts(neurons))).solve().value
        assert strong == pytest.approx(least.value, abs=1e-7)
        assert strengthened(model, rounds=50, gain=-1.0).model.exact
        found = Simplex(strengthened(model, rounds=50, gain=-1.0).model).solve().value
        assert found == pytest.approx(least.value, abs=1e-5)  # to the violation that counts
        gained += relaxed < strong - 1e-3
    assert gained >= 3


@pytest.mark.parametrize("bend", BENDS)
def test_separation_finds_the_most_violated_subset(bend: nn.Module) -> None:
    found = 0
    for seed in range(20):
        model, neurons = single(seed, bend)
        if not neurons.phase.shape[0]:
            continue
        width = model.upper - model.lower
        x = model.lower + width * torch.rand(width.shape[0], dtype=torch.float64)
        every, base = with_cuts(model, all_cuts(neurons)), model.row_lower.shape[0]
        worst = beyond(every, x)[base:].max()
        cuts = separated(neurons, x)
        assert cuts.phase.shape[0] == int(worst > 1e-4) or 0 < worst <= 1e-4
        if cuts.phase.shape[0]:
            chosen = beyond(with_cuts(model, cuts), x)[base:]
            assert chosen.shape == (1,)
            assert float(chosen) == pytest.approx(float(worst), rel=1e-12, abs=1e-12)
            found += 1
    assert found > 2


def beyond(model: Model, x: Tensor) -> Tensor:
    """How far a point is beyond each row's upper side."""
    row = torch.repeat_interleave(torch.arange(model.row_lower.shape[0]), model.start.diff())
    sums = torch.zeros_like(model.row_lower).index_add_(0, row, model.value * x[model.index])
    return sums - model.row_upper


def test_strengthening_raises_the_proven_bound_up_to_the_minimum() -> None:
    network = dense(8, (3, 8, 8, 1), nn.ReLU())
    model, output = program(network, *wide(3))
    model = with_cost(model, output, torch.ones(1))
    strong, cuts = strengthened(model)
    least = solve(model).value
    before, after = (lower_bound(m, dual_of(m)) for m in (model, strong))
    assert before + 1e-3 * abs(before) < after <= least + 1e-6
    assert solve(strong).value == pytest.approx(least, abs=1e-6)
    again = with_cuts(model, cuts)
    assert again.row_upper.tolist() == strong.row_upper.tolist()
    assert again.value.tolist() == strong.value.tolist()
    assert strong.row_lower.shape[0] == model.row_lower.shape[0] + cuts.phase.shape[0]
    assert not strengthened(model, rounds=0).cuts.phase.shape[0]
    assert not strengthened(model, enough=-1e9).cuts.phase.shape[0]


def dual_of(model: Model) -> Tensor:
    dual = Simplex(model).solve().dual
    assert dual is not None
    return dual


def test_without_an_affine_row_there_is_no_cut() -> None:
    low, high = -torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    model, _ = program(nn.Sequential(nn.ReLU(), nn.Linear(3, 1).double()), low, high)
    assert int(model.integer.sum()) == 3
    assert not Neurons.of(model).phase.shape[0]  # the inputs' own kinks
    diagonal = nn.Linear(3, 3).double()
    with torch.no_grad():
        diagonal.weight.copy_(torch.eye(3) * 2)
    model, _ = program(nn.Sequential(diagonal, nn.ReLU()), low, high)
    assert int(model.integer.sum()) == 3
    assert not Neurons.of(model).phase.shape[0]  # of a single column the rows are ideal
    stable = nn.Linear(3, 2).double()
    with torch.no_grad():
        stable.bias.copy_(torch.tensor([9.0, -9.0]))
    model, _ = program(nn.Sequential(stable, nn.ReLU()), low, high)
    assert not Neurons.of(model).phase.shape[0]
    assert strengthened(model).model is model


def test_elements_that_were_moved_are_found() -> None:
    """A convolution's neurons through a reshape: rows that leave out most columns."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.ReLU(), nn.Linear(8, 1)
    ).double()
    low, high = wide(9)
    model, _ = encoded(trace(network, low[None]), Box(low[None, None], high[None, None]))
    neurons = Neurons.of(model)
    assert neurons.phase.shape[0] == int(model.integer.sum()) > 3
    assert neurons.start.diff().unique().tolist() == [4]


def test_cuts_that_do_not_fit_are_refused() -> None:
    model, neurons = single(0, nn.ReLU())
    good = all_cuts(neurons)
    with pytest.raises(ValueError, match="no phase"):
        with_cuts(model, good._replace(phase=good.phase - 1))
    with pytest.raises(ValueError, match="no phase"):
        with_cuts(model, good._replace(phase=good.phase + 10**6))
    with pytest.raises(ValueError, match="subsets"):
        with_cuts(model, good._replace(member=good.member[1:]))
