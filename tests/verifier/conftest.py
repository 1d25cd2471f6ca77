"""What tests of shared searches need: small queries that last, and a strategy that shares them at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import verifier
from verifier import protocol
from verifier.attacks.plan import AttackPlan, BesidePlan
from verifier.strategy import InnerPlan, LendPlan, Strategy, choose, features

DIGITS = Path(__file__).resolve().parents[2] / "benchmarks" / "digits"


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[str], protocol.Message]:
    """The task of an image of a digit and a radius."""
    box = verifier.read(DIGITS / "digits.onnx", DIGITS / "robust.vnnlib").cases
    point = tmp_path / "x.npy"
    np.save(point, ((box.lower[0] + box.upper[0]) / 2).astype(np.float32))

    def task(epsilon: str) -> protocol.Message:
        return {"kind": "robustness", "networks": {"": str(DIGITS / "digits.onnx")}, "input": str(point),
                "epsilon": epsilon, "norm": "inf", "label": None, "data_range": None, "mean": None, "std": None,
                "max_bytes": None}

    return task


@pytest.fixture(scope="session")
def strategy_of() -> Callable[[verifier.Query], Strategy]:
    """Of a query: interrupted at once, shared as soon as two subproblems are open, in small steps."""

    def chosen(query: verifier.Query) -> Strategy:
        known = choose(features(query), cores=2)
        plan = replace(known.activation_split, batch=4, inner=InnerPlan(rounds=0, first_steps=1))
        attack = AttackPlan(steps=2, batch=4, probes=4)
        known = replace(known, activation_split=plan, attack=attack, beside=BesidePlan(share=0.0))
        return replace(known, lend=LendPlan(after=0.0, least=2), attack_after=0.0, attack_seconds=0.0)

    return chosen
