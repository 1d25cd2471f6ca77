"""Robust accuracy after attacks of this project and of others, and what each costs.

    python -m benchmarks.attack_peers --instances BENCHMARKS --networks digits resnet_2b --tools foolbox torchattacks

``BENCHMARKS`` (default: VNNCOMP_DIR) is a folder of the competition's benchmarks; without one the project's own network
alone is attacked. ``benchmarks/attack_data.py`` says which networks and images there are. Peers:

- foolbox: ``pip install foolbox`` (the extra ``peers``).
- torchattacks: ``pip install --no-deps torchattacks``, then ``pip install requests tqdm``. It asks for torchvision and
  an old requests, but imports no torchvision.

A tool that is not installed is left out, and a line says so.

Every image that the network classifies rightly is attacked in the L-infinity ball of epsilon, cut by [0, 1]. Robust
accuracy is the share of all images that are classified rightly and that no point found puts into another class. Points
are clipped to the box (its float32 ends lie inside the exact one) and judged by the same float32 network that was
attacked, whatever a tool says itself. Evaluations are images that went forward through the network, for each attacked
image, those that tools spend on looking at their results included; a backward pass is not counted again. Ensembles give
up an image once it has fallen. Seconds are of one thread's processor. Steps of PGD are epsilon / 30 for all.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from benchmarks.attack_data import SOURCES, Source, Subject, subject

STEPS = 100
"""Steps of every attack that takes steps, except where a tool is run as it is shipped."""

QUERIES = 5000
"""Of attacks that ask for scores alone, as torchattacks has it."""

STEP = 1 / 30
"""A step of PGD, in epsilons."""

SEED = 0

Attack = Callable[[Subject], Tensor]
"""Points ``[N, C, H, W]`` for the images of the subject; what they cost is counted by its model."""


def ours(name: str, evaluations: int) -> Attack:
    """This project's attack by name ("pgd", "multi-targeted", "apgd" or "ensemble"), of which each part has so many
    evaluations of an image at most.

    It gets the images that are classified rightly, with the ends of their boxes. ``model.graph`` of what it gets is the
    float32 graph from images ``[N, *model.shape]`` to scores; what evaluates that instead of calling the model adds the
    images to ``model.count`` itself.
    """
    from verifier.attacks import apgd, gradient, portfolio
    from verifier.attacks.goals import Misclassified
    from verifier.attacks.losses import TargetedMargin
    from verifier.attacks.oracle import GraphOracle
    from verifier.attacks.threats import Boxes
    from verifier.attacks.trial import Problem, attack

    five = gradient.Pgd(name, TargetedMargin(), steps=19, rate=0.5, decay=0.05 ** (1 / 19), targets=5)
    methods = {"pgd": (gradient.pgd(STEPS - 1),), "multi-targeted": (five,), "apgd": (apgd.apgd_multi_targeted(),)}

    def run(method: Any) -> Attack:
        def points(given: Subject) -> Tensor:
            flat = (given.images.flatten(1), given.lower.flatten(1), given.upper.flatten(1))
            threat = Boxes.of(flat[1], flat[2], flat[0])
            problem = Problem(GraphOracle.of(given.model.graph), Misclassified(given.labels), threat)
            found = attack(problem, method, seed=SEED, budget=evaluations)
            given.model.count += int(found.evaluations.sum())
            return found.points.reshape(given.images.shape)

        return points

    chosen = methods[name] if name in methods else portfolio.ensemble(True, portfolio.Target("inf"))
    return in_turn(*(run(method) for method in chosen))


def own_attacks() -> Mapping[str, Attack]:
    """This project's, by what the table calls them."""
    # An image that resists costs torchattacks' AutoAttack of 100 steps this much: two attacks on 9 targets each.
    longest = STEPS + 9 * STEPS + 9 * STEPS + QUERIES
    return {
        f"PGD-{STEPS}": ours("pgd", STEPS),
        f"PGD-{STEPS} on 5 margins": ours("multi-targeted", STEPS),
        f"APGD-{STEPS} on 5 margins": ours("apgd", STEPS),
        "ensemble": ours("ensemble", longest),
    }


def foolbox_attacks() -> Mapping[str, Attack]:
    """Those of foolbox for the L-infinity norm; the ensemble is all that need no starting point that is adversarial."""
    import foolbox
    from foolbox import attacks

    def run(attack: Any) -> Attack:
        def points(given: Subject) -> Tensor:
            model = foolbox.PyTorchModel(given.model, bounds=(0, 1))
            # The second of three results is clipped to the ball: attacks of least distance know no epsilon.
            return attack(model, given.images, given.labels, epsilons=float(given.epsilon))[1]

        return points

    pgd = run(attacks.LinfPGD(steps=STEPS, rel_stepsize=STEP))
    adam = run(attacks.LinfAdamPGD(steps=STEPS))
    others = (
        attacks.LinfFastGradientAttack(),
        attacks.LinfBasicIterativeAttack(steps=STEPS, rel_stepsize=STEP),
        attacks.LinfAdamBasicIterativeAttack(steps=STEPS),
        attacks.LinfMomentumIterativeFastGradientMethod(steps=STEPS),
        attacks.LinfDeepFoolAttack(),
        attacks.LInfFMNAttack(steps=STEPS),
        attacks.LinfRepeatedAdditiveUniformNoiseAttack(repeats=STEPS),
    )
    return {
        f"PGD-{STEPS}": pgd,
        f"PGD-{STEPS} with Adam": adam,
        f"ensemble of {len(others) + 2}": in_turn(pgd, adam, *(run(a) for a in others)),
    }


