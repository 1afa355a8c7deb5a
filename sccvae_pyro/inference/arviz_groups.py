"""What each group of ArviZ data holds, and which of them need cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sccvae_pyro.data.loading import Screen
from sccvae_pyro.data.wording import listing, suggestion
from sccvae_pyro.errors import InputError
from sccvae_pyro.inference import export, posterior, replicates, results
from sccvae_pyro.inference.export import Coords, Group
from sccvae_pyro.inference.posterior import Draws, Push
from sccvae_pyro.models.program import Program

GLOBALS = ("posterior", "prior")
OF_LABELS = ("posterior_predictive", "prior_predictive", "observed_data")
OF_CELLS = ("log_likelihood", *OF_LABELS)
"""Groups that need cells."""


def named(groups: str | Iterable[str]) -> list[str]:
    """Read which groups are asked for; ``"all"`` are all.

    Raises
    ------
    InputError
        If there is no such group.
    """
    if groups == "all":
        return [*GLOBALS, *OF_CELLS]
    asked = [groups] if isinstance(groups, str) else list(groups)
    for name in asked:
        if name not in (*GLOBALS, *OF_CELLS):
            raise InputError(
                f"There is no group {name!r}. {suggestion(name, ['all', *GLOBALS, *OF_CELLS], 'groups')}"
            )
    return asked


def of_cells(asked: Sequence[str]) -> str:
    """Those among the groups that need cells, quoted; empty where there are none."""
    return listing(name for name in asked if name in OF_CELLS)


@dataclass(frozen=True)
class Groups:
    """The groups, each computed when it is asked for.

    Parameters
    ----------
    program
        Fitted program.
    draws
        Draws of the globals from the guide.
    coords
        Names along the dimensions of the global sites.
    screen
        Cells; ``None`` where no group needs them.
    push_of
        What labels do, for draws of the globals.
    n_particles
        Proposals of each cell for each draw, by which its own noise is integrated out.
    seed
        Seed.
    """

    program: Program
    draws: Draws
    coords: Coords
    screen: Screen | None
    push_of: Callable[[Draws, Sequence[str]], Push]
    n_particles: int
    seed: int

    def gather(self, asked: Sequence[str]) -> Any:
        """Compute the groups and lay them out as ArviZ data."""
        groups = {name: getattr(self, name)() for name in asked}
        return export.to_arviz(groups, {**self.coords, **self._names_of_cells(asked)})

    def posterior(self) -> Group:
        """Draws of all global sites from the guide."""
        return export.sites(self.draws, self.coords)

    def prior(self) -> Group:
        """Draws of the same sites from their priors."""
        return export.sites(self._prior_draws, self.coords)

    def log_likelihood(self) -> Group:
        """``x``: log density of each cell given the globals, its own noise integrated out."""
        labels = [str(label) for label in self._cells.labels.cat.categories]
        push = self.push_of(self.draws, labels)
        values = results.log_likelihood(
            self.program, self.draws, self._cells, push, self.n_particles, self.seed
        )
        return {"x": values[None]}

    def posterior_predictive(self) -> Group:
        """``mean_profile`` of cells generated anew."""
        return {"mean_profile": self._replicated(self.draws)[None]}

    def prior_predictive(self) -> Group:
        """The same before the data."""
        return {"mean_profile": self._replicated(self._prior_draws)[None]}

    def observed_data(self) -> Group:
        """``mean_profile`` of the measured cells whose place the generated ones take."""
        return {"mean_profile": self._part.means(replicates.measured(self._cells, self._part).log_cg)}

    @property
    def _cells(self) -> Screen:
        assert self.screen is not None, "a group of cells is asked for without any"
        return self.screen

    @cached_property
    def _prior_draws(self) -> Draws:
        return posterior.draw_prior(self.program, len(self.draws), self.seed)

    @cached_property
    def _part(self) -> replicates.Part:
        return replicates.Part.of(self._cells, self.seed)

    def _replicated(self, draws: Draws) -> np.ndarray:
        """Mean profile of each label in each draw, ``draws x labels x genes``."""
        part, push = self._part, self.push_of(draws, self._part.labels)
        cells = replicates.replicate(self.program, draws, push, self._cells, part, self.seed)
        return np.stack([part.means(one.log_cg).astype(np.float32) for one in cells])

    def _names_of_cells(self, asked: Sequence[str]) -> dict[str, list[str]]:
        names = {}
        if "log_likelihood" in asked:
            names["cell"] = list(self._cells.labels.index.astype(str))
        if set(asked) & set(OF_LABELS):
            names["label"] = self._part.labels
        return names
