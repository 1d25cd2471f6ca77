"""Models of all kinds, smoothed in all places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import verifier
from verifier.errors import InputError, UnsupportedError
from verifier.smoothing import Cubic, Fixed, Gaussian, Laplace, Question, Way, smooth
from verifier.smoothing.places import AfterLayer
from verifier.training import export


@pytest.fixture(scope="module")
def path(checkout: Path) -> Path:
    return checkout / "benchmarks" / "digits" / "digits.onnx"


X = (np.arange(128).reshape(2, 1, 8, 8) % 17 / 16).astype(np.float32)


def in_torch(path: Path) -> nn.Module:
    graph = verifier.load(path)

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = graph.to(torch.float32)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner.evaluate(x)[0].flatten(1)

    return Module().eval()


def test_models_of_all_kinds_are_smoothed_alike(path: Path) -> None:
    """The same network as ONNX, as a graph and as a module draws the same noise and gets the same certificates."""
    models = (path, path.read_bytes(), verifier.load(path), in_torch(path))
    way = Way(rows=500)
    found = [smooth(model, 0.1, shape=(1, 1, 8, 8), way=way).certify(X, Fixed(2000)) for model in models]
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][0].samples == 2100
    assert smooth(path, 0.1).predict(X) == tuple(one.guess for one in found[0])
    assert smooth(path, 0.1).certify(torch.from_numpy(X), Fixed(2000)) == smooth(path, 0.1).certify(X, Fixed(2000))


def test_the_default_is_sequential_and_aims_at_the_noise_s_own_radii(path: Path) -> None:
    smoothed = smooth(path, 0.1)
    radii = smoothed.default_radii("2")
    assert radii[0] == 0
    assert radii[-1] == pytest.approx(0.309, rel=0.02)
    (found,) = smoothed.certify(X[:1])
    assert found.samples < 100_000
    assert smoothed.certify(X[:1], seed=1)[0] != found


def test_questions_reach_the_certificates(path: Path) -> None:
    smoothed = smooth(path, 0.25)
    one = smoothed.certify(X, Fixed(2000))
    among = smoothed.certify(X, Fixed(2000), Question(k=3))
    assert all(b.radius >= a.radius and b.k == 3 for a, b in zip(one, among, strict=True))
    assert any(b.radius > a.radius for a, b in zip(one, among, strict=True))
    together = smoothed.certify(X, Fixed(2000), Question(together=True))
    assert all(b.p < a.p and b.confidence == 1 - 0.0005 for a, b in zip(one, together, strict=True))
    labels = smoothed.certify(X, Fixed(2000), labels=[one[0].guess, (one[1].guess + 1) % 10])
    assert labels[0].label == one[0].label
    assert labels[1].label is None
    with pytest.raises(InputError, match=r"question\.each"):
        next(smoothed.certify_each([], question=Question(together=True)))
    for norm in ("1", "inf"):
        other = smooth(path, Laplace(0.2)).certify(X, Fixed(2000), Question(norm=norm))
        assert all(f.norm == norm and f.noise == "laplace scale=0.2" for f in other)
    with pytest.raises(InputError, match="3 labels for 2 inputs"):
        smoothed.certify(X, labels=[0, 1, 2])


def test_exact_noise(path: Path) -> None:
    plain, exact = smooth(path, 0.25), smooth(path, 0.25, step="1/16")
    asked = (X, Fixed(5000), Question(rivals=False))
    for a, b in zip(plain.certify(*asked), exact.certify(*asked), strict=True):
        assert (a.label, a.arithmetic) == (b.label, "real arithmetic")
        assert b.arithmetic == "floating point included"
        assert "floating point included" in str(b)
        assert "on a grid of 1/16" in b.noise
        assert b.radius == pytest.approx(a.radius, abs=0.1)
    with pytest.raises(InputError, match="not a multiple of the step 1/255"):
        smooth(path, 0.25, step="1/255").certify(X)
    with pytest.raises(UnsupportedError, match="depend on each other"):
        smooth(path, Cubic(0.1), step="1/16")
    with pytest.raises(InputError, match="on no grid"):
        smooth(path, 0.1, step="1/16", layer=True)


def test_noise_behind_the_first_layer(path: Path) -> None:
    """The radius is the one certified there over the layer's stretch, which here is known: the layer doubles."""
    smoothed = smooth(path, 0.6, layer=True)
    assert isinstance(smoothed.place, AfterLayer)
    assert smoothed.place.layer.size == 128
    for found in smoothed.certify(X, Fixed(3000), Question(rivals=False)):
        bare = Gaussian(0.6).shift("2", 128).radius(found.p, 1 - found.p)
        assert found.radius == pytest.approx(bare / smoothed.place.layer.sensitivities["2", "2"], rel=1e-6)
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        module[0].weight.copy_(2 * torch.eye(2))
        module[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        module[2].bias.zero_()
    x = np.array([[3.0, 0.5]], dtype=np.float32)
    (behind,) = smooth(module, 1.0, shape=(2,), layer=True).certify(x, Fixed(5000))
    (front,) = smooth(module, 0.5, shape=(2,)).certify(x, Fixed(5000))
    assert behind.label == front.label == 0
    assert behind.radius == pytest.approx(front.radius, rel=0.05)  # the same noise, one layer later
    for norm in ("1", "inf"):
        assert smooth(module, 1.0, shape=(2,), layer=True).certify(x, Fixed(500), Question(norm=norm))[0].radius > 0


def test_models_that_cannot_be_read_are_run_by_onnxruntime(tmp_path: Path) -> None:
    """Class 1 where the sum of the elements is above 0, by an operator that bounds do not know."""
    kind = TensorProto.FLOAT
    weights = numpy_helper.from_array(np.array([[-1, 1]] * 3, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("LpNormalization", ["y"], ["z"], axis=1)], "g",
        [helper.make_tensor_value_info("x", kind, ["n", 3])], [helper.make_tensor_value_info("z", kind, ["n", 2])],
        [weights],
    )  # fmt: skip
    path = tmp_path / "norm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    (found,) = smooth(path, 0.5).certify(np.full((1, 3), 0.2, dtype=np.float32), Fixed(20_000))
    assert found.label == 1
    assert 0.3 < found.radius < 0.6 / 3**0.5  # the distance of the half-space
    with pytest.raises(UnsupportedError, match="LpNormalization"):
        smooth(path, 0.5, layer=True)


@pytest.mark.parametrize("layer", [False, True])
def test_models_of_doubles_are_run_in_doubles(layer: bool, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    export(module, tmp_path / "double.onnx", (2,))
    for model in (tmp_path / "double.onnx", (tmp_path / "double.onnx").read_bytes(), module):
        smoothed = smooth(model, 1.0, shape=(2,), layer=layer)
        assert smoothed.dtype == smoothed.place.start(smoothed.inputs(np.zeros((1, 2)))[0]).dtype == torch.float64


def test_batches_that_a_model_fixes_are_refused(tmp_path: Path) -> None:
    """Its eight times two outputs are not sixteen classes."""
    kind = TensorProto.FLOAT
    weights = numpy_helper.from_array(np.ones((3, 2), dtype=np.float32), "w")
    for count in (1, 8):
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
            [helper.make_tensor_value_info("x", kind, [count, 3])],
            [helper.make_tensor_value_info("y", kind, [count, 2])], [weights],
        )  # fmt: skip
        path = tmp_path / f"{count}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert smooth(tmp_path / "1.onnx", 0.5).classes == 2
    for layer in (False, True):
        with pytest.raises(UnsupportedError, match="takes 8 inputs at once"):
            smooth(tmp_path / "8.onnx", 0.5, layer=layer)


def test_what_is_missing_is_said(path: Path) -> None:
    module = in_torch(path)
    with pytest.raises(InputError, match="shape"):
        smooth(module, 0.1)
    with pytest.raises(InputError, match="training mode"):
        smooth(module.train(), 0.1, shape=(1, 8, 8))
    with pytest.raises(InputError, match="half precision is for GPUs"):
        smooth(path, 0.1, way=Way(half=True))
    with pytest.raises(InputError, match="rows"):
        Way(rows=0)


def test_batches_of_modules_are_sized_by_what_they_hold() -> None:
    small, large = nn.Linear(4, 2).eval(), nn.Sequential(nn.Linear(4, 1_000_000), nn.Linear(1_000_000, 2)).eval()
    assert smooth(small, 1.0, shape=(4,)).rows == 4096
    assert smooth(large, 1.0, shape=(4,)).rows == 1
    assert smooth(large, 1.0, shape=(4,), way=Way(rows=3)).rows == 3
