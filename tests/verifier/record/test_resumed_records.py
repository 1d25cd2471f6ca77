"""Records of runs that were stopped and went on from a checkpoint prove everything; others are refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import verifier
from verifier import checkpoint, pipeline
from verifier.record.frames import read_frames
from verifier.record.recheck import recheck
from verifier.record.writer import Recorder
from verifier.run import Run
from verifier.strategy import AscentPlan, InnerPlan, SplitPlan, Strategy, choose, features

Ask = tuple[verifier.Query, Strategy]
WIDTH = 5


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "COST", 0)


def network(path: Path, kinds: tuple[str, ...], seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Two inputs, a layer of each kind ("Max": of two operands), one output; the network as a function."""
    rng, weights, nodes, last = np.random.default_rng(seed), [], [], "x"
    for k, kind in enumerate((*kinds, "")):
        sizes, parts = (2 if not k else WIDTH, WIDTH if kind else 1), 2 if kind == "Max" else 1
        for part in range(parts):
            weights += [
                numpy_helper.from_array((rng.normal(size=s) / c).astype(np.float32), f"{n}{k}{part}")
                for n, s, c in (("w", sizes, 1), ("b", sizes[1:], 2))
            ]
            out = f"z{k}{part}" if kind else "y"
            nodes.append(helper.make_node("Gemm", [last, f"w{k}{part}", f"b{k}{part}"], [out]))
        if kind:
            nodes.append(helper.make_node(kind, [f"z{k}{part}" for part in range(parts)], [f"a{k}"]))
            last = f"a{k}"
    info = helper.make_tensor_value_info
    ends = [info("x", TensorProto.FLOAT, [1, 2])], [info("y", TensorProto.FLOAT, [1, 1])]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: np.array([session.run(None, {"x": point[None]})[0].item() for point in x.astype(np.float32)])


def query_of(folder: Path, kinds: tuple[str, ...], seed: int, gap: float) -> verifier.Query:
    """Two boxes, in each of which an output ``gap`` below the least one is unsafe."""
    values, parts = network(folder / "net.onnx", kinds, seed), []
    for low, high in ((-1.0, 0.0), (0.0, 1.0)):
        grid = np.stack(np.meshgrid(np.linspace(low, high, 41), np.linspace(-1, 1, 81)), -1).reshape(-1, 2)
        bound = values(grid).min() - gap
        parts.append(f"(and (>= X_0 {low})(<= X_0 {high})(>= X_1 -1.0)(<= X_1 1.0)(<= Y_0 {bound:.6f}))")
    names = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0"))
    (folder / "p.vnnlib").write_text(f"{names}(assert (or {' '.join(parts)}))")
    return verifier.read(folder / "net.onnx", folder / "p.vnnlib")


def strategy_of(query: verifier.Query, split_inputs: bool) -> Strategy:
    """Nothing in it depends on the clock."""
    plain = choose(features(query), 0)
    ascent = AscentPlan(batch=4, steps=2, root_steps=2, intermediate_steps=1)
    boxes = SplitPlan(batch=4, fill=1)
    return replace(plain, split_inputs=split_inputs, attack_after=math.inf, activation_split=ascent, input_split=boxes)


CASES = {
    "input split": (("Relu", "Relu"), 1, 0.02),
    "activation split": (("Relu", "Relu", "Relu"), 1, 0.02),
    "sigmoid": (("Sigmoid", "Sigmoid"), 4, 0.05),
    "tanh, relu": (("Tanh", "Relu"), 6, 1.2),
    "max, sigmoid": (("Max", "Sigmoid"), 5, 0.4),
    "tanh, softmax": (("Tanh", "Softmax"), 5, 0.6),
}


