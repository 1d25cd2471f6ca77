"""``verifier smooth`` in process: the table, the log and going on with it, the plot, comparisons, honest errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from verifier.cli import INTERRUPTED, main
from verifier.smoothing import curve
from verifier.smoothing.smoothed import Smoothed

SCHEMA = resources.files("verifier").joinpath("report/smooth-1.schema.json")
Capture = pytest.CaptureFixture[str]
COUNT = 6


@pytest.fixture
def asked(checkout: Path, digits_file: Callable[[int], Path]) -> list[str]:
    path = digits_file(COUNT)
    model = str(checkout / "benchmarks" / "digits" / "digits.onnx")
    return ["smooth", model, "--data", str(path), "--sigma", "0.25", "--n", "1000"]


def call(arguments: list[str], capsys: Capture) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def valid(text: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(text)
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    return record


def test_table_log_and_record_agree(asked: list[str], tmp_path: Path, capsys: Capture) -> None:
    log = tmp_path / "log.tsv"
    files = ["--log", str(log), "--plot", str(tmp_path / "c.svg"), "--json", str(tmp_path / "r.json")]
    code, out, err = call([*asked, "--radii", "0.125", "0.25", *files], capsys)
    assert code == 0
    assert "probabilistic, real arithmetic" in err
    assert "99.9 %" in err
    record = valid((tmp_path / "r.json").read_text(encoding="utf-8"))
    lines = sorted(curve.read_log(log), key=lambda line: line.number)  # written as they are done
    assert [line.number for line in lines] == list(range(COUNT))
    for line, entry in zip(lines, record["inputs"], strict=True):
        assert line.label == entry["label"]
        assert line.predict == (-1 if entry["class"] is None else entry["class"])
        assert entry["radius"] * (1 - 1e-7) <= line.radius <= entry["radius"]
    shares = curve.certified_accuracy(lines, [0, 0.125, 0.25])
    assert record["certified_accuracy"] == pytest.approx(shares)
    assert shares[0] >= shares[1] >= shares[2]
    rows = [row.split() for row in out.splitlines()]
    assert rows[0] == ["radius", "certified"]
    assert [row[1] for row in rows[1:-1]] == [f"{100 * share:.1f}" for share in shares]
    assert out.splitlines()[-1].startswith("probabilistic, real arithmetic, 99.9 %")
    assert (tmp_path / "c.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_an_interrupted_run_goes_on_where_it_was(
    asked: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.tsv"
    assert call([*asked, "--fixed", "--log", str(whole)], capsys)[0] == 0
    log, true = tmp_path / "log.tsv", Smoothed.certify_each

    def three(*given: Any, **more: Any) -> Any:
        yield from islice(true(*given, **more), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(Smoothed, "certify_each", three)
    code, out, err = call([*asked, "--fixed", "--log", str(log)], capsys)
    assert code == INTERRUPTED
    assert f"3 of {COUNT} inputs" in err
    assert "few samples come first" in err
    assert out.startswith("radius")
    log.write_text(log.read_text(encoding="utf-8") + "3\t4", encoding="utf-8")  # cut off while it was written
    monkeypatch.setattr(Smoothed, "certify_each", true)
    assert call([*asked, "--fixed", "--log", str(log)], capsys)[0] == 0
    assert sorted(line.text.split("\t")[:5] for line in curve.read_log(log)) == sorted(
        line.text.split("\t")[:5] for line in curve.read_log(whole)
    )
    code, _, err = call([*asked, "--fixed", "--seed", "1", "--log", str(log)], capsys)
    assert code == 2
    assert "something else" in err
    assert "it differs in seed)" in err
    assert call([*asked, "--fixed", "--norm", "2", "--log", str(log)], capsys)[0] == 0  # the default, said


def test_lines_of_a_log_are_rewritten_as_they_were(tmp_path: Path) -> None:
    log = curve.Log(tmp_path / "log.tsv", {})
    for number, radius in enumerate((0.51139339042, 0.0, 1.0, 1e-7 / 3, 12.3456789012)):
        log.add(curve.Line(number, 2, 2, radius, 1.0))
    before = log.path.read_bytes()
    curve.Log(log.path, {})  # goes on with it
    assert log.path.read_bytes() == before


def test_a_log_of_other_images_of_the_same_size_is_refused(asked: list[str], tmp_path: Path, capsys: Capture) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "images"
    (folder / "3").mkdir(parents=True)

    def write(value: int) -> int:
        path = folder / "3" / "a.png"
        image.fromarray(np.full((8, 8), value, np.uint8)).save(path, compress_level=0)
        return path.stat().st_size

    arguments = [*asked[:3], str(folder), *asked[4:], "--log", str(folder / "log.tsv")]
    size = write(10)
    assert call(arguments, capsys)[0] == 0
    assert call(arguments, capsys)[0] == 0
    assert write(200) == size
    code, _, err = call(arguments, capsys)
    assert (code, "it differs in the files" in err) == (2, True)


def test_few_samples_and_large_values_are_remarked(asked: list[str], tmp_path: Path, capsys: Capture) -> None:
    with np.load(asked[3]) as data:
        np.savez(tmp_path / "levels.npz", x=data["x"] * 255, y=data["y"])
    few = [*asked[:3], asked[3], *asked[4:6], "--n", "10"]
    _, _, err = call(few, capsys)
    assert "nothing is certified" in err
    assert "norm 2" in err
    assert "warning" not in err
    _, _, err = call([*few[:3], str(tmp_path / "levels.npz"), *few[4:]], capsys)
    assert "hardly changes them" in err


def test_logs_side_by_side(asked: list[str], tmp_path: Path, capsys: Capture) -> None:
    logs = [str(tmp_path / "one.tsv"), str(tmp_path / "two.tsv")]
    call([*asked, "--log", logs[0]], capsys)
    call([*asked, "--noise", "uniform", "--norm", "1", "--log", logs[1]], capsys)
    code, out, _ = call(["smooth", "--compare", *logs, "--radii", "0.1", "--plot", str(tmp_path / "c.svg")], capsys)
    assert code == 0
    assert out.splitlines()[0].split() == ["radius", *logs]
    code, out, err = call(["smooth", "--compare", *logs, "--json", "-"], capsys)
    record = valid(out)
    assert "smoothed classifier" in record["guarantee"]
    assert "smoothed classifier" in err
    assert set(record["logs"]) == set(logs)
    assert (tmp_path / "c.svg").read_text(encoding="utf-8").count("<polyline") == 2


@pytest.mark.parametrize(
    ("noise", "scale"), [("laplace", "0.05"), ("cubic", "0.002"), ("spherical", "0.02"), ("ball", "1")]
)
def test_other_noise(noise: str, scale: str, asked: list[str], capsys: Capture) -> None:
    _, out, err = call([*asked, "--noise", noise, "--sigma", scale, "--norm", "inf", "--json", "-"], capsys)
    record = valid(out)
    assert "no noise of this variance" in err
    assert record["certified_accuracy"][0] > 0.5
    assert record["norm"] == "inf"


def test_noise_on_a_grid_and_behind_a_layer(asked: list[str], capsys: Capture) -> None:
    code, out, err = call([*asked, "--exact-noise", "1/16", "--json", "-"], capsys)
    assert code == 0
    assert "probabilistic, floating point included, 99.9 %" in err
    assert valid(out)["guarantee"].startswith("probabilistic, floating point included")
    code, _, err = call([*asked, "--exact-noise"], capsys)
    assert code == 2
    assert "not a multiple of the step 1/255" in err
    code, _, err = call([*asked, "--noise", "cubic", "--exact-noise", "1/16"], capsys)
    assert code == 3
    assert "depend on each other" in err
    found = valid(call([*asked, "--layer", "--sigma", "0.6", "--json", "-"], capsys)[1])
    assert found["query"]["layer"] is True
    assert found["certified_accuracy"][0] > 0.5


def test_noise_without_chance(asked: list[str], capsys: Capture) -> None:
    code, out, err = call([*asked, "--noise", "splitting", "--sigma", "0.5", "--levels", "16", "--json", "-"], capsys)
    record = valid(out)
    assert code == 0
    assert "deterministic" in err
    assert "confidence" not in record
    assert all(round(16 * entry["radius"], 6).is_integer() for entry in record["inputs"])
    assert sum(entry["class"] == entry["label"] for entry in record["inputs"]) >= COUNT - 1


def test_radii_out_of_reach_are_named(asked: list[str], capsys: Capture) -> None:
    """Of 1,000 samples that all agree."""
    _, _, err = call([*asked, "--radii", "0.25", "5"], capsys)
    assert "nothing of 5" in err
    assert "nothing of" not in call([*asked, "--radii", "0.25"], capsys)[2]


def test_questions_of_several_kinds(asked: list[str], capsys: Capture) -> None:
    def shares(*more: str) -> list[float]:
        record = valid(call([*asked, "--fixed", "--radii", "0.1", "0.3", "0.5", *more, "--json", "-"], capsys)[1])
        found: list[float] = record["certified_accuracy"]
        return found

    plain = shares()
    assert all(a <= b for a, b in zip(plain, shares("--top", "3"), strict=True))
    assert sum(plain) < sum(shares("--top", "3"))
    assert all(a >= b for a, b in zip(plain, shares("--together"), strict=True))
    assert all(a >= b for a, b in zip(plain, shares("--one-sided"), strict=True))
    _, out, err = call([*asked, "--together", "--json", "-"], capsys)
    assert valid(out)["confidence"] == pytest.approx(1 - 0.001 / COUNT)
    assert "hold together with that probability" in err
    assert "99.9 %" in err
    _, out, _ = call([*asked, "--n", "100000", "--budget", "3000", "--json", "-"], capsys)
    assert valid(out)["certified_accuracy"][0] > 0.5


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures(ending: str, asked: list[str], tmp_path: Path, capsys: Capture) -> None:
    if ending == "png":
        pytest.importorskip("PIL", reason="pillow is not installed")
    path = tmp_path / f"curve.{ending}"
    assert call([*asked, "--plot", str(path)], capsys)[0] == 0
    assert path.read_bytes().startswith({"svg": b"<?xml", "png": b"\x89PNG"}[ending])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--n", "5"], "10 are needed at least"),
        (["--alpha", "2"], "below 1"),
        (["--data", "none.npz"], "no such file"),
        (["--mean", "0.5"], "belong together"),
        (["--half"], "half precision is for GPUs"),
        (["--plot", "curve.pdf"], ".svg or .png"),
        (["--budget", "10", "--fixed"], "cannot be shared out"),
        (["--noise", "splitting", "--norm", "2"], "in the norm 1"),
        (["--noise", "splitting", "--top", "2", "--together"], "--together, --top mean nothing there"),
        (["--exact-noise", "1/16", "--layer"], "on no grid"),
        (["--top", "10"], "from 1 to 9"),
    ],
)
def test_wrong_questions_are_refused(change: list[str], message: str, asked: list[str], capsys: Capture) -> None:
    code, out, err = call([*asked, *change], capsys)
    assert (code, out) == (2, "")
    assert message in err


def test_what_is_missing_is_named(asked: list[str], tmp_path: Path, capsys: Capture) -> None:
    for left_out in ("--data", "--sigma"):
        k = asked.index(left_out)
        code, _, err = call([*asked[:k], *asked[k + 2 :]], capsys)
        assert code == 2
        assert f"{left_out} is needed" in err
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 64), np.float32))
    code, _, err = call([*asked, "--data", str(tmp_path / "x.npz")], capsys)
    assert code == 2
    assert "the array y" in err
    (tmp_path / "no.tsv").write_text("a,b\n", encoding="utf-8")
    code, _, err = call(["smooth", "--compare", str(tmp_path / "no.tsv")], capsys)
    assert code == 2
    assert "not a log" in err
