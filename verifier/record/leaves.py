"""Leaves of an activation split as arrays: what each was split by, and the multipliers that refute it.

K leaves over U positions are an entry of

    clause [K]   depth [K]: how many splits   position, side [E]: the splits, leaf by leaf, positions rising
    beta [E]: their multipliers, float32 (of a linear program: float64)
    slope [K U - E]: lower slopes where a leaf is not split, ``k / 255`` as uint8 (or float32, where that is too rough)
    weight [K, L]: of the literals, where a clause has several
    other/NODE/SIDE [K, ...]: parameters of further lines

Any such numbers prove something, as long as multipliers and weights are not negative. A leaf is decided with them *as
they are stored*, so whoever reads them proves the same bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bounds.kept import coarse, fine, half
from bounds.ops.base import Nonlinear, Parameters
from bounds.plan import Plan
from verifier.branch.bounding import Bounded, Bounding
from verifier.branch.splits import Splits
from verifier.record.paths import Paths

KIND = "leaves"


def arrays_of(plan: Plan, batch: Splits, found: Bounded, few: bool = True) -> dict[str, Tensor]:
    """The entry of leaves with the multipliers found; without ``few`` no number loses bits."""
    leaf, position = (batch.signs != 0).nonzero(as_tuple=True)
    betas = found.betas if found.betas.dtype == torch.float64 else found.betas.float()
    slopes = found.slopes[batch.signs == 0]
    arrays = {
        "clause": batch.clause.int(),
        "depth": torch.bincount(leaf, minlength=batch.size).int(),
        "position": position.to(torch.int16 if batch.signs.shape[1] < 1 << 15 else torch.int32),
        "side": batch.signs[leaf, position],
        "beta": torch.nan_to_num(betas[leaf, position], nan=0.0).clamp(min=0),
        "slope": coarse(slopes) if few else torch.nan_to_num(slopes.float(), nan=0.0).clamp(0, 1),
    }
    if found.weights.shape[1] > 1:
        arrays["weight"] = torch.nan_to_num(found.weights.float(), nan=0.0).clamp(min=0)
    for node, pair in found.others.items():
        op = plan.graph.nodes[node].op
        assert isinstance(op, Nonlinear)
        for side, values in enumerate(pair):
            if values is not None:
                shrunk = coarse(values) if op.through_origin else half(values)
                arrays[f"other/{node}/{side}"] = shrunk if few else values.float()
    return arrays


def of_arrays(arrays: Mapping[str, Tensor], clauses: tuple[int, int], positions: int) -> tuple[Splits, Bounded]:
    """The leaves of an entry, to be decided; ``clauses`` are how many of how many literals there are.

    Raises ``ValueError`` for numbers that prove nothing: a multiplier or weight that is negative or not finite, a slope
    outside [0, 1], a position that is not there, comes twice or out of order.
    """
    splits = Paths.of_arrays(arrays)
    clause, count, device = splits.clause, splits.clause.shape[0], splits.clause.device
    if not _within(clause, 0, clauses[0] - 1) or not _within(splits.position, 0, positions - 1):
        raise ValueError("a leaf is of a clause or split at a position that is not there")
    beta, given = arrays["beta"], arrays["slope"]
    if beta.shape != splits.leaf.shape or not bool((torch.isfinite(beta) & (beta >= 0)).all()):
        raise ValueError("a multiplier of a split is negative, not finite or missing")
    signs = torch.zeros((count, positions), dtype=torch.int8, device=device)
    signs[splits.leaf, splits.position] = splits.side.to(torch.int8)
    betas = torch.zeros((count, positions), dtype=torch.float64, device=device)
    betas[splits.leaf, splits.position] = beta.double()
    free, values = signs == 0, fine(given)
    if given.ndim != 1 or given.shape[0] != int(free.sum()) or not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("slopes are outside [0, 1], or not as many as are free")
    slopes = torch.zeros((count, positions), dtype=torch.float64, device=device)
    slopes[free] = values
    weights = weights_of(arrays, (count, clauses[1]))
    none = torch.zeros(count, dtype=torch.float64, device=device)
    last, no = torch.full_like(clause, -1), betas[:, :0]
    batch = Splits(clause, signs, slopes, betas, weights, none, none, last, no, no, none)
    return batch, Bounded(none, slopes, betas, weights, _others(arrays, count), none, {})


def rounded(plan: Plan, batch: Splits, found: Bounded) -> Bounded:
    """The multipliers found, as an entry in few bits has them."""
    shape = (int(batch.clause.max()) + 1 if batch.size else 1, found.weights.shape[1])
    return of_arrays(arrays_of(plan, batch, found), shape, batch.signs.shape[1])[1]


def decided(bounding: Bounding, batch: Splits, found: Bounded) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """``[K]``: proven bounds with the multipliers as entries have them; and the entries of leaves refuted by these.

    Where few bits prove nothing the search's own bits are tried."""
    shape, positions = (bounding.rhs.shape[0], bounding.rhs.shape[1]), bounding.positions.count

    def entry(some: Splits, at: Bounded, few: bool) -> dict[str, Tensor]:
        return arrays_of(bounding.exact, some, at, few)

    return in_bits(bounding, (batch, found), (True, False), entry, lambda e: of_arrays(e, shape, positions))


def in_bits(
    bounding: Bounding,
    leaves: tuple[Splits, Bounded],
    tries: Sequence[bool],
    entry: Callable[[Splits, Bounded, bool], dict[str, Tensor]],
    read: Callable[[Mapping[str, Tensor]], tuple[Splits, Bounded]],
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """``[K]``: proven bounds of leaves with the multipliers that ``read`` finds in an ``entry`` of them, at the first
    of ``tries`` (with few bits: True, or more) that refutes them; and the entries of those that each one refutes."""
    batch, found = leaves
    proven, entries = torch.full(batch.clause.shape, -torch.inf, dtype=torch.float64, device=batch.clause.device), []
    left = torch.arange(batch.size, device=batch.clause.device)
    for few in tries:
        some, at = batch.take(left), found.take(left)
        if not some.size:
            break
        bound = bounding.decided(some, read(entry(some, at, few))[1])
        proven[left] = torch.maximum(proven[left], bound)
        good = bound > 0
        if bool(good.any()):
            entries.append(entry(some.take(good), at.take(good), few))
        left = left[~good]
    return proven, entries


def weights_of(arrays: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """``[K, L]`` float64: the weights of an entry, 1 where it has none. Raises ``ValueError``."""
    weights = arrays.get("weight", torch.ones((shape[0], 1), device=arrays["clause"].device)).double()
    if weights.shape != shape or not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError("a literal's weight is negative, not finite or missing")
    return weights


def _within(values: Tensor, least: int, most: int) -> bool:
    return not values.shape[0] or (int(values.min()) >= least and int(values.max()) <= most)


def _others(arrays: Mapping[str, Tensor], count: int) -> dict[int, Parameters]:
    found: dict[int, Parameters] = {}
    for name, values in arrays.items():
        if not name.startswith("other/"):
            continue
        _, node, side = name.split("/")
        if values.shape[:1] != (count,):
            raise ValueError("further parameters are not one for each leaf")
        below, above = found.get(int(node), (None, None))
        found[int(node)] = (below, fine(values)) if int(side) else (fine(values), above)
    return found