def torchattacks_attacks() -> Mapping[str, Attack]:
    """Those of torchattacks. Its AutoAttack takes 10 steps where the publication takes 100: both are run."""
    import torchattacks

    def run(make: Callable[..., Any], **given: Any) -> Attack:
        return lambda s: make(s.model, eps=float(s.epsilon), **given)(s.images, s.labels)

    def pgd(given: Subject) -> Tensor:
        step = float(given.epsilon) * STEP
        return run(torchattacks.PGD, alpha=step, steps=STEPS)(given)

    long = {"steps": STEPS, "seed": SEED}
    ce = run(torchattacks.APGD, loss="ce", **long)
    return {
        f"PGD-{STEPS}": pgd,
        f"APGD-{STEPS} cross-entropy": ce,
        f"APGD-{STEPS} DLR": run(torchattacks.APGD, loss="dlr", **long),
        "AutoAttack as shipped": run(torchattacks.AutoAttack, version="standard", seed=SEED),
        f"AutoAttack, {STEPS} steps": in_turn(
            ce,
            run(torchattacks.APGDT, **long),
            run(torchattacks.FAB, multi_targeted=True, **long),
            run(torchattacks.Square, n_queries=QUERIES, seed=SEED),
        ),
    }


def in_turn(*attacks: Attack) -> Attack:
    """All attacks, each on the images that those before it have left."""

    def points(given: Subject) -> Tensor:
        best, left = given.images.clone(), torch.arange(len(given.images))
        for attack in attacks:
            if len(left):
                rest = given.only(left)
                found = attack(rest)
                down = rest.fallen(found)
                best[left[down]] = found[down].detach()
                left = left[~down]
        return best

    return points


TOOLS: Mapping[str, tuple[str, Callable[[], Mapping[str, Attack]]]] = MappingProxyType({
    "ours": ("verifier", own_attacks),
    "foolbox": ("foolbox", foolbox_attacks),
    "torchattacks": ("torchattacks", torchattacks_attacks),
})
"""Each with the package that it needs."""


def lines(source: Source, given: Subject, count: int, tools: list[str]) -> Iterator[str]:
    """The table's lines of one network."""
    start = f"| {source.name} | {count} | {percent(len(given.images), count)} | {shown(source.epsilon)} |"
    for tool in tools:
        for name, attack in TOOLS[tool][1]().items():
            torch.manual_seed(SEED)
            given.model.count, begin = 0, time.process_time()
            points = attack(given)
            seconds, cost = time.process_time() - begin, given.model.count / len(given.images)
            left = len(given.images) - int(given.fallen(points).sum())
            yield f"{start} {tool} | {name} | {cost:.0f} | {percent(left, count)} | {seconds:.1f} |"


def percent(part: int, whole: int) -> str:
    """A share for people."""
    return f"{100 * part / whole:.1f} %"


def shown(epsilon: Fraction) -> str:
    """In steps of 1/255 where it is a number of those, else as a decimal."""
    steps = epsilon * 255
    return f"{steps}/255" if steps.denominator == 1 else f"{float(epsilon):g}"


def installed(names: list[str]) -> list[str]:
    """Those that can run; a line for each of the others."""
    found = [name for name in names if importlib.util.find_spec(TOOLS[name][0]) is not None]
    for name in names:
        if name not in found:
            print(f"{name} is left out: it is not installed (the first lines of this file say how)", file=sys.stderr)
    return found


def main() -> None:
    """Attack, and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("VNNCOMP_DIR")
    parser.add_argument("--instances", type=Path, default=Path(folder) if folder else None, metavar="BENCHMARKS")
    parser.add_argument("--networks", nargs="+", choices=[s.name for s in SOURCES], help="these only")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--count", type=int, help="images of each network at most (default: all)")
    parser.add_argument("--epsilon", type=Fraction, help="another one for all networks, such as 8/255")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tools = installed(options.tools)
    print("| network | images | clean | epsilon | tool | attack | evaluations | robust | processor s |")
    print("| --- | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: |")
    for source in SOURCES:
        if options.networks and source.name not in options.networks:
            continue
        if source.benchmark and options.instances is None:
            print(f"{source.name} is left out: --instances says where the benchmarks are", file=sys.stderr)
            continue
        if options.epsilon is not None:
            source = Source(source.name, source.benchmark, source.model, source.images, options.epsilon)
        given, count = subject(source, options.instances, options.count)
        for line in lines(source, given, count, tools):
            print(line, flush=True)


if __name__ == "__main__":
    main()
