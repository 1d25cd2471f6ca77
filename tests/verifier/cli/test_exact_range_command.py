"""``verifier range --method exact`` in process: ends against a grid, what is left at a limit, and honest errors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import verifier
from bounds import Alpha, Box
from milp.process import ProcessRunner
from verifier import limits
from verifier.cli import main
from verifier.cli.search import OutOfTime, follow
from verifier.exact.ranges import RangeProgress, RangeSearch

SCHEMA = resources.files("verifier").joinpath("report/range-1.schema.json")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def young(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has just started: time limits count from its start."""
    start = limits.now()
    monkeypatch.setattr(limits, "process_start", lambda: start)


def table(text: str) -> list[list[str]]:
    """The cells of the table below its head."""
    return [line.split() for line in text.splitlines()[1:]]


def grid(model: str, centre: tuple[float, float], radius: float, count: int = 201) -> np.ndarray:
    """Outputs ``[points, scores]`` on a grid over the box, its corners included."""
    sides = [torch.linspace(c - radius, c + radius, count, dtype=torch.float64) for c in centre]
    return verifier.load(model).evaluate(torch.cartesian_prod(*sides).unsqueeze(1))[0].flatten(1).numpy()


def test_the_ends_are_those_of_a_grid(model: str, point: str, tmp_path: Path, capsys: Capture) -> None:
    files = [str(tmp_path / "found.npz"), str(tmp_path / "found.json")]
    arguments = ["range", model, "--input", point, "--epsilon", "1/2", "--method", "exact"]
    assert main([*arguments, "--output", files[0], "--json", files[1]]) == 0
    captured = capsys.readouterr()
    assert captured.out.split("\n")[0].split() == ["output", "lower", "upper", "least", "greatest", "status"]
    assert "the range of 3 values over 1 region, exact to within 1e-06" in captured.err
    values = grid(model, (0.25, -0.5), 0.5)
    for r, (_, lower, upper, least, greatest, status) in enumerate(table(captured.out)):
        assert status == "exact"
        assert float(lower) <= float(least) <= float(lower) + 1.1e-6
        assert float(upper) >= float(greatest) >= float(upper) - 1.1e-6
        # The grid holds no less and no more, and comes near to both ends.
        assert float(lower) <= values[:, r].min() <= float(least) + 0.02
        assert float(upper) >= values[:, r].max() >= float(greatest) - 0.02
    arrays, record = np.load(files[0]), json.loads(Path(files[1]).read_text(encoding="utf-8"))
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert record["method"] == "exact" and record["ending"] == "done" and record["gap"] == 1e-6
    graph = verifier.load(model)
    for side in ("lower", "upper", "least", "greatest"):
        assert [[Fraction(v) for v in row] for row in record[side]] == [
            [Fraction(v) for v in row] for row in arrays[side].tolist()
        ]
    for side in ("least", "greatest"):
        at = torch.from_numpy(arrays[f"{side}_at"])[0]
        assert bool(((at - torch.tensor([0.25, -0.5])).abs() <= 0.5).all())
        attained = graph.evaluate(at)[0].flatten(1).diagonal()
        assert attained.tolist() == pytest.approx(arrays[side][0].tolist(), abs=1e-12)


def test_margins_over_several_regions(model: str, tmp_path: Path, capsys: Capture) -> None:
    """Each region by itself; no looser than bounds, and within the gap that is asked for."""
    x = np.array([[0.25, -0.5], [0.0, 1.0]])
    np.savez(tmp_path / "box.npz", lower=x - 0.25, upper=x + 0.25)
    arguments = ["range", model, "--box", str(tmp_path / "box.npz"), "--label", "2", "-q"]
    assert main([*arguments, "--method", "exact", "--gap", "1e-3"]) == 0
    captured = capsys.readouterr()
    rows = [line.rsplit(maxsplit=5) for line in captured.out.splitlines()[1:]]
    assert captured.err == "" and [row[0].split() for row in rows] == [
        [region, "2", "-", other] for region in "01" for other in "01"
    ]
    box = Box(*(torch.from_numpy(x + s)[:, None] for s in (-0.25, 0.25)))
    loose = verifier.output_range(model, box, Alpha(), label=2)
    for k, (_, lower, upper, least, greatest, status) in enumerate(rows):
        region, other = divmod(k, 2)
        values = grid(model, tuple(x[region]), 0.25)
        margin = values[:, 2] - values[:, other]
        assert status == "exact" and float(least) - float(lower) <= 1.1e-3 >= float(upper) - float(greatest)
        assert float(lower) <= margin.min() <= float(least) + 0.02
        assert float(upper) >= margin.max() >= float(greatest) - 0.02
        assert float(lower) >= float(loose.lower[region, other]) - 1e-8


