"""What a property declares: variables ``X_i``, ``Y_i`` (VNN-LIB 1.0), or networks with named tensors (2.x).

Errors are plain ``ValueError`` and ``NotImplementedError`` (valid but not supported); the reader knows the position.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from verifier.property.tokens import split_subscript
from verifier.query import NetworkDeclaration, Variable

_MAX_RANK = 32
_V1_NAME = re.compile(r"([XY])_(0|[1-9]\d{0,9})\Z", re.ASCII)
_TYPES = frozenset({"real", "float16", "float32", "float64"})
_OTHER_TYPES = re.compile(r"u?int\d+|bool|bfloat16|float8\w*|float4\w*|string|complex\d+")


@dataclass(slots=True)
class Declarations:
    """Collects declarations and resolves variables to ``i`` (flat output) or ``~i`` (flat input)."""

    version: str = "1.0"
    _counted: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    _networks: list[NetworkDeclaration] = field(default_factory=list)
    _tensors: dict[str, tuple[Variable, bool]] = field(default_factory=dict)
    _sizes: list[int] = field(default_factory=lambda: [0, 0])

    def set_version(self, text: str) -> None:
        """``<2.0>``."""
        match = re.fullmatch(r"<(\d+)\.(\d+)>", text, re.ASCII)
        if match is None:
            raise ValueError(f"malformed version {text!r}; it is written <2.0>")
        if match.group(1) not in ("1", "2"):
            raise NotImplementedError(f"VNN-LIB version {text[1:-1]} is not supported (1.0 and 2.x are)")
        if self._networks or any(self._counted):
            raise ValueError("the version must stand before every declaration")
        self.version = text[1:-1]

    def constant(self, name: str, kind: str) -> None:
        """``(declare-const X_0 Real)``."""
        if self.version[0] != "1":
            raise ValueError("declare-const belongs to VNN-LIB 1.0; version 2 declares a network")
        match = _V1_NAME.match(name)
        if match is None or kind.lower() != "real":
            raise ValueError(
                f"cannot declare {name!r} of type {kind!r}: VNN-LIB 1.0 has X_0, ... and Y_0, ... of type Real"
            )
        indices = self._counted[match.group(1) == "Y"]
        if int(match.group(2)) in indices:
            raise ValueError(f"{name} is declared twice")
        indices.add(int(match.group(2)))

    def network(self, name: str, parts: Sequence[tuple[str, list[str]]]) -> None:
        """``(declare-network N ...)``: ``parts`` are the words and arguments of what stands inside, in order."""
        if self.version[0] != "2":
            raise ValueError("declare-network belongs to VNN-LIB 2; the file must start with (vnnlib-version <2.0>)")
        if any(n.name == name for n in self._networks):
            raise ValueError(f"network {name} is declared twice")
        declared = NetworkDeclaration(name, (), ())
        order = ["equal-to", "isomorphic-to", "declare-input", "declare-hidden", "declare-output"]
        reached = 0
        for word, arguments in parts:
            if order.index(word) < reached - (word == "equal-to"):
                raise ValueError(f"{word} stands too late: first congruences, then inputs, then outputs")
            reached = order.index(word)
            declared = self._part(declared, word, arguments)
        if not declared.inputs or not declared.outputs:
            raise ValueError(f"network {name} needs at least one declare-input and one declare-output")
        self._congruent(declared)
        self._networks.append(declared)

    def _part(self, network: NetworkDeclaration, word: str, arguments: list[str]) -> NetworkDeclaration:
        if word == "declare-hidden":
            raise NotImplementedError("declare-hidden (reading a network's inner tensors) is not supported")
        if word in ("equal-to", "isomorphic-to"):
            if len(arguments) != 1 or not any(n.name == arguments[0] for n in self._networks):
                raise ValueError(f"{word} needs the name of a network that is declared before")
            if word == "equal-to":
                return replace(network, equal_to=arguments[0])
            return replace(network, isomorphic_to=arguments[0])
        output = word == "declare-output"
        variable, onnx_name = self._tensor(arguments, output)
        if output:
            names = (*network.output_names, onnx_name)
            return replace(network, outputs=(*network.outputs, variable), output_names=names)
        return replace(network, inputs=(*network.inputs, variable), input_names=(*network.input_names, onnx_name))

    def _tensor(self, arguments: list[str], output: bool) -> tuple[Variable, str]:
        """``X float32 [1,5]`` with an optional ONNX name in quotes."""
        onnx_name = arguments.pop()[1:-1] if arguments and arguments[-1].startswith('"') else ""
        name, _, rest = " ".join(arguments).partition(" ")
        kind, shape = split_subscript(rest)
        if shape is None or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
            raise ValueError("a tensor is declared as NAME TYPE [SHAPE], for example X float32 [1,5]")
        dtype = kind.lower()
        if dtype not in _TYPES and _OTHER_TYPES.fullmatch(dtype):
            raise NotImplementedError(f"element type {kind} is not supported (real, float16, float32, float64 are)")
        if dtype not in _TYPES:
            raise ValueError(f"unknown element type {kind!r}")
        if name in self._tensors:
            raise ValueError(f"variable {name} is declared twice")
        if len(shape) > _MAX_RANK or 0 in shape or math.prod(shape) > 2**31:
            raise ValueError(f"variable {name} has a shape without elements, or one that is too large")
        variable = Variable(name, dtype, shape, self._sizes[output])
        self._sizes[output] += math.prod(shape)
        self._tensors[name] = (variable, output)
        return variable, onnx_name

    def _congruent(self, network: NetworkDeclaration) -> None:
        """A network equal or isomorphic to another has tensors of the same number and shapes."""
        for other in self._networks:
            if other.name not in (network.equal_to, network.isomorphic_to):
                continue
            for mine, its in ((network.inputs, other.inputs), (network.outputs, other.outputs)):
                if [v.shape for v in mine] != [v.shape for v in its]:
                    raise ValueError(f"networks {network.name} and {other.name} differ in their variables' shapes")

    def resolve(self, symbol: str) -> int:
        """The variable that a symbol means; raises ``ValueError`` that says what is wrong with it."""
        name, index = split_subscript(symbol)
        if self.version[0] == "1":
            match = _V1_NAME.match(symbol)
            output = match is not None and match.group(1) == "Y"
            if match is None or int(match.group(2)) not in self._counted[output]:
                raise ValueError(f"{symbol!r} is neither a number nor a declared variable")
            return int(match.group(2)) if output else ~int(match.group(2))
        if name not in self._tensors:
            raise ValueError(f"{symbol!r} is neither a number nor a declared variable")
        variable, output = self._tensors[name]
        given = () if index is None else index
        if len(given) != len(variable.shape) or any(i >= d for i, d in zip(given, variable.shape, strict=False)):
            raise ValueError(f"{symbol!r} does not fit the shape {list(variable.shape)} of {name}")
        flat = 0
        for i, d in zip(given, variable.shape, strict=True):
            flat = flat * d + i
        return variable.start + flat if output else ~(variable.start + flat)

    def finish(self) -> tuple[NetworkDeclaration, ...]:
        """The declared networks; VNN-LIB 1.0 has one without a name, with tensors X and Y."""
        if self.version[0] == "2":
            if not self._networks:
                raise ValueError("no network is declared")
            return tuple(self._networks)
        variables = []
        for letter, indices in zip("XY", self._counted, strict=True):
            count = len(indices)
            if not count:
                raise ValueError(f"no variable {letter}_0 is declared")
            missing = next((i for i in range(count) if i not in indices), None)
            if missing is not None:
                raise ValueError(f"{letter}_{missing} is not declared, but {letter}_{max(indices)} is")
            variables.append(Variable(letter, "real", (count,), 0))
        return (NetworkDeclaration("", (variables[0],), (variables[1],)),)
