"""Networks, images and balls on which attacks are compared.

One network is the project's own (``benchmarks/digits``) with the images that it was not trained on. The others come
from a folder of the competition's benchmarks; their images are recovered from the properties of all benchmarks that
take images of the same data set. A property's box is moved to image units by the benchmark's normalisation. It is the
ball around an image, cut by [0, 1]: where an end lies on 0 or 1, the pixel is half the greatest width away from the
other end, else it is the centre. The result must be a multiple of 1/255 up to the decimals of the file, or the
normalisation is wrong. The label is the class that all literals compare with. Images that occur twice are kept once.

All of an image's units are those of the image: the normalisation is part of the network, so that one epsilon bounds
each pixel.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks import train_digits
from bounds import Graph
from verifier import regions
from verifier.network import Network, read_network
from verifier.property import read_property
from verifier.property.numbers import rank
from verifier.query import Specification

Channels = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A network, where its images come from, and epsilon in image units. ``benchmark`` "" is the project's own."""

    name: str
    benchmark: str
    model: str
    images: tuple[str, ...]
    epsilon: Fraction


NORMALISATIONS: Mapping[str, tuple[Channels, Channels]] = MappingProxyType({
    "cifar10_resnet": (("0.4914", "0.4822", "0.4465"), ("0.2471", "0.2435", "0.2616")),
    "oval21": (("0.485", "0.456", "0.406"), ("0.225", "0.225", "0.225")),
    "sri_resnet_a": (("0.4914", "0.4822", "0.4465"), ("0.2023", "0.1994", "0.2010")),
    "sri_resnet_b": (("0.4914", "0.4822", "0.4465"), ("0.2023", "0.1994", "0.2010")),
    "vit": (("0.4914", "0.4822", "0.4465"), ("0.2023", "0.1994", "0.2010")),
})
"""Mean and standard deviation of each channel; a benchmark that is not here takes images as they are."""

TRANSPOSED = frozenset({"cora"})
"""Benchmarks whose images lie on their side: the others' networks read them with rows and columns exchanged."""

MNIST = ("mnist_fc", "cora")
CIFAR = ("cifar10_resnet", "oval21", "sri_resnet_a", "sri_resnet_b", "vit")

SOURCES = (
    Source("digits", "", "digits.onnx", (), Fraction(1, 10)),
    Source("mnist_fc 256x4", "mnist_fc", "mnist-net_256x4.onnx", MNIST, Fraction(2, 25)),
    Source("oval21 deep", "oval21", "cifar_deep_kw.onnx", CIFAR, Fraction(4, 255)),
    Source("resnet_2b", "cifar10_resnet", "resnet_2b.onnx", CIFAR, Fraction(4, 255)),
    Source("vit pgd_2_3_16", "vit", "pgd_2_3_16.onnx", CIFAR, Fraction(4, 255)),
)


class Counted(nn.Module):
    """A graph as a module: images ``[N, C, H, W]`` to scores ``[N, K]``, float32. ``count``: images evaluated so far.

    The backward pass of an evaluation is not counted by itself.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph.to(torch.float32)
        self.shape = self.graph.nodes[self.graph.inputs[0]].shape
        self.count = 0
        # Attacks ask a module's parameters which device it is on.
        self.nothing = nn.Parameter(torch.zeros(0))

    def scores(self, images: Tensor) -> Tensor:
        """The scores, without counting."""
        return self.graph.evaluate(images.reshape(-1, *self.shape))[0].flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """The scores, counted."""
        self.count += len(images)
        return self.scores(images)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is attacked: images ``[N, C, H, W]`` of the right class, ``labels [N]``, and their boxes.

    ``lower, upper`` are float32: a vector of float32 lies in the ball cut by [0, 1], in exact arithmetic, exactly where
    it lies between them.
    """

    model: Counted
    images: Tensor
    labels: Tensor
    lower: Tensor
    upper: Tensor
    epsilon: Fraction

    def only(self, kept: Tensor) -> Subject:
        """The images that ``kept`` (numbers or a mask) names."""
        images, labels, lower, upper = (t[kept] for t in (self.images, self.labels, self.lower, self.upper))
        return replace(self, images=images, labels=labels, lower=lower, upper=upper)

    @torch.no_grad()
    def fallen(self, points: Tensor, slack: float = 1e-6) -> Tensor:
        """``[N]``: whether the point lies in the box and another class scores at least as much as the label.

        Points are clipped to the box first, since tools round its ends in their own ways; what lies further than
        ``slack`` outside does not count.
        """
        near = ((points >= self.lower - slack) & (points <= self.upper + slack)).flatten(1).all(1)
        scores = self.model.scores(torch.minimum(torch.maximum(points, self.lower), self.upper))
        own = scores.gather(1, self.labels[:, None])[:, 0]
        others = scores.scatter(1, self.labels[:, None], -torch.inf).max(1).values
        return near & (others >= own)


