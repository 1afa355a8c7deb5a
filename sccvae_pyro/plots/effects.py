"""What each perturbation does."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from scipy.cluster import hierarchy

from sccvae_pyro.plots.style import GREY, SMALL, UNITS, Plot, axes, change, finish, name_ticks

_UNSURE = 0.3  # opacity of effects whose interval holds zero


def effect_heatmap(
    predictions: AnnData, n_genes: int = 25, n_perturbations: int = 30, ax: Axes | None = None
) -> Plot:
    """Draw the predicted effects of the strongest perturbations on the genes that they change most.

    Rows and columns that look alike stand together. Pale cells are effects whose 90 % interval holds zero.

    Parameters
    ----------
    predictions
        Layers ``delta``, ``delta_q05`` and ``delta_q95``, perturbations x genes; ``uns["units"]``.
    n_genes, n_perturbations
        How many to show, at most.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    delta, low, high = (
        pd.DataFrame(predictions.layers[name], predictions.obs_names, predictions.var_names).astype(float)
        for name in ("delta", "delta_q05", "delta_q95")
    )
    strongest = np.square(delta).sum(axis=1).nlargest(n_perturbations).index
    genes = delta.loc[strongest].abs().max(axis=0).nlargest(n_genes).index
    shown = delta.loc[strongest, genes]
    shown = shown.iloc[_alike(shown.to_numpy()), _alike(shown.to_numpy().T)].T
    sure = (low.T.loc[shown.index, shown.columns] > 0) | (high.T.loc[shown.index, shown.columns] < 0)

    ax = axes(ax, 2.2 + 0.2 * shown.shape[1], 1.6 + 0.19 * shown.shape[0])
    limit = float(np.quantile(shown.abs(), 0.98)) or 1.0
    opacity = np.where(sure, 1.0, _UNSURE)
    picture = ax.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=opacity, aspect="auto")
    name_ticks(ax.xaxis, list(shown.columns), rotation=90)
    name_ticks(ax.yaxis, list(shown.index))
    finish(ax, "perturbation", "gene", "Predicted effects")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0, labelsize=7)
    bar = ax.figure.colorbar(picture, ax=ax, shrink=0.5, aspect=18, extend="both", pad=0.02)
    bar.set_label(change(predictions.uns.get("units", UNITS)), fontsize=SMALL)
    bar.ax.tick_params(labelsize=7, color=GREY)
    bar.outline.set_visible(False)
    return Plot(ax, shown)


def _alike(values: np.ndarray) -> np.ndarray:
    """Order rows so that like ones are neighbours."""
    if len(values) < 3:
        return np.arange(len(values))
    tree = hierarchy.linkage(values, method="average", optimal_ordering=True)
    return hierarchy.leaves_list(tree)
