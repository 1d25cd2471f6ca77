"""From a path or bytes to a checked ONNX model. Files are hostile until shown otherwise.

Nothing here imports torch. Sizes are limited after decompression, external tensor data is read only from inside the
model's folder, and a model that ``onnx.checker`` rejects is not read further.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from verifier.errors import InputError, UnsupportedError
from verifier.paths import existing_file

MAX_BYTES = 2**30
"""Default limit of a model's size after decompression, external data included."""

MIN_OPSET = 7
_GZIP = b"\x1f\x8b"
_OWN_DOMAINS = ("", "ai.onnx")


def load_model(source: str | Path | bytes, max_bytes: int = MAX_BYTES) -> tuple[onnx.ModelProto, str]:
    """The checked model, with external data pulled in and local functions inlined, and its name for messages.

    ``source`` is a path (``model.onnx`` also finds ``model.onnx.gz``) or the file's content; gzip is recognised by its
    first bytes. Raises ``InputError`` for what is not a valid model, ``UnsupportedError`` for an opset out of range.
    """
    if isinstance(source, bytes):
        name, folder, data = "model (from bytes)", None, source
    else:
        path = existing_file(source, ".onnx")
        name, folder, data = str(path), path.parent, _read(path, max_bytes)
    if data[:2] == _GZIP:
        data = _decompress(data, name, max_bytes)
    _limit(len(data), name, max_bytes)
    model = _parse(data, name)
    opset(model, name)
    used = _pull_in_external_data(model, folder, name, max_bytes - len(data))
    _check(*_complete(model, data if used == 0 else None), name)
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    return model, name


def opset(model: onnx.ModelProto, name: str) -> int:
    """Version of the default operator set; raises ``UnsupportedError`` where it is out of range."""
    newest = onnx.defs.onnx_opset_version()
    version = max((o.version for o in model.opset_import if o.domain in _OWN_DOMAINS), default=0)
    if version == 0:
        raise InputError(f"{name}: not an ONNX model (it names no operator set)")
    if not MIN_OPSET <= version <= newest:
        raise UnsupportedError(
            f"{name}: operator set {version} is not supported ({MIN_OPSET} to {newest} are); "
            + ("convert it with onnx.version_converter" if version < MIN_OPSET else "a newer onnx package may help")
        )
    return int(version)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        _limit(path.stat().st_size, str(path), max_bytes)
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise InputError(f"{path}: the file is empty")
    return data


def _limit(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise InputError(
            f"{name}: more than {max_bytes} bytes (after decompression); "
            "if the file can be trusted, raise the limit with --max-bytes (max_bytes= in Python)"
        )


def _decompress(data: bytes, name: str, max_bytes: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            content = stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: broken gzip file: {error}") from error
    _limit(len(content), name, max_bytes)
    return content


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError) as error:
        raise InputError(f"{name}: not an ONNX model, or a truncated one ({error})") from error
    if not model.HasField("graph") or not model.ir_version:
        raise InputError(f"{name}: not an ONNX model (it holds no graph)")
    if model.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            f"{name}: ONNX format version {model.ir_version} is newer than the onnx package knows ({onnx.IR_VERSION})"
        )
    return model


def _complete(model: onnx.ModelProto, data: bytes | None) -> tuple[onnx.ModelProto, bytes | None]:
    """What is handed to the checker. It wants a shape on every input and output; some exporters leave it out on
    outputs, where the reader computes it, and on inputs the reader has a better message."""
    if all(v.type.tensor_type.HasField("shape") for v in (*model.graph.input, *model.graph.output)):
        return model, data
    completed = onnx.ModelProto()
    completed.CopyFrom(model)
    for value in (*completed.graph.input, *completed.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return completed, None


def _check(model: onnx.ModelProto, data: bytes | None, name: str) -> None:
    try:
        onnx.checker.check_model(model.SerializeToString() if data is None else data)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: not a valid ONNX model: {reason[:400]}") from error


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    stack = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    while stack:
        for attribute in stack.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graph.initializer
                stack.extend(graph.node)


def _pull_in_external_data(model: onnx.ModelProto, folder: Path | None, name: str, budget: int) -> int:
    """Replace references to other files by their content; returns the number of bytes read."""
    used = 0
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if folder is None:
            raise InputError(f"{name}: tensor {tensor.name!r} is stored in another file; read the model by its path")
        content = _external(tensor, folder, name, budget - used)
        used += len(content)
        tensor.raw_data = content
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return used


def _external(tensor: onnx.TensorProto, folder: Path, name: str, budget: int) -> bytes:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    where = f"{name}: tensor {tensor.name!r}: external data {location!r}"
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location:
        raise InputError(f"{where} must be a relative path inside the model's folder")
    home = folder.resolve()
    path = (home / location).resolve()
    if not path.is_relative_to(home):
        raise InputError(f"{where} leads out of the model's folder")
    if not path.is_file():
        raise InputError(f"{where} does not exist beside the model")
    size = path.stat().st_size
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", size - offset))
    except ValueError as error:
        raise InputError(f"{where} has an offset or length that is not a number") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise InputError(f"{where} ends before byte {offset + length}: the file has {size} bytes")
    _limit(length, name, max(budget, 0))
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)
