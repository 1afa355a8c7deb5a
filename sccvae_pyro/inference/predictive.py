"""What the priors say in the units of the data, against the data: the prior predictive check.

A prior is judged by what it makes the program generate, not by its parameters (Gabry et al. 2019, J R Stat
Soc A 182:389). Globals come from the prior, cells from the noise prior; simulated and measured cells are
summarised by the same functions, over the same control cells and the same labels.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccvae_pyro.data.loading import Batch, Screen
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError, InputWarning
from sccvae_pyro.inference import posterior
from sccvae_pyro.inference.posterior import Draws, Push
from sccvae_pyro.models import scm
from sccvae_pyro.models.observation import Profile
from sccvae_pyro.models.program import Program

EDGE = 0.1
"""Size of a weight from which it counts as an edge."""

CONTROL_CELLS, LABELS = 256, 256
"""Control cells and labels that are simulated in each draw, at most."""

CELLS_PER_DRAW = 32
"""Cells of each draw behind the mean profile of a label: all labels share them, so that few are enough."""


class Scope(NamedTuple):
    """What of a screen is simulated: rows of control cells, in random order, and labels."""

    rows: np.ndarray
    labels: list[str]

    @classmethod
    def of(cls, screen: Screen, seed: int) -> Scope:
        """Take all, or a random choice of the most that are simulated."""
        rng = np.random.default_rng(seed)
        rows = rng.permutation(np.flatnonzero(screen.is_control))[:CONTROL_CELLS]
        names = screen.labels.cat.remove_unused_categories().cat.categories
        perturbed = [str(name) for name in names if name != screen.coding.schema.control]
        return cls(rows, sorted(rng.permutation(perturbed)[:LABELS].tolist()))


@torch.no_grad()
def simulate(program: Program, draws: Draws, push: Push, controls: Batch, seed: int) -> pd.DataFrame:
    """Summarise what each draw of the globals would generate.

    Parameters
    ----------
    program, draws
        Program, and draws of its globals from the prior.
    push
        What each label does in each draw.
    controls
        Control cells whose library sizes and covariates the simulated ones take.
    seed
        Seed of the cells.

    Returns
    -------
    DataFrame, draws x quantities; see :meth:`~sccvae_pyro.sccvae.SCCVAE.prior_predictive`.

    Raises
    ------
    InputError
        If states overflow single precision, so that nothing can be decoded.
    """
    profile = program.priors.likelihood.profile(controls.library_c.numpy())
    with posterior.seeded(posterior.stream(seed, 3)):
        quantities = [_of_draw(program, draws, s, push, controls, profile) for s in range(len(draws))]
    return pd.DataFrame(quantities)


def _of_draw(
    program: Program, draws: Draws, s: int, push: Push, controls: Batch, profile: Profile
) -> dict[str, float]:
    library_c, covariates_cv = controls.library_c, controls.covariates_cv
    z_ck = program.noise(program.baseline).sample((len(library_c),))
    state_ck = scm.propagate(z_ck, draws.B[s])
    pushed_lk = scm.respond(torch.zeros(program.sizes.nodes), push.action[s], draws.B[s])
    for state in (state_ck, pushed_lk):
        check_states(state)
    x_cg = posterior.expression(program, draws, s, state_ck, library_c, covariates_cv).sample()
    return {
        "edges": float((draws.B[s].abs() > EDGE).sum()),
        **of_effects(_sizes(program, draws, s, push, z_ck, covariates_cv, profile)),
        "responding_cells": float(draws.share_p[s].mean()),
        **of_controls(x_cg.numpy(), program.priors.likelihood.kind),
    }


def check_states(state_ck: Tensor) -> None:
    """Refuse states whose squares overflow: the layers of the decoder take variances."""
    if not state_ck.square().sum().isfinite():
        raise InputError(
            "Under these priors the states of cells are too large for single precision. "
            "Give the graph or the direction a smaller scale."
        )


def _sizes(
    program: Program,
    draws: Draws,
    s: int,
    push: Push,
    z_ck: Tensor,
    covariates_cv: Tensor,
    profile: Profile,
) -> np.ndarray:
    """Size of the effect of each label in one draw, ``labels``."""
    few = slice(CELLS_PER_DRAW)  # the cells are in random order
    expected = posterior.expected_mean(program, profile, draws, s, covariates_cv[few])
    response_c = program.priors.responders.response(z_ck.new_ones(len(z_ck[few])))
    changes = posterior.mean_changes(expected, z_ck[few], response_c, push.action[s], push.share[s])
    return changes.double().square().mean(-1).sqrt().numpy()


def observe(screen: Screen, scope: Scope) -> pd.Series:
    """Summarise the measured cells in the same way.

    Parameters
    ----------
    screen
        The screen.
    scope
        What of it was simulated.

    Returns
    -------
    Series of the quantities that the data show.
    """
    controls = of_controls(screen.rows(scope.rows), screen.coding.schema.kind)
    return pd.Series({**of_effects(_observed_sizes(screen, scope.labels)), **controls})


def _observed_sizes(screen: Screen, labels: list[str]) -> np.ndarray:
    """Size of the effect of each label of two cells or more, ``labels``, sampling noise taken out.

    The square of a noisy difference is too large by the variances of both means.
    """
    found = screen.profiles()
    noise = found.var.div(found.n, axis=0)
    control, known = screen.coding.schema.control, [label for label in labels if found.n[label] > 1]
    change = found.mean.loc[known] - found.mean.loc[control]
    square = np.square(change) - noise.loc[known] - noise.loc[control]
    return np.sqrt(np.maximum(square.mean(axis=1), 0.0)).to_numpy()


def of_effects(sizes: np.ndarray) -> dict[str, float]:
    """Median and 90 % quantile of the sizes of effects; NaN where there are none."""
    median, high = np.quantile(sizes, [0.5, 0.9]) if len(sizes) else (np.nan, np.nan)
    return {"effect_median": float(median), "effect_q90": float(high)}


def of_controls(x_cg: np.ndarray, kind: str) -> dict[str, float]:
    """Spread of the genes of control cells, and for counts their zeros."""
    mean_g, variance_g = x_cg.mean(axis=0, dtype=np.float64), x_cg.var(axis=0, dtype=np.float64)
    if kind == "continuous":
        return {"standard_deviation": float(np.median(np.sqrt(variance_g)))}
    ratio = (variance_g / np.where(mean_g > 0, mean_g, np.nan))[mean_g > 0]
    return {
        "variance_to_mean": float(np.median(ratio)) if len(ratio) else np.nan,
        "zero_fraction": float((x_cg == 0).mean()),
    }


def compare(simulated: pd.DataFrame, observed: pd.Series, units: str) -> pd.DataFrame:
    """Set the prior's quantiles beside the data.

    Parameters
    ----------
    simulated
        Draws x quantities.
    observed
        Quantities that the data show; some may be missing.
    units
        Units of a mean profile.

    Returns
    -------
    DataFrame, one row for each quantity; see :meth:`~sccvae_pyro.sccvae.SCCVAE.prior_predictive`.
    """
    table = simulated.quantile([0.05, 0.5, 0.95]).T.set_axis(["q05", "median", "q95"], axis=1)
    table.index.name = "quantity"
    table["data"] = observed.reindex(table.index)
    inside = table["data"].between(table["q05"], table["q95"])
    table["inside"] = inside.astype("boolean").mask(table["data"].isna())
    table["unit"] = table.index.map(_units(units))
    return table


def _units(profile: str) -> dict[str, str]:
    effect = f"RMS over genes of the change of {profile}"
    return {
        "edges": f"number with |B| > {EDGE}",
        "effect_median": effect,
        "effect_q90": effect,
        "profile_distance": "RMS over genes of (mean - expected) / sd, median of labels",
        "correlation": "RMS of the correlations of genes in control cells",
        "molecules_median": "molecules of a control cell, median",
        "molecules_spread": "sd of their logarithm over control cells",
        "responding_cells": "mean share of the shift",
        "variance_to_mean": "molecules, median of genes in control cells",
        "zero_fraction": "share of counts of control cells",
        "standard_deviation": "of values, median of genes in control cells",
    }


OF_PRIOR = "Ask whether the priors mean what you believe, and whether the decoder is fitted."


def warn_outside(table: pd.DataFrame, expects: str = "prior", advice: str = OF_PRIOR) -> None:
    """Warn, at the line that called the façade, of the quantities whose data the prior does not expect.

    Parameters
    ----------
    table
        What :func:`compare` returns.
    expects
        What it is that expects other data.
    advice
        What to do about it.
    """
    surprising = table[~table["inside"].fillna(True)]
    if surprising.empty:
        return
    said = "; ".join(
        f"{name} is {row.data:.3g}, the {expects} says {row.q05:.3g} to {row.q95:.3g}"
        for name, row in zip(surprising.index, surprising.itertuples(), strict=True)
    )
    message = (
        f"The data lie outside the {expects}'s 90 % interval in {listing(surprising.index)}: {said}. {advice}"
    )
    warnings.warn(message, InputWarning, stacklevel=3)
