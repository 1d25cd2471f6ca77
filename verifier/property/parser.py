"""The reader of VNN-LIB text: one pass over the tokens, a stack of open parentheses, no recursion.

The frequent atoms are recorded by two dictionary look-ups (the text of the head, the text of the number); everything
else goes through exact linear arithmetic and ends in the same two columns.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

import numpy as np

from verifier.errors import InputError, UnsupportedError
from verifier.property import terms, tokens
from verifier.property.declarations import Declarations
from verifier.property.document import AND, END, GREATER, OR, STRICT, Document
from verifier.property.numbers import Exact, parse_number
from verifier.property.source import Source
from verifier.query import Form

# Kinds of open parentheses; those up to _FORMULA take formulas.
_ASSERT, _AND, _OR, _COMPARISON, _TERM, _COMMAND, _TOP = 0, AND, OR, 3, 4, 5, 6
_FORMULA = _OR
_CODES = MappingProxyType({"<=": 0, ">=": GREATER, "<": STRICT, ">": GREATER | STRICT})
_COMPARISONS = frozenset({*_CODES, "=", "==", "!="})
_ARITHMETIC = MappingProxyType({"+": terms.add, "-": terms.subtract, "*": terms.multiply})
_IGNORED = frozenset({"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"})
_UNSUPPORTED = frozenset({"not", "=>", "ite", "let", "xor", "distinct", "forall", "exists", "implies", "/"})
_INSIDE_NETWORK = frozenset({"declare-input", "declare-output", "declare-hidden", "equal-to", "isomorphic-to"})
_COMMANDS = frozenset({"declare-const", "declare-fun", "declare-network", "vnnlib-version"}) | _IGNORED
_MAX_TERM_DEPTH = 1000
_MAX_WORD = 40


@dataclass(slots=True)
class _Frame:
    """An open parenthesis: its word, its place, what it has collected, and the literals and brackets inside it."""

    word: str
    start: int
    items: list[terms.Affine] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    parts: list[tuple[str, list[str]]] = field(default_factory=list)
    literals: int = 0
    nested: int = 0


def parse(source: Source) -> Document:
    """Read VNN-LIB 1.0 or 2.x. Raises ``InputError`` with line and column for what is not VNN-LIB, and
    ``UnsupportedError`` naming the line of what is valid but not covered (products of variables, negation, ...)."""
    return _Parser(source).run()


class _Parser:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._declared = Declarations()
        self._kinds = [_TOP]
        self._frames = [_Frame("", 0)]
        self._head = array("q")
        self._rhs = array("i")
        self._brackets = array("b")
        self._marks = array("q")
        self._forms: dict[Form, int] = {}
        self._values: list[Exact] = []
        self._heads: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._pairs: dict[tuple[str, str], tuple[int, int]] = {}
        self._variables: dict[str, int] = {}
        self._asserted = False

    def run(self) -> Document:
        """The whole text."""
        handlers = {
            None: self._nothing,
            tokens.OPEN: self._open,
            tokens.CLOSE: self._close,
            tokens.SYMBOL: self._symbol,
            tokens.STRING: self._string,
            tokens.BAD: self._bad,
        }
        heads, numbers, kinds = self._heads, self._numbers, self._kinds
        add_head, add_rhs = self._head.append, self._rhs.append
        for match in tokens.TOKEN.finditer(self._source.text):
            token = match.lastindex
            if token == tokens.ATOM:
                left, right = match.group(1, 2)
                head, rhs = heads.get(left), numbers.get(right)
                if head is None or rhs is None or kinds[-1] > _FORMULA:
                    self._atom(match, left, right)
                else:
                    add_head(head)
                    add_rhs(rhs)
            else:
                handlers[token](match)
        return self._finish()

    def _finish(self) -> Document:
        frame = self._frames[-1]
        if len(self._frames) > 1:
            count = len(self._frames) - 1
            raise self._source.error(frame.start, f"this parenthesis is never closed ({count} are open at the end)")
        try:
            networks = self._declared.finish()
        except ValueError as error:
            raise InputError(f"{self._source.name}: {error}") from None
        if not self._asserted:
            raise InputError(f"{self._source.name}: nothing is asserted")
        return Document(
            self._source.name,
            self._declared.version,
            networks,
            tuple(self._forms),
            tuple(self._values),
            np.asarray(self._head, dtype=np.int64),
            np.asarray(self._rhs, dtype=np.int32),
            np.asarray(self._brackets, dtype=np.int8),
            np.asarray(self._marks, dtype=np.int64),
        )

    # Tokens

    def _nothing(self, match: re.Match[str]) -> None:
        """White space or a comment."""

    def _bad(self, match: re.Match[str]) -> None:
        raise self._source.error(match.start(), f"unexpected {match.group()!r}")

    def _atom(self, match: re.Match[str], left: str, right: str) -> None:
        """An atom that is not yet known by its text."""
        if self._kinds[-1] > _FORMULA:
            raise self._source.error(match.start(), f"a comparison cannot stand here ({self._place()})")
        number = parse_number(right)
        head = self._heads.get(left)
        if number is not None and head is not None:
            self._numbers[right] = rhs = self._value(number)
            self._head.append(head)
            self._rhs.append(rhs)
            return
        pair = self._pairs.get((left, right))
        if pair is not None:
            self._head.append(pair[0])
            self._rhs.append(pair[1])
            return
        word, symbol = left.split(None, 1)
        place = match.end(1) - len(symbol)
        count = len(self._head)
        if number is None:
            operands = self._operand(symbol, place), self._operand(right, match.start(2))
            self._literal(word, *operands)
            if len(self._head) == count + 1 and operands[1].terms:
                self._pairs[left, right] = self._head[-1], self._rhs[-1]
            return
        form = terms.variable_form(self._variable(symbol, place))
        self._heads[left] = 4 * self._form(form) + _CODES[word]
        self._atom(match, left, right)

    def _open(self, match: re.Match[str]) -> None:
        word, kind, start = match.group(3)[:_MAX_WORD], self._kinds[-1], match.start()
        frame = _Frame(word, start, literals=len(self._head))
        if kind <= _FORMULA:
            self._open_formula(frame)
        elif kind <= _TERM:
            if word not in _ARITHMETIC:
                place = self._source.at(start)
                raise self._failure(word)(f"{place}: {word or '('!r} in a term: only + - * are supported")
            if len(self._frames) > _MAX_TERM_DEPTH and self._kinds[-_MAX_TERM_DEPTH] == _TERM:
                raise UnsupportedError(f"{self._source.at(start)}: arithmetic nested deeper than {_MAX_TERM_DEPTH}")
            self._push(_TERM, frame)
        elif kind == _COMMAND:
            self._open_in_command(frame)
        elif word == "assert":
            self._asserted = True
            self._push(_ASSERT, frame)
        elif word in _COMMANDS:
            self._push(_COMMAND, frame)
        else:
            raise self._source.error(start, f"unknown command {word!r}; expected assert or a declaration")

    def _open_formula(self, frame: _Frame) -> None:
        word = frame.word
        if word in ("and", "or"):
            kind = AND if word == "and" else OR
            self._bracket(kind)
            self._push(kind, frame)
        elif word in _COMPARISONS:
            self._push(_COMPARISON, frame)
        else:
            missing = f"; is a ')' missing before it ({self._place()})?" if word in ("assert", *_COMMANDS) else ""
            raise self._failure(word)(
                f"{self._source.at(frame.start)}: {word or '('!r} is not supported as a formula; "
                f"expected and, or, or a comparison{missing}"
            )

    def _open_in_command(self, frame: _Frame) -> None:
        outer = self._frames[-1].word
        allowed = frame.word in _INSIDE_NETWORK if outer == "declare-network" else outer in _IGNORED or not frame.word
        if not allowed:
            raise self._source.error(frame.start, f"unexpected ({frame.word} inside ({outer}")
        self._push(_COMMAND, frame)

    def _symbol(self, match: re.Match[str]) -> None:
        text, kind = match.group(5), self._kinds[-1]
        if kind in (_COMPARISON, _TERM):
            self._frames[-1].items.append(self._operand(text, match.start()))
        elif kind == _COMMAND:
            self._frames[-1].words.append(text)
        else:
            raise self._source.error(match.start(), f"unexpected {text[:40]!r} ({self._place()})")

    def _string(self, match: re.Match[str]) -> None:
        if self._kinds[-1] != _COMMAND:
            raise self._source.error(match.start(), f"unexpected {match.group(6)[:40]} ({self._place()})")
        self._frames[-1].words.append(match.group(6))

    def _close(self, match: re.Match[str]) -> None:
        if len(self._frames) == 1:
            raise self._source.error(match.start(), "unbalanced ')': no parenthesis is open")
        kind, frame = self._kinds.pop(), self._frames.pop()
        if kind <= _FORMULA:
            self._close_formula(kind, frame)
        elif kind == _COMPARISON:
            if len(frame.items) != 2:
                raise self._source.error(frame.start, f"{frame.word} compares 2 operands, {len(frame.items)} are given")
            self._literal(frame.word, *frame.items)
        elif kind == _TERM:
            self._frames[-1].items.append(self._evaluate(frame))
        else:
            self._command(frame)

    def _close_formula(self, kind: int, frame: _Frame) -> None:
        inside = len(self._head) - frame.literals
        if kind == _ASSERT:
            # ``literals`` has been advanced by those in nested formulas, so ``inside`` counts the direct ones.
            if inside + frame.nested != 1:
                raise self._source.error(frame.start, f"assert takes 1 formula, {inside + frame.nested} are given")
            return
        if not inside and not frame.nested:
            raise self._source.error(frame.start, f"({frame.word}) without operands")
        self._bracket(END)
        outer = self._frames[-1]
        outer.nested += 1
        if self._kinds[-1] == _ASSERT:
            outer.literals += inside

    # Meaning

    def _literal(self, word: str, left: terms.Affine, right: terms.Affine) -> None:
        """Record ``left word right``; an equality is a conjunction, ``!=`` a disjunction, of two literals."""
        difference = terms.subtract([left, right])
        form, scale = terms.normalise(difference)
        number, rhs = self._form(form), self._value(-difference.constant / scale)
        if word in _CODES:
            codes = [_CODES[word]]
        else:
            codes = [STRICT, GREATER | STRICT] if word == "!=" else [0, GREATER]
            self._bracket(OR if word == "!=" else AND)
        for code in codes:
            self._head.append(4 * number + (code ^ GREATER if scale < 0 else code))
            self._rhs.append(rhs)
        if len(codes) > 1:
            self._bracket(END)
            outer = self._frames[-1]
            outer.nested += 1
            if self._kinds[-1] == _ASSERT:
                outer.literals += 2

    def _evaluate(self, frame: _Frame) -> terms.Affine:
        if not frame.items:
            raise self._source.error(frame.start, f"({frame.word}) without operands")
        try:
            return _ARITHMETIC[frame.word](frame.items)
        except terms.NonlinearError:
            raise UnsupportedError(
                f"{self._source.at(frame.start)}: a product of variables; only linear arithmetic is supported"
            ) from None
        except OverflowError:
            raise self._source.error(frame.start, "this product has more than 200,000 bits") from None

    def _operand(self, text: str, start: int) -> terms.Affine:
        number = parse_number(text)
        if number is not None:
            return terms.Affine(Fraction(number))
        return terms.Affine(terms={self._variable(text, start): Fraction(1)})

    def _variable(self, text: str, start: int) -> int:
        known = self._variables.get(text)
        if known is None:
            try:
                known = self._declared.resolve(text)
            except ValueError as error:
                raise self._source.error(start, str(error)[:300]) from None
            self._variables[text] = known
        return known

    def _command(self, frame: _Frame) -> None:
        """Carry a closed declaration out; one inside declare-network is kept for it."""
        outer = self._frames[-1]
        if outer.word == "declare-network":
            outer.parts.append((frame.word, frame.words))
            return
        words = [*frame.words, "", ""]
        try:
            if frame.word in ("declare-const", "declare-fun"):
                self._declared.constant(words[0], " ".join(frame.words[1:]))
            elif frame.word == "vnnlib-version":
                self._declared.set_version(words[0])
            elif frame.word == "declare-network":
                self._declared.network(words[0], frame.parts)
        except NotImplementedError as error:
            raise UnsupportedError(f"{self._source.at(frame.start)}: {error}") from None
        except ValueError as error:
            raise self._source.error(frame.start, str(error)[:300]) from None

    # Small steps

    def _push(self, kind: int, frame: _Frame) -> None:
        self._kinds.append(kind)
        self._frames.append(frame)

    def _bracket(self, kind: int) -> None:
        self._brackets.append(kind)
        self._marks.append(len(self._head))

    def _form(self, form: Form) -> int:
        return self._forms.setdefault(form, len(self._forms))

    def _value(self, value: Exact) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _failure(self, word: str) -> type[InputError] | type[UnsupportedError]:
        return UnsupportedError if word in _UNSUPPORTED else InputError

    def _place(self) -> str:
        word = self._frames[-1].word
        return f"inside ({word} ...)" if word else "outside of any parenthesis"
