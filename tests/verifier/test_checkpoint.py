"""Checkpoints: a search that was killed goes on with the same verdict and hardly more work; what does not fit, or is
damaged, is never gone on from."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import verifier
from verifier import checkpoint, pipeline
from verifier.regions import from_box
from verifier.replay import Replayer
from verifier.strategy import choose, features

DIGITS = Path(__file__).resolve().parents[2] / "benchmarks" / "digits"
MODEL = DIGITS / "digits.onnx"


def centre() -> np.ndarray:
    box = verifier.read(MODEL, DIGITS / "robust.vnnlib").cases
    return ((box.lower[0] + box.upper[0]) / 2).astype(np.float32)


def of_few_inputs() -> verifier.Query:
    """Some pixels vary widely: decided by input splits."""
    low, high = centre(), centre()
    low[20:26] -= 1.3
    high[20:26] += 1.3
    return from_box(MODEL, low, high)


def of_many_inputs() -> verifier.Query:
    """Decided by activation splits."""
    return verifier.robustness(MODEL, centre(), 0.103)


QUERIES = [of_few_inputs, of_many_inputs]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "COST", 0)


def stopped(query: verifier.Query, path: Path, steps: int) -> int:
    """Stop after some steps of branch and bound; how many subproblems were open then."""
    left = [steps]

    def watch(progress: verifier.Progress) -> None:
        if progress.open_subproblems and "split" in progress.stage:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verifier.verify(query, report=watch, checkpoint=path)
    return len(checkpoint.read(path)[1]["search.open.bound"])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("ask", QUERIES)
def test_a_stopped_run_goes_on(tmp_path: Path, ask: Callable[[], verifier.Query]) -> None:
    query, path = ask(), tmp_path / "state.npz"
    whole = verifier.verify(query)
    assert isinstance(whole, verifier.Verified) and whole.subproblems > 20
    assert stopped(query, path, 3) > 1
    known = checkpoint.read(path)[1]["search.tally"][0]
    stages: list[str] = []
    resumed = verifier.verify(query, report=lambda p: stages.append(p.stage), checkpoint=path)
    assert isinstance(resumed, verifier.Verified)
    assert "attack" not in stages and "root bounds" not in stages, "what was done is not done again"
    assert resumed.notes[-1] == f"the search went on from {path}"
    assert known < resumed.subproblems <= 1.1 * whole.subproblems + 2
    assert resumed.margin <= whole.margin * 1.5 and not path.exists()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("ask", QUERIES)
def test_what_is_open_in_the_file_is_all_that_is_bounded(tmp_path: Path, ask: Callable[[], verifier.Query]) -> None:
    """A file without open subproblems is believed: nothing else could say what is left."""
    query, path = ask(), tmp_path / "state.npz"
    stopped(query, path, 3)
    header, state = checkpoint.read(path)
    emptied = {n: v[:0] if n.startswith("search.open.") else v for n, v in state.items()}
    checkpoint.write(path, header["identity"], emptied)
    verdict = verifier.verify(query, checkpoint=path)
    assert isinstance(verdict, verifier.Verified)
    assert verdict.subproblems <= state["search.tally"][0]


@pytest.mark.usefixtures("always")
def test_a_file_of_another_query_or_seed_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Named by mistake, it would be lost with all that is in it."""
    query, path = of_many_inputs(), tmp_path / "state.npz"
    stopped(query, path, 3)
    kept = path.read_bytes()
    with pytest.raises(verifier.InputError, match="made for another query: name another file"):
        verifier.verify(verifier.robustness(MODEL, centre(), 0.102), checkpoint=path)
    with pytest.raises(verifier.InputError, match="made for seed 0: name another file"):
        verifier.verify(query, checkpoint=path, seed=3)
    assert path.read_bytes() == kept


