"""Searches for counterexamples. A point found here is a candidate only: ``verifier.replay`` decides.

``plan`` says how much effort is spent (no torch), ``clauses`` holds the clauses as tensors and says how far a point is
from fulfilling one, ``descent`` moves points downhill, ``search`` puts them together, and ``beside`` starts from
points that branch and bound comes by (``starts``).
"""
