"""``verifier attack MODEL --data`` in process: the answer, its JSON, files, and honest errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from verifier.attacks import evaluation
from verifier.attacks.portfolio import ATTACKS
from verifier.cli import INTERRUPTED, main
from verifier.replay import open_session

SCHEMA = resources.files("verifier").joinpath("report/attack-1.schema.json")
Capture = pytest.CaptureFixture[str]
COUNT = 30


@pytest.fixture(scope="module")
def model(checkout: Path) -> str:
    return str(checkout / "benchmarks" / "digits" / "digits.onnx")


@pytest.fixture
def data(digits_file: Callable[[int], Path]) -> str:
    return str(digits_file(COUNT))


def call(arguments: list[str], capsys: Capture) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def valid(text: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(text)
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    return record


def test_the_answer_its_record_and_the_points_agree(model: str, data: str, tmp_path: Path, capsys: Capture) -> None:
    asked = [model, "--data", data, "--epsilon", "1/10", "--data-range", "0", "1", "--attacks", "fgsm,apgd-ce"]
    code, out, err = call(
        ["attack", *asked, "--json", str(tmp_path / "r.json"), "--output", str(tmp_path / "p.npz")], capsys
    )
    assert code == 0
    assert "nothing is proven" in err
    record = valid((tmp_path / "r.json").read_text(encoding="utf-8"))
    broken = [entry["broken"] for entry in record["examples"]]
    left = COUNT - sum(broken)
    assert out.splitlines()[0] == f"robust accuracy at most {100 * left / COUNT:.2f} % ({left} of {COUNT})"
    assert record["robust_accuracy_at_most"] == pytest.approx(left / COUNT)
    assert 0 < left < COUNT
    with np.load(tmp_path / "p.npz") as points, np.load(data) as given:
        scores = open_session(Path(model).read_bytes()).run(None, {"image": points["x"]})[0]
        away = points["x"].astype(np.float64) - given["x"].reshape(points["x"].shape).astype(np.float64)
        assert points["broken"].tolist() == broken
        assert np.abs(away).max() <= float(Fraction(1, 10))
        others = [entry.get("other") for entry in record["examples"]]
        for row, label, other in zip(scores, given["y"], others, strict=True):
            assert (other is None) == (row[label] > np.delete(row, label).max())
            assert other is None or row[other] >= row[label]


def test_json_to_stdout_is_the_answer(model: str, data: str, capsys: Capture) -> None:
    _, out, _ = call(
        ["attack", model, "--data", data, "--norm", "2", "--epsilon", "0.3", "--attacks", "pgd-margin", "--json", "-"],
        capsys,
    )
    assert valid(out)["query"]["norm"] == "2"


def test_an_example_outside_the_range_is_named(model: str, data: str, tmp_path: Path, capsys: Capture) -> None:
    with np.load(data) as given:
        images, classes = given["x"].copy(), given["y"]
    images[3, 2, 2] = 1.5
    np.savez(tmp_path / "out.npz", x=images, y=classes)
    for norm in ("inf", "2"):
        asked = ["--data", str(tmp_path / "out.npz"), "--epsilon", "1", "--norm", norm, "--data-range", "0", "1"]
        code, out, err = call(["attack", model, *asked], capsys)
        assert (code, out) == (2, "")
        assert "example 3: element 18 is 1.5, outside the data range [0, 1]" in err


def test_the_names_of_attacks_are_listed_without_a_model(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["attack", "--attacks", "list"])
    assert capsys.readouterr().out.split() == list(ATTACKS)


@pytest.mark.parametrize("norm", ["2", "1", "0"])
def test_one_input_in_other_norms_is_answered_as_verify_would(
    norm: str, model: str, data: str, tmp_path: Path, capsys: Capture
) -> None:
    with np.load(data) as given:
        np.save(tmp_path / "x.npy", given["x"][0])
    asked = ["attack", model, "--input", str(tmp_path / "x.npy"), "--norm", norm, "--data-range", "0", "1", "-q"]
    code, out, _ = call([*asked, "--epsilon", "12", "--exit-code"], capsys)
    assert code == 10
    lines = out.splitlines()
    assert lines[0] == "sat"
    values = [float(line.strip("()").split()[1]) for line in lines[1:]]
    assert len(values) == 64 + 10
    point = np.array(values[:64], dtype=np.float32).reshape(1, 1, 8, 8)
    scores = open_session(Path(model).read_bytes()).run(None, {"image": point})[0][0]
    assert scores.tolist() == pytest.approx(values[64:], abs=0)
    told = call([*asked[:-1], "--epsilon", "12"], capsys)[2]
    assert "sat after" in told
    assert "the model's own class" in told
    assert "robust accuracy" not in told
    assert call([*asked, "--epsilon", "0"], capsys)[:2] == (0, "unknown\n")


def test_an_interrupted_run_says_what_it_knows(
    model: str, data: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluation.attack

    def until_the_second(problem: Any, method: Any, **more: Any) -> Any:
        if method.name == "apgd-ce":
            raise KeyboardInterrupt
        return whole(problem, method, **more)

    monkeypatch.setattr(evaluation, "attack", until_the_second)
    code, out, err = call(
        ["attack", model, "--data", data, "--epsilon", "0.1", "--attacks", "fgsm,apgd-ce", "--json", "-"], capsys
    )
    record = valid(out)
    assert code == INTERRUPTED
    assert record["ending"] == "interrupted"
    assert record["robust_accuracy_at_most"] < record["accuracy"]
    assert "interrupted" in err


def test_a_folder_of_images_with_pictures(model: str, data: str, tmp_path: Path, capsys: Capture) -> None:
    image = pytest.importorskip("PIL.Image", reason="the images extra is not installed")
    with np.load(data) as given:
        for k in range(3):
            (tmp_path / "images" / str(given["y"][k])).mkdir(parents=True, exist_ok=True)
            pixels = np.round(given["x"][k] * 255).astype(np.uint8)
            image.fromarray(pixels).save(tmp_path / "images" / str(given["y"][k]) / f"{k}.png")
    asked = ["attack", model, "--data", str(tmp_path / "images"), "--epsilon", "0.4", "--data-range", "0", "1"]
    _, out, _ = call([*asked, "--pictures", str(tmp_path / "seen"), "--json", "-"], capsys)
    for entry in valid(out)["examples"]:
        assert entry["name"].endswith(".png")
        assert ("picture" in entry) == ("attack" in entry)
        if "picture" in entry:
            assert image.open(entry["picture"]).format == "PNG"
    assert any("picture" in entry for entry in valid(out)["examples"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "DATA"], "need --epsilon"),
        (["--data", "none.npz", "--epsilon", "0.1"], "no such file"),
        (["--data", "DATA", "--epsilon", "0.1", "--label", "3"], "--label goes with --input"),
        (["--data", "DATA", "--epsilon", "0.1", "--attacks", "magic"], "the known ones are"),
        (["--data", "DATA", "--epsilon", "0.1", "--data-range", "0", "1/2"], "1/2]; all values lie in [0.0, 1.0]"),
        (["--data", "DATA", "--epsilon", "-0.1"], "negative"),
        (["--data", "DATA", "--input", "DATA", "--epsilon", "0.1"], "one of them"),
        (["--data", "DATA", "--epsilon", "0.1", "--mean", "0.5"], "belong together"),
        (["--attacks", "fgsm"], "--attacks goes with --data"),
        (["--data", "DATA", "--epsilon", "1", "--norm", "0"], "give a data range"),
        (["--data", "DATA", "--epsilon", "0.5", "--norm", "0", "--data-range", "0", "1"], "not a whole number"),
        (["--data", "DATA", "--epsilon", "0.1", "--exit-code"], "--exit-code goes with one question"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], message: str, model: str, data: str, capsys: Capture
) -> None:
    given = [data if a == "DATA" else a for a in arguments]
    code, out, err = call(["attack", model, *given], capsys)
    assert (code, out) == (2, "")
    assert message in err