@pytest.fixture(scope="module", params=CASES)
def ask(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    query = query_of(tmp_path_factory.mktemp("nets"), *CASES[request.param])
    return query, strategy_of(query, request.param == "input split")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {"record": tmp_path / "record", "checkpoint": tmp_path / "state.npz"}


def stopped(ask: Ask, files: dict[str, Path], steps: int) -> None:
    """Stop after some steps of branch and bound, after the checkpoint of the step before."""
    left = [steps]

    def watch(progress: verifier.Progress) -> None:
        if progress.open_subproblems and "split" in progress.stage:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.verify(ask[0], report=watch, strategy=ask[1], **files)


def proves(ask: Ask, verdict: verifier.Verdict, record: Path) -> None:
    """That the record proves all that the verdict counts."""
    assert isinstance(verdict, verifier.Verified) and verdict.record == str(record), verdict.notes
    report = recheck(ask[0], record)
    assert report.proved and not report.failures
    assert report.leaves == report.reproved > 2


def test_a_run_of_one_go_is_proved_again(ask: Ask, files: dict[str, Path]) -> None:
    """Two boxes; with and without checkpoints."""
    plain = pipeline.verify(ask[0], strategy=ask[1], record=files["record"])
    proves(ask, plain, files["record"])
    whole = files["record"].read_bytes()
    verdict = pipeline.verify(ask[0], strategy=ask[1], **files)
    proves(ask, verdict, files["record"])
    assert files["record"].read_bytes() == whole and not files["checkpoint"].exists()


@pytest.mark.parametrize("steps", [2, 4])
def test_a_stopped_run_and_what_goes_on_from_it_are_proved_again(ask: Ask, files: dict[str, Path], steps: int) -> None:
    stopped(ask, files, steps)
    left = files["record"].read_bytes()
    assert not recheck(ask[0], files["record"]).proved, "it has no end"
    with files["record"].open("ab") as file:  # what came after the checkpoint was written is cut off
        file.write(left[-40:])
    verdict = pipeline.verify(ask[0], strategy=ask[1], **files)
    proves(ask, verdict, files["record"])
    assert verdict.notes[-1] == f"the search went on from {files['checkpoint']}"
    mark = [f.kind for f in read_frames(files["record"])]
    assert mark[0] == "about" and mark[-1] == "end" and mark.count("about") == 1


@pytest.mark.parametrize("anew", [False, True])
def test_a_search_that_begins_anew(files: dict[str, Path], tmp_path: Path, anew: bool) -> None:
    """Stopped before it has better bounds of inner neurons, or after its first steps with these."""
    query, stages = query_of(tmp_path, ("Relu", "Relu", "Relu"), 1, 0.02), list[str]()
    strategy = strategy_of(query, False)
    few = replace(strategy.activation_split, inner=InnerPlan(rounds=1, first_steps=1, steps=1, batch=8))
    strategy = replace(strategy, attack_after=0.0, activation_split=few)

    def watch(progress: verifier.Progress) -> None:
        stages.append(progress.stage)
        begun = stages.index("inner bounds") if "inner bounds" in stages else len(stages)
        if stages[begun:].count("activation split") > 3 if anew else begun < len(stages):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.verify(query, report=watch, strategy=strategy, **files)
    assert ("inner" in [f.kind for f in read_frames(files["record"])]) == anew
    verdict = pipeline.verify(query, strategy=strategy, **files)
    proves((query, strategy), verdict, files["record"])
    assert "inner" in [f.kind for f in read_frames(files["record"])]
    assert verdict.notes[-1] == f"the search went on from {files['checkpoint']}"


def test_entries_before_the_checkpoint_are_needed(ask: Ask, files: dict[str, Path]) -> None:
    """A record that went on without them proves nothing: the leaves that are refuted before are in no other."""
    stopped(ask, files, 4)
    frames, size = list(read_frames(files["record"])), checkpoint.read(files["checkpoint"])[1]["record.place"]
    assert 0 < size[1] <= len(frames) - 1
    verdict = pipeline.verify(ask[0], strategy=ask[1], **files)
    proves(ask, verdict, files["record"])
    whole = files["record"].read_bytes()
    short = Recorder(files["record"].with_name("short"), frames[0].more["about"])
    for frame in list(read_frames(files["record"]))[1 + int(size[1]) : -1]:
        short.write(frame.kind, frame.arrays)
    assert short.finish() and short.path.stat().st_size < len(whole)
    assert not recheck(ask[0], short.path).proved


@pytest.mark.parametrize("kinds", [("Relu", "Relu"), ("Sigmoid", "Sigmoid")])
def test_what_bounds_alone_refute_is_proved_again(kinds: tuple[str, ...], files: dict[str, Path]) -> None:
    """There is nothing to be written of it; nor is there where an input split refutes whole boxes."""
    query = query_of(files["record"].parent, kinds, 4, 5.0)
    for split_inputs, stage in ((False, "root bounds"), (True, "input split")):
        verdict = pipeline.verify(query, strategy=strategy_of(query, split_inputs), **files)
        assert isinstance(verdict, verifier.Verified) and verdict.stage == stage
        report = recheck(query, files["record"])
        assert report.proved and report.leaves == report.reproved == 2
        assert sum(f.kind not in ("about", "end") for f in read_frames(files["record"])) == split_inputs


def test_a_record_without_entries_proves_no_more_than_bounds_alone(ask: Ask, files: dict[str, Path]) -> None:
    stopped(ask, files, 2)
    about = next(read_frames(files["record"])).more["about"]
    assert Recorder(files["record"], about).finish()
    report = recheck(ask[0], files["record"])
    assert not report.proved
    assert "was not split" in report.failures[0] or "left open" in report.failures[0]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    query = query_of(tmp_path_factory.mktemp("nets"), *CASES["activation split"])
    return query, strategy_of(query, split_inputs=False)


def test_a_record_that_does_not_fit_is_refused_and_the_run_starts_anew(one: Ask, files: dict[str, Path]) -> None:
    stopped(one, files, 4)
    record, saved = files["record"], files["checkpoint"].read_bytes()
    left = record.read_bytes()
    size = int(checkpoint.read(files["checkpoint"])[1]["record.place"][0])
    changed = bytearray(left)
    changed[size - 1] ^= 1
    for content, words in (
        (None, "is missing"),
        (left[: size - 1], "is shorter than it was"),
        (bytes(changed), "is not the one that the checkpoint was written with"),
        (left.replace(b'"split_inputs":false', b'"split_inputs":true ', 1), "is about another run"),
    ):
        record.unlink(missing_ok=True)
        if content is not None:
            record.write_bytes(content)
        files["checkpoint"].write_bytes(saved)
        verdict = pipeline.verify(one[0], strategy=one[1], **files)
        assert words in verdict.notes[-1] and verdict.notes[-1].endswith(", so the search started anew")
        assert sum("went on" in note for note in verdict.notes) == 0
        proves(one, verdict, record)
    record.write_bytes(b"x" + left[1:])
    files["checkpoint"].write_bytes(saved)
    with pytest.raises(verifier.InputError, match="not a record: name another file"):
        pipeline.verify(one[0], strategy=one[1], **files)
    assert files["checkpoint"].read_bytes() == saved


def test_a_run_about_another_strategy_starts_anew(one: Ask, files: dict[str, Path]) -> None:
    """Boxes of an input split are bounded again by the passes that the first frame says."""
    stopped(one, files, 3)
    longer = replace(one[1], activation_split=replace(one[1].activation_split, steps=5))
    verdict = pipeline.verify(one[0], strategy=longer, **files)
    assert "is about another run, so the search started anew" in verdict.notes[-1]
    proves(one, verdict, files["record"])


def test_a_checkpoint_without_a_record_goes_on_without_one(one: Ask, files: dict[str, Path]) -> None:
    stopped(one, {"checkpoint": files["checkpoint"]}, 3)
    verdict = pipeline.verify(one[0], strategy=one[1], **files)
    assert isinstance(verdict, verifier.Verified) and verdict.record is None
    assert any("went on from a checkpoint, and what came before" in note for note in verdict.notes)
    assert not files["record"].exists()


def test_the_record_waits_with_the_checkpoint_until_the_query_is_decided(
    one: Ask, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the time limit too, and once more; a run that comes to another end removes both."""
    clock, late = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + late[0])

    def watch(progress: verifier.Progress) -> None:
        if progress.stage == "activation split" and progress.open_subproblems:
            late[0] += 1e6

    for _ in range(2):
        verdict = pipeline.verify(one[0], report=watch, strategy=one[1], timeout=1e5, **files)
        assert verdict.word == "timeout"
        assert files["record"].exists() and files["checkpoint"].exists()
    kept = [path.read_bytes() for path in files.values()]
    verdict = pipeline.verify(one[0], strategy=one[1], timeout=1e5, **files)
    proves(one, verdict, files["record"])
    assert not files["checkpoint"].exists()
    for path, content in zip(files.values(), kept, strict=True):
        path.write_bytes(content)

    monkeypatch.setattr(Run, "verified", lambda run: run.undecided("something is left"))
    assert pipeline.verify(one[0], strategy=one[1], timeout=1e5, **files).word == "unknown"
    assert not any(path.exists() for path in files.values())


def test_a_record_that_cannot_be_written_on_is_in_no_checkpoint(
    one: Ask, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("verifier.record.writer.write_frame", full)
    stopped(one, files, 3)
    assert not files["record"].exists()
    assert not [name for name in checkpoint.read(files["checkpoint"])[1] if name.startswith("record")]
