"""Whether training settled."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sccvae_pyro.plots.style import BASELINE, MODEL, SMALL, Plot, axes, finish


def training_curve(history: pd.DataFrame, ax: Axes | None = None) -> Plot:
    """Draw the loss of each epoch; the dot marks the best one on validation cells.

    Parameters
    ----------
    history
        Index: epoch, counted from 0 (the axis counts from 1); columns ``train_loss`` and
        ``validation_loss``, the negative ELBO per cell in nats.
        Epochs without a value are skipped.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    ax = axes(ax, 4.8, 3.2)
    lines = {"train_loss": ("training cells", BASELINE), "validation_loss": ("validation cells", MODEL)}
    for column, (label, color) in lines.items():
        loss = history[column].dropna()
        ax.plot(loss.index + 1, loss, color=color, label=label, linewidth=1.6)
    validation = history["validation_loss"].dropna()
    if len(validation):
        ax.plot(validation.idxmin() + 1, validation.min(), "o", color=MODEL, markersize=5)
    _look_past_the_start(ax, history)
    ax.legend(frameon=False, fontsize=SMALL)
    finish(ax, "epoch", "negative ELBO per cell (nats)", "Training")
    return Plot(ax, history)


def _look_past_the_start(ax: Axes, history: pd.DataFrame) -> None:
    """Let the first epochs, which are far higher, leave the picture."""
    losses = history[["train_loss", "validation_loss"]]
    late = losses.iloc[len(losses) // 10 :].to_numpy()
    low, high = np.nanmin(losses.to_numpy()), np.nanmax(late)
    if high > low:
        ax.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
