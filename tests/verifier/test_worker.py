"""What a worker answers, without a process: verdicts with witnesses, and bad input as one line with its exit code."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from verifier import limits, pipeline, protocol
from verifier.query import read
from verifier.report.result import schema
from verifier.strategy import Strategy, explain, features
from verifier.verdict import Verdict
from verifier.worker import answer

Ask = Callable[..., tuple[protocol.Message, list[protocol.Message]]]
BOX = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)" + "".join(
    f"(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(2)
)
SAT = BOX + "(assert (<= Y_0 Y_1))"
UNSAT = BOX + "(assert (<= Y_0 -0.5))"


def network(nodes: tuple[str, ...] = ("Relu",), weight: float = 1.0) -> bytes:
    """``y = [weight x0 + x1, 2 x1]``, then unary operators."""
    w = np.array([[weight, 0], [1, 2]], dtype=np.float32)
    graph = [helper.make_node("MatMul", ["x", "w"], ["h0"])]
    graph += [helper.make_node(op, [f"h{i}"], [f"h{i + 1}"]) for i, op in enumerate(nodes)]
    tensor = helper.make_tensor_value_info
    made = helper.make_graph(
        graph,
        "g",
        [tensor("x", TensorProto.FLOAT, [1, 2])],
        [tensor(f"h{len(nodes)}", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Put a request; the closing message and those before it. ``model`` and ``text`` are written to files first."""

    def put(
        text: str | bytes = SAT, model: bytes | None = None, device: str = "auto", explain: bool = False, **task: Any
    ) -> tuple[protocol.Message, list[protocol.Message]]:
        (tmp_path / "net.onnx").write_bytes(network() if model is None else model)
        (tmp_path / "p.vnnlib").write_bytes(text if isinstance(text, bytes) else text.encode())
        whole = {
            "kind": "property",
            "property": str(tmp_path / "p.vnnlib"),
            "max_bytes": None,
            "assignments": None,
            "networks": {"": str(tmp_path / "net.onnx")},
            "label": None,
            "mean": None,
            "std": None,
            "data_range": None,
            "norm": "inf",
        } | task
        said: list[protocol.Message] = []
        request = {
            "type": "verify",
            "task": whole,
            "deadline": limits.now() + 60,
            "seed": 0,
            "device": device,
            "evidence": True,
            "verbose": False,
            "explain": explain,
        }
        return json.loads(json.dumps(answer(request, said.append))), said

    return put


def test_what_is_explained_is_what_is_done(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Strategy] = []
    verify = pipeline.verify

    def watch(*arguments: Any, **options: Any) -> Verdict:
        used.append(options["strategy"])
        return verify(*arguments, **options)

    monkeypatch.setattr(pipeline, "verify", watch)
    _, silent = ask()
    _, said = ask(explain=True)
    assert [m["type"] for m in silent if m["type"] != "progress"] == []
    (explanation,) = [m for m in said if m["type"] == "explanation"]
    assert said.index(explanation) < [m.get("stage") for m in said].index("attack")
    assert explanation["lines"] == explain(features(read(tmp_path / "net.onnx", tmp_path / "p.vnnlib")), used[1])
    assert explanation["lines"][0].startswith("features: free_inputs 2, boxes 1, clauses 1, activations 2")


def test_sat_has_a_witness_and_a_record(ask: Ask) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    closing, said = ask()
    assert closing["type"] == "verdict" and said[0]["stage"] == "load"
    jsonschema.validate(closing["record"], schema(), cls=jsonschema.Draft202012Validator)
    found = closing["record"]["counterexample"]
    x0, x1 = (Fraction(text) for text in found["inputs"][0]["values"])
    y0, y1 = (Fraction(text) for text in found["outputs"][0]["values"])
    assert 0 <= x0 <= 1 and 0 <= x1 <= 1 and y0 <= y1
    lines = closing["witness"].splitlines()
    assert len(lines) == 4 and lines[0].startswith("((X_0 ") and lines[3].endswith("))")
    assert [float(line.strip("()").split()[1]) for line in lines] == [float(v) for v in (x0, x1, y0, y1)]


def test_unsat(ask: Ask) -> None:
    closing, _ = ask(UNSAT)
    assert closing["record"]["result"] == "unsat" and closing["witness"] == ""
    assert 0 < float(closing["record"]["lower_bound"]) <= 0.5


