"""Broken, hostile and unusual files: each is a clear error of the right kind, or read correctly."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from verifier.errors import InputError, UnsupportedError
from verifier.network import files


def small_model(weight: np.ndarray | None = None, opset: int = 13) -> onnx.ModelProto:
    weight = np.eye(2, dtype=np.float32) if weight is None else weight
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="first")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def with_external_data(location: str) -> onnx.ModelProto:
    model = small_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        files.load_model(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        files.load_model(tmp_path / "empty.onnx")
    with pytest.raises(InputError, match="not a file"):
        files.load_model(tmp_path)


def test_every_truncation_is_an_input_error(tmp_path: Path) -> None:
    data = small_model().SerializeToString()
    for length in range(len(data)):
        with pytest.raises(InputError):
            files.load_model(data[:length])
    files.load_model(data)


@pytest.mark.parametrize("seed", range(30))
def test_random_bytes(seed: int) -> None:
    data = random.Random(seed).randbytes(1 + 37 * seed)
    with pytest.raises(InputError):
        files.load_model(data)


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_never_surprise(seed: int) -> None:
    source = random.Random(seed)
    data = bytearray(small_model().SerializeToString())
    for _ in range(3):
        data[source.randrange(len(data))] = source.randrange(256)
    try:
        files.load_model(bytes(data))
    except (InputError, UnsupportedError):
        return


def test_gzip_is_read_directly_and_found_by_the_plain_name(tmp_path: Path) -> None:
    data = small_model().SerializeToString()
    (tmp_path / "model.onnx.gz").write_bytes(gzip.compress(data))
    assert files.load_model(tmp_path / "model.onnx.gz")[0] == files.load_model(data)[0]
    assert files.load_model(tmp_path / "model.onnx")[0] == files.load_model(data)[0]


def test_broken_gzip(tmp_path: Path) -> None:
    data = gzip.compress(small_model().SerializeToString())
    for broken in (data[:-9], data[:20], data[:2], b"\x1f\x8b" + bytes(30)):
        with pytest.raises(InputError, match="gzip"):
            files.load_model(broken)


def test_gzip_bomb_stops_at_the_limit_and_says_how_to_raise_it() -> None:
    bomb = gzip.compress(bytes(30_000_000))
    with pytest.raises(InputError, match=r"--max-bytes .*max_bytes="):
        files.load_model(bomb, max_bytes=1_000_000)
    with pytest.raises(InputError, match="max_bytes"):
        files.load_model(small_model().SerializeToString(), max_bytes=10)


def test_external_data_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(np.full((2, 2), 3, np.float32).tobytes())
    (tmp_path / "model.onnx").write_bytes(with_external_data("sub/w.bin").SerializeToString())
    model, _ = files.load_model(tmp_path / "model.onnx")
    assert numpy_helper.to_array(model.graph.initializer[0]).tolist() == [[3, 3], [3, 3]]
    with pytest.raises(InputError, match="max_bytes"):
        files.load_model(tmp_path / "model.onnx", max_bytes=(tmp_path / "model.onnx").stat().st_size + 3)


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "{outside}", "link.bin", "", "none.bin"])
def test_external_data_never_leaves_the_folder(tmp_path: Path, location: str) -> None:
    outside = tmp_path / "secret.bin"
    outside.write_bytes(np.ones((2, 2), np.float32).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside)
    model = with_external_data(location.format(outside=outside))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="external data"):
        files.load_model(folder / "model.onnx")


def test_external_data_shorter_than_declared(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    model = with_external_data("w.bin")
    model.graph.initializer[0].external_data.add(key="length", value="16")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="8 bytes"):
        files.load_model(tmp_path / "model.onnx")


def test_external_data_from_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="by its path"):
        files.load_model(with_external_data("w.bin").SerializeToString())


def test_opsets_out_of_range() -> None:
    with pytest.raises(UnsupportedError, match="operator set 6"):
        files.load_model(small_model(opset=6).SerializeToString())
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(UnsupportedError, match=f"operator set {newest + 1}"):
        files.load_model(small_model(opset=newest + 1).SerializeToString())


def test_newer_file_format() -> None:
    model = small_model()
    model.ir_version = onnx.IR_VERSION + 1
    with pytest.raises(UnsupportedError, match="newer"):
        files.load_model(model.SerializeToString())


def test_checker_failures_are_input_errors() -> None:
    model = small_model()
    model.graph.node[0].input[0] = "nothing"
    with pytest.raises(InputError, match="not a valid ONNX model"):
        files.load_model(model.SerializeToString())


def test_reading_files_does_not_import_torch() -> None:
    code = (
        "import sys; import verifier.network; verifier.network.summarise; import verifier.network.files; "
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
