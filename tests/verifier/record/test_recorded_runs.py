"""Runs from the front door: a record where the answer is unsat, none where it is another; all records of a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import verifier
from verifier.pipeline import verify
from verifier.record.frames import MAGIC, Frame, read_frames, write_frame
from verifier.record.recheck import recheck
from verifier.record.writer import Recorder
from verifier.strategy import InnerPlan, choose, features

BOX = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)" + "".join(
    f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(2)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network of two inputs, one output and two layers of ReLUs; its least value is above -10."""
    rng = np.random.default_rng(0)
    shapes = ((2, 10), (10, 10), (10, 1))
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), f"w{k}") for k, s in enumerate(shapes)]
    nodes = []
    for k in range(3):
        nodes.append(helper.make_node("MatMul", [f"r{k}", f"w{k}"], [f"h{k}" if k < 2 else "y"]))
        if k < 2:
            nodes.append(helper.make_node("Relu", [f"h{k}"], [f"r{k + 1}"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("r0", TensorProto.FLOAT, [1, 2])], [info("y", TensorProto.FLOAT, [1, 1])], weights
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("runs") / "net.onnx"
    onnx.save(made, path)
    return path


def least(model: Path) -> float:
    from onnxruntime import InferenceSession

    session = InferenceSession(model, providers=["CPUExecutionProvider"])
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 2), -1).reshape(-1, 1, 2).astype(np.float32)
    return min(float(session.run(None, {"r0": x})[0].min()) for x in grid)


def asked(model: Path, bound: str) -> Path:
    path = model.parent / f"below{bound}.vnnlib"
    path.write_text(BOX + f"(assert (<= Y_0 {bound}))")
    return path


def test_unsat_leaves_a_record_and_sat_does_not(model: Path, tmp_path: Path) -> None:
    record, bottom = tmp_path / "r", least(model)
    holds = verifier.read(model, asked(model, f"{bottom - 0.1:.3f}"))
    verdict = verifier.verify(holds, timeout=60, record=record)
    assert isinstance(verdict, verifier.Verified) and verdict.record == str(record)
    report = recheck(holds, record)
    assert report.proved and report.leaves > 4, report.failures
    same = verifier.verify(holds, timeout=60)
    assert isinstance(same, verifier.Verified) and same.record is None
    assert (same.margin, same.subproblems) == (verdict.margin, verdict.subproblems)
    violated = verifier.read(model, asked(model, f"{bottom + 0.1:.3f}"))
    assert isinstance(verifier.verify(violated, timeout=60, record=record), verifier.Violated)
    assert not record.exists()
    assert verifier.verify(holds, timeout=0.0, record=record).word == "timeout"
    assert not record.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "part of a record"])
def test_what_is_no_record_is_not_written_over(model: Path, tmp_path: Path, kind: str) -> None:
    """A model named by mistake must outlive the run; what a killed run left may go."""
    query, path = verifier.read(model, asked(model, f"{least(model) + 0.1:.3f}")), tmp_path / "r"
    if kind == "part of a record":
        path.write_bytes(MAGIC[:3])
        assert verifier.verify(query, timeout=60, record=path).word == "sat" and not path.exists()
        return
    path.write_bytes(b"weights") if kind == "file" else path.mkdir()
    with pytest.raises(verifier.InputError, match="not a record: name another file"):
        verifier.verify(query, timeout=60, record=path)
    assert path.is_dir() if kind == "folder" else path.read_bytes() == b"weights"


