"""The measurement of subproblems in a second counts what the searches really bound."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import verifier
from bounds.rounding import plain_products
from verifier.branch.box_bounds import BoxBounds
from verifier.branch.problem import Step
from verifier.query import Query

CHECKOUT = Path(__file__).resolve().parents[3]
DIGITS = CHECKOUT / "benchmarks" / "digits"


@pytest.fixture(scope="module")
def throughput(program: Callable[[str], ModuleType]) -> ModuleType:
    """``benchmarks/throughput.py``."""
    return program("throughput")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad(), plain_products():
        yield


@pytest.fixture
def query() -> Query:
    """One that bounds alone do not decide."""
    return verifier.read(DIGITS / "digits.onnx", DIGITS / "fragile.vnnlib")


def step(open_: int, stuck: int = 0, refuted: int = 0) -> Step:
    return Step(-1.0, open_, 0.5, refuted, 0.1, None, stuck)


class Ticks:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_rounds_count_what_was_open_before_them(throughput: ModuleType) -> None:
    def takes(waiting: int) -> int:
        return int(2 * min(4, waiting))

    steps = [step(3), step(6, stuck=1), step(9, stuck=4), step(0)]
    found = list(throughput.rounds(iter(steps), takes, 3, Ticks(), True))
    assert [r.subproblems for r in found] == [3, 6, 8, 8]
    assert [r.seconds for r in found] == [1.0] * 4


def test_small_rounds_do_not_blur_the_rate(throughput: ModuleType) -> None:
    found = [throughput.Round(n, s) for n, s in ((100, 9.0), (2, 1.0), (10, 2.0), (20, 2.0), (9, 7.0))]
    rate = throughput.rate("case", 10, found, 0.5)
    assert (rate.round, rate.rounds, rate.per_second) == (15.0, 2, 30 / 4)
    assert rate.milliseconds == pytest.approx(1000 * 4 / 30)
    assert [(line.depth, line.total) for line in throughput.levels("case", found)][-1] == (4, 21.0)


@pytest.mark.parametrize("batch", [1, 8, 1 << 20])
def test_activation_splits_are_all_counted(throughput: ModuleType, query: Query, batch: int) -> None:
    """A tree whose inner nodes have two children each: its nodes follow from its leaves."""
    steps, takes, first = throughput.activation_split(query, batch, torch.device("cpu"))
    last: list[Step] = []

    def watched() -> Iterator[Step]:
        for number, now in enumerate(steps):
            last.append(now)
            yield now
            if number == 12 or now.open_subproblems > 100:
                return

    found = list(throughput.rounds(watched(), takes, first, Ticks(), True))
    leaves = last[-1].refuted + last[-1].open_subproblems
    assert len(found) > 1 and sum(r.subproblems for r in found) == 2 * leaves - first


def test_boxes_are_counted(throughput: ModuleType, query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    bound = BoxBounds.bound

    def watch(self: Any, batch: Any) -> Any:
        batches.append(batch.size)
        return bound(self, batch)

    monkeypatch.setattr(BoxBounds, "bound", watch)
    steps, takes, first = throughput.input_split(query, 4, torch.device("cpu"))
    limited = (now for now, _ in zip(steps, range(6), strict=False))
    found = [r.subproblems for r in throughput.rounds(limited, takes, first, Ticks(), False)]
    assert found == batches[: len(found)] and max(found) == 4


def test_tables(throughput: ModuleType, vnncomp_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        throughput.main(
            [
                "--instances",
                str(vnncomp_dir),
                "--case",
                "acasxu",
                "--batch",
                "8",
                "--seconds",
                "0.2",
                "--out",
                str(tmp_path / "out.csv"),
            ]
        )
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "| acasxu 3_3 prop_9, input split | 8 | 8 |" in out and "| acasxu 3_3 prop_9, input split | 0 | 1 |" in out
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "case,batch,round,rounds,per_second,milliseconds,root" and lines[2].startswith("case,depth")


def test_a_whole_level_ends_before_the_time_is_up(throughput: ModuleType, query: Query) -> None:
    options = argparse.Namespace(clock="cpu", device="cpu", seconds=0.0)
    found, root = throughput.measure(query, "activation split", throughput.WHOLE_LEVEL, options)
    assert len(found) == 1 and root > 0
