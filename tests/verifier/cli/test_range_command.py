"""``verifier range`` in process: regions of every kind, sound numbers in table, arrays and JSON, and honest errors."""

from __future__ import annotations

import json
from fractions import Fraction
from importlib import resources
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import pytest
import torch

import verifier
from bounds import Alpha, Box
from verifier.cli import main
from verifier.network import read_network
from verifier.replay import open_session

SCHEMA = resources.files("verifier").joinpath("report/range-1.schema.json")
Capture = pytest.CaptureFixture[str]


def table(text: str) -> list[list[str]]:
    """The cells of the table below its head."""
    return [line.split() for line in text.splitlines()[1:]]


def sampled(model: str, low: np.ndarray, high: np.ndarray, exact: ModuleType, count: int = 60) -> np.ndarray:
    """Exact outputs at points of a box."""
    graph = read_network(model).graph
    rng = np.random.default_rng(0)
    values = []
    for k in range(count):
        share = rng.integers(0, 2, low.shape) if k % 2 else rng.random(low.shape)
        x = np.vectorize(Fraction)(low) + np.vectorize(Fraction)(high - low) * np.vectorize(Fraction)(
            share.astype(float)
        )
        values.append(exact.evaluate(graph, x)[graph.outputs[0]].reshape(-1))
    return np.array(values)


@pytest.mark.parametrize("method", ["interval", "forward", "crown", "alpha"])
def test_the_table_holds_every_output(model: str, point: str, method: str, exact: ModuleType, capsys: Capture) -> None:
    steps = ["--steps", "3"] if method == "alpha" else []
    assert main(["range", model, "--input", point, "--epsilon", "1/8", "--method", method, *steps]) == 0
    captured = capsys.readouterr()
    rows = table(captured.out)
    assert captured.out.split("\n")[0].split() == ["output", "lower", "upper"]
    assert f"{method} bounds of {len(rows)} values over 1 region" in captured.err and "real arithmetic" in captured.err
    centre = np.array([0.25, -0.5])
    values = sampled(model, centre - 0.125, centre + 0.125, exact)
    assert len(rows) == values.shape[1]
    for r, (_, low, high) in enumerate(rows):
        assert Fraction(low) <= values[:, r].min() and values[:, r].max() <= Fraction(high)


def test_arrays_and_json_say_the_same(model: str, point: str, tmp_path: Path, capsys: Capture) -> None:
    files = [str(tmp_path / "found.npz"), str(tmp_path / "found.json")]
    arguments = ["range", model, "--input", point, "--epsilon", "0.1", "-q", "--method", "crown"]
    assert main([*arguments, "--output", files[0], "--json", files[1]]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    arrays, record = np.load(files[0]), json.loads(Path(files[1]).read_text(encoding="utf-8"))
    assert record["schema"] == "nn-verifier/range/1" and record["semantics"] == "real" and record["method"] == "crown"
    assert record["region"]["epsilon"] == "0.1"
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    for side in ("lower", "upper"):
        numbers = [[Fraction(v) for v in row] for row in record[side]]
        assert numbers == [[Fraction(v) for v in row] for row in arrays[side].reshape(1, -1).tolist()]
    for (_, low, high), a, b in zip(table(captured.out), record["lower"][0], record["upper"][0], strict=True):
        assert Fraction(low) <= Fraction(a) and Fraction(b) <= Fraction(high)
        assert float(low) == pytest.approx(float(a), rel=1e-8) and float(high) == pytest.approx(float(b), rel=1e-8)
    assert main([*arguments, "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["lower"] == record["lower"] and again["values"] == record["values"]


def test_boxes_and_several_points(model: str, tmp_path: Path, capsys: Capture) -> None:
    x = np.array([[0.25, -0.5], [0.0, 1.0], [1.0, 1.0]])
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(3))
    np.savez(tmp_path / "box.npz", lower=x - 0.25, upper=x + 0.25)
    outputs = []
    for options in (["--data", str(tmp_path / "data.npz"), "--epsilon", "0.25"], ["--box", str(tmp_path / "box.npz")]):
        assert main(["range", model, "--method", "crown", *options]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0].split("\n")[0].split() == ["region", "output", "lower", "upper"]
    assert {row[0] for row in table(outputs[0])} == {"0", "1", "2"}


def test_margins_of_a_class(model: str, point: str, capsys: Capture) -> None:
    assert main(["range", model, "--input", point, "--epsilon", "0.01", "--label", "1", "--method", "crown"]) == 0
    rows = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:]]
    graph = verifier.load(model)
    scores = graph.evaluate(torch.tensor([[0.25, -0.5]], dtype=torch.float64).reshape(1, *graph.nodes[0].shape))[0]
    scores = scores.flatten().tolist()
    for name, low, high in rows:
        one, other = map(int, name.split("-"))
        assert one == 1 and float(low) <= scores[1] - scores[other] <= float(high)
    assert len(rows) == len(scores) - 1


