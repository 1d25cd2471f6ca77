"""Einsum of one or two operands, as transposes, sums, reshapes and one product.

Letters that only one operand has and the result has not are summed first. Of two operands the letters fall into four
groups, each flattened to one axis: those of both and the result (stacked), of the first and the result (rows), of the
second and the result (columns), and those that are summed over (inner). With inner letters that is a product of stacks
of matrices; without, an elementwise product that broadcasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bounds.ops import reading
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten, Shape
from bounds.ops.bilinear import multiply
from bounds.ops.gemm import MatMul
from bounds.ops.indexing import expand
from bounds.ops.reduction import ReduceSum
from bounds.ops.shaping import Transpose, reshape

Term = tuple[str, ...]
"""The letters of one operand; axes that an ellipsis stands for are named by their place from the right."""


@dataclass(frozen=True, slots=True)
class _Labelled:
    """An operand and the letters of its axes."""

    index: int
    letters: Term


class Einsum(Rewritten):
    """``sum`` over the letters that the result has not, of the product of the operands."""

    __slots__ = ()
    onnx = (OnnxName("Einsum", 12),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        equation = "".join(reading.text(node, "equation", "").split())
        ids = [reading.operand(node, k) for k in range(len(node.inputs))]
        if not 1 <= len(ids) <= 2:
            raise reading.unsupported(node, f"the equation {equation!r} has {len(ids)} operands, not one or two")
        terms, result = _parsed(node, equation, [build.shape(i) for i in ids])
        if any(len(set(term)) < len(term) for term in terms):
            raise reading.unsupported(node, f"the equation {equation!r} takes a diagonal (a letter twice)")
        sizes = _sizes(node, equation, terms, [build.shape(i) for i in ids])
        operands = []
        for k, (index, term) in enumerate(zip(ids, terms, strict=True)):
            full = expand(build, index, tuple(sizes[letter] for letter in term))
            kept = set(result).union(*terms[:k], *terms[k + 1 :])
            operands.append(_summed(build, _Labelled(full, term), kept))
        found = operands[0] if len(operands) == 1 else _product(node, build, operands, result, sizes)
        return (_ordered(build, found, result),)


def _parsed(node: OnnxNode, equation: str, shapes: Sequence[Shape]) -> tuple[list[Term], Term]:
    """The letters of the operands and of the result."""
    left, arrow, right = equation.partition("->")
    texts = left.split(",")
    if len(texts) != len(shapes):
        raise reading.invalid(node, f"the equation {equation!r} names {len(texts)} operands, there are {len(shapes)}")
    hidden = [len(shape) - len(text.replace("...", "")) for text, shape in zip(texts, shapes, strict=True)]
    for text, count, shape in zip(texts, hidden, shapes, strict=True):
        if count < 0 or (count > 0 and "..." not in text):
            raise reading.invalid(node, f"the equation {equation!r} does not fit an operand of shape {shape}")
    terms = [_letters(node, equation, text, count) for text, count in zip(texts, hidden, strict=True)]
    widest = max(hidden)
    if arrow:
        result = _letters(node, equation, right, widest if "..." in right else 0)
    else:
        plain = [letter for term in terms for letter in term if letter.isalpha()]
        result = _letters(node, equation, "..." + "".join(sorted(x for x in plain if plain.count(x) == 1)), widest)
    if len(set(result)) < len(result) or not set(result) <= {letter for term in terms for letter in term}:
        raise reading.invalid(node, f"the equation {equation!r} has letters in its result twice, or from nowhere")
    return terms, result


def _letters(node: OnnxNode, equation: str, text: str, hidden: int) -> Term:
    """The letters of one part of the equation, with ``hidden`` axes where its ellipsis is."""
    before, dots, behind = text.partition("...")
    if not (before + behind).isalpha() and before + behind:
        raise reading.invalid(node, f"the equation {equation!r} is not made of letters, ',', '->' and '...'")
    return (*before, *(str(k) for k in reversed(range(hidden if dots else 0))), *behind)


def _sizes(node: OnnxNode, equation: str, terms: Sequence[Term], shapes: Sequence[Shape]) -> Mapping[str, int]:
    """The size of each letter; 1 fits any other."""
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            known = sizes.setdefault(letter, size)
            if known != size and 1 not in (known, size):
                raise reading.invalid(node, f"the equation {equation!r} gives {letter!r} the sizes {known} and {size}")
            sizes[letter] = size if known == 1 else known
    return sizes


def _summed(build: BuilderLike, operand: _Labelled, kept: set[str]) -> _Labelled:
    """Without the letters that are not kept."""
    axes = tuple(k for k, letter in enumerate(operand.letters) if letter not in kept)
    if not axes:
        return operand
    letters = tuple(letter for letter in operand.letters if letter in kept)
    return _Labelled(build.add(ReduceSum(axes, False), operand.index), letters)


def _ordered(build: BuilderLike, operand: _Labelled, letters: Sequence[str]) -> int:
    """With its axes in the order of the letters, which are the same ones."""
    perm = tuple(operand.letters.index(letter) for letter in letters)
    return operand.index if perm == tuple(range(len(perm))) else build.add(Transpose(perm), operand.index)


def _product(
    node: OnnxNode, build: BuilderLike, operands: Sequence[_Labelled], result: Term, sizes: Mapping[str, int]
) -> _Labelled:
    """Of two operands; every letter is in both or in the result."""
    one, two = operands
    both = [letter for letter in one.letters if letter in two.letters]
    stacked, inner = [x for x in both if x in result], [x for x in both if x not in result]
    rows, columns = ([x for x in o.letters if x not in both] for o in operands)

    def arranged(operand: _Labelled, *groups: list[str]) -> int:
        """One axis for each group, that of the stacked letters only where there are any."""
        groups = (stacked, *groups) if stacked else groups
        flat = _ordered(build, operand, [letter for group in groups for letter in group])
        return reshape(build, flat, tuple(reading.product(tuple(sizes[x] for x in group)) for group in groups))

    if inner:
        pair = arranged(one, rows, inner), arranged(two, inner, columns)
        (found,) = MatMul.from_onnx(OnnxNode("MatMul", node.name, {}, pair, 1, node.opset), build)
    elif one.letters == two.letters:
        found = multiply(build, one.index, two.index)
    else:
        found = multiply(build, arranged(one, rows, []), arranged(two, [], columns))
    letters = (*stacked, *rows, *columns)
    return _Labelled(reshape(build, found, tuple(sizes[x] for x in letters)), letters)
