"""Inputs that are generated to raise coverage, against what random sampling finds, and as counterexamples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import verifier
from bounds import Box, trace
from milp.engine import NO_LIMITS
from verifier import coverage
from verifier.coverage.programs import Beside, programs
from verifier.coverage.shared import Shared
from verifier.coverage.suite import Suite
from verifier.errors import InputError, UnsupportedError
from verifier.replay import Replayer

SQUARE = Box(-torch.ones(1, 2), torch.ones(1, 2))
CENTRE = np.zeros((1, 2), dtype=np.float32)
SQUARE_OF_THE_MODEL = Box(-torch.ones(1, 1, 2), torch.ones(1, 1, 2))
Generator = Callable[..., object]


def corner() -> torch.nn.Module:
    """A neuron of the second layer that is active only where ``|x0| + |x1| > 1.99`` on the square."""
    one, two, three = torch.nn.Linear(2, 4), torch.nn.Linear(4, 1), torch.nn.Linear(1, 2)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        one.bias.zero_()
        two.weight.fill_(1.0)
        two.bias.fill_(-1.99)
        three.weight.copy_(torch.tensor([[0.0], [1.0]]))
        three.bias.copy_(torch.tensor([1e-5, 0.0]))
    return torch.nn.Sequential(one, torch.nn.ReLU(), two, torch.nn.ReLU(), three)


def corner_model(path: Path) -> Path:
    """The same as a model file, with a softmax behind it."""
    layers = [m for m in corner() if isinstance(m, torch.nn.Linear)]
    nodes, constants = [], []
    for k, layer in enumerate(layers):
        constants += [
            numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), f"w{k}"),
            numpy_helper.from_array(layer.bias.detach().numpy(), f"b{k}"),
        ]
        nodes += [
            helper.make_node("MatMul", ["x" if k == 0 else f"a{k - 1}", f"w{k}"], [f"m{k}"]),
            helper.make_node("Add", [f"m{k}", f"b{k}"], [f"z{k}"]),
        ]
        if k < 2:
            nodes.append(helper.make_node("Relu", [f"z{k}"], [f"a{k}"]))
    nodes.append(helper.make_node("Softmax", ["z2"], ["y"], axis=-1))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "corner", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_concolic_reaches_what_random_sampling_misses() -> None:
    requirements = coverage.NeuronCoverage().requirements(coverage.subject(trace(corner(), torch.zeros(2))), SQUARE)
    budget = coverage.Budget(inputs=100)
    random = list(coverage.sampled(requirements, CENTRE, budget=budget))
    assert len(random) == 100 and random[-1].report.covered == 4
    found = list(coverage.concolic(requirements, CENTRE, budget=coverage.Budget(inputs=100, samples=0)))
    assert found[-1].report.covered == 5 and len(found) <= 5
    last = next(g for g in found if 4 in g.met)
    assert abs(last.input).sum() > 1.99 and last.method in ("linear program", "mixed-integer program")
    every = np.concatenate([CENTRE, np.stack([g.input for g in found])])
    assert requirements.covered(every).all() and requirements.domain.inside(every).all()


@pytest.mark.parametrize("criterion", [
    coverage.NeuronCoverage(0.6), coverage.TopCoverage(1), coverage.TopCoverage(2), coverage.SignSignCoverage(),
    coverage.BoundaryCoverage(np.array([[0.1, 0.1], [-0.1, 0.1]], dtype=np.float32)),
])  # fmt: skip
@pytest.mark.parametrize("generate", [coverage.concolic, coverage.descended])
def test_what_is_said_to_be_met_is_met(criterion: coverage.NeuronCoverage, generate: Generator) -> None:
    torch.manual_seed(1)
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.LeakyReLU(0.1), torch.nn.Linear(4, 2)
    )
    requirements = criterion.requirements(coverage.subject(trace(module, torch.zeros(2))), SQUARE)
    first = np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)
    inputs, before = first, requirements.covered(first)
    found = list(generate(requirements, first, budget=coverage.Budget(inputs=10)))
    assert found
    for generated in found:
        distance = 0.0 if generated.seed is None else float(abs(generated.input - inputs[generated.seed]).max())
        assert generated.distance == pytest.approx(distance)
        inputs = np.concatenate([inputs, generated.input[None]])
        now = requirements.covered(inputs)
        assert tuple(np.flatnonzero(now & ~before)) == generated.met != ()
        assert generated.report == requirements.report(inputs)
        before = now
    assert [g.met for g in generate(requirements, first, budget=coverage.Budget(inputs=10))] == [g.met for g in found]


def test_a_linear_step_is_the_nearest_on_its_piece() -> None:
    """Of ``x0 > 0`` from (-0.25, 0) on: no more than 0.25 and the slack away."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(2))
        module[0].bias.zero_()
    requirements = coverage.NeuronCoverage().requirements(coverage.subject(trace(module, torch.zeros(2))), SQUARE)
    point = np.array([[-0.25, 0.5]], dtype=np.float32)
    beside = Beside(0, point[0], requirements.subject.values(point))
    found = programs(requirements).on_piece(requirements.condition(0, beside.values, 1e-3), beside, NO_LIMITS)
    assert found.point is not None and abs(found.point - point[0]).max() == pytest.approx(0.252) and found.point[0] > 0


