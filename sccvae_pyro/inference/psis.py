"""Whether the guide covers the posterior: Pareto-smoothed importance sampling.

With draws from the guide, ``p(x, latents) / q(latents)`` are importance ratios. Their largest follow a
generalised Pareto distribution whose shape k tells how far the guide is from the posterior (Yao et al. 2018,
ICML, "Yes, but did it work?"): below 0.7 what rests on the ratios can be trusted, above it the ratios have
too few finite moments, because the guide misses a part of the posterior (Vehtari et al. 2024, JMLR 25:72).
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from sccvae_pyro.data.loading import Screen
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputWarning
from sccvae_pyro.inference import posterior, results
from sccvae_pyro.inference.export import pareto_k
from sccvae_pyro.inference.posterior import Draws, Push
from sccvae_pyro.models.program import Program

HIGH = 0.7
"""Shape above which importance ratios are not to be trusted."""

FEWEST = 100
"""Draws below which the tail of the ratios says nothing."""

GLOBAL_DRAWS, GLOBAL_PARTICLES = 100, 8
"""Draws by which the guide of the globals is judged, and proposals of each cell for each of them."""


class PSIS(NamedTuple):
    """How well the guide covers the posterior, as Pareto shapes k.

    Parameters
    ----------
    cells
        Index: cells; columns ``perturbation`` and ``pareto_k``.
    perturbations
        Index: labels, control included; columns ``n`` (cells), ``median`` (of k) and ``high`` (share of cells
        with k above 0.7).
    globals_k
        k of the globals; NaN where it was not asked for.
    """

    cells: pd.DataFrame
    perturbations: pd.DataFrame
    globals_k: float


def of_cells(program: Program, draws: Draws, screen: Screen, push: Push, seed: int) -> np.ndarray:
    """Shape of the importance ratios of each cell, one for each draw of the globals; cells."""
    shapes = np.empty(len(screen))
    for rows, batch, own in results.labelled_batches(program, draws, screen, push):
        ratio_sc = posterior.log_ratios(program, draws, batch, own, (seed, int(rows[0])))
        shapes[rows] = pareto_k(ratio_sc.T.double().numpy())
    return shapes


def of_globals(
    program: Program,
    draws: Draws,
    ratio_s: Tensor,
    screen: Screen,
    rows: np.ndarray,
    push: Push,
    seed: int,
) -> float:
    """Shape of the importance ratios of the globals, what cells have of their own integrated out.

    Parameters
    ----------
    program
        Fitted program.
    draws, ratio_s
        Draws from the guide with their log ratios; see :func:`~sccvae_pyro.inference.posterior.draw_weighed`.
    screen, rows
        The cells that the guide was fitted to, all of them.
    push
        What the labels of the screen do.
    seed
        Seed of what the cells have of their own.
    """
    total_s = ratio_s.double()
    for block, batch, own in results.labelled_batches(program, draws, screen, push, GLOBAL_PARTICLES, rows):
        key = (seed, int(block[0]))
        likelihood_sc = posterior.log_likelihood(program, draws, batch, own, GLOBAL_PARTICLES, key)
        total_s = total_s + likelihood_sc.sum(1, dtype=total_s.dtype)
    return float(pareto_k(total_s.numpy()[None])[0])


def tabulate(shapes: np.ndarray, labels: pd.Series, globals_k: float) -> PSIS:
    """Lay out the shapes by cell and by label.

    Parameters
    ----------
    shapes
        k of each cell.
    labels
        Label of each cell, by cell.
    globals_k
        k of the globals.
    """
    cells = pd.DataFrame({"perturbation": labels.astype(str), "pareto_k": shapes}, index=labels.index)
    by_label = cells.groupby("perturbation")["pareto_k"]
    table = pd.DataFrame(
        {"n": by_label.size(), "median": by_label.median(), "high": by_label.agg(lambda k: (k > HIGH).mean())}
    )
    return PSIS(cells, table, globals_k)


def warn_high(found: PSIS) -> None:
    """Warn, at the line that called the façade, of what the guide does not cover."""
    said = []
    share = float((found.cells["pareto_k"] > HIGH).mean())
    if share > 0:
        typical = found.perturbations.index[found.perturbations["median"] > HIGH]
        worst = f", and of most cells of {listing(typical)}" if len(typical) else ""
        said.append(
            f"of {share:.0%} of the cells{worst}: their log densities may be far off, and so may what rests "
            "on them; ask for more draws, and see whether the figures stay"
        )
    if found.globals_k > HIGH:
        said.append(
            f"of the globals (k = {found.globals_k:.1f}): their intervals are those of an approximation and "
            "cannot be mended by weighing its draws; check them against nuts() on a small screen, against "
            "restarts and against held-out perturbations"
        )
    if said:
        message = "The guide does not cover the posterior (Pareto k above 0.7) " + "; and ".join(said) + "."
        warnings.warn(message, InputWarning, stacklevel=3)