def subject(source: Source, instances: Path | None, count: int | None) -> tuple[Subject, int]:
    """The images, of the first ``count``, that the network classifies rightly, and how many were looked at.

    Raises ``ValueError`` where onnxruntime puts one of the images into another class than the module, or where an image
    cannot be recovered.
    """
    network = _network(source, instances)
    images, labels = _digits() if not source.benchmark else _pool(source, instances or Path())
    images, labels = images[:count], labels[:count]
    model = Counted(network.graph).eval()
    with torch.no_grad():
        classes = model.scores(images).argmax(1)
    if not np.array_equal(classes.numpy(), _classes(network, images)):
        raise ValueError(f"{source.name}: onnxruntime gives an image another class")
    lower, upper = _ends(images, source.epsilon)
    whole = Subject(model, images, labels, lower, upper, source.epsilon)
    return whole.only(classes == labels), len(images)


def _network(source: Source, instances: Path | None) -> Network:
    if not source.benchmark:
        return read_network(train_digits.FOLDER / source.model)
    assert instances is not None
    data = gzip.decompress((instances / source.benchmark / "onnx" / f"{source.model}.gz").read_bytes())
    if source.benchmark not in NORMALISATIONS:
        return read_network(data)
    return regions.normalised(data, *NORMALISATIONS[source.benchmark])


def _digits() -> tuple[Tensor, Tensor]:
    """The images that the network has not seen."""
    images, labels = train_digits.data()
    return images[train_digits.TRAINED_ON:], labels[train_digits.TRAINED_ON:]


def _pool(source: Source, instances: Path) -> tuple[Tensor, Tensor]:
    """Different images of all benchmarks with this data set, those of the network's own benchmark first."""
    found: dict[bytes, tuple[np.ndarray, int]] = {}
    for benchmark in (source.benchmark, *(b for b in source.images if b != source.benchmark)):
        for path in sorted((instances / benchmark / "vnnlib").rglob("*.vnnlib.gz")):
            pixels, label = recovered(read_property(path), benchmark)
            found.setdefault(pixels.tobytes(), (pixels, label))
    if not found:
        raise ValueError(f"{source.name}: no properties under {instances}")
    images = np.stack([pixels for pixels, _ in found.values()])
    return torch.from_numpy(images / np.float32(255)), torch.tensor([label for _, label in found.values()])


def recovered(specification: Specification, benchmark: str) -> tuple[np.ndarray, int]:
    """The image ``[C, H, W]`` in whole steps of 1/255 (float32), and its label. Raises ``ValueError``."""
    numbers = np.array([float(c) for c in specification.constants])
    side = {784: 28, 3072: 32}[specification.lower.shape[1]]
    lower, upper = (numbers[e[0]].reshape(-1, side, side) for e in (specification.lower, specification.upper))
    if benchmark in NORMALISATIONS:
        mean, std = (np.array([float(v) for v in values])[:, None, None] for values in NORMALISATIONS[benchmark])
        lower, upper = lower * std + mean, upper * std + mean
    radius = (upper - lower).max() / 2
    pixels = np.where(lower < 1e-6, upper - radius, np.where(upper > 1 - 1e-6, lower + radius, (lower + upper) / 2))
    steps = np.rint(pixels * 255)
    if np.abs(pixels * 255 - steps).max() > 0.01 or steps.min() < 0 or steps.max() > 255:
        raise ValueError(f"{benchmark}: a box whose centre is no image")
    if benchmark in TRANSPOSED:
        steps = steps.transpose(0, 2, 1)
    return np.ascontiguousarray(steps, dtype=np.float32), _label(specification)


def _label(specification: Specification) -> int:
    """The one output that occurs in every form."""
    forms = [specification.forms[i] for i in np.unique(specification.form)]
    common = set.intersection(*({index for index, _ in form.outputs} for form in forms))
    if len(common) != 1:
        raise ValueError("a property that does not compare a label with the other classes")
    return common.pop()


def _classes(network: Network, images: Tensor) -> np.ndarray:
    """The classes according to onnxruntime, image by image."""
    session = onnxruntime.InferenceSession(network.model, providers=["CPUExecutionProvider"])
    given = network.inputs[0]
    scores = [session.run(None, {given.name: image.reshape(given.shape)})[0] for image in images.numpy()]
    return np.array([np.argmax(s) for s in scores])


def _ends(images: Tensor, epsilon: Fraction) -> tuple[Tensor, Tensor]:
    """The least and greatest float32 of ``[x - epsilon, x + epsilon]`` cut by [0, 1], in exact arithmetic."""
    values, inverse = np.unique(images.numpy(), return_inverse=True)
    centres = [Fraction(v) for v in values.tolist()]
    ends = []
    for exact, side in (
        ([max(c - epsilon, Fraction(0)) for c in centres], 1), ([min(c + epsilon, Fraction(1)) for c in centres], 0)
    ):
        numbers, ranks = rank(exact)
        inner = numbers.rounded().enclose(np.float32)[side][ranks]
        ends.append(torch.from_numpy(inner[inverse.reshape(images.shape)]))
    return ends[0], ends[1]
