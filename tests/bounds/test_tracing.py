"""Torch modules as graphs: the same values as the module, bounds that hold its outputs, honest errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bounds import Box, Graph, compute_bounds
from bounds.ops import readers
from bounds.tracing import TraceError, live, trace

D = torch.float64


class Function(nn.Module):
    """A function of the input as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Together(nn.Module):
    """Many layers on one input, their outputs one after the other: one export for all of them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x).flatten(1) for layer in self.layers], 1)


def traced(module: nn.Module, example: Tensor) -> Graph:
    """The graph, after its values at random points have been compared with the module's in float64."""
    graph = trace(module.eval(), example)
    assert graph.nodes[graph.inputs[0]].shape == tuple(example.shape)
    points = torch.randn((5, *example.shape), dtype=D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = graph.evaluate(points)[0]
        wanted = torch.stack([module.to(D)(x) for x in points])
    assert torch.allclose(found, wanted, atol=1e-6, rtol=1e-6), (found - wanted).abs().max()
    return graph


def bounded(module: nn.Module, graph: Graph, example: Tensor, radius: float = 0.1) -> None:
    """Bounds over a box hold the module's outputs at random points of it."""
    box = Box.around(example.to(D), radius)
    found = compute_bounds(graph, box)
    share = torch.rand((50, *example.shape), dtype=D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        values = torch.stack([module(box.lower[0] + s * (box.upper - box.lower)[0]) for s in share])
    assert (found.lower[0] <= values.amin(0) + 1e-12).all() and (found.upper[0] + 1e-12 >= values.amax(0)).all()
    assert torch.isfinite(found.lower).all() and torch.isfinite(found.upper).all()


def shaken(module: nn.Module) -> nn.Module:
    """The module with random parameters and statistics, so that nothing is 0 or 1 by chance."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=draw) * 0.8 + 0.2)
    return module


def test_image_layers() -> None:
    module = shaken(
        Together(
            nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            nn.Conv2d(3, 6, (3, 2), padding="same", dilation=2, groups=3, bias=False),
            nn.Conv2d(3, 2, 3, padding="valid"),
            nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1),
            nn.MaxPool2d(2, padding=1),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.AvgPool2d(3, stride=2, padding=1),
            nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
            nn.AdaptiveAvgPool2d(1),
            nn.AdaptiveAvgPool2d((2, 4)),
            nn.AdaptiveMaxPool2d(4),
            nn.PReLU(3),
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d((1, 0, 2, 1)),
        )
    )
    example = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    graph = traced(module, example)
    bounded(module, graph, example)


def test_flat_layers() -> None:
    module = shaken(
        Together(
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3, bias=False)),
            nn.BatchNorm1d(6),
            nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), nn.Sigmoid(), nn.MaxPool1d(2)),
            nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 4), nn.Tanh(), nn.Flatten()),
            nn.LeakyReLU(0.125),
            nn.ReLU6(),
            nn.Hardtanh(-0.5, 0.75),
            nn.Identity(),
        )
    )
    example = torch.randn(1, 6, generator=torch.Generator().manual_seed(2))
    graph = traced(module, example)
    bounded(module, graph, example)


TABLE = torch.arange(24.0).reshape(4, 6) / 7


def moves(x: Tensor) -> Tensor:
    """``[1, 4, 6]`` through everything that moves values."""
    table = TABLE.clone()
    y = x.transpose(1, 2).permute(0, 2, 1).reshape(1, 24).view(2, 12).unsqueeze(0).squeeze(0)
    one, two = y.chunk(2, dim=1)
    three, four = x.split([1, 3], dim=1)
    parts = [
        one + 2 * two - one.neg(),
        torch.stack([one, two], 1)[:, 0, ::2].expand(2, 3),
        three.squeeze(1).expand(2, 6)[:, 1:-1],
        four.mean(1).repeat(2, 1),
        torch.sub(x[0, :2], table[1:3], alpha=0.5),
        3 - x.sum(1).expand(2, 6) / 4,
        functional.pad(x[0, :2], (1, 2), value=0.25),
        x.index_select(2, torch.tensor([3, 0, 3]))[0, 2:],
        torch.where(table > 1, table, -table)[:2] + x[0, 2:],
        torch.maximum(x[0, :2], x[0, 2:]) + torch.minimum(x[0, 1:3], table[:2]),
        x[0, :2].clamp(min=-0.3) + x[0, 2:].clamp(max=0.4) + x[0, :2].clamp(-1, 1).abs(),
        x.unbind(1)[3].expand(2, -1),
        torch.matmul(x[0, :2], table.T) + torch.addmm(table[:2, :4], x[0, :2], table.T),
        torch.zeros(2, 1) + torch.full((2, 1), 0.5) * x.mean(),
    ]
    return torch.cat(parts, 1)


def test_moves_and_arithmetic() -> None:
    example = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(2))
    graph = trace(Function(moves), example)
    points = torch.randn((5, 1, 4, 6), generator=torch.Generator().manual_seed(0))
    found, wanted = graph.evaluate(points.to(D))[0], torch.stack([moves(x) for x in points]).to(D)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_parameters_are_exact() -> None:
    module = nn.Linear(3, 2)
    graph = trace(module, torch.zeros(1, 3))
    constants = [c for c in graph.constants.values() if c.value.is_floating_point()]
    values = torch.cat([c.value.flatten() for c in constants])
    assert all(c.error is None for c in constants)
    assert set(values.tolist()) == {float(v) for p in module.parameters() for v in p.detach().double().flatten()}


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x + y, x - y

    graph = trace(Two(), (torch.zeros(1, 3), torch.ones(1, 3)))
    one, two = graph.evaluate(torch.ones(1, 1, 3), torch.full((1, 1, 3), 3.0))
    assert one.tolist() == [[[4.0] * 3]] and two.tolist() == [[[-2.0] * 3]]


def test_a_tensor_changed_in_place_is_read_as_changed() -> None:
    def change(x: Tensor) -> Tensor:
        y = x + 1
        y.relu_()
        return y + x

    traced(Function(change), torch.randn(1, 4))


def test_an_operation_is_decomposed_where_torch_knows_how() -> None:
    module = Function(
        lambda x: torch.addcmul(x, x, torch.tensor([2.0, 3.0]), value=0.5) + functional.relu6(x).square() * 0
    )
    if "Pow" in readers():
        traced(module, torch.randn(1, 2))
    traced(Function(lambda x: torch.addcmul(x, x, torch.tensor([2.0, 3.0]), value=0.5)), torch.randn(1, 2))


def test_everything_unsupported_is_listed() -> None:
    module = Function(lambda x: torch.fft.fft(x).real + torch.cumsum(x, 1) + torch.erfinv(x) + torch.erfinv(x).relu())
    with pytest.raises(TraceError) as caught:
        trace(module, torch.rand(1, 4) / 2)
    text = str(caught.value)
    assert "aten.erfinv (erfinv)" in text and "aten.cumsum" in text and len(caught.value.operations) >= 3


def test_training_mode_and_other_misuse() -> None:
    with pytest.raises(TraceError, match=r"module.eval\(\)"):
        trace(nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train(), torch.zeros(1, 3))
    with pytest.raises(TraceError, match=r"module.eval\(\)"):
        trace(nn.BatchNorm1d(3).train(), torch.randn(4, 3))
    with pytest.raises(TraceError, match="float32 or float64"):
        trace(nn.Linear(3, 3), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(TraceError, match=r"torch.export cannot record Function"):
        trace(Function(lambda x: x if x.sum() > 0 else -x), torch.zeros(1, 3))


def test_importing_bounds_does_not_load_the_exporter(checkout: Path) -> None:
    code = "import sys, bounds.tracing; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_smooth_functions() -> None:
    """All functions of one variable that torch has a layer or a call for."""
    functions: list[Callable[[Tensor], Tensor]] = [
        functional.silu,
        functional.hardswish,
        functional.hardsigmoid,
        functional.softplus,
        functional.elu,
        functional.selu,
        functional.gelu,
        lambda x: functional.gelu(x, approximate="tanh"),
        torch.exp,
        torch.sin,
        torch.cos,
        torch.erf,
        lambda x: torch.log(x.square() + 1.5),
        lambda x: torch.sqrt(x.abs() + 0.25),
        lambda x: (x + 4.0).reciprocal(),
        lambda x: x.pow(3),
        lambda x: x.sign() + x.floor() + x.ceil() + x.round(),
    ]
    module = Function(lambda x: torch.cat([function(x) for function in functions], 1))
    example = torch.tensor([[0.3, -0.7, 1.9]])
    graph = traced(module, example)
    bounded(module, graph, example, 0.05)


class Attention(nn.Module):
    """One head over rows, with normalisation, a residual and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.into, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.into(self.before(x)).chunk(3, -1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        y = x + self.out(mixed)
        return torch.where(y > 0, y, 0.5 * y) * torch.softmax(y, -1) + functional.log_softmax(y, 1).amax(
            -1, keepdim=True
        )


def test_attention() -> None:
    module = shaken(Attention())
    example = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))
    graph = traced(module, example)
    bounded(module, graph, example, 0.01)


class Recurrent(nn.Module):
    """The last state of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layer(x)[0]
        return states[:, -1]


def test_a_recurrent_layer_is_unrolled() -> None:
    module = shaken(Recurrent())
    example = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(1))
    graph = traced(module, example)
    bounded(module, graph, example, 0.05)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: torch.round(x, decimals=1), "1 decimals"),
        (lambda x: functional.softplus(x, threshold=1.0), "threshold 1"),
        (lambda x: torch.where((x > 0) + (x > 0.5), x, -x), "a sum of booleans"),
    ],
)
def test_what_looks_the_same_at_zero_is_refused(function: Callable[[Tensor], Tensor], reason: str) -> None:
    """An example of zeros tells none of these from what is usual."""
    with pytest.raises(TraceError, match=reason):
        trace(Function(function), torch.zeros(1, 4))


def test_counts_and_booleans_are_compared_in_the_type_that_torch_takes() -> None:
    module = Function(
        lambda x: torch.cat(
            [
                ((x > 0) > 0.5) * 1.0,
                torch.where((x > 0).sum(-1, keepdim=True) >= 0.5, x, -x),
                torch.where((x > 0).sum(-1, keepdim=True) == 1.5, x, -x),
            ],
            1,
        )
    )
    traced(module, torch.zeros(1, 4))


def test_conversions_between_floating_types() -> None:
    """The checks of types that the export records beside them compute nothing."""
    layer = nn.Linear(3, 2)
    traced(Function(lambda x: layer(x.float()).double()), torch.randn(1, 3))
    for module in (Function(lambda x: x.float().relu().double()), Function(lambda x: x.to(torch.float32) * 2)):
        for dtype in (torch.float32, torch.float64):
            graph = trace(module, torch.ones((2, 3), dtype=dtype))
            x = torch.tensor([[[-1.0, 0.5, 2.0]] * 2], dtype=D)
            torch.testing.assert_close(graph.evaluate(x)[0], module(x[0]).unsqueeze(0).to(D))
    with pytest.raises(TraceError, match="a conversion to torch.int64"):
        trace(Function(lambda x: x.long().float()), torch.ones(1, 3))


def test_places_of_extreme_elements_tangents_and_einsum() -> None:
    example = torch.tensor([[0.2, -0.3, 0.1], [0.7, 0.6, -1.0]])
    traced(Function(lambda x: x.argmax(1, keepdim=True).to(x.dtype) + x.argmin(-1).to(x.dtype)), example)
    traced(Function(lambda x: x.argmax().to(x.dtype) + x.argmin(0)), example)
    traced(Function(lambda x: torch.einsum("ij,kj->ik", x, x.tan()) + torch.einsum("ij->i", x)), example)


class Twofold(nn.Module):
    """A branch of its code is another one while it is recorded, and the example does not show it."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.compiler.is_exporting() else x.relu()


class Guarded(nn.Module):
    """It takes nothing outside [0, 1], when it is not recorded."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError("outside [0, 1]")
        return 2 * x


def test_another_point_than_the_example_is_compared() -> None:
    with pytest.raises(TraceError, match="near the example.*branch"):
        trace(Twofold(), torch.full((1, 50), 0.01))
    assert len(trace(Guarded(), torch.ones((1, 50))).nodes) == 3
    # Beyond the domain both have no value.
    assert len(trace(Function(torch.log), torch.full((1, 50), 0.01)).nodes) == 2


def test_live_graphs_follow_the_parameters() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    x = torch.rand(1, 3)
    recorded = live(module.eval(), x)
    assert all(not c.value.requires_grad for c in trace(module, x).constants.values())
    for _ in range(2):
        with torch.no_grad():
            for values in module.parameters():
                values.add_(0.1)
        module.train()(torch.rand(5, 3))  # moves the statistics
        module.eval()
        (found,) = recorded.graph().evaluate(x.unsqueeze(0))
        torch.testing.assert_close(found[0], module(x), rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(found.sum(), list(module.parameters()))
    expected = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
