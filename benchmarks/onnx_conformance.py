"""The ONNX backend's own test cases, run through the reader: what passes, and why the others stand out.

    PYTHONPATH=. python -P benchmarks/onnx_conformance.py

(``-P``, because a script beside it is called like the package ``bounds``.)

The ``onnx`` package carries test cases for single operators: a model, inputs, and the outputs that they must give.
Each case whose operators are all among ``OPERATORS`` is read and evaluated in float64 and in float32, and compared
with the shipped outputs; where onnxruntime runs the model, the load check is run as well. Weights and shapes that a
case gives as inputs are made initialisers where the operator needs constants, and so are all inputs that are not
floating point, because a network has none of those.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from verifier.errors import InputError, InternalError, UnsupportedError, UnsupportedModelError
from verifier.network.check import check_network
from verifier.network.reader import Network, read_network

OPERATORS = (
    "Abs Add And Asinh Atan AveragePool BatchNormalization Cast Ceil Celu Clip Concat Constant ConstantOfShape Conv "
    "ConvTranspose Cos Cosh DepthToSpace Div Dropout Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements "
    "GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual HardSigmoid HardSwish Identity InstanceNormalization "
    "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mish Mod Mul Neg "
    "NonZero Not OneHot Or PRelu Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax "
    "ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape "
    "Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish "
    "Tanh ThresholdedRelu Tile Transpose Trilu Unsqueeze Upsample Where Xor"
).split()

# Where the cases of these operators are defined, and functions that expand to them alone. Importing only these saves
# the seconds that generating the rest takes.
_MODULES = (
    "abs add affinegrid and_ asinh atan averagepool batch_normalization blackmanwindow cast castlike "
    "causal_conv_with_state ceil celu center_crop_pad clip concat constant constantofshape conv convtranspose cos "
    "cosh depthtospace div dropout elu equal erf exp expand flatten flexattention floor gather gatherelements "
    "gathernd gelu gemm globalaveragepool greater greater_or_equal groupnormalization hammingwindow hannwindow "
    "hardsigmoid hardswish identity instance_normalization layernormalization leakyrelu less less_or_equal log "
    "logsoftmax matmul max maxpool mean meanvariancenormalization min mish mod mul neg negativeloglikelihoodloss "
    "nonzero not_ onehot or_ pad pow prelu rangeop reciprocal reduce_log_sum reduce_log_sum_exp reducel1 reducel2 "
    "reducemax reducemean reducemin reducesum reducesumsquare relu reshape resize rmsnormalization rotaryembedding "
    "round scatter scatterelements scatternd selu shape shrink sigmoid sign sin sinh size slice softmax softplus "
    "softsign spacetodepth split sqrt squeeze sub sum swiglu swish tanh thresholdedrelu tile transpose trilu "
    "unsqueeze upsample where xor"
).split()

_STAND_IN = "not_read"
_FOUR_DECIMALS = frozenset({"test_averagepool_2d_ceil_last_window_starts_on_pad"})
"""Cases whose outputs were written down by hand with four decimals."""
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Types in which the expected outputs are computed with three digits."""
Result = Literal["passed", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case."""

    case: str
    operator: str
    result: Result
    reason: str = ""


def cases(everything: bool = False) -> list[Any]:
    """The cases whose operators are all among ``OPERATORS``, by name; ``everything`` searches all modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if everything:
            from onnx.backend.test.loader import load_model_tests

            load_model_tests(kind="node")
        for module in (f"onnx.backend.test.case.node.{name}" for name in _MODULES):
            if importlib.util.find_spec(module) is not None:  # older packages lack the newest
                importlib.import_module(module)
    from onnx.backend.test.case.node import _NodeTestCases

    found = {c.name: c for c in _NodeTestCases if {n.op_type for n in c.model.graph.node} <= set(OPERATORS)}
    return [found[name] for name in sorted(found) if found[name].model.graph.node]


def operator(case: Any) -> str:
    """The operator that a case is about; several where it is a function written out."""
    kinds = {n.op_type for n in case.model.graph.node}
    return kinds.pop() if len(kinds) == 1 else "several"


def run(case: Any) -> Outcome:
    """Read one case with as many variable inputs as its operator admits, and compare."""
    reasons: list[str] = []
    for variable in _choices(case):
        try:
            network = read_network(_with_constants(case, variable), checked=False)
        except (InputError, UnsupportedError) as error:
            detail = error.operators[0] if isinstance(error, UnsupportedModelError) and error.operators else str(error)
            reasons.append(detail)
            continue
        fault = _compare(case, network, variable) or _load_check(network)
        return Outcome(case.name, operator(case), "failed" if fault else "passed", fault)
    reason = "; otherwise: ".join(dict.fromkeys(reasons)) or "inputs or outputs that are not tensors"
    return Outcome(case.name, operator(case), "skipped", reason)


def _choices(case: Any) -> Iterator[tuple[str, ...]]:
    """Which inputs to leave variable: all of floating point, then the first of them, then none."""
    inputs = case.model.graph.input
    if any(not v.type.HasField("tensor_type") for v in (*inputs, *case.model.graph.output)):
        return
    floats = tuple(
        v.name
        for v in inputs
        if v.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
        and all(d.dim_value > 0 or d.dim_param for d in v.type.tensor_type.shape.dim)
    )
    yield from dict.fromkeys((floats, floats[:1], ()))


def _feeds(case: Any) -> dict[str, Any]:
    values, _ = case.data_sets[0]
    return {v.name: x for v, x in zip(case.model.graph.input, values, strict=False)}


def _with_constants(case: Any, variable: Sequence[str]) -> bytes:
    """The model with the other inputs stored inside; a model needs an input, so one may be added that is not read."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for name, value in _feeds(case).items():
        if name not in variable:
            stored = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))
            model.graph.initializer.append(stored)
            model.graph.initializer[-1].name = name
    if not variable:
        model.graph.input.append(helper.make_tensor_value_info(_STAND_IN, TensorProto.FLOAT, [1]))
    return model.SerializeToString()


def _array(value: Any) -> np.ndarray:
    array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
    return array.astype(np.float64)


def _compare(case: Any, network: Network, variable: Sequence[str]) -> str:
    feeds = _feeds(case)
    given = [_array(feeds[v.name]) if v.name in variable else np.zeros(v.shape) for v in network.inputs]
    # What float32 rounds is proportional to what is summed, for which the largest value stands here.
    slack = 1e-4 if case.name in _FOUR_DECIMALS else 0.0
    if any(v.type.tensor_type.elem_type in _HALF for v in case.model.graph.output):
        slack = 1e-2
    for dtype, share in ((torch.float64, 1e-5 + slack), (torch.float32, 1e-4 + slack)):
        points = [torch.from_numpy(np.array(x)).to(dtype).unsqueeze(0) for x in given]
        outputs = network.graph.evaluate(*points)
        for index, ours, expected in zip(network.graph.outputs, outputs, case.data_sets[0][1], strict=True):
            found = ours if index in network.graph.constants else ours[0]
            wanted = _array(expected)
            if tuple(found.shape) != wanted.shape:
                return f"shape {list(found.shape)} instead of {list(wanted.shape)}"
            limit = share * max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)))
            if not np.allclose(found.double().numpy(), wanted, rtol=0, atol=limit, equal_nan=True):
                return f"{dtype}: off by {np.abs(found.double().numpy() - wanted).max()}"
    return ""


def _load_check(network: Network) -> str:
    try:
        check_network(network)
    except UnsupportedError:
        return ""  # onnxruntime is behind the onnx package here and there
    except InternalError as error:
        return str(error)
    return ""


def main() -> int:
    """Print the table; the exit status says whether a case failed."""
    outcomes = [run(case) for case in cases(everything=True)]
    print(f"{'operator':20} {'run':>4} {'passed':>6} {'skipped':>7} {'failed':>6}")
    for name in (*OPERATORS, "several"):
        mine = [o for o in outcomes if o.operator == name]
        counts = [sum(o.result == r for o in mine) for r in ("passed", "skipped", "failed")]
        print(f"{name:20} {counts[0] + counts[2]:4} {counts[0]:6} {counts[1]:7} {counts[2]:6}")
    total = [sum(o.result == r for o in outcomes) for r in ("passed", "skipped", "failed")]
    print(f"{'all':20} {total[0] + total[2]:4} {total[0]:6} {total[1]:7} {total[2]:6}")
    for outcome in outcomes:
        if outcome.result != "passed":
            print(f"{outcome.result}: {outcome.case}: {outcome.reason}")
    return int(total[2] > 0)


if __name__ == "__main__":
    sys.exit(main())