@pytest.mark.usefixtures("always")
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    query, path = of_many_inputs(), tmp_path / "state.npz"
    stopped(query, path, 3)
    header, state = checkpoint.read(path)
    digest = checkpoint.digest_of(header["identity"], state)
    changed = state | {"search.open.bound": state["search.open.bound"] + 1e-9}
    text = json.dumps({**header, "sha256": digest}).encode()
    np.savez(path, header=np.frombuffer(text, np.uint8), **{f"state/{n}": v for n, v in changed.items()})
    damaged = path.read_bytes()
    with pytest.raises(verifier.InputError, match="damaged.*remove it to start anew"):
        verifier.verify(query, checkpoint=path)
    assert path.read_bytes() == damaged
    for content in (damaged[: len(damaged) // 2], b"no archive"):
        path.write_bytes(content)
        with pytest.raises(verifier.InputError, match=r"not an \.npz file.*name another file, or remove it"):
            verifier.verify(query, checkpoint=path)
        assert path.read_bytes() == content
    np.savez(path, x=np.zeros(3))
    with pytest.raises(verifier.InputError, match="not a checkpoint"):
        verifier.verify(query, checkpoint=path)
    with pytest.raises(verifier.InputError, match="does not exist"):
        verifier.verify(query, checkpoint=tmp_path / "nowhere" / "state.npz")
    with pytest.raises(verifier.InputError, match="something else than a file"):
        verifier.verify(query, checkpoint=tmp_path)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("ask", QUERIES)
def test_arrays_of_another_search_are_refused(tmp_path: Path, ask: Callable[[], verifier.Query]) -> None:
    """With the right hash: only somebody who wrote the file himself comes so far."""
    query, path = ask(), tmp_path / "state.npz"
    stopped(query, path, 3)
    header, state = checkpoint.read(path)
    for name in sorted(state)[::4]:
        for wrong in ({}, {name: state[name][None]}):
            checkpoint.write(path, header["identity"], {n: v for n, v in state.items() if n != name} | wrong)
            with pytest.raises(verifier.InputError, match="does not fit.*remove the file to start anew"):
                verifier.verify(query, checkpoint=path)


@pytest.mark.usefixtures("always")
def test_other_unstable_neurons_are_refused(tmp_path: Path) -> None:
    """Signs in a file number the neurons that were unstable when it was written."""
    query, path = of_many_inputs(), tmp_path / "state.npz"
    stopped(query, path, 3)
    header, state = checkpoint.read(path)
    name = next(n for n in sorted(state) if n.startswith("lower."))
    low, high = state[name], state[name.replace("lower", "upper")]
    off = np.flatnonzero((low < 0) & (high > 0))[0]
    changed = low.copy()
    changed.flat[off] = np.abs(high.flat[off]) / 2
    checkpoint.write(path, header["identity"], {**state, name: changed})
    with pytest.raises(verifier.InputError, match="positions.*remove the file"):
        verifier.verify(query, checkpoint=path)


def test_no_time_leaves_the_file_as_it_was_and_trouble_in_writing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "write", full)
    verdict = verifier.verify(of_many_inputs(), checkpoint=tmp_path / "state.npz")
    assert verdict.word == "unsat" and sum("no checkpoint" in note for note in verdict.notes) == 1
    assert verdict.notes[-1] == f"no checkpoint could be written to {tmp_path / 'state.npz'}: no space left"


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written of the new file would keep the disk full; the old file stays."""

    def full(*_: object) -> None:
        raise OSError("no space left")

    path = tmp_path / "state.npz"
    path.write_bytes(b"older")
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.write(path, {}, {"x": np.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"] and path.read_bytes() == b"older"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("split_inputs", [True, False])
def test_what_cannot_be_split_is_open_after_going_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_inputs: bool
) -> None:
    """The last file of a run that was killed before it said ``unknown``."""
    path, query = tmp_path / "state.npz", from_box(MODEL, centre(), centre())
    query = replace(query, cases=replace(query.cases, threshold=query.cases.threshold + 100))
    strategy = replace(choose(features(query)), split_inputs=split_inputs)
    monkeypatch.setattr(checkpoint.Saver, "remove", lambda self: None)
    monkeypatch.setattr(Replayer, "replay", lambda self, points: None)
    for _ in range(2):
        verdict = pipeline.verify(query, strategy=strategy, checkpoint=path)
        assert isinstance(verdict, verifier.Unknown)
        assert "stay open" in verdict.reason
    assert verdict.notes[-1] == f"the search went on from {path}"


KILLED = """
import sys
from verifier import checkpoint, cli
checkpoint.INTERVAL, checkpoint.COST = 0.0, 0
sys.path.insert(0, sys.argv[1])
import test_checkpoint
import verifier
verifier.verify(getattr(test_checkpoint, sys.argv[2])(), checkpoint=sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("ask", QUERIES)
def test_a_killed_process_leaves_a_file_to_go_on_from(tmp_path: Path, ask: Callable[[], verifier.Query]) -> None:
    path = tmp_path / "state.npz"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(Path(__file__).parent), ask.__name__, str(path)])
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9, "killed while it worked"
    resumed, whole = verifier.verify(ask(), checkpoint=path), verifier.verify(ask())
    assert isinstance(resumed, verifier.Verified) and isinstance(whole, verifier.Verified)
    assert resumed.notes[-1] == f"the search went on from {path}"
    assert resumed.subproblems <= 1.1 * whole.subproblems + 2
