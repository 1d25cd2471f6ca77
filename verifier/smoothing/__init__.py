"""Randomized smoothing: classifiers made robust by noise, with certificates that hold with a stated probability.

``noise`` has the distributions and their radii, ``sequential`` limits that hold while sampling goes on, ``counting``
draws, ``certify`` puts them together. A result is a ``ProbablyRobust``, never a verdict.
"""