@pytest.fixture(scope="module")
def split(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[verifier.Query, Path]:
    """A query that is proved by splits of activations, and its record."""
    query = verifier.read(model, asked(model, f"{least(model) - 2:.3f}"))
    strategy = replace(choose(features(query)), split_inputs=False, attack_after=math.inf)  # never begins anew
    plan = replace(strategy.activation_split, intermediate_steps=2, root_steps=2, steps=2, batch=4)
    path = tmp_path_factory.mktemp("split") / "r"
    verdict = verify(query, timeout=60, strategy=replace(strategy, activation_split=plan), record=path)
    assert isinstance(verdict, verifier.Verified) and verdict.record == str(path)
    return query, path


def test_splits_of_activations_are_proved_again(split: tuple[verifier.Query, Path]) -> None:
    query, path = split
    report = recheck(query, path)
    assert report.proved and report.leaves == report.reproved > 4, report.failures


def leaf_dropped(arrays: dict[str, torch.Tensor]) -> None:
    """The last leaf of an entry goes, with all that belongs to it."""
    last, size = int(arrays["depth"][-1]), arrays["slope"].shape[0] + arrays["position"].shape[0]
    free = size // arrays["clause"].shape[0] - last
    for name, count in {"clause": 1, "depth": 1, "position": last, "side": last, "beta": last, "slope": free}.items():
        arrays[name] = arrays[name][: arrays[name].shape[0] - count]


def other_side(arrays: dict[str, torch.Tensor]) -> None:
    arrays["side"] = -arrays["side"]


def slopes_beyond_one(arrays: dict[str, torch.Tensor]) -> None:
    arrays["slope"] = arrays["slope"].float() / 255 + 0.5


def slopes_missing(arrays: dict[str, torch.Tensor]) -> None:
    arrays["slope"] = arrays["slope"][:-1]


def negative_beta(arrays: dict[str, torch.Tensor]) -> None:
    arrays["beta"] = arrays["beta"] - 1


def beta_nan(arrays: dict[str, torch.Tensor]) -> None:
    arrays["beta"] = arrays["beta"] * torch.nan


def position_elsewhere(arrays: dict[str, torch.Tensor]) -> None:
    arrays["position"] = arrays["position"] + 1


def position_missing(arrays: dict[str, torch.Tensor]) -> None:
    arrays.pop("position")


def depths_that_wrap(arrays: dict[str, torch.Tensor]) -> None:
    """Numbers of splits whose sum in 64 bits is what it was."""
    total, most = int(arrays["depth"].sum()), 2**63 - 1
    arrays["depth"] = torch.zeros(arrays["depth"].shape, dtype=torch.int64)
    arrays["depth"][:3] = torch.tensor([most, most, 2 + total])
    assert int(arrays["depth"].sum()) == total


def task_infinite(arrays: dict[str, torch.Tensor]) -> None:
    arrays["task"] = torch.full((1,), torch.inf, dtype=torch.float64)


@pytest.mark.parametrize(
    "change",
    [leaf_dropped, other_side, slopes_beyond_one, slopes_missing, negative_beta, beta_nan, position_elsewhere,
     position_missing, depths_that_wrap, task_infinite],
)  # fmt: skip
def test_changed_leaves_prove_nothing(
    split: tuple[verifier.Query, Path], tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    query, path = split
    frames = list(read_frames(path))
    place = max(
        (k for k, f in enumerate(frames) if f.kind == "leaves" and bool(f.arrays["depth"][-1] > 0)),
        key=lambda k: frames[k].arrays["slope"].shape[0],
    )
    arrays = dict(frames[place].arrays)
    change(arrays)
    frames[place] = replace(frames[place], arrays=arrays)
    with open(tmp_path / "r", "wb") as stream:
        stream.write(MAGIC)
        for frame in frames:
            write_frame(stream, frame)
    report = recheck(query, tmp_path / "r")
    assert not report.proved and report.failures


def rewritten(frames: list[Frame], path: Path) -> Path:
    """A record of these frames, whose end counts them."""
    frames[-1] = replace(frames[-1], more={"counts": {"entries": len(frames) - 2}})
    with open(path, "wb") as stream:
        stream.write(MAGIC)
        for frame in frames:
            write_frame(stream, frame)
    return path


@pytest.mark.parametrize("kind", ["leaves", "root"])
def test_an_entry_less_proves_nothing(split: tuple[verifier.Query, Path], tmp_path: Path, kind: str) -> None:
    query, path = split
    frames = list(read_frames(path))
    frames.pop(next(k for k, f in enumerate(frames) if f.kind == kind))
    assert not recheck(query, rewritten(frames, tmp_path / "r")).proved


@pytest.fixture(scope="module")
def anew(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[verifier.Query, Path]:
    """A query whose proof begins anew with better bounds of inner neurons after the first step, and its record."""
    query = verifier.read(model, asked(model, f"{least(model) - 1:.3f}"))
    strategy = replace(choose(features(query)), split_inputs=False, attack_after=0.0)
    plan = replace(strategy.activation_split, intermediate_steps=2, root_steps=2, steps=2, batch=4)
    strategy = replace(strategy, activation_split=replace(plan, inner=InnerPlan(rounds=3, batch=16)))
    path = tmp_path_factory.mktemp("anew") / "r"
    verdict, same = (verify(query, timeout=60, strategy=strategy, record=to) for to in (path, None))
    assert isinstance(verdict, verifier.Verified) and verdict.record == str(path)
    assert isinstance(same, verifier.Verified)
    assert (same.margin, same.subproblems) == (verdict.margin, verdict.subproblems), "a record changes nothing"
    return query, path


def test_a_run_with_better_inner_bounds_is_proved_again(anew: tuple[verifier.Query, Path]) -> None:
    query, path = anew
    kinds = [frame.kind for frame in read_frames(path)]
    last = len(kinds) - 1 - kinds[::-1].index("root")
    assert kinds.count("root") == 2 and "inner" in kinds[:last] and "leaves" in kinds[last:]
    report = recheck(query, path)
    assert report.proved and report.leaves == report.reproved > 2, report.failures


@pytest.mark.parametrize("change", ["no inner bounds", "no second root", "other side", "leaf dropped"])
def test_a_run_with_other_inner_bounds_proves_nothing(
    anew: tuple[verifier.Query, Path], tmp_path: Path, change: str
) -> None:
    query, path = anew
    frames = list(read_frames(path))
    if change in ("other side", "leaf dropped"):
        k = max(k for k, f in enumerate(frames) if f.kind == "inner" and int(f.arrays["depth"][-1]) > 0)
        arrays = dict(frames[k].arrays)
        other_side(arrays) if change == "other side" else leaf_dropped(arrays)
        frames[k] = replace(frames[k], arrays=arrays)
    elif change == "no second root":
        frames.pop(max(k for k, f in enumerate(frames) if f.kind == "root"))
    else:
        frames = [f for f in frames if f.kind != "inner"]
    assert not recheck(query, rewritten(frames, tmp_path / "r")).proved


def test_a_property_that_asks_nothing(model: Path, tmp_path: Path) -> None:
    """An empty box: what is proven is proven by reading, and the record says no more than that."""
    path = tmp_path / "empty.vnnlib"
    path.write_text(BOX + "(assert (>= X_0 2))(assert (<= Y_0 0))")
    query = verifier.read(model, path)
    verdict = verifier.verify(query, record=tmp_path / "r")
    assert isinstance(verdict, verifier.Verified) and verdict.stage == "property"
    report = recheck(query, tmp_path / "r")
    assert report.proved and report.leaves == 0
    assert not recheck(verifier.read(model, asked(model, "0")), tmp_path / "r").proved


def test_places_that_cannot_be_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(verifier.InputError, match="No such file"):
        verifier.verify(model, asked(model, "-10"), record=tmp_path / "missing" / "r")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("verifier.record.writer.write_frame", full)
    verdict = verifier.verify(model, asked(model, "-10"), record=tmp_path / "r")
    assert isinstance(verdict, verifier.Verified) and verdict.record is None
    assert any("No space left" in note for note in verdict.notes) and not (tmp_path / "r").exists()


def test_a_run_that_ends_in_an_error_leaves_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", {})
    with pytest.raises(ZeroDivisionError), recorder:  # noqa: PT012 - what ends the run is within both
        recorder.write("some", {"a": torch.zeros(1 << 16)})
        assert [f.kind for f in read_frames(tmp_path / "r")] in (["about"], ["about", "some"])
        raise ZeroDivisionError
    assert not (tmp_path / "r").exists()


def test_every_unsat_of_a_table(
    model: Path,
    tmp_path: Path,
    program: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from verifier.cli import main

    bottom, folder = least(model), tmp_path / "some"
    folder.mkdir()
    (folder / "net.onnx").write_bytes(model.read_bytes())
    lines = []
    for name, bound in (("a", bottom - 0.1), ("b", bottom + 0.1)):
        (folder / f"{name}.vnnlib").write_text(BOX + f"(assert (<= Y_0 {bound:.3f}))")
        lines.append(f"net.onnx,{name}.vnnlib,60\n")
    (folder / "instances.csv").write_text("".join(lines))
    table, records = tmp_path / "t.csv", tmp_path / "records"
    assert main(["bench", str(folder), "--out", str(table), "--record-dir", str(records), "-q"]) == 0
    with table.open() as file:
        assert [row["result"] for row in csv.DictReader(file)] == ["unsat", "sat"]
    (record,) = (records / "some").iterdir()
    assert record.name == "net_a.record"
    capsys.readouterr()
    arguments = ["recheck", str(table), str(folder), str(records)]

    def again() -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", arguments)
        code = program("recheck").main()
        return code, "".join(capsys.readouterr())

    code, said = again()
    assert code == 0 and said.splitlines()[-1].split()[:2] == ["all", "1"]
    record.write_bytes(record.read_bytes()[:-1])
    code, said = again()
    assert code == 1 and "no end" in said
    record.unlink()
    code, said = again()
    assert code == 1 and "there is no record" in said
    for place in (1, 2, 3):
        wrong = [*arguments[:place], str(tmp_path / "nowhere"), *arguments[place + 1 :]]
        monkeypatch.setattr("sys.argv", wrong)
        assert program("recheck").main() == 2 and "nowhere: no such" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
