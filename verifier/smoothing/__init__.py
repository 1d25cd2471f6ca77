"""Randomized smoothing: classifiers made robust by noise, with certificates that hold with a stated probability.

    from verifier.smoothing import Laplace, Question, smooth

    (found,) = smooth("model.onnx", 0.25).certify(x)
    (other,) = smooth("model.onnx", Laplace(0.1)).certify(x, question=Question(norm="1"))

``noise`` and ``radial`` have the distributions, ``shifts`` what shifts of them can do, ``counting`` draws,
``estimation`` says how long, ``schedule`` shares batches and budgets, ``certificates`` turns counts into radii with the
limits of ``sequential``. ``exact`` is noise that floating point cannot break, ``layer`` noise behind the first layer,
``derandomised`` a smoothed classifier that is evaluated completely. A result is a ``ProbablyRobust``, never a verdict.
"""

from __future__ import annotations

from verifier.smoothing.base import Way
from verifier.smoothing.certificates import ProbablyRobust
from verifier.smoothing.derandomised import Derandomised, Splitting, derandomise
from verifier.smoothing.estimation import Fixed, Sequential
from verifier.smoothing.hardness import largest_certifiable
from verifier.smoothing.noise import Gaussian, Laplace, Noise, Uniform
from verifier.smoothing.radial import Ball, Cubic, Spherical
from verifier.smoothing.schedule import Question
from verifier.smoothing.smoothed import Smoothed, smooth

__all__ = [
    "Ball",
    "Cubic",
    "Derandomised",
    "Fixed",
    "Gaussian",
    "Laplace",
    "Noise",
    "ProbablyRobust",
    "Question",
    "Sequential",
    "Smoothed",
    "Spherical",
    "Splitting",
    "Uniform",
    "Way",
    "derandomise",
    "largest_certifiable",
    "smooth",
]