@pytest.mark.usefixtures("young")
def test_when_the_time_is_up_what_is_proven_is_printed(
    model: str, point: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def late(self: RangeSearch, *arguments: Any, **options: Any) -> None:
        raise OutOfTime

    monkeypatch.setattr(RangeSearch, "run", late)
    arguments = ["range", model, "--input", point, "--epsilon", "1/2", "--method", "exact", "--timeout", "300"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "the time is up: 3 of 3 are not known to within 1e-06, and their bounds are those proven" in captured.err
    values = grid(model, (0.25, -0.5), 0.5, count=41)
    for r, (_, lower, upper, least, greatest, status) in enumerate(table(captured.out)):
        assert status == "limit" and float(lower) < float(least) <= float(greatest) < float(upper)
        assert float(lower) <= values[:, r].min() and values[:, r].max() <= float(upper)


@pytest.mark.usefixtures("young")
def test_an_interrupt_prints_what_is_known(
    model: str, point: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Ends that are done stay done; the others have the bounds that came before the search."""
    plain, calls = ProcessRunner.__call__, list[int]()

    def impatient(self: ProcessRunner, *arguments: Any, **options: Any) -> Any:
        calls.append(0)
        if len(calls) > 4:  # two an end: a point to begin with, and the search
            raise KeyboardInterrupt
        return plain(self, *arguments, **options)

    monkeypatch.setattr(ProcessRunner, "__call__", impatient)
    arguments = ["range", model, "--input", point, "--epsilon", "3", "--method", "exact", "--timeout", "300"]
    assert main([*arguments, "--json", "-"]) == 130
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert "interrupted: " in captured.err and record["ending"] == "interrupted"
    assert "exact" in record["status"][0] and "limit" in record["status"][0]
    values = grid(model, (0.25, -0.5), 3.0, count=41)
    for r in range(3):
        assert float(record["lower"][0][r]) <= values[:, r].min() <= values[:, r].max() <= float(record["upper"][0][r])


class Endless:
    """A search that never looks at the clock."""

    def run(
        self, deadline: float | None = None, *, report: Callable[[int], None] | None = None, runner: Any = None
    ) -> None:
        assert report is not None
        report(7)
        while True:
            time.sleep(0.01)


def test_an_alarm_ends_a_search_that_does_not_look_at_the_clock(capsys: Capture) -> None:
    heard = list[int]()

    def describe(progress: int) -> str:
        heard.append(progress)
        return "working"

    assert follow(Endless(), limits.now(), 0.2, True, describe) == "limit"
    assert heard == [7] and capsys.readouterr() == ("", "")


def test_from_python(model: str) -> None:
    x, heard = torch.tensor([[[0.25, -0.5]]], dtype=torch.float64), list[RangeProgress]()
    found = verifier.exact_range(model, Box(x - 0.5, x + 0.5), gap=1e-4, report=heard.append)
    assert found.status == (("exact",) * 3,) and found.least_at.shape == (1, 3, 1, 2)
    assert bool((found.least - found.lower <= 1e-4).all() and (found.upper - found.greatest <= 1e-4).all())
    for progress in heard:
        assert progress.total == 6 and 0 <= progress.done < 6
    with pytest.raises(verifier.InputError, match="gap: 0"):
        verifier.exact_range(model, Box(x, x), gap=0.0)


def squashing(folder: Path) -> str:
    """A network with a Sigmoid."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["squashed"]),
        helper.make_node("MatMul", ["squashed", "w"], ["y"]),
    ]
    weights = numpy_helper.from_array(np.array([[1.0, -2.0], [0.5, 1.0]], dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    path = folder / "squashing.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (3, ["--norm", "2"], "a ball of norm 2 is no linear program: norm inf, or a box, is one"),
        (2, ["--semantics", "float32"], "--method exact is about exact arithmetic"),
        (2, ["--device", "cuda"], "--device cuda: --method exact solves its programs on the processor"),
        (2, ["--steps", "3"], "exact takes no steps"),
        (2, ["--label", "9"], "label 9: the model has the classes 0 to"),
        (2, ["--method", "crown", "--timeout", "3"], "--timeout goes with --method exact"),
        (2, ["--method", "alpha", "--gap", "1e-3"], "--gap goes with --method exact"),
        (2, ["--method", "crown", "--envelope", "0.1"], "--envelope goes with --method exact"),
        (3, ["SQUASHING"], "Sigmoid (node squashed) has no exact form. --method alpha"),
        (3, ["SQUASHING"], "--envelope ERROR (envelope=...) encloses such operators"),
    ],
)
def test_what_is_wrong_is_named(
    model: str, point: str, code: int, options: list[str], message: str, capsys: Capture
) -> None:
    if options == ["SQUASHING"]:
        model, options = squashing(Path(point).parent), []
    assert main(["range", model, "--input", point, "--epsilon", "1/2", "--method", "exact", *options]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1


@pytest.mark.usefixtures("young")
def test_an_envelope_is_proven_and_not_called_exact(point: str, tmp_path: Path, capsys: Capture) -> None:
    model, x = squashing(tmp_path), np.load(point).reshape(-1)[:2]
    np.save(tmp_path / "two.npy", x)
    sampled = x + np.random.default_rng(0).uniform(-0.5, 0.5, (20000, 2))
    weights = np.array([[1.0, -2.0], [0.5, 1.0]])
    values = 1 / (1 + np.exp(-sampled @ weights)) @ weights
    given = ["range", model, "--input", str(tmp_path / "two.npy"), "--epsilon", "1/2", "--method", "exact"]
    widths = []
    for error in ("0.1", "0.01"):
        assert main([*given, "--envelope", error, "--json", "-", "--timeout", "100"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["status"] == [["open", "open"]] and found["envelope"] == float(error)
        lower, upper, least, greatest = (
            np.array(found[name][0], dtype=float) for name in ("lower", "upper", "least", "greatest")
        )
        assert (lower <= values.min(0)).all() and (values.max(0) <= upper).all()
        assert (lower <= least).all() and (greatest <= upper).all()
        widths.append((upper - lower).max() - (greatest - least).max())
    assert 0 < widths[1] < widths[0]
