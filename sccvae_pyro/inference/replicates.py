"""Cells that a program generates anew, beside the measured cells whose place they take.

A replicate of a cell shares its perturbations, guide, covariates and (where that is not itself generated)
library size; its noise is drawn from the noise prior. Only a part of a screen is replicated, and a draw of
the globals at a time: memory grows with neither the cells of the screen nor cells times draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.loading import Screen
from sccvae_pyro.inference import posterior
from sccvae_pyro.inference.posterior import Draws, Push
from sccvae_pyro.inference.predictive import check_states
from sccvae_pyro.models import scm
from sccvae_pyro.models.program import Program

CONTROL_CELLS, LABELS, CELLS_PER_LABEL = 256, 32, 64
"""Control cells, other labels and cells of each of them that are replicated, at most."""


class Part(NamedTuple):
    """The cells of a screen that are replicated.

    ``rows``: their positions, label by label; ``labels``: control first, where there are such cells;
    ``codes``: position of the label of each row among these.
    """

    rows: np.ndarray
    labels: list[str]
    codes: np.ndarray

    @classmethod
    def of(cls, screen: Screen, seed: int) -> Part:
        """Take all cells, or a random choice of the most that are replicated."""
        rng, control = np.random.default_rng(seed), screen.coding.schema.control
        present = [str(name) for name in screen.labels.cat.remove_unused_categories().cat.categories]
        others = sorted(rng.permutation([name for name in present if name != control])[:LABELS].tolist())
        most = {control: CONTROL_CELLS} if control in present else {}
        most |= dict.fromkeys(others, CELLS_PER_LABEL)
        rows = [
            np.sort(rng.permutation(np.flatnonzero(screen.labels == label))[:n]) for label, n in most.items()
        ]
        return cls(
            np.concatenate(rows), list(most), np.repeat(np.arange(len(most)), [len(own) for own in rows])
        )

    def means(self, values_cg: np.ndarray) -> np.ndarray:
        """Mean of each label over its cells, ``labels x genes``."""
        return np.stack([values_cg[self.codes == label].mean(axis=0) for label in range(len(self.labels))])


class Cells(NamedTuple):
    """Generated or measured cells.

    ``x_cg``: expression; ``log_cg``: the same on the scale of profiles, ``log1p(CP10K)`` of counts.
    """

    x_cg: np.ndarray
    log_cg: np.ndarray


def measured(screen: Screen, part: Part) -> Cells:
    """Load the measured cells."""
    return Cells(screen.rows(part.rows), screen.log_expression(part.rows))


@torch.no_grad()
def replicate(
    program: Program, draws: Draws, push: Push, screen: Screen, part: Part, seed: int
) -> Iterator[Cells]:
    """Generate the cells anew, once for each draw of the globals.

    Parameters
    ----------
    program, draws
        Program, and draws of its globals from the posterior or from the prior.
    push
        What each label of the part does in each draw.
    screen, part
        The measured cells whose place they take.
    seed
        Seed of the cells.

    Yields
    ------
    The cells of one draw, in the order of the part.

    Raises
    ------
    InputError
        If states overflow single precision, so that nothing can be decoded.
    """
    batch = screen[part.rows]
    relative_gc1 = scm.relative_of_cells(draws.relative_g, batch.guides_c).unsqueeze(-1)
    for s in range(len(draws)):
        with posterior.seeded(posterior.stream(seed, 5, s)):
            z_ck = program.noise(program.baseline).sample((len(part.rows),))
            share_c = program.priors.responders.share(push.share[s, part.codes])
            action_ca = share_c.unsqueeze(-1) * relative_gc1[s] * push.action[s, part.codes]
            state_ck = scm.respond(z_ck, action_ca, draws.B[s])
            check_states(state_ck)
            library_c = program.library(batch.library_c)
            x_cg = posterior.expression(program, draws, s, state_ck, library_c, batch.covariates_cv).sample()
        yield Cells(x_cg.numpy(), _log(x_cg.numpy(), library_c.numpy(), program.priors.likelihood.kind))


def _log(x_cg: np.ndarray, library_c: np.ndarray, kind: str) -> np.ndarray:
    return x_cg if kind == "continuous" else np.asarray(log1p_cp10k(x_cg, library_c))
