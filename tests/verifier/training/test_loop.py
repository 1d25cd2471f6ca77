"""The loop: reproducible, stoppable, leaves nothing changed behind; what is exported is what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import verifier
from verifier.errors import InputError, UnsupportedError
from verifier.training import (
    Adversarial,
    Adversary,
    CentreLoss,
    Certified,
    Epoch,
    Expressive,
    Loss,
    Plain,
    Scheduled,
    Settings,
    accuracy,
    centres,
    epochs,
    export,
    initialise,
    ramp,
    train,
    with_centres,
)


def blobs(count: int = 90) -> tuple[Tensor, Tensor]:
    """Three clouds of points in the plane, far from each other."""
    draw, y = torch.Generator().manual_seed(4), torch.arange(count) % 3
    middle = torch.tensor([[0.0, 1.0], [1.0, -0.5], [-1.0, -0.5]])
    return middle[y] + 0.2 * torch.randn(count, 2, generator=draw), y


def small() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
    initialise(module, 7)
    return module


@pytest.mark.parametrize("loss", [Plain(), Plain(0.2), Adversarial(Adversary(0.1, 3))], ids=["plain", "noise", "pgd"])
def test_training_learns_and_is_reproducible(loss: Loss) -> None:
    x, y = blobs()
    settings, seen = Settings(epochs=8, batch=16, rate=0.05, seed=3), list[Epoch]()
    found = [small(), small()]
    state = torch.get_rng_state()
    train(found[0], x, y, loss, settings, seen.append)
    train(found[1], x, y, loss, settings)
    assert torch.equal(state, torch.get_rng_state())
    assert accuracy(found[0], x, y) > 0.95
    assert [epoch.number for epoch in seen] == list(range(1, 9))
    assert seen[-1].loss < seen[0].loss
    first, second = (torch.cat([p.flatten() for p in module.parameters()]) for module in found)
    assert torch.equal(first, second)
    other = small()
    train(other, x, y, loss, Settings(epochs=8, batch=16, rate=0.05, seed=4))
    assert not torch.equal(first, torch.cat([p.flatten() for p in other.parameters()]))


def test_training_can_be_stopped_and_puts_modes_back() -> None:
    x, y = blobs()
    module = small().eval()
    modes = []

    def watched(module: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator) -> Tensor:
        modes.append(module.training)
        return Plain()(module, x, y, draw)

    for epoch in epochs(module, x, y, watched, Settings(epochs=100, batch=45)):
        assert not module.training
        if epoch.number == 2:
            break
    assert modes == [True] * 4
    assert not module.training


def test_parameters_that_are_kept_stay() -> None:
    x, y = blobs()
    points = centres(3, 4)
    features = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
    initialise(features)
    train(features, x, y, Plain(objective=CentreLoss(points)), Settings(epochs=30, batch=30, rate=0.03))
    module = with_centres(features, points)
    assert accuracy(module, x, y) > 0.95
    train(module, x, y, Plain(), Settings(epochs=1))
    assert torch.equal(module[1].weight, points)


def test_scheduled_losses_see_how_much_is_done() -> None:
    x, y = blobs(20)
    seen = []

    def at(share: float) -> Loss:
        seen.append(share)
        return Plain()

    train(small(), x, y, Scheduled(at), Settings(epochs=2, batch=10))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_initial_parameters_depend_on_the_seed_alone() -> None:
    first, second = small(), small()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    initialise(second, 8)
    assert not torch.equal(first[0].weight, second[0].weight)
    assert float(second[2].weight.detach().abs().max()) <= 0.25
    with pytest.raises(InputError, match="0 is a PReLU"):
        initialise(nn.Sequential(nn.PReLU()))


def test_errors_say_what_is_wrong_with_data() -> None:
    x, y = blobs()
    for bad, match in (((x[:5], y), "5 classes"), ((x, y.float()), "int64"), ((x.long(), y), "floating")):
        with pytest.raises(InputError, match=match):
            train(small(), *bad, Plain())
    with pytest.raises(InputError, match="no parameters"):
        train(nn.ReLU(), x, y, Plain())
    with pytest.raises(InputError, match="no longer finite"):
        train(small(), x * torch.inf, y, Plain())
    with pytest.raises(InputError, match="at least one each"):
        Settings(epochs=0)
    with pytest.raises(InputError, match="rate"):
        Settings(rate=0.0)


def test_what_is_trained_for_a_box_is_proven(tmp_path: Path) -> None:
    """One feature tells the classes by 1, twenty by 0.15: together these are better, and worth nothing within 0.3
    (Tsipras et al., ICLR 2019). Natural training rests on them."""
    draw, y = torch.Generator().manual_seed(0), torch.arange(200) % 2
    side = (2 * y - 1).unsqueeze(1)
    strong = 1 - 2 * (torch.rand(200, 1, generator=draw) < 0.05).float()
    x = side * torch.cat([strong, 0.15 + 0.1 * torch.randn(200, 20, generator=draw)], 1)
    path, found = tmp_path / "model.onnx", []
    for both in (False, True):
        module = nn.Sequential(nn.Linear(21, 16), nn.ReLU(), nn.Linear(16, 2))
        initialise(module)
        loss: Loss | Scheduled = Plain()
        if both:
            certified = Certified.of(module, x[:1], 0.3, kappa=0.0)
            loss = ramp(Expressive(Adversarial(Adversary(0.3, 3)), certified, 0.2))
        train(module, x, y, loss, Settings(epochs=20, batch=50, rate=0.02))
        export(module, path, (21,))
        assert accuracy(module, x, y) > 0.9
        queries = [verifier.robustness(path, x[k].numpy(), "0.3", label=int(y[k])) for k in range(2)]
        found.append([verifier.verify(query).word for query in queries])
    assert found == [["sat", "sat"], ["unsat", "unsat"]]


def everything() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=(1, 0)), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2, 1, padding=1),
        nn.Sequential(nn.Conv2d(4, 4, 2, groups=2, bias=False), nn.LeakyReLU(0.1), nn.MaxPool2d(2, 1)),
        nn.Dropout(0.5), nn.Linear(2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 10), nn.BatchNorm1d(10),
        nn.Sigmoid(), nn.Identity(), nn.Linear(10, 3, bias=False),
    )  # fmt: skip


def dense() -> nn.Sequential:
    """Layers that onnxruntime has in double precision."""
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def pooled() -> nn.Sequential:
    """Edges that count or not, holes, and a mean over each channel."""
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(1, 2), dilation=2, padding=(2, 1)), nn.BatchNorm2d(4, eps=1e-2), nn.Tanh(),
        nn.AvgPool2d((3, 2), stride=2, padding=1, count_include_pad=False), nn.Conv2d(4, 4, 1), nn.Sigmoid(),
        nn.AvgPool2d((4, 2)), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


@pytest.mark.parametrize("make", [everything, dense, lenet, pooled])
def test_what_is_exported_agrees(make: Callable[[], nn.Sequential], tmp_path: Path) -> None:
    draw, module = torch.Generator().manual_seed(0), make()
    dtype = next(module.parameters()).dtype
    initialise(module)
    module(torch.rand(50, 2, 8, 8, generator=draw, dtype=dtype))  # moves the statistics
    path = tmp_path / "model.onnx"
    export(module, path, (2, 8, 8))
    assert module.training
    x = torch.rand(7, 2, 8, 8, generator=draw, dtype=dtype)
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    one = verifier.load(path).evaluate(x[:1].unsqueeze(0).double())[0]
    np.testing.assert_allclose(one.reshape(-1), expected[0], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported_is_said_at_once(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 3, padding="same"), nn.GELU(), nn.Flatten(2), nn.Linear(3, 3))
    with pytest.raises(UnsupportedError, match=r"0 \(Conv2d\).*1 \(GELU\).*2 \(Flatten\).*Known are Linear"):
        export(module, tmp_path / "x.onnx", (1, 3, 3))
    with pytest.raises(InputError, match=r"0 \(Linear\) takes no input of shape \[1, 5\]"):
        export(nn.Sequential(nn.Linear(4, 2)), tmp_path / "x.onnx", (5,))
    with pytest.raises(InputError, match="there is no folder"):
        export(nn.Sequential(nn.Linear(4, 2)), tmp_path / "none" / "x.onnx", (4,))
    assert not list(tmp_path.iterdir())
