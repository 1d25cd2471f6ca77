"""Upsample and Resize by nearest neighbour: along each axis every output is one input element, so both are read as
one ``Gather`` (or slice) an axis."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten, Shape
from bounds.ops.indexing import pick


class Upsample(Rewritten):
    """Element ``floor(o / scale)`` along each axis."""

    __slots__ = ()
    onnx = (OnnxName("Upsample", 7),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        shape = build.shape(x)
        _nearest_only(node)
        if reading.present(node, 1):
            scales = reading.constant(node, build, 1).flatten().tolist()
        else:
            scales = list(node.attributes.get("scales", ()))
        sizes = _scaled(node, shape, scales, range(len(shape)))
        return (_resample(node, build, x, sizes, scales, "asymmetric", "simple"),)


class Resize(Rewritten):
    """Any rule of coordinates and of rounding that the operator offers for mode ``nearest``, except cropping."""

    __slots__ = ()
    onnx = (OnnxName("Resize", 10),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        shape = build.shape(x)
        rank = len(shape)
        _nearest_only(node)
        if node.opset < 11:
            scales = reading.constant(node, build, 1).flatten().tolist()
            sizes = _scaled(node, shape, scales, range(rank))
            return (_resample(node, build, x, sizes, scales, "asymmetric", "simple"),)
        axes = [reading.axis_of(node, a, rank) for a in reading.ints(node, "axes", range(rank))]
        scales = [1.0] * rank
        if reading.present(node, 3) and reading.constant(node, build, 3).numel():
            sizes = list(shape)
            wanted = _kept_ratio(node, [shape[a] for a in axes], reading.integers(node, build, 3))
            for axis, (size, scale) in zip(axes, wanted, strict=True):
                sizes[axis], scales[axis] = size, scale
        else:
            given = reading.constant(node, build, 2).flatten().tolist()
            sizes = _scaled(node, shape, given, axes)
            for axis, scale in zip(axes, given, strict=True):
                scales[axis] = float(scale)
        rule = reading.text(node, "coordinate_transformation_mode", "half_pixel")
        nearest = reading.text(node, "nearest_mode", "round_prefer_floor")
        return (_resample(node, build, x, sizes, scales, rule, nearest),)


def _kept_ratio(node: OnnxNode, before: list[int], wanted: tuple[int, ...]) -> list[tuple[int, float]]:
    """Size and scale of each axis; a policy other than ``stretch`` gives all axes one scale."""
    policy = reading.text(node, "keep_aspect_ratio_policy", "stretch")
    ratios = [Fraction(w, b) for w, b in zip(wanted, before, strict=True)]
    if policy == "stretch":
        return [(w, _single(float(r))) for w, r in zip(wanted, ratios, strict=True)]
    if policy not in ("not_larger", "not_smaller"):
        raise reading.unsupported(node, f"keep_aspect_ratio_policy {policy!r}")
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [(int(b * ratio + Fraction(1, 2)), _single(float(ratio))) for b in before]


def _nearest_only(node: OnnxNode) -> None:
    mode = reading.text(node, "mode", "nearest")
    if mode != "nearest":
        raise reading.unsupported(node, f"mode {mode!r}: only nearest is supported")


def _single(value: float) -> float:
    """The value as float32, in which runtimes hold scales."""
    return float(torch.tensor(value, dtype=torch.float32).item())


def _scaled(node: OnnxNode, shape: Shape, scales: list[float], axes: range | list[int]) -> list[int]:
    """Output sizes ``floor(size scale)``, exactly."""
    if len(scales) != len(axes) or min(scales, default=1) <= 0:
        raise reading.invalid(node, f"scales {scales} do not fit an operand of shape {shape}")
    sizes = list(shape)
    for axis, scale in zip(axes, scales, strict=True):
        sizes[axis] = int(Fraction(float(scale)) * shape[axis])
    return sizes


def _resample(node: OnnxNode, build: BuilderLike, x: int, sizes: list[int], scales: list[float], *rules: str) -> int:
    """``rules``: of coordinates and of rounding."""
    for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        before = build.shape(x)[axis]
        if size != before or scale != 1:
            places = _places(node, before, size, float(scale), rules[0], rules[1])
            x = pick(build, x, axis, places)
    return x


def _places(node: OnnxNode, before: int, after: int, scale: float, rule: str, nearest: str) -> list[int]:
    """Which element each output takes; computed in float32, as runtimes do."""
    position = _rounded(node, _coordinates(node, before, after, scale, rule), nearest, scale)
    return [int(p) for p in position.clamp(0, before - 1).tolist()]


def _coordinates(node: OnnxNode, before: int, after: int, scale: float, rule: str) -> Tensor:
    output = torch.arange(after, dtype=torch.float32)
    factor = torch.tensor(scale, dtype=torch.float32)
    if rule == "asymmetric":
        return output / factor
    if rule == "half_pixel" or (rule == "pytorch_half_pixel" and after > 1):
        return (output + 0.5) / factor - 0.5
    if rule == "pytorch_half_pixel":
        return torch.zeros(after)
    if rule == "align_corners":
        return output * (before - 1) / (after - 1) if after > 1 else torch.zeros(after)
    if rule == "half_pixel_symmetric":
        adjustment = after / (factor * before)
        offset = before / 2 * (1 - adjustment)
        return offset + (output + 0.5) / factor - 0.5
    raise reading.unsupported(node, f"coordinate_transformation_mode {rule!r}")


def _rounded(node: OnnxNode, position: Tensor, nearest: str, scale: float) -> Tensor:
    if nearest == "round_prefer_floor":
        return torch.ceil(position - 0.5)
    if nearest == "round_prefer_ceil":
        return torch.floor(position + 0.5)
    if nearest == "ceil" or (nearest == "simple" and scale < 1):
        return torch.ceil(position)
    if nearest in ("floor", "simple"):
        return torch.floor(position)
    raise reading.unsupported(node, f"nearest_mode {nearest!r}")
