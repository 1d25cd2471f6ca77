"""What is chosen for a query, and that each choice says why."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest

from verifier.strategy import (
    BATCH_ELEMENTS,
    FORWARD_ACTIVATIONS,
    FORWARD_ALONE,
    FORWARD_BOXES,
    MOST_FREE_INPUTS,
    Features,
    Strategy,
    choose,
    explain,
)

FEATURES = [
    Features(*values)
    for values in itertools.product((0, 1, 5, 20, 21, 3072), (1, 64, 65, 10**5), (1, 99), (0, 100, 700, 5000, 10**7))
]


def settings(strategy: Strategy) -> dict[str, Any]:
    """All settings with their full names."""

    def walk(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from walk(f"{prefix}{name}.", value)
            elif name != "choices":
                yield prefix + name, value

    return dict(walk("", asdict(strategy)))


def test_each_setting_that_depends_on_the_query_has_a_choice_with_a_reason() -> None:
    first = settings(choose(FEATURES[0]))
    varying = {name for what in FEATURES for name, value in settings(choose(what)).items() if value != first[name]}
    assert varying
    for what in FEATURES:
        strategy = choose(what)
        chosen = {choice.name: choice for choice in strategy.choices}
        assert varying <= chosen.keys(), "a setting that depends on features comes from a Choice, listed in choices"
        assert all(settings(strategy)[name] == choice.value for name, choice in chosen.items())
        assert all(choice.reason for choice in strategy.choices)


@pytest.mark.parametrize(
    ("what", "value", "reason"),
    [
        (Features(5, 1, 1, 6 * FORWARD_ACTIVATIONS), True, "600 activations are at least 600"),
        (Features(5, 1, 1, 6 * FORWARD_ACTIVATIONS - 1), False, "599 activations are fewer than 600"),
        (Features(5, FORWARD_BOXES + 1, 1, 6 * FORWARD_ALONE - 1), False, "65 boxes are more than 64"),
        (Features(5, FORWARD_BOXES, 1, 6000), True, "6000 activations"),
        (Features(5, 1, 1, 10**6), False, "384000000 coefficients a batch are more than 268435456"),
    ],
)
def test_forward_bounds_and_the_reason(what: Features, value: bool, reason: str) -> None:
    strategy = choose(what)
    assert strategy.input_split.forward is value
    (choice,) = [c for c in strategy.choices if c.name == "input_split.forward"]
    assert reason in choice.reason


def test_many_boxes_of_a_large_network_are_bounded_forward_alone() -> None:
    least = 6 * FORWARD_ALONE
    for what, alone in (
        (Features(5, FORWARD_BOXES + 1, 1, least), True),
        (Features(5, FORWARD_BOXES, 1, least), False),
        (Features(5, FORWARD_BOXES + 1, 1, least - 1), False),
        (Features(5, FORWARD_BOXES + 1, 1, 10**6), False),
    ):
        plan = choose(what).input_split
        assert (plan.forward and not plan.backward) is alone
        assert plan.forward or plan.backward


def test_batches_are_sized_by_the_network() -> None:
    sizes = [choose(Features(5, 1, 1, 100, elements)).input_split.batch for elements in (145, 624, 2128, 10**6)]
    assert sizes == [4096, BATCH_ELEMENTS // 624, BATCH_ELEMENTS // 2128, 64]


def test_few_varying_inputs_are_split() -> None:
    assert choose(Features(MOST_FREE_INPUTS, 1, 1, 10)).split_inputs
    assert not choose(Features(MOST_FREE_INPUTS + 1, 1, 1, 10)).split_inputs


def test_an_explanation_keeps_to_the_search_that_runs() -> None:
    few, many = Features(3, 1, 2, 50), Features(1000, 1, 2, 50)
    splits, signs = ("\n".join(explain(what, choose(what))) for what in (few, many))
    assert "3 varying inputs" in splits and "input_split: batch" in splits and "activation_split" not in splits
    assert "1000 varying inputs" in signs and "activation_split: " in signs and "input_split" not in signs
    assert "features: free_inputs 1,000, boxes 1, clauses 2, activations 50" in signs


def test_settings_are_those_of_the_strategy_given() -> None:
    what = Features(3, 1, 2, 50)
    strategy = choose(what, seed=7)
    assert "batch 17, fill 64" in "\n".join(
        explain(what, replace(strategy, input_split=replace(strategy.input_split, batch=17)))
    )
    assert "seed 7" in explain(what, strategy)[1]
