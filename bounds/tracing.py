"""A torch module becomes a graph: ``torch.export`` records its operations, the table in ``bounds.aten`` reads them.

The export is functional (no operation changes a tensor in place) and static: sizes are those of the example, and a
branch of the module's code is taken as the example takes it; a comparison with the module at another point notices
most branches on values. Operations that the table does not know are replaced by what torch itself decomposes them into,
where it can.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bounds.aten import TABLE
from bounds.aten_call import Call, Ref, Value
from bounds.graph import Builder, Graph
from bounds.ops.base import UnsupportedOperatorError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_TOLERANCE = 1e-3
"""Of the comparison with the module: far above rounding, far below a wrong translation."""
_ASSERTIONS = frozenset({"aten._assert_tensor_metadata"})
"""Recorded checks of types that hold for every input; they compute nothing."""


class TraceError(ValueError):
    """A module that cannot be read; ``operations`` lists each unsupported one with the reason."""

    def __init__(self, message: str, operations: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.operations = operations


def trace(module: torch.nn.Module, example: Tensor | tuple[Tensor, ...]) -> Graph:
    """The computation graph of a module in evaluation mode, for inputs of the example's shape.

    ``example`` is one input (or a tuple of several) as the module takes it, in float32 or float64; its leading
    dimension, a batch of one for most modules, stays part of the input's shape ``[*example shape]``, and N goes in
    front of it. Parameters and buffers are taken exactly; a number in the module's code counts as the module's
    dtype rounds it. The graph's outputs are the tensors that the module returns, in order. The result is compared with
    the module at the example and at one random point near it (always the same; not where the module refuses it).

    Raises ``TraceError``: for a module that ``torch.export`` cannot record, listing at once all operations that are not
    supported, and where graph and module disagree.
    """
    return _checked(module, example)[1]


def _checked(module: torch.nn.Module, example: Tensor | tuple[Tensor, ...]) -> tuple[ExportedProgram, Graph]:
    """What was recorded, and the graph that it gives, which agrees with the module."""
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    for k, x in enumerate(inputs):
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            raise TraceError(f"example input {k}: a tensor of float32 or float64 is needed")
    program = _export(module, inputs)
    graph = _Translation(program).run()
    _compare(graph, module, inputs, "at the example: this is our fault")
    nearby = _nearby(inputs)
    if _answers(module, nearby):
        where = "near the example (a branch of its code that depends on values is recorded as the example takes it)"
        _compare(graph, module, nearby, where)
    return program, graph


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A module whose parameters go on changing, recorded once: ``graph`` reads them as they are now (``live``)."""

    module: torch.nn.Module
    _program: ExportedProgram

    def graph(self) -> Graph:
        """The graph of the module (in evaluation mode) with its present parameters and buffers. Its constants are
        functions of the parameters: gradients of bounds without a claim go on into them."""
        return _Translation(self._program, live=True).run()


def live(module: torch.nn.Module, example: Tensor | tuple[Tensor, ...]) -> Live:
    """As ``trace``, for a module that is being trained: recording takes seconds, each ``graph()`` milliseconds.

    The module must be in evaluation mode now (not where ``graph`` is called), and keep its parameters' tensors: they
    may be changed in place, as optimisers do, not replaced. Raises ``TraceError``.
    """
    return Live(module, _checked(module, example)[0])


