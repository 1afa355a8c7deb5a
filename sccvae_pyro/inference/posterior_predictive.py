"""What the fitted model would generate in place of the measured cells: the posterior predictive check.

Globals come from the posterior, cells from the noise prior; generated and measured cells are summarised by
the same functions (Gelman, Meng & Stern 1996, Stat Sin 6:733). Where these are the cells that the model
learned from, the check finds what it cannot generate, not how well it predicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sccvae_pyro.data.loading import Screen
from sccvae_pyro.errors import InputError
from sccvae_pyro.inference.predictive import compare, of_controls, of_effects
from sccvae_pyro.inference.replicates import Cells, Part

CORRELATED_GENES = 40
"""Genes whose correlations are looked at: those that control cells express most."""

ADVICE = (
    "Ask which of likelihood, noise and number of nodes cannot say it; the items behind it are in .items."
)


class Check(NamedTuple):
    """Generated beside measured cells.

    Parameters
    ----------
    summary
        One row for each quantity; see :meth:`~sccvae_pyro.sccvae.SCCVAE.posterior_predictive`.
    items
        What lies behind it, one row for each gene, pair of genes, or gene of a label: columns ``quantity``
        (``variance``, ``zero_fraction``, ``correlation``, ``mean_profile``), ``label``, ``gene``, ``other``
        (the second gene of a pair), ``expression`` (mean of the gene in control cells), ``q05``,
        ``median``, ``q95``, ``data``, ``inside``.
    """

    summary: pd.DataFrame
    items: pd.DataFrame


class Looked(NamedTuple):
    """What is looked at.

    ``part``: the cells; ``pairs_2p``: positions of the genes of each pair; ``kind``: of the values;
    ``molecules``: whether the number of molecules of a cell is generated, too.
    """

    part: Part
    pairs_2p: np.ndarray
    kind: str
    molecules: bool

    @classmethod
    def at(cls, cells: Cells, part: Part, screen: Screen, molecules: bool) -> Looked:
        """Choose pairs of genes by the measured cells.

        Raises
        ------
        InputError
            If there are no control cells, which the check compares with.
        """
        schema = screen.coding.schema
        if part.labels[0] != schema.control:
            raise InputError(
                f"There are no control cells ({schema.control!r}) among these, and the check compares with "
                "them. Pass them along."
            )
        expressed = np.argsort(-cells.log_cg[part.codes == 0].mean(axis=0), kind="stable")
        chosen = np.sort(expressed[:CORRELATED_GENES])
        return cls(part, chosen[np.stack(np.triu_indices(len(chosen), k=1))], schema.kind, molecules)


def check(
    measured: Cells, replicated: Iterable[Cells], looked: Looked, genes: Sequence[str], units: str
) -> Check:
    """Summarise measured and generated cells, and set one beside the other.

    Parameters
    ----------
    measured
        The measured cells.
    replicated
        Cells generated in their place, once for each draw of the globals.
    looked
        What is looked at.
    genes
        Names of the genes.
    units
        Units of a mean profile.
    """
    data = _items(measured, looked)
    quantities = _quantities(measured, data, looked)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in data}
    simulated = []
    for cells in replicated:
        items = _items(cells, looked)
        simulated.append(_quantities(cells, items, looked))
        for name, values in items.items():
            drawn[name].append(values.astype(np.float32))
    stacked = {name: np.stack(values) for name, values in drawn.items()}
    distance_s, quantities["profile_distance"] = _distances(stacked["mean_profile"], data["mean_profile"])
    table = pd.DataFrame(simulated).assign(profile_distance=distance_s)
    names = _names(looked, np.asarray(genes))
    expression = dict(zip(genes, data["mean_profile"][0], strict=True))
    items_table = pd.concat(
        [_beside(name, stacked[name], data[name], names[name]) for name in data], ignore_index=True
    )
    items_table.insert(4, "expression", items_table["gene"].map(expression))
    return Check(compare(table, pd.Series(quantities), units), items_table)


def _items(cells: Cells, looked: Looked) -> dict[str, np.ndarray]:
    """Summarise cells gene by gene; all but the mean profiles are of control cells."""
    is_control = looked.part.codes == 0
    x_cg = cells.x_cg[is_control]
    items = {"variance": x_cg.var(axis=0, dtype=np.float64)}
    if looked.kind == "counts":
        items["zero_fraction"] = (x_cg == 0).mean(axis=0)
    return {
        **items,
        "correlation": _correlations(cells.log_cg[is_control], looked.pairs_2p),
        "mean_profile": looked.part.means(cells.log_cg),
    }


def _correlations(log_cg: np.ndarray, pairs_2p: np.ndarray) -> np.ndarray:
    """Correlation of each pair of genes over the cells, pairs; zero with a gene that does not vary."""
    centred = log_cg - log_cg.mean(axis=0)
    length = np.sqrt(np.square(centred).sum(axis=0))
    unit = centred / np.where(length > 0, length, 1.0)
    first, second = pairs_2p
    return np.einsum("cp,cp->p", unit[:, first], unit[:, second])


def _quantities(cells: Cells, items: dict[str, np.ndarray], looked: Looked) -> dict[str, float]:
    """Summarise cells in single numbers."""
    control = cells.x_cg[looked.part.codes == 0]
    profiles = items["mean_profile"]
    sizes = np.sqrt(np.square(profiles[1:] - profiles[0]).mean(axis=1))
    quantities = {
        **of_controls(control, looked.kind),
        "correlation": float(np.sqrt(np.square(items["correlation"]).mean()))
        if looked.pairs_2p.size
        else np.nan,
        **of_effects(sizes),
    }
    if looked.molecules:
        total = control.sum(axis=1)
        quantities["molecules_median"] = float(np.median(total))
        quantities["molecules_spread"] = float(np.log(np.maximum(total, 1)).std())
    return quantities


def _distances(drawn_slg: np.ndarray, data_lg: np.ndarray) -> tuple[np.ndarray, float]:
    """How far profiles are from their mean over draws, in sds: of each draw, and of the data.

    Root mean square over genes, median over labels.
    """
    mean_lg, sd_lg = drawn_slg.mean(axis=0), drawn_slg.std(axis=0, ddof=1)
    sd_lg = np.where(sd_lg > 0, sd_lg, np.inf)  # a gene that is never generated decides nothing

    def distance(profile: np.ndarray) -> np.ndarray:
        return np.median(np.sqrt(np.square((profile - mean_lg) / sd_lg).mean(axis=-1)), axis=-1)

    return distance(drawn_slg), float(distance(data_lg))


def _names(looked: Looked, genes: np.ndarray) -> dict[str, pd.DataFrame]:
    """Label, gene and other gene of each item."""
    control, labels = looked.part.labels[0], looked.part.labels
    first, second = genes[looked.pairs_2p]
    by_gene = pd.DataFrame({"label": control, "gene": genes, "other": ""})
    return {
        "variance": by_gene,
        "zero_fraction": by_gene,
        "correlation": pd.DataFrame({"label": control, "gene": first, "other": second}),
        "mean_profile": pd.DataFrame(
            {"label": np.repeat(labels, len(genes)), "gene": np.tile(genes, len(labels)), "other": ""}
        ),
    }


def _beside(name: str, drawn: np.ndarray, data: np.ndarray, names: pd.DataFrame) -> pd.DataFrame:
    """Quantiles over draws beside the data, one row for each item."""
    low, middle, high = np.quantile(drawn, [0.05, 0.5, 0.95], axis=0).reshape(3, -1)
    flat = data.ravel().astype(drawn.dtype)  # shares of few cells tie with their quantiles
    columns = {
        "q05": low,
        "median": middle,
        "q95": high,
        "data": flat,
        "inside": (low <= flat) & (flat <= high),
    }
    table = names.assign(**columns)
    table.insert(0, "quantity", name)
    return table
