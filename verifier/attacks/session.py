"""An onnxruntime session as an oracle: any model that onnxruntime runs, whatever its operators are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from verifier.attacks.oracle import ELEMENTS
from verifier.errors import InputError, UnsupportedError
from verifier.replay import open_session

_TYPES: Mapping[str, type[np.floating]] = MappingProxyType(
    {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
)
_MOST_ROWS = 1024
_PER_INPUT = 256
"""Elements of all values for each element of the input, where the model does not tell their shapes."""

_MOST_INFERRED = 2**28
"""Bytes of a model up to which the shapes of its values are inferred."""


@dataclass(frozen=True, slots=True, eq=False)
class SessionOracle:
    """An onnxruntime session with one input, asked for one output.

    ``shape``: the input's, without the dimension that counts points; ``lead``: that dimension (None: any number of
    points is run at once; 0: the input has none, and each point is run by itself; B: exactly B points are run at once,
    the last ones filled up). ``rows``: the points of one run at most.
    """

    session: Any
    input_name: str
    output_name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    lead: int | None
    rows: int

    @staticmethod
    def of(model: bytes, output: str | None = None, dims: Mapping[str, int] | None = None) -> SessionOracle:
        """Open a session on a model's bytes.

        ``output`` names the output to ask for where there are several; ``dims`` gives symbolic dimensions sizes
        (others count as 1, a leading one as any number of points). Whether points that are run together are computed
        each by itself is tried with two; where they are not, each is run by itself. Raises ``InputError`` for bytes
        that onnxruntime does not accept, for several inputs and for several outputs without a choice,
        ``UnsupportedError`` for element types that are not floating point.
        """
        try:
            session = open_session(model)
        except Exception as error:  # onnxruntime's errors have no common class
            raise InputError(f"onnxruntime cannot load the model: {_first_line(error)}") from error
        given, asked = _only_input(session), _chosen(session, output)
        dtype = _element_type(given)
        _element_type(asked)
        sizes = [d if isinstance(d, int) and d > 0 else (dims or {}).get(d) for d in given.shape]
        counted = bool(sizes) and sizes[0] is None
        shape = tuple(1 if d is None else d for d in sizes)
        oracle = SessionOracle(session, given.name, asked.name, shape, np.dtype(dtype), 0, 1)
        if counted:
            room = max(1, int(ELEMENTS / _elements(model, shape)))
            many = replace(oracle, shape=shape[1:], lead=None, rows=min(room, _MOST_ROWS))
            return many if _separate(many, 2) else oracle
        if len(shape) > 1 and shape[0] > 1 and list(asked.shape[:1]) == [shape[0]] and len(asked.shape) > 1:
            several = replace(oracle, shape=shape[1:], lead=shape[0], rows=shape[0])
            return several if _separate(several, shape[0]) else oracle
        return oracle

    @property
    def differentiable(self) -> bool:
        """False: only outputs can be had."""
        return False

    @property
    def device(self) -> torch.device:
        """The processor; points elsewhere are copied, and outputs brought back to them."""
        return torch.device("cpu")

    @property
    def size(self) -> int:
        """n, the elements of a point."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the model's input, 1 for a dimension of any size."""
        return self.shape if self.lead == 0 else (self.lead or 1, *self.shape)

    def whole(self) -> SessionOracle:
        """With the exact number of points that the model runs at once as a single one, where it asks for one."""
        return replace(self, shape=self.input_shape, lead=0, rows=1) if self.lead else self

    def outputs(self, points: Tensor) -> Tensor:
        """See ``Oracle``. Raises ``InputError`` for points of another size, and where onnxruntime fails."""
        return torch.from_numpy(self.values(points.detach().cpu().numpy())).to(points)

    def values(self, points: np.ndarray) -> np.ndarray:
        """As ``outputs``, in the element type of the model's output (half precision as float32)."""
        if self.lead and points.shape[1] == self.lead * self.size:
            return self.whole().values(points)
        if points.shape[1] != self.size:
            raise InputError(
                f"input {self.input_name!r}: the model takes {self.size} numbers {list(self.shape)}, and a point has "
                f"{points.shape[1]}"
            )
        array = points.astype(self.dtype)
        if self.lead is None:
            found = self._run(array.reshape(-1, *self.shape)).reshape(len(array), -1)
        elif self.lead == 0:
            found = np.stack([self._run(a.reshape(self.shape)).reshape(-1) for a in array])
        else:
            parts = [array[k : k + self.lead] for k in range(0, len(array), self.lead)]
            full = [np.concatenate([p, np.repeat(p[-1:], self.lead - len(p), 0)]) for p in parts]
            runs = [self._run(a.reshape(-1, *self.shape)).reshape(self.lead, -1) for a in full]
            found = np.concatenate(runs)[: len(array)]
        return found.astype(np.promote_types(found.dtype, np.float32))

    def _run(self, feed: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(self.session.run([self.output_name], {self.input_name: feed})[0])
        except Exception as error:  # onnxruntime's errors have no common class
            raise InputError(f"onnxruntime cannot run the model: {_first_line(error)}") from error


def _only_input(session: Any) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(repr(i.name) for i in inputs) or "none"
        raise InputError(f"the model has {len(inputs)} inputs ({names}): attacks through onnxruntime take one")
    return inputs[0]


def _chosen(session: Any, output: str | None) -> Any:
    """The output of this name, or the only one."""
    outputs = session.get_outputs()
    named = [o for o in outputs if output is None or o.name == output]
    if len(named) != 1:
        names = ", ".join(repr(o.name) for o in outputs)
        which = "say which one has the scores" if output is None else f"none is called {output!r}"
        raise InputError(f"the model has {len(outputs)} outputs ({names}): {which}")
    return named[0]


def _element_type(tensor: Any) -> type[np.floating]:
    if tensor.type not in _TYPES:
        raise UnsupportedError(
            f"{tensor.name!r} is a {tensor.type}: attacks through onnxruntime take tensors of float16, float and double"
        )
    return _TYPES[tensor.type]


def _separate(oracle: SessionOracle, count: int) -> bool:
    """Whether points that are run together are computed as each by itself: with copies of it instead of the others."""
    random = np.random.default_rng(0).random((count, oracle.size))
    points = torch.from_numpy(random.astype(np.promote_types(oracle.dtype, np.float32)))
    try:
        together = oracle.outputs(points)
        alone = torch.cat([oracle.outputs(p.expand(1 if oracle.lead is None else count, -1))[:1] for p in points])
    except (InputError, ValueError):
        return False
    tolerance = 1e-2 if oracle.dtype == np.float16 else 1e-4
    size = float(alone.nan_to_num().abs().amax()) if alone.numel() else 0.0
    return together.shape == alone.shape and torch.allclose(together, alone, tolerance, tolerance * size, True)


def _elements(model: bytes, shape: tuple[int, ...]) -> float:
    """About how many elements all values of one point have together."""
    least = _PER_INPUT * float(np.prod(shape, dtype=np.float64))
    if len(model) > _MOST_INFERRED:
        return least
    try:
        graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model)).graph
    except (DecodeError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return least
    known = {v.name: v.type.tensor_type.shape.dim for v in graph.value_info if v.type.tensor_type.HasField("shape")}
    made = {name for node in graph.node for name in node.output if name} - {o.name for o in graph.output}
    if not made <= known.keys():
        return least
    return sum(float(np.prod([max(1, d.dim_value) for d in dims])) for dims in known.values()) + float(np.prod(shape))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