def test_a_query_of_version_two(ask: Ask, tmp_path: Path) -> None:
    text = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1, 2]) (declare-output Y float32 [1, 2]))
(declare-network g (equal-to f) (declare-input U float32 [1, 2]) (declare-output V float32 [1, 2]))
(assert (and (>= X[0,0] 0.0) (<= X[0,0] 1.0) (>= X[0,1] 0.0) (<= X[0,1] 1.0)))
(assert (and (>= U[0,0] 0.0) (<= U[0,0] 1.0) (>= U[0,1] 0.0) (<= U[0,1] 1.0)))
(assert (<= Y[0,0] (- V[0,0] 1.5)))"""
    networks = {"f": str(tmp_path / "net.onnx")}
    closing, _ = ask(text, networks=networks)
    assert closing["record"]["result"] == "sat"
    heads = [line for line in closing["witness"].splitlines() if " " in line]
    assert heads == [f"{name} float32 [1,2]" for name in "XYUV"]
    closing, _ = ask(text, networks=networks, assignments=str(tmp_path / "found"))
    assert closing["witness"] == ""
    tensors = {path.stem: onnx.load_tensor(path) for path in (tmp_path / "found").glob("*.pb")}
    values = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    assert set(values) == set("XYUV") and values["Y"].shape == (1, 2)
    assert values["Y"][0, 0] <= values["V"][0, 0] - 1.5


def test_an_empty_box_is_unsat_and_said_so(ask: Ask) -> None:
    closing, _ = ask(SAT + "(assert (<= X_0 -1))")
    assert closing["record"]["result"] == "unsat"
    assert any("empty" in note or "lower > upper" in note for note in closing["record"]["notes"])


def test_regions(ask: Ask, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[0.75, 0.25]], dtype=np.float32))
    ball = {"kind": "robustness", "input": str(tmp_path / "x.npy")}
    assert ask(**ball, epsilon="1/5")[0]["record"]["result"] == "unsat"
    assert ask(**ball, epsilon="2/5")[0]["record"]["result"] == "sat"
    cut = ask(**ball, epsilon="3", data_range=["0", "1"])[0]["record"]
    assert all(0 <= Fraction(value) <= 1 for value in cut["counterexample"]["inputs"][0]["values"])
    assert ask(**ball, epsilon="1/5", data_range=["0.5", "1"])[0]["exit_code"] == 2  # the point is outside
    assert ask(**ball, epsilon="1/5", label=1)[0]["record"]["result"] == "sat"
    shifted = ask(**ball, epsilon="1/5", mean=["0.5"], std=["0.5"])[0]["record"]
    assert shifted["result"] in ("sat", "unsat")
    np.savez(tmp_path / "b.npz", lower=np.array([0.6, 0.1]), upper=np.array([0.9, 0.4]))
    closing, _ = ask(kind="box", box=str(tmp_path / "b.npz"))
    assert closing["record"]["result"] == "unsat"
    assert any("label 0" in note for note in closing["record"]["notes"])


def test_region_files_are_hostile(ask: Ask, tmp_path: Path) -> None:
    good = tmp_path / "good.npy"
    np.save(good, np.zeros((1, 2), dtype=np.float32))
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:-3])
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "many.npy", np.zeros(5))
    np.save(tmp_path / "nan.npy", np.array([np.nan, 0]))
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros(10**6))
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    names = ["cut.npy", "text.npy", "objects.npy", "many.npy", "nan.npy", "bomb.npz", "two.npz", "missing.npy", "x.jpg"]
    for name in names:
        closing, _ = ask(kind="robustness", input=str(tmp_path / name), epsilon="0.1", max_bytes=10**6)
        assert (closing["type"], closing.get("exit_code")) == ("failure", 2), name
    closing, _ = ask(kind="box", box=str(tmp_path / "two.npz"))
    assert closing["exit_code"] == 2 and "lower and upper" in closing["message"]


DEEP = "(" * 200_000
BAD_PROPERTIES = {
    "empty": "",
    "cut off": SAT[:-5],
    "unbalanced": SAT + ")",
    "deep": BOX + "(assert " + DEEP,
    "unbounded": SAT.replace("(assert (<= X_1 1))", ""),
    "not a number": SAT + "(assert (<= X_0 nan))",
    "too many inputs": "(declare-const X_2 Real)(assert (<= X_2 0))(assert (>= X_2 0))" + SAT,
    "random bytes": bytes(range(128, 256)) * 20,
    "cut gzip": gzip.compress(SAT.encode())[:-9],
    "gzip of noise": gzip.compress(b"\xff\x00" * 50),
}


@pytest.mark.parametrize("name", BAD_PROPERTIES)
def test_bad_properties(name: str, ask: Ask) -> None:
    check_failure(ask(BAD_PROPERTIES[name])[0], 2)


BAD_MODELS = {
    "empty": b"",
    "cut off": network()[:-20],
    "text": b"not a network at all",
    "NaN in the weights": network(weight=float("nan")),
    "infinity in the weights": network(weight=float("inf")),
    "cut gzip": gzip.compress(network())[:-9],
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models(name: str, ask: Ask) -> None:
    check_failure(ask(model=BAD_MODELS[name])[0], 2)


def check_failure(closing: protocol.Message, exit_code: int) -> None:
    assert closing["type"] == "failure", closing
    assert closing["exit_code"] == exit_code, closing["traceback"]
    assert closing["message"] and "\n" not in closing["message"]
    assert len(closing["message"]) < 1000


def test_sizes_that_do_not_fit_are_both_named(ask: Ask) -> None:
    message = ask(BAD_PROPERTIES["too many inputs"])[0]["message"]
    assert "3 inputs" in message and "2" in message


def test_missing_files(ask: Ask, tmp_path: Path) -> None:
    check_failure(ask(property=str(tmp_path / "missing.vnnlib"))[0], 2)
    check_failure(ask(networks={"": str(tmp_path / "missing.onnx")})[0], 2)
    check_failure(ask(networks={"f": str(tmp_path / "net.onnx"), "g": str(tmp_path / "net.onnx")})[0], 2)


def test_decompressed_sizes_are_limited(ask: Ask) -> None:
    padded = SAT + "\n" * 100_000
    for bomb in ({"text": gzip.compress(padded.encode())}, {"model": gzip.compress(network() + b"\0" * 100_000)}):
        closing, _ = ask(**bomb, max_bytes=10_000)
        check_failure(closing, 2)
        assert "max-bytes" in closing["message"] or "max_bytes" in closing["message"]


def test_unsupported_operators_are_all_listed(ask: Ask) -> None:
    closing, _ = ask(model=network(("Det", "Relu", "Hardmax")))
    check_failure(closing, 3)
    assert closing["kind"] == "unsupported" and "Det" in closing["message"] and "Hardmax" in closing["message"]


@pytest.mark.parametrize("device", ["cuda:99", "cuda:0"])
def test_devices_that_do_not_exist(device: str, ask: Ask) -> None:
    import torch

    if device == "cuda:0" and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    closing, _ = ask(device=device)
    check_failure(closing, 2)
    assert device in closing["message"]


def test_our_own_faults_are_internal_errors(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    from verifier import pipeline

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline, "verify", fail)
    closing, _ = ask()
    check_failure(closing, 4)
    assert closing["kind"] == "internal" and "ZeroDivisionError: a bug" in closing["message"]
    assert "Traceback" in closing["traceback"]


def test_running_out_of_memory_is_unknown(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    from verifier import pipeline

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(pipeline, "verify", fail)
    closing, _ = ask()
    assert closing["record"]["result"] == "unknown" and closing["record"]["reason"] == "out of memory"


def test_the_whole_command(tmp_path: Path) -> None:
    """One run as a user has it: a process of its own, gzip files, a witness on stdout, one line on stderr."""
    (tmp_path / "net.onnx.gz").write_bytes(gzip.compress(network()))
    (tmp_path / "p.vnnlib.gz").write_bytes(gzip.compress(SAT.encode()))
    root = Path(limits.__file__).resolve().parents[1]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from verifier.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "verify", "net.onnx.gz", "p.vnnlib.gz", "--exit-code", "--timeout", "100"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 10, done.stderr
    assert done.stdout.startswith("sat\n((X_0 ") and done.stdout.endswith("))\n")
    assert done.stderr.count("\n") == 1 and "sat after" in done.stderr
