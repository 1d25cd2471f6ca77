"""Attacks that only ask for outputs: scores (Square, Sparse-RS, SPSA, NES, ZOO) or labels (boundary, HopSkipJump).

They use ``Trial.evaluate`` alone, so they run on every oracle, and no example is ever asked more often than its budget
allows. Score attacks see margins, those in ``boundary`` and ``hopskipjump`` only whether a margin is at most 0.
"""
