"""What criteria ask for, on a network whose neurons are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bounds import Box, Graph, trace
from milp import minimum
from verifier import coverage
from verifier.errors import InputError


def by_hand() -> Graph:
    """First layer ``x0, x1, x0 + x1 - 3`` (the last never active on [-1, 1]²), second ``relu(x0) - relu(x1)`` and
    ``relu(x0) + relu(x1) + 1`` (always active)."""
    one, two, three = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        one.bias.copy_(torch.tensor([0.0, 0.0, -3.0]))
        two.weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]))
        two.bias.copy_(torch.tensor([0.0, 1.0]))
        three.weight.copy_(torch.tensor([[1.0, -1.0]]))
        three.bias.zero_()
    return trace(torch.nn.Sequential(one, torch.nn.ReLU(), two, torch.nn.ReLU(), three), torch.zeros(2))


SQUARE = Box(-torch.ones(1, 2), torch.ones(1, 2))


def inputs(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float32)


def test_neuron_coverage_by_hand() -> None:
    requirements = coverage.NeuronCoverage().requirements(coverage.subject(by_hand()), SQUARE)
    assert requirements.covered(inputs((0.5, -0.5))).tolist() == [True, False, False, True, True]
    assert requirements.covered(inputs((-0.5, 0.5))).tolist() == [False, True, False, False, True]
    assert requirements.covered(inputs((0.0, 0.0))).tolist() == [False, False, False, False, True]
    report = requirements.report(inputs((0.5, -0.5), (-0.5, 0.5)))
    assert (report.covered, report.total, report.impossible) == (4, 5, 1)
    assert str(report) == "of 5, 4 covered, 1 proven impossible"
    assert report.share == 0.8 and report.share_of_possible == 1.0
    higher = coverage.NeuronCoverage(0.75).requirements(requirements.subject, SQUARE)
    assert higher.report(inputs((0.5, 0.5))).covered == 1


def test_boundary_coverage_by_hand() -> None:
    subject, reference = coverage.subject(by_hand()), inputs((-0.5, 0.0), (0.5, 0.0))
    requirements = coverage.BoundaryCoverage(reference).requirements(subject, SQUARE)
    # Above the range seen: x0 > 0.5, x1 > 0, x0 + x1 > 0.5, then 0.5 and 1.5 of the second layer; below likewise.
    assert requirements.covered(inputs((0.25, 0.5))).nonzero()[0].tolist() == [1, 2, 4, 8]
    assert not requirements.covered(reference).any()
    assert requirements.describe(0).endswith("> 0.5") and requirements.describe(5).endswith("< -0.5")
    proven = coverage.BoundaryCoverage(Box(SQUARE.lower / 2, SQUARE.upper / 2)).requirements(subject, SQUARE)
    assert not proven.covered(inputs((0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))).any()
    assert proven.covered(inputs((0.75, 0.0))).nonzero()[0].tolist() == [0, 3]
    same = coverage.BoundaryCoverage(SQUARE).requirements(subject, SQUARE)
    assert same.impossible.all() and same.report(reference).share_of_possible == 1.0


def test_top_coverage_by_hand() -> None:
    subject = coverage.subject(by_hand())
    requirements = coverage.TopCoverage(1).requirements(subject, SQUARE)
    # relu(x0) - relu(x1) exceeds relu(x0) + relu(x1) + 1 nowhere, x0 + x1 - 3 is below x0 and x1 on the whole square.
    assert requirements.covered(inputs((0.5, -0.5))).tolist() == [True, False, False, False, True]
    assert requirements.covered(inputs((-0.5, 0.5), (0.5, 0.5))).tolist() == [True, True, False, False, True]
    assert coverage.TopCoverage(2).requirements(subject, SQUARE).covered(inputs((0.5, -0.5))).tolist() == [
        True, True, False, True, True,
    ]  # fmt: skip
    assert coverage.patterns(subject, inputs((0.5, -0.5), (0.25, -0.5), (-0.5, 0.5))) == 2


def test_sign_sign_coverage_by_hand() -> None:
    requirements = coverage.SignSignCoverage().requirements(coverage.subject(by_hand()), SQUARE)
    assert requirements.total == 6
    assert requirements.impossible.tolist() == [False, True, False, True, True, True]
    # Only x1 changes its sign between these two, and so does relu(x0) - relu(x1).
    assert requirements.covered(inputs((0.25, -0.5), (0.25, 0.5))).nonzero()[0].tolist() == [2]
    assert not requirements.covered(inputs((0.25, -0.5), (-0.25, 0.5))).any(), "two neurons of the layer change"
    assert not requirements.covered(inputs((0.25, -0.5), (0.25, 0.125))).any(), "the later neuron keeps its sign"
    whole = inputs((0.25, -0.5), (0.25, 0.5), (0.5, 0.25), (-0.5, 0.25))
    assert requirements.covered(whole).nonzero()[0].tolist() == [0, 2]


@pytest.mark.parametrize("seed", range(3))
def test_sign_sign_coverage_is_the_definition(seed: int) -> None:
    torch.manual_seed(seed)
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3), torch.nn.LeakyReLU(0.1), torch.nn.Linear(3, 2)
    )
    points = (torch.rand(40, 2) * 2 - 1).numpy()
    requirements = coverage.SignSignCoverage().requirements(coverage.subject(trace(module, torch.zeros(2))), SQUARE)
    with torch.no_grad():
        first = module[0](torch.from_numpy(points))
        signs = (first >= 0).numpy(), (module[2](torch.relu(first)) >= 0).numpy()
    expected = np.zeros((4, 3), dtype=bool)
    for i in range(4):
        for j in range(3):
            for x in range(40):
                for y in range(40):
                    changed = signs[0][x] != signs[0][y]
                    expected[i, j] |= changed[i] and changed.sum() == 1 and signs[1][x, j] != signs[1][y, j]
    assert expected.any() and requirements.covered(points).tolist() == expected.flatten().tolist()
    values = requirements.subject.values(points)
    before = requirements.met({k: v[:25] for k, v in values.items()})
    assert (before | requirements.met(values, 25)).tolist() == expected.flatten().tolist()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_proven_impossible_is(seed: int) -> None:
    """The exact maximum of each such neuron does not exceed the threshold."""
    torch.manual_seed(seed)
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
    )
    graph, box = trace(module, torch.zeros(3)), Box.around(torch.tensor([0.3, -0.2, 0.1]), 0.2)
    requirements = coverage.NeuronCoverage().requirements(coverage.subject(graph), box)
    assert 0 < requirements.impossible.sum() < 16
    second = trace(module[:3], torch.zeros(3))
    for neuron in np.flatnonzero(requirements.impossible[8:]):
        row = torch.zeros(1, 8, dtype=torch.float64)
        row[0, neuron] = -1
        found = minimum(second, box.to(torch.float64), row.reshape(second.nodes[second.outputs[0]].shape))
        assert -found.bound <= 0
    points = requirements.domain.lower + np.random.default_rng(seed).random((500, 3), dtype=np.float32) * (
        requirements.domain.upper - requirements.domain.lower
    )
    assert not (requirements.covered(requirements.domain.moved(points)) & requirements.impossible).any()


def step_network() -> torch.nn.Module:
    """Neurons ``x0, x1``, then ``sign(x0) + sign(x1) - 1``, positive where both are."""

    class Sign(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sign(x)

    one, two, three = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        one.weight.copy_(torch.eye(2))
        one.bias.zero_()
        two.weight.fill_(1.0)
        two.bias.fill_(-1.0)
        three.weight.fill_(1.0)
    return torch.nn.Sequential(one, Sign(), two, Sign(), three)


def test_what_a_step_reads_are_neurons() -> None:
    subject = coverage.subject(trace(step_network(), torch.zeros(2)))
    requirements = coverage.NeuronCoverage().requirements(subject, SQUARE)
    assert requirements.covered(inputs((0.5, -0.5))).tolist() == [True, False, False]
    assert requirements.covered(inputs((0.5, 0.5))).all()
    pairs = coverage.SignSignCoverage().requirements(subject, SQUARE)
    assert pairs.covered(inputs((0.5, -0.5), (0.5, 0.5))).tolist() == [False, True]
    assert not pairs.covered(inputs((-0.5, -0.5), (0.5, 0.5))).any(), "both change their sign"
    for asked in (requirements, pairs):
        found = list(coverage.concolic(asked, inputs((-0.5, 0.25), (0.25, -0.5)), budget=coverage.Budget(inputs=6)))
        assert found[-1].report.covered == asked.total


def test_too_many_pairs_are_refused() -> None:
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 6000),
        torch.nn.ReLU(),
        torch.nn.Linear(6000, 6000),
        torch.nn.ReLU(),
        torch.nn.Linear(6000, 1),
    )
    with pytest.raises(InputError, match="36000000 pairs of neurons"):
        coverage.SignSignCoverage().requirements(coverage.subject(trace(module, torch.zeros(2))), SQUARE)


def test_errors_teach() -> None:
    subject = coverage.subject(by_hand())
    requirements = coverage.NeuronCoverage().requirements(subject, SQUARE)
    with pytest.raises(InputError, match=r"input 1 lies outside .*: its element \[0\] is 1.5, not in \[-1, 1\]"):
        requirements.covered(inputs((0.0, 0.0), (1.5, 0.0)))
    with pytest.raises(InputError, match=r"\[N, 2\] is needed; the number N of inputs goes in front"):
        requirements.covered(np.zeros(2, dtype=np.float32))
    with pytest.raises(InputError, match="number 0 has NaN or infinity"):
        requirements.covered(inputs((np.nan, 0.0)))
    with pytest.raises(InputError, match=r"x.astype\('float32'\)"):
        requirements.covered(np.array([[0.1, 0.0]]))
    with pytest.raises(InputError, match=r"one box \[1, 2\] is needed"):
        coverage.NeuronCoverage().requirements(subject, Box(torch.zeros(1, 3), torch.ones(1, 3)))
    with pytest.raises(InputError, match="is empty"):
        coverage.NeuronCoverage().requirements(subject, Box(SQUARE.upper, SQUARE.lower))
    with pytest.raises(InputError, match="threshold nan"):
        coverage.NeuronCoverage(float("nan")).requirements(subject, SQUARE)
    with pytest.raises(InputError, match="k = 0"):
        coverage.TopCoverage(0).requirements(subject, SQUARE)
    with pytest.raises(InputError, match=r"linear between kinks, or a step \(its nonlinear ones: Tanh\)"):
        coverage.subject(trace(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh()), torch.zeros(2)))
    clipped = coverage.subject(trace(_switching(torch.nn.Hardtanh()), torch.zeros(2)))
    with pytest.raises(InputError, match="one kink"):
        coverage.SignSignCoverage().requirements(clipped, SQUARE)
    flat = coverage.subject(trace(_switching(torch.nn.ReLU()), torch.zeros(2)))
    with pytest.raises(InputError, match="no layer of this network follows on another"):
        coverage.SignSignCoverage().requirements(flat, SQUARE)
    with pytest.raises(InputError, match=r"a Query is needed, not int: verifier.read"):
        coverage.region_of(5, subject)  # type: ignore[arg-type]


def _switching(activation: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), activation, torch.nn.Linear(2, 1))


def test_a_coordinate_without_a_number_of_the_type_is_widened() -> None:
    tenth = torch.tensor([[0.1, -1.0]], dtype=torch.float64)
    box = Box(tenth, torch.tensor([[0.1, 1.0]], dtype=torch.float64))
    requirements = coverage.NeuronCoverage().requirements(coverage.subject(by_hand()), box)
    assert requirements.covered(inputs((np.float32(0.1), 0.5))).tolist() == [True, True, False, False, True]