def test_every_input_that_violates_the_property_is_a_counterexample(tmp_path: Path) -> None:
    """Class 0 wins everywhere but in the corners, where the neuron of the second layer is active."""
    path = corner_model(tmp_path / "corner.onnx")
    query = verifier.robustness(path, np.zeros(2, dtype=np.float32), 1)
    subject = coverage.subject(path)
    requirements = coverage.NeuronCoverage().requirements(subject, coverage.region_of(query, subject))
    found = list(coverage.concolic(requirements, np.zeros((1, 1, 2), dtype=np.float32), query=query))
    bad = [g for g in found if g.counterexample is not None]
    assert bad and all(4 in g.met or abs(g.input).sum() > 1.99 for g in bad)
    for generated in bad:
        again = Replayer(query).replay(generated.input.reshape(-1).astype(np.float64))
        assert again is not None and again.clause == generated.counterexample.clause
        assert np.array_equal(again.inputs[0].reshape(-1), generated.input.reshape(-1))


def test_values_of_a_model_are_those_of_onnxruntime(tmp_path: Path) -> None:
    subject = coverage.subject(corner_model(tmp_path / "corner.onnx"))
    assert [subject.name(layer) for layer in subject.layers] == ["z0", "z1"] and subject.session is not None
    points = np.random.default_rng(0).uniform(-1, 1, (7, 1, 2)).astype(np.float32)
    with torch.no_grad():
        expected = corner()[:3](torch.from_numpy(points)).reshape(7, 1).double()
    assert torch.allclose(subject.values(points)[subject.layers[1].node], expected, atol=1e-6)


def test_sampling_of_several_draws_takes_the_best() -> None:
    requirements = coverage.NeuronCoverage().requirements(coverage.subject(trace(corner(), torch.zeros(2))), SQUARE)
    one, many = (
        [g.input.tolist() for g in coverage.sampled(requirements, CENTRE, budget=coverage.Budget(inputs=2), draws=d)]
        for d in (1, 50)
    )
    assert one != many
    best = next(coverage.sampled(requirements, CENTRE, draws=50))
    assert best.report.covered == 2 and best.method == "random" and best.seed is None


def test_limits_and_errors() -> None:
    requirements = coverage.NeuronCoverage().requirements(coverage.subject(trace(corner(), torch.zeros(2))), SQUARE)
    assert len(list(coverage.concolic(requirements, CENTRE, budget=coverage.Budget(inputs=1)))) == 1
    assert not list(coverage.concolic(requirements, CENTRE, budget=coverage.Budget(timeout=0.0)))
    with pytest.raises(InputError, match="at least one input"):
        coverage.concolic(requirements, CENTRE[:0])
    with pytest.raises(InputError, match="outside of the region"):
        coverage.descended(requirements, CENTRE + 2)
    with pytest.raises(InputError, match="tries and steps are at least 1"):
        coverage.Budget(tries=0)
    with pytest.raises(InputError, match="draws = 0"):
        coverage.sampled(requirements, CENTRE, draws=0)


