"""An attack by itself: a counterexample that is replayed, or nothing said; never a proof."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import verifier
from verifier import InputError, Unknown, Violated, limits
from verifier.attacks.apgd import Apgd
from verifier.attacks.blackbox.square import Square
from verifier.attacks.gradient import fgsm, pgd_margin
from verifier.attacks.problems import nearest_clauses, of_clauses
from verifier.attacks.trial import Trial
from verifier.cli import main, parser
from verifier.replay import Replayer
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


def test_attacks_of_ones_own_choice_are_replayed_too(checkout: Path) -> None:
    """Descents, queries and a start that cannot find anything, on a property and on a box of clauses."""
    folder = checkout / "benchmarks" / "digits"
    for method in (pgd_margin(40), Apgd(steps=30), Square(steps=300)):
        found = verifier.attack(folder / "digits.onnx", folder / "fragile.vnnlib", attacks=[method])
        assert found.word == "sat"
        assert isinstance(found, verifier.Violated)
        query = verifier.read(folder / "digits.onnx", folder / "fragile.vnnlib")
        assert Replayer(query).replay(found.counterexample.inputs[0]) is not None
    robust = folder / "digits.onnx", folder / "robust.vnnlib"
    nothing = verifier.attack(*robust, attacks=[Apgd(steps=5), Square(steps=20)])
    assert nothing.word == "unknown"
    with pytest.raises(InputError, match="classes of a classifier"):
        verifier.attack(*robust, attacks=[fgsm()])


def test_the_nearest_clauses_are_those_with_the_least_margins(checkout: Path) -> None:
    folder = checkout / "benchmarks" / "digits"
    query = verifier.read(folder / "digits.onnx", folder / "close.vnnlib")
    problem = of_clauses(query)
    margins = Trial(problem).evaluate(problem.threat.centre, torch.arange(problem.size))
    assert problem.size == 9
    assert nearest_clauses(query, 3).tolist() == sorted(margins.argsort()[:3].tolist())
    assert nearest_clauses(query, 100).tolist() == list(range(9))
