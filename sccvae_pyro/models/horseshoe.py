"""The regularised horseshoe: a few effects of any size among many that are next to nothing.

Piironen & Vehtari 2017, Electron J Stat 11:5018. An effect has the width ``global scale x local scale``, both
half-Cauchy a priori: the global scale shrinks all of them, and the heavy tail of a local one lets an effect
escape. A slab bounds the width of those that do.
"""

from __future__ import annotations

import math

from torch import Tensor


def typical_scale(expected: float, effects: int, observations: int) -> float:
    """Global scale, in units of the noise, at which as many effects as expected are told from zero.

    Parameters
    ----------
    expected
        Expected number of effects that escape the shrinkage, fewer than there are.
    effects
        Number of effects.
    observations
        Number of observations that speak of each.
    """
    return expected / (effects - expected) / math.sqrt(observations)


def width(global_scale: Tensor, local_scale: Tensor, slab: float) -> Tensor:
    """Prior sd of the effects, ``... x effects``, cut off smoothly at the slab.

    ``global_scale`` is ``...``, ``local_scale`` ``... x effects``.
    """
    free = global_scale.unsqueeze(-1) * local_scale
    return free / (1.0 + (free / slab).square()).sqrt()
