"""An attack by itself: a counterexample that is replayed, or nothing said; never a proof."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import verifier
from verifier import InputError, Unknown, Violated, limits
from verifier.cli import main, parser
from verifier.worker import answer


def corpus(checkout: Path) -> list[tuple[str, str, str]]:
    """Model, property and known verdict of each instance."""
    folder = checkout / "tests" / "corpus"
    with (folder / "instances.csv").open() as file:
        rows = [(str(folder / row[0]), str(folder / row[1])) for row in csv.reader(file)]
    return [(model, given, "unsat" if "unsat" in Path(given).stem else "sat") for model, given in rows]


def test_what_is_violated_is_found_and_what_holds_is_left_open(checkout: Path) -> None:
    found = {"sat": 0, "unsat": 0}
    for model, given, known in corpus(checkout):
        verdict = verifier.attack(model, given, timeout=5 if known == "sat" else 0.05)
        assert isinstance(verdict, Violated if verdict.word == "sat" else Unknown)
        assert known == "sat" or verdict.word == "unknown", given
        found[known] += verdict.word == "sat"
    assert found == {"sat": 20, "unsat": 0}


def test_it_says_that_it_proves_nothing(checkout: Path) -> None:
    folder = checkout / "benchmarks" / "digits"
    verdict = verifier.attack(verifier.read(folder / "digits.onnx", folder / "robust.vnnlib"), timeout=0.0)
    assert isinstance(verdict, Unknown) and verdict.word == "unknown"
    assert verdict.reason == "no counterexample was found, which proves nothing" and verdict.stage == "attack"


def test_an_empty_region_has_no_counterexample(checkout: Path) -> None:
    folder = checkout / "tests" / "corpus"
    verdict = verifier.attack(folder / "empty_plane_unsat.onnx", folder / "empty_plane_unsat.vnnlib")
    assert isinstance(verdict, Unknown) and verdict.reason == "no input satisfies the property"


def test_bad_arguments_are_refused(checkout: Path) -> None:
    folder = checkout / "benchmarks" / "digits"
    query = verifier.read(folder / "digits.onnx", folder / "robust.vnnlib")
    with pytest.raises(InputError, match="a query has its property already"):
        verifier.attack(query, folder / "robust.vnnlib")
    with pytest.raises(InputError, match="the paths of a model and a property"):
        verifier.attack(str(folder / "digits.onnx"))
    with pytest.raises(InputError, match="not a number of seconds"):
        verifier.attack(query, timeout=-1)


@pytest.mark.parametrize(("name", "word"), [("fragile", "sat"), ("robust", "unknown")])
def test_the_worker_is_told_to_attack_alone(checkout: Path, name: str, word: str) -> None:
    folder = checkout / "benchmarks" / "digits"
    task = {
        "kind": "property",
        "property": str(folder / f"{name}.vnnlib"),
        "networks": {"": str(folder / "digits.onnx")},
        "max_bytes": None,
        "assignments": None,
    }
    request = {"task": task, "deadline": limits.now() + 5, "seed": 0, "device": "cpu", "evidence": True,
               "verbose": False, "attack": True}  # fmt: skip
    message = answer(request, lambda _: None)
    assert message["type"] == "verdict" and message["record"]["result"] == word
    assert message["record"]["stage"] == "attack" and bool(message["witness"]) == (word == "sat")


def test_the_command_takes_what_an_attack_needs() -> None:
    arguments = parser.build().parse_args(["attack", "m.onnx", "p.vnnlib", "--timeout", "3"])
    assert arguments.attack and not parser.build().parse_args(["verify", "m.onnx", "p.vnnlib"]).attack
    for refused in ("--record", "--checkpoint"):
        with pytest.raises(SystemExit):
            parser.build().parse_args(["attack", "m.onnx", "p.vnnlib", refused, "x"])


def test_the_command_prints_as_verify_does(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkout / "benchmarks" / "digits"
    asked = ["attack", str(folder / "digits.onnx"), str(folder / "fragile.vnnlib"), "--exit-code"]
    assert main(asked) == 10
    captured = capsys.readouterr()
    assert captured.out.startswith("sat\n((X_0 ") and "stage attack" in captured.err
