"""``verifier radius --exact`` in process: the radius against a grid, the point that attains it, and honest errors."""

from __future__ import annotations

import json
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import verifier
from milp.process import ProcessRunner
from verifier import limits
from verifier.anytime.nearest import nearest
from verifier.anytime.radius import BracketSearch
from verifier.cli import main
from verifier.cli.search import OutOfTime
from verifier.exact import witness
from verifier.exact.witness import Confirmation, confirm
from verifier.network import read_network

SCHEMA = resources.files("verifier").joinpath("report/radius-1.schema.json")
Capture = pytest.CaptureFixture[str]
X = (0.25, -0.5)
LABEL = 2


@pytest.fixture(scope="module")
def model(checkout: Path) -> str:
    """Two inputs, three scores; the class at X is LABEL."""
    return str(checkout / "tests" / "corpus" / "ranking_deep_sat.onnx")


@pytest.fixture
def point(tmp_path: Path) -> str:
    path = tmp_path / "x.npy"
    np.save(path, np.array(X, dtype=np.float32))
    return str(path)


def answer(text: str) -> dict[str, str]:
    """The lines of an answer by their first word; the first line is the status."""
    first, *rest = text.splitlines()
    return {"status": first} | dict(line.split() for line in rest)


def leads(model: str, points: torch.Tensor) -> torch.Tensor:
    """By how much LABEL is ahead of the others at points ``[N, 2]``."""
    scores = verifier.load(model).evaluate(points.unsqueeze(1))[0].flatten(1)
    others = [k for k in range(scores.shape[1]) if k != LABEL]
    return scores[:, LABEL] - scores[:, others].amax(1)


@pytest.mark.parametrize("norm", ["inf", "1"])
def test_the_radius_is_that_of_a_grid(model: str, point: str, norm: str, tmp_path: Path, capsys: Capture) -> None:
    files = [str(tmp_path / "p.npy"), str(tmp_path / "found.json")]
    asked = ["radius", model, "--exact", "--input", point, "--norm", norm, "--output", files[0], "--json", files[1]]
    assert main(asked) == 0
    captured = capsys.readouterr()
    found = answer(captured.out)
    lower, upper = float(found["lower"]), float(found["upper"])
    assert found["status"] == "exact" and found["label"] == str(LABEL) and 0 <= upper - lower <= 1.1e-6
    assert captured.err.startswith(f"verifier: label {LABEL}: the model's own class\n")
    # The point is where it is said to be, and another class wins there.
    nearest = np.load(files[0])
    change = [abs(Fraction(a) - Fraction(b)) for a, b in zip(nearest.reshape(-1).tolist(), X, strict=True)]
    exact = max(change) if norm == "inf" else sum(change)
    assert exact <= Fraction(found["upper"]) and float(exact) == pytest.approx(upper, rel=1e-8)
    assert leads(model, torch.from_numpy(nearest.reshape(1, 2))) <= 0
    # On a grid the class is the same everywhere nearer, and another one not much further away.
    steps = torch.linspace(-1.02, 1.02, 409, dtype=torch.float64) * upper
    grid = torch.cartesian_prod(steps, steps)
    distance = grid.abs().amax(1) if norm == "inf" else grid.abs().sum(1)
    ahead = leads(model, grid + torch.tensor(X, dtype=torch.float64))
    assert bool((ahead[distance < lower] > 0).all()) and bool((ahead[distance < 1.02 * upper] <= 0).any())
    record = json.loads(Path(files[1]).read_text(encoding="utf-8"))
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert [Fraction(v) for v in record["point"]] == [Fraction(v) for v in nearest.reshape(-1).tolist()]
    assert Fraction(record["upper"]) <= Fraction(found["upper"]) and record["other"] == int(found["other"])
    assert Fraction(found["lower"]) <= Fraction(record["lower"]) and record["ending"] == "done"


def test_where_no_other_class_is_in_the_data_range(model: str, point: str, capsys: Capture) -> None:
    """The example that lies nearest, 0.75 away, is not among the inputs that count; neither is any other."""
    asked = ["radius", model, "--exact", "--input", point, "--label", str(LABEL)]
    assert main([*asked, "--data-range", "-0.6", "0.3"]) == 0
    captured = capsys.readouterr()
    assert answer(captured.out) == {"status": "none", "lower": "inf", "upper": "inf", "label": str(LABEL)}
    assert "no input in the data range has another class" in captured.err


def test_a_data_range_in_decimals_is_kept_exactly(model: str, tmp_path: Path) -> None:
    found = verifier.exact_radius(model, np.array(X), data_range=("-1.3", "1.1"))
    assert found.point is not None and found.status == "exact" and found.lower > 0
    for value in found.point.reshape(-1).tolist():
        assert Fraction(-13, 10) <= Fraction(value) <= Fraction(11, 10)


