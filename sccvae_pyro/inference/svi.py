"""Stochastic variational inference: the training loop, on Lightning."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - the name that Lightning gives itself
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sccvae_pyro.data.loading import Screen
from sccvae_pyro.errors import InputError
from sccvae_pyro.inference.agreement import check_sites
from sccvae_pyro.inference.checkpoint import Origin
from sccvae_pyro.inference.module import VALIDATION, SVIModule
from sccvae_pyro.inference.recipes import RECIPES
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models.program import Program

logger = logging.getLogger(__name__)

MOST_EPOCHS = 60
"""Passes over a small screen that are enough; more only fit its noise."""


DIVERGED = (
    "The fit diverged: parameters are no longer numbers in single precision. Lower learning_rate or "
    "global_rate, or give priors of usual scales; prior_predictive() says what they believe."
)


class History(Callback):
    """Losses of each epoch; kept in checkpoints, so that a resumed run has the whole curve."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the losses of the epoch."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows[trainer.current_epoch] = {
            key: metrics[key] for key in ("train_loss", VALIDATION) if key in metrics
        }

    def state_dict(self) -> dict[str, Any]:
        """Rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of the interrupted run."""
        self.rows = {int(epoch): row for epoch, row in state_dict["rows"].items()}

    def table(self) -> pd.DataFrame:
        """Losses indexed by epoch: ``train_loss`` and ``validation_loss``, nats per cell."""
        return pd.DataFrame.from_dict(self.rows, orient="index").rename_axis("epoch").sort_index()


class PatienceAfterWarmup(EarlyStopping):
    """Early stopping that waits until the KL has its full weight: before that, losses are not comparable."""

    def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
        module = trainer.lightning_module
        if isinstance(module, SVIModule) and module.kl_weight() >= 1.0:
            super()._run_early_stopping_check(trainer)


def fit(
    program: Program,
    screen: Screen,
    spec: InferenceSpec,
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Fit a program to a screen; the best state by validation ELBO is kept.

    Parameters
    ----------
    program
        Changed in place.
    screen
        Coded cells.
    spec
        How to fit.
    checkpoint_dir
        Where ``last.ckpt`` is written after every epoch; ``None`` keeps checkpoints only while fitting.
    resume
        Go on from ``last.ckpt`` where there is one.
    progress
        Show a progress bar.

    Returns
    -------
    DataFrame
        Index ``epoch``; columns ``train_loss`` and ``validation_loss``, nats per cell.

    Raises
    ------
    InputError
        If model and guide do not sample the same sites, every label has a single cell, the fit diverges, or
        it is to go on from a checkpoint that is damaged or of another run.
    """
    origin = Origin(program, screen, spec)
    train, validation = split_rows(screen, spec)
    check_sites(program, screen[train[:2]])
    program.sizes = replace(program.sizes, cells=len(train))
    recipe = RECIPES[spec.objective]
    loss = recipe.loss(program, spec.particles)
    loader = recipe.train_loader(screen, train, spec.batch_size, spec.seed)
    max_epochs = spec.max_epochs or int(np.clip(round(spec.target_steps / len(loader)), 2, MOST_EPOCHS))
    module = recipe.module(loss, spec, max_epochs * len(loader))
    with _folder(checkpoint_dir) as folder, _quiet(), _in_words():
        last = folder / "last.ckpt"
        going_on = resume and last.is_file()
        if going_on:
            origin.check(last)
        history = History()
        best = ModelCheckpoint(folder, "best", monitor=VALIDATION, enable_version_counter=False)
        every = ModelCheckpoint(
            folder, "last", enable_version_counter=False
        )  # save_last waits for a better one
        trainer = L.Trainer(
            max_epochs=max_epochs,
            accelerator=spec.accelerator,
            devices=spec.devices,
            precision=spec.precision,
            gradient_clip_val=spec.gradient_clip,
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            callbacks=[
                origin,
                history,
                best,
                every,
                PatienceAfterWarmup(VALIDATION, patience=spec.patience, check_finite=True),
                *([TQDMProgressBar(leave=True)] if progress else []),
            ],
        )
        with torch.random.fork_rng(devices=[]):
            trainer.fit(
                module,
                loader,
                recipe.eval_loader(screen, validation, 4 * spec.batch_size),
                ckpt_path=last if going_on else None,
                weights_only=True,
            )
        _restore(module, Path(best.best_model_path))
    if not all(parameter.isfinite().all() for parameter in program.parameters()):
        raise InputError(DIVERGED)
    program.eval()
    return history.table()


def split_rows(screen: Screen, spec: InferenceSpec) -> tuple[np.ndarray, np.ndarray]:
    """Split cells into training and validation rows, the same share of every label.

    Raises
    ------
    InputError
        If every label has a single cell.
    """
    rng = np.random.default_rng([spec.seed, 7])
    order = rng.permutation(len(screen))
    codes = screen.labels.cat.codes.to_numpy()[order]
    rank = pd.Series(codes).groupby(codes).cumcount().to_numpy()
    size = pd.Series(codes).groupby(codes).transform("size").to_numpy()
    held = rank < np.floor(spec.validation_fraction * size)
    if not held.any():  # every label is too small to share: take a few cells of the largest
        held = (rank < 1) & (size == size.max())
    if held.all():
        raise InputError("Every label has a single cell, so none is left to validate on. Add cells.")
    return np.sort(order[~held]), np.sort(order[held])


def _restore(module: SVIModule, best: Path) -> None:
    if best.is_file():
        module.load_state_dict(torch.load(best, weights_only=True, map_location="cpu")["state_dict"])


@contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)


@contextmanager
def _in_words() -> Iterator[None]:
    """Say of settings what torch says of a tensor, and Lightning of a machine."""
    try:
        yield
    except InputError:
        raise
    except MisconfigurationException as error:
        raise InputError(f"Cannot train on this machine: {error} Choose another accelerator.") from error
    except (ValueError, torch.linalg.LinAlgError) as error:
        raise InputError(DIVERGED) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice away: the loader is in memory, the user chose the device."""
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message="Encountered (NaN|inf)")  # fit() says when it diverges
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
