"""Leaves that are split at points, of networks of any operators, as arrays (those split at 0 alone: ``leaves.py``).

K leaves over U positions and P parameters of lines (both in the order that the root's entry says) are an entry of

    clause [K]   depth [K]: how many ends   position, side, point float32 [E]: the ends that splits leave a leaf, ``z >=
    point`` (side 1) or ``z <= point`` (-1), leaf by leaf, positions rising, of one position the lower end first
    beta [E] float16: the multipliers of these half-spaces (an input that is split shrinks the box, and needs none)
    slope [K, S]: parameters between 0 and 1, ``k / 255`` as uint8 (or float16, where that is too rough)
    line [K, P - S] float16: all others   weight [K, L] float32: of the literals, where a clause has several

A leaf is decided with these numbers as they are stored, so whoever reads them proves the same bound.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bounds.kept import coarse, fine, half
from verifier.branch.bounding import Bounded, Bounding
from verifier.branch.point_splits import PointRoot
from verifier.branch.splits import Splits
from verifier.record.leaves import in_bits, weights_of
from verifier.record.paths import Paths


def arrays_of(root: PointRoot, batch: Splits, found: Bounded, few: bool = True) -> dict[str, Tensor]:
    """The entry of leaves with the multipliers found; without ``few`` slopes keep 16 bits."""
    ends = torch.stack([batch.low > -torch.inf, batch.high < torch.inf], 2)
    leaf, position, upper = ends.nonzero(as_tuple=True)
    side, shares = 1 - 2 * upper, root.shares
    slopes = found.slopes[:, shares]
    arrays = {
        "clause": batch.clause.int(),
        "depth": torch.bincount(leaf, minlength=batch.size).int(),
        "position": position.to(torch.int16 if batch.low.shape[1] < 1 << 15 else torch.int32),
        "side": side.to(torch.int8),
        "point": torch.where(side > 0, batch.low[leaf, position], batch.high[leaf, position]).float(),
        "beta": half(found.betas[leaf, position] * side).clamp(min=0),
        "slope": coarse(slopes) if few else half(slopes).clamp(0, 1),
        "line": half(found.slopes[:, ~shares]),
    }
    if found.weights.shape[1] > 1:
        arrays["weight"] = torch.nan_to_num(found.weights.float(), nan=0.0).clamp(min=0)
    return arrays


def of_arrays(arrays: Mapping[str, Tensor], clauses: tuple[int, int], root: PointRoot) -> tuple[Splits, Bounded]:
    """The leaves of an entry, to be decided; ``clauses`` are how many of how many literals there are.

    Raises ``ValueError`` for numbers that prove nothing: a multiplier or weight that is negative or not finite, a
    parameter out of its range, a position that is not there, comes twice or out of order."""
    paths, shares, positions = Paths.of_arrays(arrays, at_points=True), root.shares, root.positions.count
    clause, count, device = paths.clause, paths.clause.shape[0], paths.clause.device
    _all((clause >= 0) & (clause < clauses[0]), "a leaf is of a clause that is not there")
    _all((paths.position >= 0) & (paths.position < positions), "a leaf is split at a position that is not there")
    beta, above = arrays["beta"].double(), paths.side > 0
    if beta.shape != paths.leaf.shape:
        raise ValueError("multipliers are not as many as splits")
    _all(torch.isfinite(beta) & (beta >= 0), "a multiplier of a split is negative or not finite")
    betas, high = (torch.zeros((count, positions), dtype=d, device=device) for d in (torch.float64, torch.float32))
    low, high = high - torch.inf, high + torch.inf
    for end, mask in ((low, above), (high, ~above)):
        at = paths.leaf[mask], paths.position[mask]
        end[at] = arrays["point"][mask]
        _all((betas[at] == 0) | (beta[mask] == 0), "both ends of an element have a multiplier")
        betas[at] += beta[mask] * paths.side[mask]
    slopes = torch.zeros((count, shares.shape[0]), dtype=torch.float64, device=device)
    for name, mask in (("slope", shares), ("line", ~shares)):
        values = fine(arrays[name])
        if values.shape != (count, int(mask.sum())):
            raise ValueError("parameters of lines are not as many as the root has")
        _all(torch.isfinite(values), "a parameter of a line is not finite")
        slopes[:, mask] = values
    _all((slopes[:, shares] >= 0) & (slopes[:, shares] <= 1), "a slope is outside [0, 1]")
    weights = weights_of(arrays, (count, clauses[1]))
    none, last = torch.zeros(count, dtype=torch.float64, device=device), torch.full_like(clause, -1)
    signs = torch.zeros((count, positions), dtype=torch.int8, device=device)
    batch = Splits(clause, signs, slopes, betas, weights, none, none, last, low, high, none)
    return batch, Bounded(none, slopes, betas, weights, {}, none, {})


def decided(bounding: Bounding, batch: Splits, found: Bounded) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """``[K]``: proven bounds with the multipliers as entries have them; and the entries of leaves refuted by these.

    Where few bits prove nothing more are tried, if there are slopes that have fewer."""
    root = bounding.points
    assert root is not None
    shape, tries = (root.rhs.shape[0], root.rhs.shape[1]), (True, False) if bool(root.shares.any()) else (True,)

    def entry(some: Splits, at: Bounded, few: bool) -> dict[str, Tensor]:
        return arrays_of(root, some, at, few)

    return in_bits(bounding, (batch, found), tries, entry, lambda e: of_arrays(e, shape, root))


def _all(good: Tensor, reason: str) -> None:
    if not bool(good.all()):
        raise ValueError(reason)