def test_operators_without_an_exact_form_are_named() -> None:
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.Sigmoid(), torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)
    )
    requirements = coverage.NeuronCoverage().requirements(coverage.subject(trace(module, torch.zeros(2))), SQUARE)
    with pytest.raises(UnsupportedError, match=r"Sigmoid \(node .*\) has no exact form"):
        coverage.concolic(requirements, CENTRE)
    assert len(list(coverage.sampled(requirements, CENTRE, budget=coverage.Budget(inputs=3)))) <= 3


def test_one_program_meets_many_requirements() -> None:
    """Without samples: the neurons ``d . x > 0.9 max`` for directions d of one half plane are met by few corners."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 30), torch.nn.ReLU(), torch.nn.Linear(30, 1))
    subject, box = coverage.subject(trace(module, torch.zeros(6))), Box(-torch.ones(1, 6), torch.ones(1, 6))
    some = np.random.default_rng(0).uniform(-1, 1, (20, 6)).astype(np.float32)
    requirements = coverage.BoundaryCoverage(some).requirements(subject, box)
    generators = coverage.concolic, coverage.descended, coverage.sampled
    budget = coverage.Budget(inputs=5, samples=0)
    ends = [list(g(requirements, some, budget=budget))[-1].report.covered for g in generators]
    assert ends[0] > ends[1] > ends[2]
    suite = Suite(requirements, some, None, budget)
    values = suite.beside(0).values
    weights = requirements.pulls(values, suite.open)
    (reached, *_) = Shared(suite, programs(requirements)).points(values)
    layer = subject.layers[0].node
    pulled = subject.values(reached[None])[layer] @ weights[layer]
    with torch.no_grad():
        rows = weights[layer] @ module[0].weight.double()
        most = rows.abs().sum() + weights[layer] @ module[0].bias.double()  # at a corner of the box
    assert float(pulled) == pytest.approx(float(most), rel=1e-5)


def test_the_first_violation_that_any_candidate_shows_is_handed_out(tmp_path: Path) -> None:
    """It meets less than others do, and comes first all the same; of those that follow only what is taken is asked."""
    path = corner_model(tmp_path / "corner.onnx")
    query = verifier.robustness(path, np.full(2, 0.6, dtype=np.float32), 0.4)
    subject = coverage.subject(path)
    requirements = coverage.NeuronCoverage().requirements(subject, SQUARE_OF_THE_MODEL)
    start = np.full((1, 1, 2), -1, dtype=np.float32)
    found = list(coverage.concolic(requirements, start, query=query, budget=coverage.Budget(samples=1000)))
    assert found[0].counterexample is not None
    for generated in found:
        again = Replayer(query).replay(generated.input.reshape(-1).astype(np.float64))
        assert (again is None) == (generated.counterexample is None)


@pytest.mark.parametrize("generate", [coverage.concolic, coverage.descended, coverage.sampled])
def test_hostile_inputs_are_refused_before_the_first_step(generate: Generator) -> None:
    requirements = coverage.NeuronCoverage().requirements(coverage.subject(trace(corner(), torch.zeros(2))), SQUARE)
    for bad, words in (
        (CENTRE[:0], "at least one input"),
        (CENTRE[0], "goes in front"),
        (np.zeros((1, 3), dtype=np.float32), r"\[N, 2\] is needed"),
        (np.full((1, 2), np.nan, dtype=np.float32), "NaN or infinity"),
        (CENTRE + 2, "outside of the region"),
        (np.array([["a", "b"]]), "an array of numbers"),
    ):
        with pytest.raises(InputError, match=words):
            generate(requirements, bad)
    with pytest.raises(InputError, match="NaN or infinity"):
        coverage.BoundaryCoverage(np.full((1, 2), np.inf, dtype=np.float32)).requirements(requirements.subject, SQUARE)


def test_layers_beside_each_other_share_a_program() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = (torch.nn.Linear(*sizes) for sizes in ((2, 5), (2, 4), (9, 1)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([torch.relu(self.one(x)), torch.relu(self.two(x))], -1))

    torch.manual_seed(0)
    subject = coverage.subject(trace(Two(), torch.zeros(2)))
    assert len(subject.layers) == 2
    requirements = coverage.BoundaryCoverage(CENTRE).requirements(subject, SQUARE)
    found = list(coverage.concolic(requirements, CENTRE, budget=coverage.Budget(inputs=10, samples=0)))
    assert found[-1].report.covered == requirements.total == 18
