"""Minimum-distortion attacks: the nearest counterexample of each example, in the norms inf, 2, 1 and 0.

They run on a ``Trial`` with a ``distance``, which keeps the nearest counterexample that was evaluated; the threat model
is the data range (``problems.whole_range``) or a box of a property. ``portfolio.nearest_examples`` puts them together.
On a trial without a distance they look for any counterexample in its threat model, as every attack does.
"""
