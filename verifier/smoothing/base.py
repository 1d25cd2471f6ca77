"""Base classifiers: whatever gives scores, where it runs, and how many points it takes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bounds import trace
from bounds.graph import Graph
from bounds.plan import retain_blocks
from verifier.attacks.classifier import Classifier
from verifier.attacks.oracle import ELEMENTS, GraphOracle, Oracle
from verifier.attacks.search import cost
from verifier.errors import InputError, UnsupportedError
from verifier.network import Network, read_network
from verifier.smoothing.counting import Scores
from verifier.smoothing.layer import NoiseLayer, noise_layer

Model = str | Path | bytes | Network | Graph | Classifier | nn.Module

_MOST_ROWS, _MOST_GPU_ROWS = 4096, 65536

_CACHED = 2e6
"""Elements of all values on a processor (8 MB in float32): with more at once networks of all sizes were up to twice as
slow, since values leave the caches and large blocks of memory are fetched anew."""

_SHARE = 0.25
"""Of the free memory of a GPU that a batch may take."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is run: noisy copies at once (``rows``, None: by the memory), where (``device``), and whether in
    ``half`` precision, on a GPU."""

    rows: int | None = None
    device: str = "auto"
    half: bool = False

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise InputError(f"rows: {self.rows} is not a number of points from 1")


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """``scores`` of flat points; ``shape``: of one input, a leading 1 of an ONNX model included; ``rows``: points that
    are evaluated at once."""

    scores: Scores
    classes: int
    shape: tuple[int, ...]
    rows: int
    dtype: torch.dtype
    device: torch.device


def base(model: Model, shape: Sequence[int] | None, way: Way) -> Base:
    """A model ready to run; see ``smooth``. Raises ``InputError`` and ``UnsupportedError``."""
    retain_blocks()
    return _of_module(model, shape, way) if isinstance(model, nn.Module) else _of_file(model, way)


def behind_layer(model: Model, shape: Sequence[int] | None, way: Way) -> tuple[Base, NoiseLayer]:
    """A model cut after its first layer; the scores are those of the layer's values. Raises ``InputError`` and
    ``UnsupportedError``."""
    retain_blocks()
    graph, dtype, place = _layers_of(model, shape, way)
    found = noise_layer(graph, dtype, place)
    layer = replace(found, after=_run(found.after, way))
    rows = way.rows or _fitting(cost(graph)[1], place)
    return Base(layer.after, _classes(graph), _shape(graph), rows, dtype, place), layer


def _of_file(model: str | Path | bytes | Network | Graph | Classifier, way: Way) -> Base:
    place = _device(way)
    if isinstance(model, Graph):
        found = GraphOracle.of(model, torch.float32, place)
        return Base(_run(found.outputs, way), _classes(model), _shape(model), _rows(found, way), torch.float32, place)
    classifier = model if isinstance(model, Classifier) else Classifier.of(model)
    asked, dtype = classifier.oracle(place), _dtype(classifier)
    return Base(_run(asked.outputs, way), classifier.classes, classifier.shape, _rows(asked, way), dtype, asked.device)


def _layers_of(model: Model, shape: Sequence[int] | None, way: Way) -> tuple[Graph, torch.dtype, torch.device]:
    """The layers of the file or the module (neurons are not merged, so that there is noise on each of them), their
    type, and where they run."""
    if isinstance(model, nn.Module):
        whole = _of_module(model, shape, way)
        example = torch.zeros((1, *whole.shape), dtype=whole.dtype, device=whole.device)
        return trace(model, example), whole.dtype, whole.device
    place = _device(way)
    if isinstance(model, Graph):
        return model, torch.float32, place
    network = read_network(model, normalised=False) if isinstance(model, str | Path | bytes) else model
    classifier = network if isinstance(network, Classifier) else Classifier.of(network)
    if classifier.graph is None:
        raise UnsupportedError(f"noise after the first layer takes a model that can be read: {classifier.why}")
    return classifier.graph, _dtype(classifier), place


def _shape(graph: Graph) -> tuple[int, ...]:
    return graph.nodes[graph.inputs[0]].shape


def _classes(graph: Graph) -> int:
    return math.prod(graph.nodes[graph.outputs[0]].shape)


def _dtype(classifier: Classifier) -> torch.dtype:
    return torch.float64 if classifier.dtype is np.float64 else torch.float32


def _of_module(module: nn.Module, shape: Sequence[int] | None, way: Way) -> Base:
    if shape is None:
        raise InputError("a torch module does not tell the shape of its inputs: give shape=(channels, height, width)")
    if module.training:
        raise InputError("the module is in training mode, where it may compute something else: call its eval() first")
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    place = _fit_for(way, torch.device("cpu") if first is None else first.device)
    dtype = torch.float32 if first is None else first.dtype
    sizes = tuple(shape)

    def scores(points: Tensor) -> Tensor:
        found: Tensor = module(points.reshape(-1, *sizes))
        return found.flatten(1)

    example = torch.zeros((1, math.prod(sizes)), dtype=dtype, device=place)
    elements, classes = _elements(module, scores, example)
    return Base(_run(scores, way), classes, sizes, way.rows or _fitting(elements, place), dtype, place)


def _elements(module: nn.Module, scores: Scores, example: Tensor) -> tuple[int, int]:
    """How many elements all results of a module's parts have for one input, and how many classes there are."""
    total = example.numel()

    def count(_: nn.Module, __: object, result: object) -> None:
        nonlocal total
        total += result.numel() if isinstance(result, Tensor) else 0

    hooks = [part.register_forward_hook(count) for part in module.modules()]
    try:
        with torch.inference_mode():
            classes = scores(example).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    return total, classes


def _device(way: Way) -> torch.device:
    from verifier.pipeline import choose_device

    return _fit_for(way, choose_device(way.device))


def _fit_for(way: Way, place: torch.device) -> torch.device:
    if way.half and place.type != "cuda":
        raise InputError("half precision is for GPUs: on a processor it is slower")
    return place


def _rows(oracle: Oracle, way: Way) -> int:
    if isinstance(oracle, GraphOracle):
        return way.rows or _fitting(cost(oracle.graph)[1], oracle.device)
    cached = max(1, int(oracle.rows * _CACHED / ELEMENTS))
    return min(way.rows or cached, oracle.rows)


def _fitting(elements: float, place: torch.device) -> int:
    """How many points at once, where the values of one have so many elements."""
    if place.type != "cuda":
        return int(min(max(_CACHED / elements, 1), _MOST_ROWS))
    room = _SHARE * torch.cuda.mem_get_info(place)[0] / 8
    return int(min(max(room / elements, 1), _MOST_GPU_ROWS))


def _run(scores: Scores, way: Way) -> Scores:
    if not way.half:
        return scores

    def run(points: Tensor) -> Tensor:
        with torch.autocast(points.device.type, torch.float16):
            return scores(points).float()

    return run