@pytest.mark.parametrize("norm", ["2", "1"])
def test_balls_of_other_norms(model: str, point: str, norm: str, capsys: Capture) -> None:
    """Within the box, and hold samples of the ball, cut to the data range."""
    widths = {}
    for kind in ("inf", norm):
        asked = ["range", model, "--input", point, "--epsilon", "0.5", "--norm", kind, "--data-range", "-1", "0.5"]
        assert main([*asked, "--method", "crown"]) == 0
        rows = [[float(v) for v in row[1:]] for row in table(capsys.readouterr().out)]
        widths[kind] = sum(high - low for low, high in rows)
    assert widths[norm] < widths["inf"]
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(500, 2))
    steps *= 0.5 * rng.random((500, 1)) / np.linalg.norm(steps, ord=int(norm), axis=1, keepdims=True)
    points = np.array([0.25, -0.5]) + steps
    points = points[(points >= -1).all(1) & (points <= 0.5).all(1)]
    graph = verifier.load(model)
    values = graph.evaluate(torch.from_numpy(points).reshape(-1, *graph.nodes[0].shape))[0].flatten(1)
    for value, (low, high) in zip(values.T, rows, strict=True):
        assert low <= value.min() and value.max() <= high


def test_what_float32_returns(model: str, point: str, capsys: Capture) -> None:
    """onnxruntime's results lie inside, and nothing is narrower than in exact arithmetic."""
    found = {}
    for semantics in ("real", "float32"):
        asked = ["range", model, "--input", point, "--epsilon", "0", "--method", "crown"]
        assert main([*asked, "--semantics", semantics]) == 0
        captured = capsys.readouterr()
        assert f"{semantics} arithmetic" in captured.err
        found[semantics] = [(float(a), float(b)) for _, a, b in table(captured.out)]
    network = read_network(model)
    feed = {network.inputs[0].name: np.load(point).reshape(network.inputs[0].shape)}
    outputs = open_session(network.model).run(None, feed)[0].reshape(-1)
    for value, (a, b), (low, high) in zip(outputs.tolist(), found["real"], found["float32"], strict=True):
        assert low <= value <= high and low <= a and b <= high and high - low > b - a
    options = ["--mean", "0", "--std", "1", "--semantics", "float32", "--method", "crown"]
    assert main(["range", model, "--input", point, "--epsilon", "0", *options]) == 3


def test_normalisation_in_front(model: str, tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "image.npy", np.array([0.5, 0.25], dtype=np.float32))
    np.savez(tmp_path / "box.npz", lower=[-1.0, -1.0], upper=[1.0, 0.0])
    image = ["--input", str(tmp_path / "image.npy"), "--epsilon", "1/4", "--mean", "0.5", "--std", "1/4"]
    assert main(["range", model, *image, "--method", "crown"]) == 0
    rows = table(capsys.readouterr().out)
    assert main(["range", model, "--box", str(tmp_path / "box.npz"), "--method", "crown"]) == 0
    for one, two in zip(rows, table(capsys.readouterr().out), strict=True):
        # (0.5, 0.25) -+ 1/4 becomes (-1 .. 1, -2 .. 0): more than the box below it.
        assert float(one[1]) <= float(two[1]) and float(two[2]) <= float(one[2])


