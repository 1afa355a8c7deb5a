"""Whether ranks are uniform, as those of simulation-based calibration are where inference is right."""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError

COLUMNS = ("family", "rank", "draws")
"""What a table of ranks must have."""

MOST_BINS, LEAST_EXPECTED = 20, 5
"""Most bins of a chi-square test, and fewest ranks that are expected in each."""

SETS_OF_RANKS = 4000
"""Simulated sets of uniform ranks behind a band."""


class Band(NamedTuple):
    """Where the empirical distribution of uniform ranks lies, all of it at once.

    ``at``: fractions of the ranks' range; ``low`` and ``high``: bounds of the share of ranks below.
    """

    at: np.ndarray
    low: np.ndarray
    high: np.ndarray


def uniformity(ranks: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Test the ranks of each family for uniformity.

    Parameters
    ----------
    ranks
        Independent ranks: columns ``family``, ``rank`` and ``draws``, as of :meth:`~sccvae_pyro.SCCVAE.sbc`.
    level
        Probability of the band.

    Returns
    -------
    DataFrame
        One row for each ``family``: ``n``, number of ranks; ``mean`` of the ranks over their range, 0.5 if
        uniform, below where draws lie above the truth; ``spread``, root mean square distance of ranks from
        the middle over that of uniform ones, above 1 where the posterior is too narrow; ``bins`` and ``p`` of
        a chi-square test, NaN with too few ranks; ``p_corrected`` for the number of families (Holm 1979,
        Scand J Stat 6:65); ``inside``: whether the empirical distribution stays within :func:`ecdf_band`.

    Raises
    ------
    InputError
        If the table is empty or lacks a column, a rank is not a whole number from 0 to its number of draws,
        the ranks of a family are among different numbers of draws, a family is no string, or ``level`` does
        not lie between 0 and 1.
    """
    groups = check_ranks(ranks, level).groupby("family", sort=False)
    rows = {str(family): _test(str(family), group, level) for family, group in groups}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("family")
    table.insert(table.columns.get_loc("p") + 1, "p_corrected", holm(table["p"].to_numpy()))
    return table


def _test(family: str, group: pd.DataFrame, level: float) -> dict[str, object]:
    rank, n_draws = checked(family, group)
    place = (rank + 0.5) / (n_draws + 1)
    bins = number_of_bins(len(rank), n_draws)
    width = (n_draws + 1) // bins
    p = stats.chisquare(np.bincount(rank // width, minlength=bins)).pvalue if bins > 1 else np.nan
    band, (_, share) = ecdf_band(len(rank), n_draws, level), ecdf(rank, n_draws)
    uniform_sd = np.sqrt((1 - (n_draws + 1.0) ** -2) / 12)
    return {
        "n": len(rank),
        "mean": place.mean(),
        "spread": np.sqrt(np.square(place - 0.5).mean()) / uniform_sd,
        "bins": bins,
        "p": p,
        "inside": bool(((share >= band.low) & (share <= band.high)).all()),
    }


def check_ranks(ranks: object, level: object) -> pd.DataFrame:
    """Table of ranks in whole numbers, by families that are strings; refuse others, and levels that are none.

    Raises
    ------
    InputError
        Naming the column and the value.
    """
    if not isinstance(level, Real) or not 0 < float(level) < 1:
        raise InputError(f"level must be a number between 0 and 1, such as 0.95, not {level!r}.")
    if not isinstance(ranks, pd.DataFrame):
        raise InputError(f"ranks must be a DataFrame, not {type(ranks).__name__}. Pass what sbc() returns.")
    wrong = [name for name in COLUMNS if list(ranks.columns).count(name) != 1]
    if wrong:
        raise InputError(f"ranks must have one column {listing(wrong)} each. Pass what sbc() returns.")
    if ranks.empty:
        raise InputError("ranks has no rows. Pass what sbc() returns, and check how its rows were chosen.")
    for family in ranks["family"]:
        if not isinstance(family, str):
            raise InputError(f"ranks['family'] must hold strings, not {family!r}. Give each family its name.")
    whole = {"rank": _whole(ranks["rank"], least=0), "draws": _whole(ranks["draws"], least=1)}
    return pd.DataFrame({"family": list(ranks["family"]), **whole})


def _whole(column: pd.Series, least: int) -> list[int]:
    """Numbers of a column, whole ones that may be stored as floats."""
    for value in column:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not (is_number and float(value).is_integer() and value >= least):
            raise InputError(
                f"ranks[{column.name!r}] must hold whole numbers of at least {least}, not {value!r}. "
                "Pass what sbc() returns."
            )
    return [int(value) for value in column]


def checked(family: str, group: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Ranks of a family, and the number of draws that they are among.

    Raises
    ------
    InputError
        If there are none, a rank lies outside its range, or the numbers of draws differ.
    """
    rank, draws = group["rank"].to_numpy(), group["draws"].unique()
    if len(draws) != 1:
        raise InputError(f"Ranks of {family!r} must be among the same number of draws, not {draws.tolist()}.")
    if not ((rank >= 0) & (rank <= draws[0])).all():
        raise InputError(f"Ranks of {family!r} must lie between 0 and the {draws[0]} draws.")
    return rank, int(draws[0])


def number_of_bins(n: int, n_draws: int) -> int:
    """Most bins that hold as many ranks each as all others: a divisor of the ranks that there can be."""
    most = min(MOST_BINS, n // LEAST_EXPECTED)
    return max((bins for bins in range(1, most + 1) if (n_draws + 1) % bins == 0), default=1)


def holm(p: np.ndarray) -> np.ndarray:
    """Correct p-values for their number, so that the chance of any false alarm is held; NaN stays."""
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    corrected = p.copy()
    steps = np.arange(len(order), 0, -1) * p[order]
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def ecdf(rank: np.ndarray, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of ranks below each that there can be: fractions of their range, and the shares."""
    below = np.bincount(rank, minlength=n_draws + 1).cumsum()[:-1]
    return np.arange(1, n_draws + 1) / (n_draws + 1), below / len(rank)


def ecdf_band(n: int, n_draws: int, level: float = 0.95, seed: int = 0) -> Band:
    """Give a simultaneous band of the empirical distribution of uniform ranks.

    Of pointwise binomial intervals, those whose joint coverage is the level, found by simulation (Säilynoja,
    Bürkner & Vehtari 2022, Stat Comput 32:32).

    Parameters
    ----------
    n
        Number of ranks.
    n_draws
        Draws that each is among.
    level
        Probability that the whole curve of uniform ranks lies within the band.
    seed
        Seed of the simulation.
    """
    at = np.arange(1, n_draws + 1) / (n_draws + 1)
    counts = np.arange(n + 1)[:, None]
    tail = 2 * np.minimum(stats.binom.cdf(counts, n, at), stats.binom.sf(counts - 1, n, at))
    rng = np.random.default_rng(seed)
    uniform = rng.multinomial(n, np.full(n_draws + 1, 1 / (n_draws + 1)), size=SETS_OF_RANKS)
    below = uniform.cumsum(axis=1)[:, :-1]
    least = tail[below, np.arange(n_draws)].min(axis=1)
    within = tail >= np.quantile(least, 1 - level, method="lower")
    return Band(at, within.argmax(axis=0) / n, (n - within[::-1].argmax(axis=0)) / n)
