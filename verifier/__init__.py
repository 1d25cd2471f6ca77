"""Formal verification of neural networks: a model and a property in, a verdict with evidence out.

    import verifier

    verdict = verifier.verify("model.onnx", "property.vnnlib", timeout=60)
    print(verdict.word, verdict)

Names are imported on first use: ``import verifier`` itself loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifier.anytime.enclosure import Enclosure
    from verifier.anytime.radius import radius
    from verifier.anytime.refinement import refine
    from verifier.anytime.sensitivity import Sensitivity, sensitivity
    from verifier.api import attack, load, robust_accuracy, verify
    from verifier.attacks.evaluation import Evaluation
    from verifier.errors import InputError, InternalError, UnsupportedError, VerifierError
    from verifier.exact.radius import exact_radius
    from verifier.exact.ranges import ExactRange, exact_range
    from verifier.query import Query, read
    from verifier.radii import RadiusBracket
    from verifier.ranges import output_range
    from verifier.regions import robustness
    from verifier.smoothing.certificates import ProbablyRobust
    from verifier.smoothing.smoothed import smooth
    from verifier.verdict import Counterexample, Progress, TimedOut, Unknown, Verdict, Verified, Violated

__version__ = "0.1.0"

__all__ = [
    "Counterexample",
    "Enclosure",
    "Evaluation",
    "ExactRange",
    "InputError",
    "InternalError",
    "ProbablyRobust",
    "Progress",
    "Query",
    "RadiusBracket",
    "Sensitivity",
    "TimedOut",
    "Unknown",
    "UnsupportedError",
    "Verdict",
    "Verified",
    "VerifierError",
    "Violated",
    "attack",
    "exact_radius",
    "exact_range",
    "load",
    "output_range",
    "radius",
    "read",
    "refine",
    "robust_accuracy",
    "robustness",
    "sensitivity",
    "smooth",
    "verify",
]

_HOMES = (
    ("verifier.anytime.enclosure", ("Enclosure",)),
    ("verifier.anytime.radius", ("radius",)),
    ("verifier.anytime.refinement", ("refine",)),
    ("verifier.anytime.sensitivity", ("Sensitivity", "sensitivity")),
    ("verifier.api", ("attack", "load", "robust_accuracy", "verify")),
    ("verifier.attacks.evaluation", ("Evaluation",)),
    ("verifier.errors", ("InputError", "InternalError", "UnsupportedError", "VerifierError")),
    ("verifier.exact.radius", ("exact_radius",)),
    ("verifier.exact.ranges", ("ExactRange", "exact_range")),
    ("verifier.query", ("Query", "read")),
    ("verifier.radii", ("RadiusBracket",)),
    ("verifier.ranges", ("output_range",)),
    ("verifier.regions", ("robustness",)),
    ("verifier.smoothing.certificates", ("ProbablyRobust",)),
    ("verifier.smoothing.smoothed", ("smooth",)),
    (
        "verifier.verdict",
        ("Counterexample", "Progress", "TimedOut", "Unknown", "Verdict", "Verified", "Violated"),
    ),
)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    for home, names in _HOMES:
        if name in names:
            from importlib import import_module

            from verifier import installation

            installation.check()
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
