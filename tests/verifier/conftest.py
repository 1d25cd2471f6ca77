"""What several tests need: small queries that last, a strategy that shares them at once, a network of three layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import verifier
from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from verifier import protocol
from verifier.attacks.plan import AttackPlan, BesidePlan
from verifier.strategy import AheadPlan, InnerPlan, LendPlan, Strategy, choose, features

DIGITS = Path(__file__).resolve().parents[2] / "benchmarks" / "digits"


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[str], protocol.Message]:
    """The task of an image of a digit and a radius."""
    box = verifier.read(DIGITS / "digits.onnx", DIGITS / "robust.vnnlib").cases
    point = tmp_path / "x.npy"
    np.save(point, ((box.lower[0] + box.upper[0]) / 2).astype(np.float32))

    def task(epsilon: str) -> protocol.Message:
        return {
            "kind": "robustness",
            "networks": {"": str(DIGITS / "digits.onnx")},
            "input": str(point),
            "epsilon": epsilon,
            "norm": "inf",
            "label": None,
            "data_range": None,
            "mean": None,
            "std": None,
            "max_bytes": None,
        }

    return task


@pytest.fixture(scope="session")
def strategy_of() -> Callable[[verifier.Query], Strategy]:
    """Of a query: no programs, interrupted at once, shared as soon as two subproblems are open, in small steps."""

    def chosen(query: verifier.Query) -> Strategy:
        known = choose(features(query), cores=2)
        inner, ahead = InnerPlan(rounds=0, first_steps=1), AheadPlan()
        plan = replace(known.activation_split, batch=4, inner=inner, ahead=ahead)
        attack = AttackPlan(steps=2, batch=4, probes=4)
        known = replace(known, activation_split=plan, attack=attack, beside=BesidePlan(share=0.0))
        return replace(known, lend=LendPlan(after=0.0, least=2), attack_after=0.0, attack_seconds=0.0)

    return chosen


@pytest.fixture(scope="session")
def three_layers() -> Graph:
    """A network of two inputs, three layers of eight ReLUs and one output, whose bounds lie far from its values."""
    rng, build = np.random.default_rng(1), Builder()
    x = build.input((2,))
    for k, (before, after) in enumerate(((2, 8), (8, 8), (8, 8), (8, 1))):
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,)))
        x = build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))
        x = build.add(Relu(), x) if k < 3 else x
    return build.finish([x])