def test_the_radius_is_exact(model: str, point: str) -> None:
    """A decimal radius is enclosed, not rounded to nearest."""
    from verifier.ranges import ball

    network = read_network(model)
    found = ball(network, np.array([0.25, -0.5], dtype=np.float32), "0.1", data_range=("-0.55", 1))
    assert isinstance(found, Box)
    exact_lower = [Fraction(1, 4) - Fraction(1, 10), Fraction(-55, 100)]
    for value, end in zip(found.lower.flatten().tolist(), exact_lower, strict=True):
        assert Fraction(value) <= end < Fraction(np.nextafter(value, 1))
    for value, end in zip(found.upper.flatten().tolist(), [Fraction(35, 100), Fraction(-4, 10)], strict=True):
        assert Fraction(np.nextafter(value, -1)) < end <= Fraction(value)


def test_from_python(model: str) -> None:
    network = read_network(model)
    box = Box(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    box = Box(box.lower.reshape(1, *network.inputs[0].shape), box.upper.reshape(1, *network.inputs[0].shape))
    found = verifier.output_range(model, box, Alpha(steps=2))
    assert found.semantics == "real" and (found.lower < found.upper).all()
    assert verifier.output_range(network, box, label=0).lower.shape == (1, network.outputs[0].size - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "a region is needed"),
        (["--input", "POINT"], "--input needs --epsilon"),
        (["--input", "POINT", "--epsilon", "-1/2"], "negative"),
        (["--input", "POINT", "--box", "POINT", "--epsilon", "1"], "a region is needed: one of"),
        (["--box", "POINT", "--epsilon", "1"], "--epsilon and --data-range go with"),
        (["--input", "POINT", "--epsilon", "1", "--mean", "0"], "--mean and --std belong together"),
        (["--input", "POINT", "--epsilon", "1", "--label", "9"], "label 9: the model has the classes 0 to"),
        (["--input", "POINT", "--epsilon", "1", "--data-range", "0", "1"], "outside the data range"),
        (["--input", "POINT", "--epsilon", "1", "--data-range", "1", "0"], "the low end 1 is above the high end 0"),
        (["--input", "POINT", "--epsilon", "1", "--steps", "3"], "--steps goes with --method alpha"),
        (["--input", "WIDE", "--epsilon", "1"], "has 6 elements"),
        (["--box", "EMPTY"], "box 0 is empty"),
        (["--data", "POINT.npz", "--epsilon", "1"], "no such file"),
        (["--input", "POINT", "--epsilon", "1", "--output", "NOWHERE/x.npz"], "does not exist"),
        (["--input", "POINT", "--epsilon", "1", "--method", "crown", "--device", "cuda:99"], "does not exist here"),
    ],
)
def test_what_is_wrong_is_named(
    model: str, point: str, tmp_path: Path, options: list[str], message: str, capsys: Capture
) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((3, 2)))
    np.savez(tmp_path / "empty.npz", lower=[0.0, 1.0], upper=[1.0, 0.0])
    words = {
        "POINT": point,
        "WIDE": str(tmp_path / "wide.npy"),
        "EMPTY": str(tmp_path / "empty.npz"),
        "NOWHERE/x.npz": str(tmp_path / "nowhere" / "x.npz"),
    }
    assert main(["range", model, *(words.get(o, o) for o in options)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1


def test_an_unknown_method_is_a_usage_error(model: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["range", model, "--method", "magic"])
    assert caught.value.code == 2 and "interval" in capsys.readouterr().err
