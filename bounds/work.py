"""What an ascent costs, counted in products: a limit on it that is the same on every machine.

Every step walks each row down to the input and its corner up again. Layers of a small network cost nothing worth
counting; those of a detector with 100,000 neurons would take hours, for bounds that the next layer hardly feels.
So an ascent has an account for each box: a layer that it does not cover any more keeps the bounds of CROWN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bounds.backward import State
from bounds.patches import Geometry
from bounds.plan import Plan

LIMIT = 1 << 40
"""Products for the ascents of the inner neurons of one box: a minute or two of one processor."""

USUAL_STEPS = 20
"""Further steps do not count: who asks for them grants the time, and no layer may get fewer because of them."""


@dataclass(slots=True)
class Account:
    """How many products are left in the propagation whose bounds are ``known``."""

    limit: float = LIMIT
    left: float = 0
    known: object = None

    def grants(self, state: State, amount: float) -> bool:
        """Whether that much is left; then it is taken off."""
        if self.known is not state.bounds:
            self.known, self.left = state.bounds, self.limit * state.box.size
        if amount > self.left:
            return False
        self.left -= amount
        return True


def climbing(plan: Plan, target: int, patches: Geometry | None, rows: int, steps: int) -> int:
    """At most so many products are in the ascent of so many rows (walks down, and up again), of its usual steps."""
    return 2 * products(plan, target, patches) * rows * min(steps, USUAL_STEPS)


def products(plan: Plan, target: int, patches: Geometry | None) -> int:
    """At most so many are in one walk of a row of ``target``, over patches where there are any."""
    reached, total = {target}, 0
    for node in reversed(plan.graph.nodes[: target + 1]):
        if node.id not in reached or node.id == plan.input or node.id not in plan.operands:
            continue
        reached.update(node.inputs)
        terms = plan.accumulation(node) if node.id in plan.affine else 1
        total += terms * math.prod(node.shape if patches is None else patches.shape(node.id))
    return total
