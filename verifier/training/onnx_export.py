"""Write a sequence of layers as ONNX, node by node, without an exporter's help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from verifier.errors import InputError, UnsupportedError
from verifier.training.adversary import in_mode

_KNOWN = (
    "Linear, Conv2d, BatchNorm1d, BatchNorm2d, ReLU, LeakyReLU, Sigmoid, Tanh, Flatten, AvgPool2d, MaxPool2d, "
    "Identity, Dropout"
)


def export(module: nn.Module, path: str | Path, shape: Sequence[int]) -> None:
    """Write a layer, or an ``nn.Sequential`` of layers (nested ones too), for inputs ``[batch, *shape]``.

    The file holds what the module computes in evaluation mode, in its parameters' type (float32 or float64); input
    ``x``, output ``scores``. Raises ``UnsupportedError``, which lists all layers that are not known, and ``InputError``
    for a shape that the module does not take, or a folder that is not there.
    """
    if not Path(path).parent.is_dir():
        raise InputError(f"{path}: there is no folder {Path(path).parent}")
    layers = list(_layers("", module))
    build = _Nodes()
    refused = [text for name, layer in layers if (text := _refusal(name, layer)) is not None]
    if refused:
        raise UnsupportedError(f"cannot be written as ONNX: {'; '.join(refused)}. Known are {_KNOWN}")
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise UnsupportedError(f"parameters of {dtype}: float32 and float64 can be written")
    value, current = torch.zeros(1, *shape, dtype=dtype), "x"
    with in_mode(module, training=False), torch.no_grad():
        for name, layer in layers:
            try:
                result = layer(value)
            except (RuntimeError, ValueError) as error:
                raise InputError(
                    f"layer {name} ({type(layer).__name__}) takes no input of shape {list(value.shape)}: {error}"
                ) from error
            current, value = _write(build, name, layer, current, value.ndim), result
    build.add("Identity", [current], "scores")
    _save(build, Path(path), shape, value, TensorProto.FLOAT if dtype == torch.float32 else TensorProto.DOUBLE)


@dataclass(slots=True)
class _Nodes:
    """The file under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Tensor) -> str:
        self.constants.append(numpy_helper.from_array(value.detach().cpu().contiguous().numpy(), name))
        return name


def _layers(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential):
        for key, part in module.named_children():
            yield from _layers(f"{name}.{key}" if name else key, part)
    else:
        yield name or "layer", module


def _refusal(name: str, layer: nn.Module) -> str | None:
    """Why a layer cannot be written; None where it can."""
    kind = f"{name} ({type(layer).__name__})"
    match layer:
        case nn.Conv2d() if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return f"{kind} with padding {layer.padding!r}, {layer.padding_mode}: give numbers, of zeros"
        case nn.BatchNorm1d() | nn.BatchNorm2d() if layer.running_mean is None or not layer.affine:
            return f"{kind} without running statistics or weights"
        case nn.Flatten() if (layer.start_dim, layer.end_dim) != (1, -1):
            return f"{kind} of other axes than 1 to -1"
        case nn.AvgPool2d() | nn.MaxPool2d() if layer.ceil_mode:
            return f"{kind} with ceil_mode"
        case nn.AvgPool2d() if layer.divisor_override is not None:
            return f"{kind} with divisor_override"
        case nn.MaxPool2d() if layer.return_indices or layer.dilation not in (1, (1, 1)):
            return f"{kind} with indices or dilation"
        case (
            nn.Linear() | nn.Conv2d() | nn.BatchNorm1d() | nn.BatchNorm2d() | nn.Flatten() | nn.AvgPool2d()
            | nn.MaxPool2d() | nn.ReLU() | nn.LeakyReLU() | nn.Sigmoid() | nn.Tanh() | nn.Identity() | nn.Dropout()
        ):  # fmt: skip
            return None
    return kind


def _write(build: _Nodes, name: str, layer: nn.Module, x: str, rank: int) -> str:
    """Add a layer's nodes; the name of its output. ``rank``: of its input, the batch included."""
    match layer:
        case nn.Linear():
            return _linear(build, name, layer, x, rank)
        case nn.Conv2d():
            assert not isinstance(layer.padding, str)
            return build.add(
                "Conv", [x, *_weights(build, name, layer.weight, layer.bias)], name, kernel_shape=layer.kernel_size,
                strides=layer.stride, pads=layer.padding * 2, dilations=layer.dilation, group=layer.groups,
            )  # fmt: skip
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            known = [
                build.constant(f"{name}.{key}", value)
                for key, value in (("mean", layer.running_mean), ("var", layer.running_var)) if value is not None
            ]
            weights = _weights(build, name, layer.weight, layer.bias)
            return build.add("BatchNormalization", [x, *weights, *known], name, epsilon=layer.eps)
        case nn.AvgPool2d() | nn.MaxPool2d():
            return _pool(build, name, layer, x)
        case nn.Flatten():
            return build.add("Flatten", [x], name, axis=1)
        case nn.LeakyReLU():
            return build.add("LeakyRelu", [x], name, alpha=layer.negative_slope)
        case nn.ReLU() | nn.Sigmoid() | nn.Tanh():
            kind = "Relu" if isinstance(layer, nn.ReLU) else type(layer).__name__
            return build.add(kind, [x], name)
    return x


def _weights(build: _Nodes, name: str, weight: Tensor, bias: Tensor | None) -> list[str]:
    found = [build.constant(f"{name}.weight", weight)]
    return found if bias is None else [*found, build.constant(f"{name}.bias", bias)]


def _linear(build: _Nodes, name: str, layer: nn.Linear, x: str, rank: int) -> str:
    """Gemm takes matrices alone."""
    if rank == 2:
        return build.add("Gemm", [x, *_weights(build, name, layer.weight, layer.bias)], name, transB=1)
    weight, *bias = _weights(build, name, layer.weight.T, layer.bias)
    product = build.add("MatMul", [x, weight], f"{name}.product" if bias else name)
    return build.add("Add", [product, *bias], name) if bias else product


def _pool(build: _Nodes, name: str, layer: nn.AvgPool2d | nn.MaxPool2d, x: str) -> str:
    size, stride, padding = (_pair(v) for v in (layer.kernel_size, layer.stride, layer.padding))
    frame: dict[str, Any] = {"kernel_shape": size, "strides": stride, "pads": padding * 2}
    if isinstance(layer, nn.MaxPool2d):
        return build.add("MaxPool", [x], name, **frame)
    return build.add("AveragePool", [x], name, count_include_pad=int(layer.count_include_pad), **frame)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else value


def _save(build: _Nodes, path: Path, shape: Sequence[int], scores: Tensor, kind: int) -> None:
    graph = helper.make_graph(
        build.nodes, "classifier",
        [helper.make_tensor_value_info("x", kind, ["batch", *shape])],
        [helper.make_tensor_value_info("scores", kind, ["batch", *scores.shape[1:]])],
        build.constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
