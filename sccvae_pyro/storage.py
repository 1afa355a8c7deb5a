"""A model on disk: weights as tensors beside a JSON file; loading runs no code from either."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sccvae_pyro.errors import InputError
from sccvae_pyro.files import as_path, check_file, write_text, write_whole

FORMAT = 1
LOSSES = ("train_loss", "validation_loss")
DESCRIPTION, WEIGHTS, HISTORY = "model.json", "weights.pt", "history.csv"


def save(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], history: pd.DataFrame
) -> None:
    """Write a model; the description goes last, so that a folder with one is complete.

    Parameters
    ----------
    folder
        Made where it does not exist.
    description
        Plain values: spec, coding, versions.
    tensors
        Weights and buffers by name.
    history
        Losses by epoch.

    Raises
    ------
    InputError
        If the folder cannot be made or written to.
    """
    for name in (WEIGHTS, HISTORY, DESCRIPTION):
        check_file(folder / name)
    write_whole(folder / WEIGHTS, lambda path: torch.save(dict(tensors), path))
    write_text(history.to_csv(), folder / HISTORY)
    write_text(json.dumps({"format": FORMAT, **description}, indent=1), folder / DESCRIPTION)


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read the plain values of a saved model, without its weights; ``"spec"`` is among them.

    Raises
    ------
    InputError
        If the folder holds no model, or one that this version cannot read.
    """
    folder = as_path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise InputError(
            f"{folder} holds no model: there is no {DESCRIPTION}. Give the folder that save() wrote."
        )
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        found, _ = description["format"], description["spec"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{folder / DESCRIPTION} is damaged or was not written by this package.") from None
    if found != FORMAT:
        raise InputError(
            f"{folder} is of format {found}, this version reads {FORMAT}. Install a matching version."
        )
    return description


def load(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor], pd.DataFrame]:
    """Read what :func:`save` wrote.

    Returns
    -------
    Description, tensors and history.

    Raises
    ------
    InputError
        If the folder holds no model, or one that this version cannot read.
    """
    folder = as_path(folder)
    description = read_description(folder)
    try:
        tensors = torch.load(folder / WEIGHTS, weights_only=True, map_location="cpu")
        history = pd.read_csv(folder / HISTORY, index_col="epoch")
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise TypeError("a weight is no tensor")
        if history.empty or history[list(LOSSES)].astype(float).isna().any(axis=None):
            raise ValueError("the history has no losses in some epochs")
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"The weights or the history in {folder} are missing or damaged: {error}") from None
    return description, tensors, history
