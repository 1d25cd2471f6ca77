"""Noise after the first layer: the cut against the whole, sensitivities against definitions, radii that are known."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

import verifier
from bounds import Builder, Graph, trace
from bounds.ops.arithmetic import Add, Neg
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from verifier.errors import InputError, UnsupportedError
from verifier.smoothing import sensitivity, spectral
from verifier.smoothing.layer import NoiseLayer, cut, noise_layer
from verifier.smoothing.noise import Gaussian, Laplace, Norm
from verifier.smoothing.places import AfterLayer
from verifier.smoothing.privacy import pixel_dp_radius
from verifier.smoothing.sensitivity import sensitivities

DIGITS = Path(__file__).resolve().parents[3] / "benchmarks" / "digits" / "digits.onnx"
NORMS: tuple[Norm, ...] = ("1", "2", "inf")
ORDER = {"1": 1.0, "2": 2.0, "inf": math.inf}
SIMPLE = (("1", "1"), ("1", "2"), ("1", "inf"), ("2", "2"), ("2", "inf"), ("inf", "inf"))


class Residual(nn.Module):
    """A layer, and then a block around which its values go."""

    def __init__(self, skip_first: bool = False) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.last, self.skip_first = nn.Linear(48, 4), skip_first

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y + (self.inner(torch.relu(y)) if not self.skip_first else torch.relu(x).mean(1, keepdim=True))
        return self.last(torch.relu(y).flatten(1))


class Normalised(nn.Module):
    """A normalisation in front of a perceptron, or of a nonlinear function."""

    def __init__(self, layered: bool = True) -> None:
        super().__init__()
        self.mean, self.std = torch.linspace(0.3, 0.6, 6), torch.linspace(0.2, 0.5, 6)
        first = [nn.Linear(6, 9), nn.BatchNorm1d(9)] if layered else []
        self.layers = nn.Sequential(*first, nn.ReLU(), nn.Linear(9 if layered else 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - self.mean) / self.std)


def traced(module: nn.Module, *shape: int, seed: int = 0) -> Graph:
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)  # type: ignore[union-attr,operator]
            part.running_var.uniform_(0.3, 2)  # type: ignore[union-attr,operator]
    return trace(module.eval(), torch.zeros((1, *shape)))


def linear(weights: np.ndarray) -> Graph:
    """``W x`` and a bias."""
    build = Builder()
    x = build.input((1, weights.shape[1]))
    w, b = build.constant(torch.from_numpy(weights.T.copy())), build.constant(torch.full((len(weights),), 1e3))
    return build.finish((build.add(Gemm(), x, w, b),))


def two_halves(weights: np.ndarray, readout: np.ndarray) -> Graph:
    """``(readout . W x, 0)`` with ReLUs behind ``W x`` so that a layer ends there."""
    build = Builder()
    x = build.input((1, weights.shape[1]))
    h = build.add(Gemm(), x, build.constant(torch.from_numpy(weights.T.copy())), name="h")
    v = build.constant(torch.from_numpy(np.stack([readout, 0 * readout], 1)))
    back = build.add(Neg(), build.add(Gemm(), build.add(Relu(), build.add(Neg(), h)), v))
    return build.finish((build.add(Add(), build.add(Gemm(), build.add(Relu(), h), v), back),))


def dense(graph: Graph) -> np.ndarray:
    """The linear part of an affine graph, by evaluation in float64."""
    shape = graph.nodes[graph.inputs[0]].shape
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    result: np.ndarray = (graph.evaluate(units)[0] - graph.evaluate(0 * units)[0]).flatten(1).T.numpy()
    return result


def exact(w: np.ndarray, p: str, q: str) -> float:
    """``max |W x|_q / |x|_p`` of a small matrix: at corners of a polytope, by duality for (2, 1)."""
    if p == "1":
        return max(float(np.linalg.norm(c, ORDER[q])) for c in w.T)
    if (p, q) == ("2", "2"):
        return float(np.linalg.norm(w, 2))
    if p == "inf":
        signs = itertools.product((-1.0, 1.0), repeat=w.shape[1])
        return max(float(np.linalg.norm(w @ np.array(s), ORDER[q])) for s in signs)
    dual = {"1": "inf", "inf": "1"}
    return exact(w.T, dual[q], "2")


def random_graphs() -> list[tuple[str, Graph]]:
    """Affine maps with all that may stand before the first nonlinear operator."""
    conv = nn.Conv2d
    batch = nn.Sequential(conv(2, 6, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    modules: list[tuple[str, nn.Module, tuple[int, ...]]] = [
        ("padded", nn.Sequential(conv(1, 5, 3, padding=1), nn.ReLU()), (1, 8, 8)),
        ("strided", nn.Sequential(conv(3, 4, 4, stride=2), nn.ReLU()), (3, 10, 9)),
        ("grouped, normalised", batch, (2, 7, 7)),
        ("pooled", nn.Sequential(conv(2, 8, 3), nn.AvgPool2d(2), nn.ReLU()), (2, 8, 8)),
        ("wide", nn.Sequential(nn.Flatten(), nn.Linear(300, 40), nn.ReLU()), (3, 10, 10)),
        ("perceptron", Normalised(), (6,)),
    ]
    return [(name, traced(module, *shape)) for name, module, shape in modules]


RANDOM = random_graphs()


@pytest.mark.parametrize(
    "weights",
    [
        [[3.0, 4.0]],
        [[3.0], [4.0]],
        [[1.0, 2.0], [3.0, 4.0]],
        [[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[1.0, 1.0], [1.0, -1.0]],
        [[1e-9, 0.0], [0.0, 1e9]],
    ],
)
def test_norms_of_matrices_by_hand(weights: list[list[float]]) -> None:
    w = np.array(weights)
    found = sensitivities(linear(w))
    for p, q in itertools.product(NORMS, NORMS):
        truth = exact(w, p, q)
        assert found[p, q] >= truth * (1 - 1e-14), (p, q)
        if (p, q) in SIMPLE or bool((w >= 0).all()):
            assert found[p, q] == pytest.approx(truth, rel=1e-10, abs=1e-18), (p, q)


def test_rounding_never_takes_a_norm_below_the_exact_one() -> None:
    """Sums that float64 does not hold: the exact column sum is 1 + 2^-60, the exact norm of (1, 2^-40) above 1."""
    found = sensitivities(linear(np.array([[1.0], [2.0**-60]])))
    assert found["1", "1"] > 1
    assert found["inf", "1"] > 1
    assert found["2", "2"] > 1
    tall = sensitivities(linear(np.array([[1.0], [2.0**-40]])))
    assert all(1 < tall[p, "2"] < 1 + 1e-12 for p in NORMS)


@pytest.mark.parametrize(("name", "graph"), RANDOM, ids=[name for name, _ in RANDOM])
def test_sensitivities_of_layers(name: str, graph: Graph) -> None:
    first = cut(graph)[0]
    w, found = dense(first), sensitivities(first)
    assert found["2", "2"] >= np.linalg.norm(w, 2) * (1 - 1e-14)
    for p, q in SIMPLE:
        if (p, q) != ("2", "2"):
            vectors, order = (w.T, ORDER[q]) if p == "1" else (w, 1.0 if p == "inf" else 2.0)
            truth = max(np.linalg.norm(v, order) for v in vectors)
            assert truth * (1 - 1e-14) <= found[p, q] <= truth * (1 + 1e-6), (p, q)
    assert found["2", "2"] <= np.linalg.norm(w, 2) * (1 + 1e-6)
    rng = np.random.default_rng(0)
    tries = [rng.standard_normal((200, w.shape[1])), rng.choice([-1.0, 1.0], (200, w.shape[1])), np.sign(w)]
    left, _, right = np.linalg.svd(w, full_matrices=False)
    signs = [np.sign(left.T) @ w, np.sign(rng.standard_normal((200, len(w)))) @ w, right]
    points = np.concatenate([*tries, *signs])
    points = points[np.abs(points).sum(1) > 0]
    for p, q in itertools.product(NORMS, NORMS):
        ratios = np.linalg.norm(points @ w.T, ORDER[q], axis=1) / np.linalg.norm(points, ORDER[p], axis=1)
        assert ratios.max() <= found[p, q] * (1 + 1e-13), (p, q)
        assert found[p, q] <= 6 * ratios.max(), (p, q)


@pytest.mark.parametrize("limits", [("MOST_FACTORED", 4), ("MOST_PRODUCTS", 0), ("_POWERS", 0), ("MOST_ENTRIES", 5)])
def test_every_way_to_the_spectral_norm_is_an_upper_bound(
    limits: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cut(traced(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), 1, 16, 16))[0]
    truth = float(np.linalg.norm(dense(first), 2))
    exact_way = sensitivities(first)["2", "2"]
    monkeypatch.setattr(spectral, "MOST_FACTORED", 4)
    monkeypatch.setattr(sensitivity if limits[0] == "MOST_ENTRIES" else spectral, *limits)
    found = sensitivities(first)
    assert exact_way < found["2", "2"]
    assert truth < found["2", "2"] < truth * (1.25 if limits[0] == "MOST_FACTORED" else 4)
    assert found["1", "2"] <= found["2", "2"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999999, 1 - 1e-15, 3.0])
def test_a_wrong_guess_of_the_eigenvalue_changes_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.default_rng(1).standard_normal((30, 40))
    truth = float(np.linalg.norm(w, 2))
    graph, guess = linear(w), spectral._guess
    monkeypatch.setattr(spectral, "_guess", lambda values: guess(values) * share)
    assert truth <= sensitivities(graph)["2", "2"] <= truth * 4


def test_inexact_weights_are_allowed_for() -> None:
    build, error = Builder(), torch.tensor([[0.25, 0.0], [0.5, 0.125]], dtype=torch.float64)
    w = torch.tensor([[1.0, 2.0], [-3.0, 4.0]], dtype=torch.float64)
    x = build.input((1, 2))
    graph = build.finish((build.add(Gemm(), x, build.constant(w, error)),))
    found = sensitivities(graph)
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        near = (w + error * torch.tensor(signs).reshape(2, 2)).T.numpy()
        for p, q in itertools.product(NORMS, NORMS):
            assert found[p, q] >= exact(near, p, q) * (1 - 1e-14)
    # The exact one is 7.625: the columns that are evaluated together share the sum of each row's errors.
    assert 7.625 < found["1", "1"] < 7.875 * (1 + 1e-6)


def halves(graph: Graph, dtype: torch.dtype = torch.float32) -> tuple[NoiseLayer, float]:
    """The cut, and by how much its two halves differ from the whole."""
    layer, shape = noise_layer(graph, dtype), graph.nodes[graph.inputs[0]].shape
    x = torch.rand((17, math.prod(shape)), dtype=dtype, generator=torch.Generator().manual_seed(3)) * 2 - 0.5
    hidden = layer.before(x)
    assert hidden.shape == (17, layer.size)
    assert hidden.dtype == dtype
    whole = graph.evaluate(x.reshape(-1, *shape))[0].flatten(1)
    return layer, float((layer.after(hidden) - whole).abs().max())


def test_the_two_halves_are_the_whole() -> None:
    for normalised in (True, False):
        layer, off = halves(verifier.load(DIGITS, normalised=normalised))
        assert off < 1e-5
        assert (layer.size, layer.name) == (128, "conv")
    for graph, size in ((traced(Residual(), 2, 4, 4), 48), (traced(Normalised(), 6), 9)):
        layer, off = halves(graph, torch.float64)
        assert off < 1e-13
        assert layer.size == size
    for _, graph in RANDOM:
        assert halves(graph, torch.float64)[1] < 1e-13


def test_a_linear_classifier_is_a_layer() -> None:
    layer, off = halves(linear(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])))
    assert off == 0
    assert layer.size == 3
    assert layer.sensitivities["1", "1"] == pytest.approx(12)


def test_models_without_a_first_layer_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    beginnings = (
        traced(Residual(skip_first=True), 2, 4, 4),
        traced(nn.Sequential(nn.ReLU(), nn.Linear(4, 3)), 4),
        traced(Normalised(layered=False), 6),
        traced(nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.Linear(4, 3)), 2, 2),
    )
    for graph in beginnings:
        with pytest.raises(UnsupportedError, match="add the noise to the input instead"):
            cut(graph)
    build = Builder()
    x, y = build.input((1, 2)), build.input((1, 2))
    with pytest.raises(UnsupportedError, match="has 2 and 1"):
        cut(build.finish((build.add(Add(), x, y),)))
    build = Builder()
    build.input((1, 2))
    with pytest.raises(UnsupportedError, match="does not depend"):
        cut(build.finish((build.constant(torch.zeros(1, 2)),)))
    monkeypatch.setattr(sensitivity, "MOST_WORK", 10.0)
    with pytest.raises(UnsupportedError, match="add the noise to the input instead"):
        noise_layer(RANDOM[0][1])


@pytest.mark.parametrize(("norm", "noise_norm"), [("1", "2"), ("2", "2"), ("inf", "2"), ("1", "1")])
def test_the_radius_of_a_half_space_is_its_distance(norm: Norm, noise_norm: Norm) -> None:
    """Class 0 where ``v . W x > 0``; v such that the direction in which W stretches most is across the boundary. With
    Gaussian (norm 2) or Laplace noise (norm 1, v a unit vector) on W x the smoothed classifier is the same half-space,
    whose distance from x is known; the certificate from the true probability reaches it and never goes beyond."""
    w = np.array([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0], [2.0, 0.25, 1.0], [1.0, 1.0, 1.0]])
    if noise_norm == "1":
        w = np.array([[0.0, 7.0, 0.0], [3.0, 0.0, 1.0], [2.0, 0.0, -1.0]])
    corners = {"1": np.eye(3)[np.abs(w).sum(0).argmax() if noise_norm == "1" else np.linalg.norm(w, axis=0).argmax()]}
    step = {"2": np.linalg.svd(w)[2][0], "inf": np.ones(3)} | corners
    v = w @ step[norm]
    v = v / np.linalg.norm(v)
    layer = noise_layer(two_halves(w, v), torch.float64)
    assert (layer.name, layer.size) == ("h", len(w))
    scale, dual = 0.4, {"1": math.inf, "2": 2, "inf": 1}[norm]
    x = step[norm] * 0.1 + np.array([0.01, 0.02, -0.01])
    hidden = layer.before(torch.from_numpy(x)[None])
    lead = float(v @ hidden[0].numpy())
    scores = layer.after(hidden)[0]
    assert float(scores[0] - scores[1]) == pytest.approx(lead)
    p = float(ndtr(lead / scale)) if noise_norm == "2" else 1 - math.exp(-lead / scale) / 2
    distance = lead / float(np.linalg.norm(w.T @ v, dual))
    noise = Gaussian(scale) if noise_norm == "2" else Laplace(scale)
    radius = AfterLayer(noise, layer).shift(norm, 3).radius(p, 1 - p)
    assert radius == pytest.approx(distance, rel=1e-7)
    assert radius <= distance * (1 + 1e-12)
    beyond = torch.from_numpy(x - step[norm] / np.linalg.norm(step[norm], ORDER[norm]) * radius * (1 + 1e-6))
    assert float(v @ layer.before(beyond[None])[0].numpy()) < 0


def test_the_best_norm_of_the_noise_is_taken() -> None:
    layer = noise_layer(linear(np.array([[3.0, 0.0], [0.0, 1.0]])))
    one = Laplace(0.4).shift("1", 2).radius(0.9, 0.1)
    assert AfterLayer(Laplace(0.4), layer).shift("1", 2).radius(0.9, 0.1) == pytest.approx(one / 3, rel=1e-6)
    two = Gaussian(0.4).shift("2", 2).radius(0.9, 0.1)
    assert AfterLayer(Gaussian(0.4), layer).shift("2", 2).radius(0.9, 0.1) == pytest.approx(two / 3, rel=1e-6)
    huge = noise_layer(linear(np.array([[1e308, 1e308], [1e308, 0.0]])), torch.float64)
    assert huge.sensitivities["1", "1"] == math.inf
    assert AfterLayer(Laplace(0.4), huge).shift("1", 2).radius(0.9, 0.1) < 1e-300
    nothing = noise_layer(linear(np.zeros((2, 2))))
    assert AfterLayer(Gaussian(0.4), nothing).shift("1", 2).radius(0.9, 0.1) > 1e15


PAIRS = [(p, q) for p in (0.51, 0.6, 0.9, 0.999, 1 - 1e-9, 1.0) for q in (0.0, 1e-9, 1e-3, 0.1, 0.4, 0.5) if p + q <= 1]


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_differential_privacy_says_less_than_the_tight_radii(p: float, q: float) -> None:
    gauss, laplace = (pixel_dp_radius(name, 0.7, p, q) for name in ("gaussian", "laplace"))
    assert 0 < gauss <= 0.7 / 2 * (float(ndtri(p)) - float(ndtri(q)))
    tight = max(math.log(p / q) / 2 if q else math.inf, -math.log(max(1 - p + q, 1e-300)))
    assert 0 < laplace <= 0.7 * tight
    assert pixel_dp_radius("gaussian", 1.4, p, q) == pytest.approx(2 * gauss)
    if p + q < 1:
        assert pixel_dp_radius("gaussian", 0.7, p, q) < pixel_dp_radius("gaussian", 0.7, 1 - q, q)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_the_gaussian_mechanism_at_the_radius_meets_the_condition(p: float, q: float) -> None:
    """With its exact delta (Balle and Wang, ICML 2018, theorem 8), and no (eps, delta) of a grid gives more."""
    length = pixel_dp_radius("gaussian", 1.0, p, q)
    eps = np.linspace(1e-4, 1, 5000)
    delta = ndtr(length / 2 - eps / length) - np.exp(eps) * ndtr(-length / 2 - eps / length)
    assert bool((p > np.exp(2 * eps) * q + (1 + np.exp(eps)) * delta).any())
    for share in (0.5, 0.99, 0.999999):
        allowed = np.minimum((p - np.exp(2 * eps) * q) / (1 + np.exp(eps)) * share, 0.4)
        good = allowed > 0
        lengths = eps[good] / np.sqrt(2 * np.log(1.25 / allowed[good]))
        assert lengths.max() <= length * (1 + 1e-8)
    assert length <= lengths.max() * (1 + 1e-4)


def test_privacy_refuses_what_makes_no_sense() -> None:
    assert pixel_dp_radius("gaussian", 1, 0.4, 0.4) == pixel_dp_radius("laplace", 1, 0.3, 0.4) == 0
    assert pixel_dp_radius("laplace", 2, 0.8, 0.2) == pytest.approx(math.log(4))
    for mechanism, scale, p in (("cauchy", 1.0, 0.9), ("gaussian", 0.0, 0.9), ("laplace", 1.0, 1.5)):
        with pytest.raises(InputError):
            pixel_dp_radius(mechanism, scale, p, 0.1)
