"""Which cells make up a batch: of all perturbations mixed, or pairs of a control and a perturbed cell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from sccvae_pyro.data.loading import Batch, Screen
from sccvae_pyro.errors import InputError


class EpochBatches(Sampler[np.ndarray], ABC):
    """Batches of rows that depend on the seed and the epoch alone, so that training can resume anywhere."""

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from self.batches(np.random.default_rng([self.seed, self.epoch]))

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Rows of each batch of an epoch."""


class MixedBatches(EpochBatches):
    """All cells shuffled; the last, smaller batch of an epoch is left to the next shuffle."""

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int) -> None:
        super().__init__(seed)
        self.rows, self.batch_size = rows, min(batch_size, len(rows))

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Consecutive parts of a permutation."""
        shuffled = rng.permutation(self.rows)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield shuffled[start : start + self.batch_size]


class PairedBatches(EpochBatches):
    """Cells of one perturbation, after as many control cells drawn at random.

    Parameters
    ----------
    control
        Rows of control cells.
    perturbed
        Rows of the cells of each perturbation.
    batch_size
        Most pairs of a batch.
    seed
        Seed.
    """

    def __init__(
        self, control: np.ndarray, perturbed: Sequence[np.ndarray], batch_size: int, seed: int
    ) -> None:
        super().__init__(seed)
        self.control, self.perturbed, self.batch_size = control, perturbed, batch_size

    def __len__(self) -> int:
        return sum(-(-len(rows) // self.batch_size) for rows in self.perturbed)

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """All perturbed cells once, perturbations in random order."""
        size = self.batch_size
        parts = [
            shuffled[start : start + size]
            for shuffled in map(rng.permutation, self.perturbed)
            for start in range(0, len(shuffled), size)
        ]
        for i in rng.permutation(len(parts)):
            yield np.concatenate([rng.choice(self.control, len(parts[i])), parts[i]])


def train_loader(screen: Screen, rows: np.ndarray, batch_size: int, seed: int) -> DataLoader[Batch]:
    """Shuffled minibatches of the rows, all perturbations mixed."""
    return DataLoader(_ByArray(screen), sampler=MixedBatches(rows, batch_size, seed), batch_size=None)


def paired_train_loader(screen: Screen, rows: np.ndarray, batch_size: int, seed: int) -> DataLoader[Batch]:
    """Minibatches of cells of one perturbation, after as many control cells.

    Raises
    ------
    InputError
        If the rows lack control cells, or perturbed ones.
    """
    is_control, codes = screen.is_control[rows], screen.labels.cat.codes.to_numpy()[rows]
    control, others = rows[is_control], rows[~is_control]
    if not len(control) or not len(others):
        missing = "perturbed" if len(control) else "control"
        raise InputError(
            f"objective 'published' pairs control with perturbed cells, and there are no {missing} cells to "
            "pair. Fit with objective='elbo'."
        )
    perturbed = [others[codes[~is_control] == code] for code in np.unique(codes[~is_control])]
    return DataLoader(
        _ByArray(screen), sampler=PairedBatches(control, perturbed, batch_size, seed), batch_size=None
    )


def paired_eval_loader(screen: Screen, rows: np.ndarray, batch_size: int) -> DataLoader[Batch]:
    """The same pairs every time."""
    return paired_train_loader(screen, rows, batch_size, seed=0)


def eval_loader(screen: Screen, rows: np.ndarray, batch_size: int) -> DataLoader[Batch]:
    """Minibatches of the rows in order."""
    return DataLoader(
        _ByArray(screen), sampler=BatchSampler(rows, batch_size, drop_last=False), batch_size=None
    )


class _ByArray(Dataset[Batch]):
    """A screen indexed by a list of rows, as samplers give them."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    def __len__(self) -> int:
        return len(self.screen)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        return self.screen[np.asarray(rows)]
