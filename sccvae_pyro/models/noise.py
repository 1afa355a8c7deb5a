"""Noise priors: beliefs about the exogenous noise, the cell's own state before regulation."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from sccvae_pyro.models.slot import Member, Sizes


class NoisePrior(Member, slot="noise"):
    """Base of the noise priors; the site is ``z``, sampled by the program inside the plate ``cells``.

    The guide proposes the noise as if its prior had mean 0 and variance 1: give a member these moments.
    """

    @abstractmethod
    def distribution(self, sizes: Sizes, like: Tensor) -> dist.TorchDistribution:
        """Distribution of one cell's noise, event shape ``nodes``, on the device of ``like``."""


@dataclass(frozen=True)
class StandardNormal(NoisePrior):
    """Independent standard normal noise on every node. The default."""

    def distribution(self, sizes: Sizes, like: Tensor) -> dist.TorchDistribution:
        """``Normal(0, I)``."""
        return dist.Normal(torch.zeros((), device=like.device), 1.0).expand([sizes.nodes]).to_event(1)
