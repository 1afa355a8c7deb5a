"""What a weaker or stronger perturbation would do: effects along a range of penetrances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccvae_pyro.inference import posterior
from sccvae_pyro.inference.posterior import Controls, Draws, Push
from sccvae_pyro.models import scm
from sccvae_pyro.models.program import Program

PENETRANCES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""From a control cell to beyond the perturbation as in the screen."""

MOST_CHANGED = 3
"""Genes or nodes that are followed where none are named."""

Band = Mapping[str, np.ndarray]
"""``delta``, ``low`` and ``high``, each ``perturbations x genes`` (or nodes): mean and 90 % interval."""


@torch.no_grad()
def state_changes(
    program: Program, draws: Draws, controls: Controls, push: Push, cells_per_draw: int, seed: int
) -> np.ndarray:
    """Change of the mean latent state of control cells under each label, ``draws x labels x nodes``.

    Parameters
    ----------
    program, draws, controls, push, cells_per_draw, seed
        As in :func:`~sccvae_pyro.inference.posterior.population_means`.
    """
    out = np.empty((*push.share.shape, program.sizes.nodes), dtype=np.float32)
    cells = posterior.starting_cells(program, draws, controls, cells_per_draw, seed)
    for s, (_, z_ck, response_c) in enumerate(cells):
        state = partial(_mean_state, draws.B[s])
        out[s] = posterior.mean_changes(state, z_ck, response_c, push.action[s], push.share[s])
    return out


def _mean_state(B: Tensor, z_ck: Tensor, action_ca: Tensor) -> Tensor:
    return scm.respond(z_ck, action_ca, B).mean(-2)


def band(draws: np.ndarray) -> Band:
    """Summarise draws, over the first axis."""
    summary = posterior.summarise(draws)
    return {"delta": summary["mean"], "low": summary["q05"], "high": summary["q95"]}


def follow(
    band_at: Callable[[float], Band],
    penetrances: Sequence[float],
    labels: Sequence[str],
    names: Sequence[str],
    chosen: np.ndarray | None,
    column: str,
) -> pd.DataFrame:
    """Lay out bands at growing penetrance, tidy.

    Parameters
    ----------
    band_at
        Gives the band at a penetrance.
    penetrances, labels
        What to lay out.
    names
        Names of all genes, or nodes.
    chosen
        Positions of those to follow; ``None`` takes what each perturbation changes most at penetrance 1.
    column
        What they are called: the name of their column.

    Returns
    -------
    DataFrame with columns ``perturbation``, ``column``, ``penetrance``, ``delta``, ``low``, ``high``.
    """
    largest = None if chosen is not None else np.argsort(-np.abs(band_at(1.0)["delta"]), axis=1)
    bands = {penetrance: band_at(penetrance) for penetrance in penetrances}
    known = np.asarray(names, dtype=str)
    parts = []
    for row, label in enumerate(labels):
        kept = chosen if largest is None else largest[row, :MOST_CHANGED]
        for penetrance, ends in bands.items():
            place = {"perturbation": label, column: known[kept], "penetrance": penetrance}
            parts.append(pd.DataFrame({**place, **{name: part[row, kept] for name, part in ends.items()}}))
    return pd.concat(parts, ignore_index=True)
