"""Beliefs about the library size, the molecules that a cell would show at full count."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from sccvae_pyro.models.slot import Member


class LibraryPrior(Member, slot="library"):
    """Base of the library priors; the site is ``library``, sampled by the program in the plate ``cells``."""

    @abstractmethod
    def module(self) -> Library:
        """Build what gives the library size of each cell."""


class Library(nn.Module, ABC):
    """Library sizes in the model (called) and in the guide."""

    @abstractmethod
    def forward(self, counted_c: Tensor) -> Tensor:
        """Give the library size of each cell in the model, inside the plate ``cells``."""

    @abstractmethod
    def propose(self, counted_c: Tensor) -> None:
        """Propose it in the guide, given the molecules counted."""

    def start(self, counted_c: np.ndarray) -> None:
        """Set out from the molecules counted in the training cells."""
        return


@dataclass(frozen=True)
class Observed(LibraryPrior):
    """The molecules counted in a cell are its library size. The default."""

    def module(self) -> Library:
        """Build a library without a site."""
        return _Observed()


class _Observed(Library):
    def forward(self, counted_c: Tensor) -> Tensor:
        """What was counted."""
        return counted_c

    def propose(self, counted_c: Tensor) -> None:
        """Propose nothing."""


@dataclass(frozen=True)
class Latent(LibraryPrior):
    """The library size of a cell is unknown and varies between cells, as a log-normal population.

    ``library_c ~ LogNormal(loc, sd)``, with location and sd learned as point estimates, as the networks are
    (Lopez et al. 2018, Nat Methods 15:1053). The guide starts from the molecules counted. It pays where the
    count of a cell says little about its size: few genes, or a few genes with most of the molecules.
    """

    def module(self) -> Library:
        """Build a log-normal population and its guide."""
        return _Latent()


class _Latent(Library):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.log_sd = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))
        self.log_doubt = nn.Parameter(torch.tensor(0.1).log())

    def forward(self, counted_c: Tensor) -> Tensor:
        """Sample the library size from the population."""
        return pyro.sample("library", dist.LogNormal(self.loc.expand_as(counted_c), self.log_sd.exp()))

    def propose(self, counted_c: Tensor) -> None:
        """Sample it near what was counted."""
        pyro.sample("library", dist.LogNormal(counted_c.log() + self.offset, self.log_doubt.exp()))

    def start(self, counted_c: np.ndarray) -> None:
        """Start the population at the moments of what was counted."""
        log_counted = np.log(counted_c)
        with torch.no_grad():
            self.loc.fill_(float(log_counted.mean()))
            self.log_sd.fill_(float(np.log(log_counted.std() + 1e-3)))
