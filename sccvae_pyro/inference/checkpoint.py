"""Where a run may go on: only from a checkpoint of the same cells, the same model and the same settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sccvae_pyro.data.loading import Screen
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import check_folder
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models.program import Program

MACHINE = {"accelerator", "devices"}
"""Settings that say where a run is computed; it may go on elsewhere."""


class Origin(Callback):
    """What a run learns, from what and how; kept in its checkpoints.

    Parameters
    ----------
    program
        As it is built for the screen, before its first step.
    screen
        Coded cells.
    spec
        How to fit.
    """

    def __init__(self, program: Program, screen: Screen, spec: InferenceSpec) -> None:
        shapes = {name: tuple(value.shape) for name, value in program.state_dict().items()}
        columns = [part.tobytes() for part in (screen.library, screen.covariates, screen.guides)]
        self.facts: dict[str, Any] = {
            **spec.model_dump(exclude=MACHINE),
            "priors": repr(program.priors),
            "sizes": str(shapes),
            "genes": _digest(_joined(screen.coding.genes)),
            "cells": _digest(_joined(screen.labels.index), _joined(screen.labels), *columns),
            # Sums in another order differ in the last bit, which a digest would not forgive.
            "expression": torch.stack([program.encoder.center, program.encoder.scale]),
            "features": program.features.clone(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What belongs into a checkpoint."""
        return self.facts

    def check(self, path: Path) -> None:
        """Refuse a checkpoint of another run.

        Raises
        ------
        InputError
            If the file is damaged, or anything that it was written with differs; the message names what.
        """
        try:
            known = torch.load(path, weights_only=True, map_location="cpu")["callbacks"][self.state_key]
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(
                f"The checkpoint {path} is damaged or was not written by this version of the package. Delete "
                "it, or leave out resume to start afresh."
            ) from error
        if others := [name for name, fact in self.facts.items() if not _same(fact, known.get(name))]:
            raise InputError(
                f"The checkpoint {path} is of another run; it differs in {listing(others)}. Resume with what "
                "it was written with, name another checkpoint_dir, or leave out resume to start afresh."
            )


def checkpoint_folder(path: str | Path | None, resume: bool) -> Path | None:
    """Folder of the checkpoints; nothing is made.

    Raises
    ------
    InputError
        If it cannot be written to, or a run is to resume without one.
    """
    if not isinstance(resume, bool):
        raise InputError(f"resume must be True or False, not {resume!r}.")
    if resume and path is None:
        raise InputError("resume=True needs the folder of the checkpoints. Name it as checkpoint_dir.")
    return None if path is None else check_folder(path)


def _joined(names: Iterable[object]) -> bytes:
    return "\n".join(map(str, names)).encode()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return type(one) is type(other) and one == other
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-6)