def _export(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """The functional program; operations without an entry are decomposed as far as torch knows how."""
    from torch.export import default_decompositions, export

    with _quiet():
        try:
            program = export(module, inputs).run_decompositions({})
        except Exception as error:  # whatever the module's own code and the exporter raise
            raise TraceError(f"torch.export cannot record {type(module).__name__}: {_first_line(error)}") from error
        for _ in range(3):
            unknown = {n.target for n in program.graph.nodes if n.op == "call_function" and _entry(n) is None}
            known = {target: how for target, how in default_decompositions().items() if target in unknown}
            if not known:
                break
            program = program.run_decompositions(known)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _entry(node: torch.fx.Node) -> Callable[[Call], Value] | None:
    return TABLE.get(_name(node)) if node.target is not operator.getitem else _element


def _name(node: torch.fx.Node) -> str:
    """``aten.relu`` for ``aten.relu.default``."""
    target = node.target
    return str(target.overloadpacket) if isinstance(target, torch._ops.OpOverload) else str(target)


def _element(call: Call) -> Value:
    """One of several results."""
    found = call["a"][call["b"]]
    if found is None:
        raise call.refuse("the places of a maximum or minimum")
    return found


class _Translation:
    """One run over an exported program; collects everything unsupported before it complains."""

    def __init__(self, program: ExportedProgram, live: bool = False) -> None:
        self._program = program
        self._live = live
        self._build = Builder()
        self._values: dict[torch.fx.Node, Any] = {}
        self._named: set[int] = set()
        self._refused: list[str] = []

    def run(self) -> Graph:
        signature = self._program.graph_signature
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
            changed = ", ".join([*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()])
            raise TraceError(f"the module changes {changed} when it is called: call module.eval() first")
        stored = self._stored()
        outputs: list[int] = []
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node, stored)
            elif node.op == "call_function" and _name(node) not in _ASSERTIONS:
                self._values[node] = self._call(node)
            elif node.op == "output":
                outputs = self._outputs(node)
        if self._refused:
            raise TraceError(f"operations not supported: {'; '.join(self._refused)}", tuple(self._refused))
        return self._build.finish(outputs)

    def _stored(self) -> dict[str, Tensor]:
        """Parameters, buffers and constants by the names of their placeholders."""
        signature, program = self._program.graph_signature, self._program
        tensors: Mapping[str, Any] = {**program.constants, **program.state_dict}
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        return {holder: tensors[target] for holder, target in names.items()}

    def _placeholder(self, node: torch.fx.Node, stored: Mapping[str, Tensor]) -> Ref | None:
        if node.name in stored:
            return Ref(self._build.constant(self._kept(stored[node.name]).to("cpu"), name=node.name))
        value = node.meta["val"]
        return Ref(self._build.input(tuple(value.shape), node.name))

    def _kept(self, stored: Tensor) -> Tensor:
        """With its gradient only where that is asked for."""
        return stored if self._live else stored.detach()

    def _call(self, node: torch.fx.Node) -> Any:
        """The value of a node; None after noting why there is none, or where an operand has none."""
        arguments = self._arguments(node)
        if arguments is None:
            return None
        meta = node.meta.get("val")
        shape, dtype = (tuple(meta.shape), meta.dtype) if isinstance(meta, Tensor) else ((), torch.float32)
        entry = _entry(node)
        try:
            if entry is None:
                return Ref(self._build.constant(self._constant(node, meta)))
            given = [n.meta["val"].dtype for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
            value = entry(Call(node.name, arguments, shape, dtype, self._build, given[0] if given else dtype))
        except UnsupportedOperatorError as error:
            self._refused.append(f"{_name(node)} ({node.name}): {error.why}")
            return None
        except (ValueError, RuntimeError, IndexError, ArithmeticError) as error:
            raise TraceError(f"{_name(node)} ({node.name}): {_first_line(error)}") from error
        self._rename(node, value, shape)
        return value

    def _constant(self, node: torch.fx.Node, meta: Any) -> Tensor:
        """What an operation without an entry gives: one that reads nothing (full, arange), or an exact comparison."""
        operands = {i: self._values[i] for i in node.all_input_nodes}
        known = all(isinstance(v, Ref) and self._exact(v) for v in operands.values()) and isinstance(meta, Tensor)
        if not known or (operands and meta.is_floating_point()) or not isinstance(node.target, torch._ops.OpOverload):
            raise UnsupportedOperatorError("no such operation is known")
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda i: self._build.value(operands[i].index))
        result = node.target(*args, **kwargs)
        assert isinstance(result, Tensor)
        return result

    def _exact(self, value: Ref) -> bool:
        return self._build.value(value.index) is not None and self._build.error(value.index) is None

    def _rename(self, node: torch.fx.Node, value: Value, shape: tuple[int, ...]) -> None:
        """Name a new node after the operation; check its shape."""
        if not isinstance(value, Ref):
            return
        if self._build.shape(value.index) != shape:
            found = self._build.shape(value.index)
            raise TraceError(f"{_name(node)} ({node.name}) is read with shape {found}, not {shape}: this is our fault")
        if value.index not in self._named:
            self._named.add(value.index)
            self._build.rename(value.index, node.name)

    def _arguments(self, node: torch.fx.Node) -> dict[str, Any] | None:
        """Arguments by name, defaults included; None where an operand could not be read."""
        if any(self._values.get(i) is None for i in node.all_input_nodes):
            return None
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.target is operator.getitem:
            return {"a": args[0], "b": args[1]}
        if not isinstance(node.target, torch._ops.OpOverload):
            return {str(k): value for k, value in enumerate(args)} | dict(kwargs)
        declared = node.target._schema.arguments
        found = {a.name: a.default_value for a in declared if a.has_default_value()}
        return found | {a.name: value for a, value in zip(declared, args, strict=False)} | dict(kwargs)

    def _outputs(self, node: torch.fx.Node) -> list[int]:
        found = [self._values.get(value) for value in node.all_input_nodes]
        given = [o.arg for o in self._program.graph_signature.output_specs]
        if len(found) != len(given) and not self._refused:
            by_name = {value.name: self._values.get(value) for value in node.all_input_nodes}
            found = [by_name.get(getattr(argument, "name", "")) for argument in given]
        if any(not isinstance(value, Ref) for value in found) and not self._refused:
            raise TraceError("the module returns something that is not a tensor computed from its inputs")
        return [value.index for value in found if isinstance(value, Ref)]


def _nearby(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A random point whose elements are about a tenth of ``1 + |x|`` away from the example's."""
    random = torch.Generator().manual_seed(0)
    noise = [torch.randn(x.shape, generator=random, dtype=torch.float64).to(x) for x in inputs]
    return tuple(x.detach() + 0.1 * (1 + x.detach().abs()) * e for x, e in zip(inputs, noise, strict=True))


def _answers(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the module has a value there: its own code may refuse an input outside the range that it is made for."""
    try:
        with torch.no_grad():
            module(*inputs)
    except (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return False
    return True


def _compare(graph: Graph, module: torch.nn.Module, inputs: tuple[Tensor, ...], where: str) -> None:
    """Raise ``TraceError`` where the graph's outputs are not the module's; NaN is NaN for both."""
    from torch.utils import _pytree

    with torch.no_grad():
        wanted = [t for t in _pytree.tree_leaves(module(*inputs)) if isinstance(t, Tensor)]
        found = graph.evaluate(*(x.detach().to("cpu", torch.float64).unsqueeze(0) for x in inputs))
    for k, (value, want) in enumerate(zip(found, wanted, strict=True)):
        want = want.detach().to("cpu", torch.float64)
        gap = (value[0] - want).abs() / (1 + want.abs())
        gap = torch.where((value[0] == want) | (value[0].isnan() & want.isnan()), 0.0, gap)
        if not bool((gap <= _TOLERANCE).all()):
            raise TraceError(f"output {k} differs from the module's by {gap.max():.3g} {where}")
