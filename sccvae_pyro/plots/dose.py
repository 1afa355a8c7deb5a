"""What a weaker or stronger perturbation would do."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.plots.style import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SMALL,
    STATES,
    UNITS,
    Plot,
    apart,
    axes,
    change,
    check_table,
    finish,
    whiskers,
)

_LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"), (GREY, "-"))


def penetrance_curves(
    curves: pd.DataFrame, title: str = "", units: str | None = None, ax: Axes | None = None
) -> Plot:
    """Draw the predicted effect on a few genes, or nodes, at growing penetrance, with 90 % bands.

    Parameters
    ----------
    curves
        Of one perturbation, as :meth:`sccvae_pyro.SCCVAE.penetrance_curves` or ``state_curves`` gives them:
        ``gene`` or ``node``, ``penetrance``, ``delta``, ``low``, ``high``. At most five genes.
    title
        Name of the perturbation.
    units
        Units of the profiles; ``None`` is ``mean log1p(CP10K)`` for genes, and sds of the noise for nodes.
    ax
        Axes to draw on; ``None`` makes new ones.

    Raises
    ------
    InputError
        If the table is no such table, or of several perturbations or more than five genes, or has a gene
        twice.
    """
    column = "node" if isinstance(curves, pd.DataFrame) and "node" in curves else "gene"
    _check(curves, column)
    ax = axes(ax, 4.4, 3.0)
    ax.axhline(0, color=FAINT, linewidth=1.0, zorder=0)
    ax.axvline(1, color=GREY, linestyle=":", linewidth=1.0, zorder=0)
    names = list(curves[column].unique())
    for name, (color, line) in zip(names, _LINES, strict=False):
        _draw(ax, curves[curves[column] == name].sort_values("penetrance"), color, line)
    shown = change(units or (STATES if column == "node" else UNITS))
    finish(ax, "penetrance relative to the screen (dotted: 1)", shown, title)
    _name_ends(ax, curves.set_index(column), names)
    return Plot(ax, curves)


def _check(curves: pd.DataFrame, column: str) -> None:
    columns = (column, "penetrance", "delta", "low", "high")
    check_table(curves, columns, "curves", "what penetrance_curves() or state_curves() returns")
    labels = list(curves["perturbation"].unique()) if "perturbation" in curves else []
    if len(labels) > 1:
        raise InputError(
            f"curves are of {listing(labels)}, and a picture is of one perturbation. "
            f"Choose it: curves[curves['perturbation'] == {str(labels[0])!r}]."
        )
    twice = curves.loc[curves.duplicated([column, "penetrance"]), column].unique()
    if len(twice):
        raise InputError(f"curves hold {listing(twice)} more than once. Keep one: curves.drop_duplicates().")
    names = curves[column].unique()
    if len(names) > len(_LINES):
        raise InputError(
            f"curves follow {len(names)} {column}s, of which {len(_LINES)} at most can be told apart. "
            f"Choose some: curves[curves[{column!r}].isin({[str(name) for name in names[:3]]})]."
        )


def _draw(ax: Axes, curve: pd.DataFrame, color: str, line: str) -> None:
    """Draw a line in its band; where there is a single penetrance, a point with its interval."""
    step, low, delta, high = (curve[part].to_numpy() for part in ("penetrance", "low", "delta", "high"))
    if len(curve) == 1:
        ax.errorbar(step, delta, whiskers(low, delta, high), fmt="o", color=color)
        return
    ax.fill_between(step, low, high, color=color, alpha=0.15, linewidth=0)
    ax.plot(step, delta, line, color=color, linewidth=1.8)


def _name_ends(ax: Axes, curves: pd.DataFrame, names: list[str]) -> None:
    """Write each name where its curve ends."""
    low, high = ax.get_ylim()
    left, right = curves["penetrance"].min(), curves["penetrance"].max()
    ends = curves.loc[curves["penetrance"] == right, "delta"].reindex(names)
    ax.set_xlim((left, right) if left < right else (left - 0.5, right + 0.5))
    places = apart(ends.to_numpy(), 0.075 * (high - low))
    for name, place, (color, _) in zip(names, places, _LINES, strict=False):
        ax.annotate(
            name,
            (right, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=color,
            annotation_clip=False,
            parse_math=False,
        )
