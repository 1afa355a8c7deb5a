"""Whether inference finds again what the model itself has drawn."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from sccvae_pyro.data.wording import suggestion
from sccvae_pyro.errors import InputError
from sccvae_pyro.evaluate.uniformity import check_ranks, checked, ecdf, ecdf_band
from sccvae_pyro.plots.style import FAINT, INK, MODEL, Plot, axes, finish


def rank_ecdf(ranks: pd.DataFrame, family: str, level: float = 0.95, ax: Axes | None = None) -> Plot:
    """Draw the distribution of the ranks of a family, less the uniform one, with its simultaneous band.

    Within the band: nothing speaks against the posterior. First above zero and then below: too many low and
    high ranks, intervals are too narrow; first below and then above: too wide. Above zero throughout: draws
    lie above the truth; below: under it. Source: Säilynoja, Bürkner & Vehtari 2022, Stat Comput 32:32.

    Parameters
    ----------
    ranks
        What :meth:`sccvae_pyro.SCCVAE.sbc` returns.
    family
        Which of its families.
    level
        Probability of the band.
    ax
        Axes to draw on; ``None`` makes new ones.

    Raises
    ------
    InputError
        If there are no ranks of the family, or as in :func:`sccvae_pyro.evaluate.uniformity`.
    """
    table = check_ranks(ranks, level)
    known = table["family"].unique().tolist()
    if not isinstance(family, str) or family not in known:
        raise InputError(f"There are no ranks of {family!r}. {suggestion(family, known, 'families')}")
    rank, n_draws = checked(family, table[table["family"] == family])
    band, (at, share) = ecdf_band(len(rank), n_draws, level), ecdf(rank, n_draws)
    difference = {"difference": share - at, "low": band.low - at, "high": band.high - at}
    data = pd.DataFrame({"fraction": at, **difference})
    ax = axes(ax, 4.0, 3.0)
    ax.fill_between(at, data["low"], data["high"], color=FAINT, linewidth=0)
    ax.axhline(0, color=INK, linewidth=0.8, linestyle="--")
    ax.step(at, data["difference"], where="mid", color=MODEL, linewidth=1.4)
    ax.set_xlim(0, 1)
    finish(ax, "rank of the truth, as a fraction", "share of ranks below, less uniform", family)
    return Plot(ax, data)