def test_normalisation_in_front(model: str, point: str, tmp_path: Path, capsys: Capture) -> None:
    """(x - 1/2) / (1/4) of the image is the point: a quarter of its radius."""
    np.save(tmp_path / "image.npy", np.array([X[0] / 4 + 0.5, X[1] / 4 + 0.5], dtype=np.float32))
    ends = []
    for options in (["--input", point], ["--input", str(tmp_path / "image.npy"), "--mean", "0.5", "--std", "1/4"]):
        assert main(["radius", model, "--exact", *options, "-q"]) == 0
        found = answer(capsys.readouterr().out)
        assert found["status"] == "exact"
        ends.append([float(found[side]) for side in ("lower", "upper")])
    assert [4 * end for end in ends[1]] == pytest.approx(ends[0], abs=5e-6)


@pytest.mark.parametrize("ending", ["interrupted", "limit"])
def test_what_is_known_is_printed_when_it_ends_early(
    model: str, point: str, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Bounds alone prove some radius, and the line search has an example."""

    def impatient(self: ProcessRunner, *arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt if ending == "interrupted" else OutOfTime

    monkeypatch.setattr(ProcessRunner, "__call__", impatient)
    start, asked = limits.now(), ["radius", model, "--exact", "--input", point, "--json", "-"]
    if ending == "limit":
        monkeypatch.setattr(limits, "process_start", lambda: start)
        asked += ["--timeout", "1000"]
    assert main(asked) == (130 if ending == "interrupted" else 0)
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert record["ending"] == ending and record["status"] == "limit"
    words = {"interrupted": "interrupted: the ends are those reached", "limit": "the time is up: the ends are those"}
    assert words[ending] in captured.err
    true = verifier.exact_radius(model, np.array(X)).upper
    assert 0 < float(record["lower"]) <= true <= float(record["upper"])


@pytest.mark.parametrize("norm", ["inf", "1"])
def test_an_attack_gives_an_upper_end_before_any_program(
    model: str, point: str, norm: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    true = verifier.exact_radius(model, np.array(X), norm).upper

    def late(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("verifier.exact.radius.distortion", late)
    asked = ["radius", model, "--exact", "--input", point, "--norm", norm]
    assert main([*asked, "--json", "-"]) == 130
    record = json.loads(capsys.readouterr().out)
    assert float(record["lower"]) <= true <= float(record["upper"]) <= 1.05 * true
    assert leads(model, torch.tensor([[float(v) for v in record["point"]]], dtype=torch.float64)) <= 0


def test_the_exact_search_attacks_again_from_what_it_found(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = []

    def recorded(centre: Any, point: Any, *arguments: Any) -> Any:
        known.append(point)
        return nearest(centre, point, *arguments)

    monkeypatch.setattr("verifier.exact.radius.nearest", recorded)
    verifier.exact_radius(model, np.array(X))
    assert known[0] is None and known[-1] is not None


@pytest.mark.parametrize("options", [[], ["--exact"], ["--label", "2"]])
def test_a_time_that_is_up_before_the_search_is_said(
    model: str, point: str, options: list[str], tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "found.json"
    asked = ["radius", model, "--input", point, "--timeout", "1e-3", "--json", str(file), *options]
    assert main([*asked, "--output", str(tmp_path / "found.npy")]) == 0
    captured = capsys.readouterr()
    assert "found.npy: not written, since nothing was found; no file is there" in captured.err
    label = {"label": "2"} if "2" in options else {}
    assert answer(captured.out) == {"status": "limit", "lower": "0", "upper": "inf"} | label
    assert "--timeout 0.001: the time was up before the model was read" in captured.err
    record = json.loads(file.read_text(encoding="utf-8"))
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert record["upper"] is None and record["label"] == (2 if label else None)
    assert main([*asked, "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_a_point_at_which_onnxruntime_gives_the_label_is_said(
    model: str, point: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(witness, "confirm", lambda *_: Confirmation("1.0", "float32", LABEL, 1.5e-7))
    assert main(["radius", model, "--exact", "--input", point]) == 0
    message = capsys.readouterr().err
    assert f"onnxruntime still gives label {LABEL} at the point in float32, ahead by 1.5e-07" in message


def test_what_onnxruntime_returns_is_asked() -> None:
    network = read_network(Path(__file__).parents[2] / "corpus" / "ranking_deep_sat.onnx")
    at_x = confirm(network, np.array(X), LABEL)
    assert at_x.label == LABEL and not at_x.reached and at_x.lead == pytest.approx(2.8032 - 1.5446, abs=1e-3)
    other = confirm(network, np.array(X), 0)
    assert other.label == LABEL and other.reached and other.lead == pytest.approx(-at_x.lead)


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (2, ["--input", "POINT", "--envelope", "0.1"], "--envelope goes with --exact"),
        (2, ["--input", "POINT", "--gap", "1"], "without --exact it is a share of the radius, below 1"),
        (2, ["--input", "POINT", "--label", "0"], "class 2 scores 2.803"),
        (2, ["--exact"], "--input FILE is needed"),
        (3, ["--exact", "--input", "POINT", "--norm", "2"], "norm 2: the least distance in it is no linear program"),
        (2, ["--exact", "--input", "POINT", "--label", "0"], "class 2 scores 2.803"),
        (2, ["--exact", "--input", "POINT", "--label", "0"], "leave out --label, or give --label 2"),
        (2, ["--exact", "--input", "POINT", "--label", "3"], "label 3: the model has the classes 0 to 2"),
        (2, ["--exact", "--input", "POINT", "--data-range", "0", "1"], "outside the data range"),
        (2, ["--exact", "--input", "POINT", "--mean", "0"], "--mean and --std belong together"),
        (2, ["--exact", "--input", "MISSING.npy"], "no such file"),
        (2, ["--exact", "--input", "POINT", "--output", "MISSING/p.npy"], "does not exist"),
    ],
)
def test_what_is_wrong_is_named(
    model: str, point: str, code: int, options: list[str], message: str, capsys: Capture
) -> None:
    missing = str(Path(point).with_name("missing"))
    assert main(["radius", model, *(o.replace("POINT", point).replace("MISSING", missing) for o in options)]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert captured.err.splitlines()[-1].startswith("verifier: error: ") and captured.err.count("\n") == 1


def bracketed(monkeypatch: pytest.MonkeyPatch, found: tuple[float, float], ending: type[BaseException] | None) -> None:
    """A search that finds this, and then ends so."""

    def run(self: BracketSearch, *arguments: Any, **options: Any) -> None:
        self.lower, self.upper = found
        self.point = torch.tensor([[X[0] + 2, X[1]]], dtype=torch.float64)
        if ending is not None:
            raise ending

    monkeypatch.setattr(BracketSearch, "run", run)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_brackets(model: str, point: str, norm: str, tmp_path: Path, capsys: Capture) -> None:
    """Without --exact: around the exact radius, with a point of another class for onnxruntime."""
    files = [str(tmp_path / "p.npy"), str(tmp_path / "found.json")]
    asked = ["radius", model, "--input", point, "--norm", norm, "--gap", "0.05", "--timeout", "600"]
    assert main([*asked, "--output", files[0], "--json", files[1]]) == 0
    captured = capsys.readouterr()
    found = answer(captured.out)
    true = {"inf": 0.7470565, "2": 0.888}[norm]
    assert found["status"] == "exact" and float(found["lower"]) <= true <= float(found["upper"]) * 1.001
    assert float(found["upper"]) - float(found["lower"]) <= 0.051 * float(found["upper"])
    assert "the radius is known to within the gap" in captured.err and "still gives" not in captured.err
    record = json.loads(Path(files[1]).read_text(encoding="utf-8"))
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert record["method"] == "bracket" and record["gap"] == 0.05 and record["onnxruntime"]["reached"]
    away = np.load(files[0]).reshape(-1) - np.array(X)
    assert float(np.linalg.norm(away, ord=float(norm))) == pytest.approx(float(record["upper"]), rel=1e-9)


@pytest.mark.parametrize(("ending", "code"), [(KeyboardInterrupt, 130), (OutOfTime, 0), (None, 0)])
def test_the_bracket_so_far_is_printed(
    model: str,
    point: str,
    ending: type[BaseException] | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    bracketed(monkeypatch, (0.5, 2.0), ending)
    assert main(["radius", model, "--input", point]) == code
    captured = capsys.readouterr()
    found = answer(captured.out)
    assert (found["status"], found["lower"], found["upper"]) == ("limit", "0.5", "2")
    assert "60 s; --timeout gives more or less" in captured.err
    assert ("interrupted" if code else "the time is up") + ": the ends are those reached so far" in captured.err


def test_from_python(model: str) -> None:
    found = verifier.exact_radius(model, np.array(X), gap=1e-3)
    assert found.status == "exact" and found.label == LABEL and found.upper - found.lower <= 1e-3
    with pytest.raises(verifier.InputError, match="the known ones are inf and 1"):
        verifier.exact_radius(model, np.array(X), "3")
