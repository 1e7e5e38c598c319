"""The synaptic cascade, reference version: three levels of memory strength, each slower than the one below.

An accepted event is added to level 1. Part of a level that exceeds its gate moves to the next level, and every level
decays. Source: Benna & Fusi, "Computational principles of synaptic memory consolidation", Nature Neuroscience 2016,
doi:10.1038/nn.4401, reduced to three leaky levels with one-way gates.

Invariants: float32 throughout, in the order of decisions; norms in float64 in the order of `core.reference.vector`.
Equal to cascade in shm/native/governor.c.
"""

from typing import NamedTuple, Self

import numpy as np

from core.reference.vector import Vector, norm
from core.regime import SynapseSettings


class Synapse(NamedTuple):
    """The three levels, float32[D] each."""

    l1: Vector
    l2: Vector
    l3: Vector

    @classmethod
    def initial(cls, dimension: int) -> Self:
        """Return three levels of zeros."""
        return cls(*(np.zeros(dimension, np.float32) for _ in range(3)))

    def after_run(self, event: Vector | None, settings: SynapseSettings) -> Self:
        """Return the levels after one run: `event` is the vector of an accepted event, or None for consolidation."""
        l1 = np.float32(1.0 - settings.lambda_l1) * self.l1
        l2 = np.float32(1.0 - settings.lambda_l2) * self.l2
        l3 = np.float32(1.0 - settings.lambda_l3) * self.l3
        if event is not None:
            l1 = l1 + event
        l1, l2 = _transfer(l1, l2, settings.gating12, settings.theta_l1, settings.by_element)
        l2, l3 = _transfer(l2, l3, settings.gating23, settings.theta_l2, settings.by_element)
        return self._replace(l1=l1, l2=l2, l3=l3)


def _transfer(lower: Vector, upper: Vector, gain: float, theta: float, by_element: bool) -> tuple[Vector, Vector]:
    """Move the share `gain` of a level up: of its elements above θ (signed), or of all if its norm exceeds θ."""
    if by_element:
        moved = np.where(lower.astype(np.float64) > theta, lower * np.float32(gain), np.float32(0))
    elif norm(lower) > theta:
        moved = lower * np.float32(gain)
    else:
        return lower, upper
    return lower - moved, upper + moved
