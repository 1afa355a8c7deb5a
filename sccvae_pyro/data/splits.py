"""Seeded splits of a screen by cells, by perturbations and by combinations.

A split by perturbations answers "what if this gene had never been perturbed": a held-out target is in no
training cell, not even within a combination. A split by combinations answers "what do these genes do
together", with each of them seen otherwise. Splits name cells, so that they can be stored and applied to
any AnnData that holds those cells.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae_pyro.data.checks import check_seed
from sccvae_pyro.data.labels import SEPARATOR, canonical_label, parse_targets
from sccvae_pyro.data.schema import Schema, cell_labels
from sccvae_pyro.data.wording import listing, suggestion
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import read_text, write_text

FRACTIONS = MappingProxyType({"train": 0.7, "validation": 0.1, "test": 0.2})


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Disjoint parts of a screen.

    Parameters
    ----------
    name
        What was split: ``"cells"``, ``"perturbations"``, ``"combinations"``, or a fold of them.
    parts
        Names of the cells of each part.
    seed
        The seed that drew it.
    held_out
        Targets or combinations that no training cell carries.

    Raises
    ------
    InputError
        If a cell is in two parts or twice in one.
    """

    name: str
    parts: Mapping[str, np.ndarray]
    seed: int
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = {part: np.array(cells, dtype=object) for part, cells in self.parts.items()}
        for cells in parts.values():
            cells.setflags(write=False)
        object.__setattr__(self, "parts", MappingProxyType(parts))
        object.__setattr__(self, "held_out", tuple(self.held_out))
        _check_disjoint(parts)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part}={len(cells)}" for part, cells in self.parts.items())
        return f"Split({self.name!r}, {sizes}, seed={self.seed}, held_out={len(self.held_out)})"

    def take(self, adata: AnnData, part: str) -> AnnData:
        """Cells of a part as an AnnData of their own, in memory, in the order of ``adata``.

        Raises
        ------
        InputError
            If there is no such part, or ``adata`` lacks some of its cells.
        """
        if part not in self.parts:
            raise InputError(f"The split has no part {part!r}. {suggestion(part, self.parts, 'parts')}")
        wanted = pd.Index(self.parts[part])
        absent = wanted[~wanted.isin(adata.obs_names)]
        if len(absent):
            raise InputError(
                f"The AnnData lacks {len(absent)} of {len(wanted)} cells of {part!r}: {listing(absent)}. "
                "Apply the split to the screen that it was made from."
            )
        chosen = adata[adata.obs_names.isin(wanted)]
        return chosen.to_memory() if adata.isbacked else chosen.copy()

    def to_json(self, path: str | Path) -> None:
        """Write the split to a file, whole or not at all."""
        stored = {
            "name": self.name,
            "seed": int(self.seed),
            "held_out": list(self.held_out),
            "parts": {part: cells.tolist() for part, cells in self.parts.items()},
        }
        write_text(json.dumps(stored), path)

    @classmethod
    def from_json(cls, path: str | Path) -> Split:
        """Read a split that :meth:`to_json` wrote.

        Raises
        ------
        InputError
            If the file cannot be read or holds no split.
        """
        text = read_text(path)
        try:
            stored = json.loads(text)
            listed = (stored["held_out"], *stored["parts"].values())
            if not all(isinstance(names, list) for names in listed):
                raise TypeError("cells and held-out labels are lists")
            return cls(stored["name"], stored["parts"], stored["seed"], tuple(stored["held_out"]))
        except (json.JSONDecodeError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} does not hold a split. Pass a file that Split.to_json wrote."
            ) from error


def _check_disjoint(parts: Mapping[str, np.ndarray]) -> None:
    cells = pd.Index(np.concatenate(list(parts.values()))) if parts else pd.Index([])
    shared = cells[cells.duplicated()].unique()
    if len(shared):
        places = [part for part, names in parts.items() if shared[0] in set(names)]
        raise InputError(
            f"{len(shared)} cells are in the split more than once: {listing(shared)} (the first in "
            f"{listing(places)}). Each cell belongs to one part."
        )


def split_cells(adata: AnnData, fractions: Mapping[str, float] = FRACTIONS, seed: int = 0) -> Split:
    """Split the cells of every perturbation, and of the controls, in the same proportions.

    Parameters
    ----------
    adata
        Screen after :func:`sccvae_pyro.setup_anndata`.
    fractions
        Share of each part; they sum to one. Every label has at least one cell in the first part.
    seed
        Seed of the draw.
    """
    _check_shares(fractions)
    labels = cell_labels(adata)
    part = _stratified(labels, fractions, _generator(seed))
    return Split("cells", {name: adata.obs_names[part == name] for name in fractions}, seed)


def split_perturbations(
    adata: AnnData,
    held_out: float | Sequence[str] = 0.2,
    seed: int = 0,
    validation: float = 0.1,
    test_controls: float = 0.2,
) -> Split:
    """Hold out targets: every cell that carries one, alone or within a combination, is a test cell.

    Parameters
    ----------
    adata
        Screen after :func:`sccvae_pyro.setup_anndata`.
    held_out
        Share of the targets, or their names.
    seed
        Seed of the draw.
    validation
        Share of the remaining cells for validation; no held-out target is among them.
    test_controls
        Share of the control cells that go to the test part, so that differences to control can be scored
        on cells that training has not seen.
    """
    rng = _generator(seed)
    known = sorted(set().union(*_targets_of_labels(adata).values()))
    if isinstance(held_out, int | float | np.floating):
        chosen = rng.permutation(np.array(known, dtype=object))[
            : _number(held_out, len(known), "targets")
        ].tolist()
    else:
        chosen = _named(_several(held_out, "targets"), known, "targets")
    if len(chosen) == len(known):
        raise InputError(
            f"All {len(known)} targets are held out, which leaves none to learn from. Hold out fewer."
        )
    return _hold_out("perturbations", adata, chosen, seed, rng, validation, test_controls)


def perturbation_folds(
    adata: AnnData, n_folds: int = 5, seed: int = 0, validation: float = 0.1, test_controls: float = 0.2
) -> list[Split]:
    """Split by perturbations several times, so that every target is held out in exactly one fold.

    Parameters
    ----------
    adata
        Screen after :func:`sccvae_pyro.setup_anndata`.
    n_folds
        Number of folds, at least two and at most the number of targets.
    seed
        Seed of the draw.
    validation, test_controls
        As in :func:`split_perturbations`.
    """
    rng = _generator(seed)
    known = sorted(set().union(*_targets_of_labels(adata).values()))
    if not (isinstance(n_folds, Integral) and 2 <= n_folds <= len(known)):
        raise InputError(f"n_folds={n_folds} does not suit {len(known)} targets. Pass 2 to {len(known)}.")
    folds = np.array_split(rng.permutation(np.array(known, dtype=object)), n_folds)
    names = [f"perturbations, fold {number} of {n_folds}" for number in range(1, n_folds + 1)]
    return [
        _hold_out(name, adata, fold.tolist(), seed, rng, validation, test_controls)
        for name, fold in zip(names, folds, strict=True)
    ]


def split_combinations(
    adata: AnnData,
    held_out: float | Sequence[str] = 0.2,
    seed: int = 0,
    validation: float = 0.1,
    test_controls: float = 0.2,
) -> Split:
    """Hold out combinations whose targets are all seen in training, alone or in other combinations.

    A larger combination that contains a held-out one is held out with it.

    Parameters
    ----------
    adata
        Screen after :func:`sccvae_pyro.setup_anndata`.
    held_out
        Share of the combinations, or their names. A share passes over those that cannot be held out.
    seed
        Seed of the draw.
    validation, test_controls
        As in :func:`split_perturbations`.
    """
    rng = _generator(seed)
    targets = _targets_of_labels(adata)
    known = [label for label, genes in targets.items() if len(genes) > 1]
    if not known:
        raise InputError(
            f"No cell carries a combination (targets joined by {SEPARATOR!r}). Use split_perturbations."
        )
    if isinstance(held_out, int | float | np.floating):
        wanted = rng.permutation(np.array(known, dtype=object)).tolist()
        chosen = _separable(targets, wanted)[: _number(held_out, len(known), "combinations")]
    else:
        control = Schema.of(adata).control
        named = _several(held_out, "combinations")
        wanted = _named(
            [canonical_label(parse_targets(name, control), control) for name in named], known, "combinations"
        )
        chosen = _separable(targets, wanted)
        _check_separable(targets, wanted, chosen)
    if not chosen:
        raise InputError(
            "No combination can be held out, because each has a target that occurs in no other label. "
            "Use split_perturbations."
        )
    return _hold_out("combinations", adata, chosen, seed, rng, validation, test_controls)


# Which perturbations are held out


def _targets_of_labels(adata: AnnData) -> dict[str, frozenset[str]]:
    """Targets of each perturbation label of the screen, the control label aside."""
    control = Schema.of(adata).control
    labels = cell_labels(adata).cat.categories
    return {label: frozenset(parse_targets(label, control)) for label in labels if label != control}


def _number(share: float, total: int, what: str) -> int:
    if not 0 < share < 1:
        raise InputError(
            f"held_out={share} is not a share of the {what}. Pass a number between 0 and 1, or names."
        )
    return max(1, round(share * total))


def _several(names: str | Sequence[str], what: str) -> list[str]:
    if not isinstance(names, Iterable):
        raise InputError(f"held_out={names!r} is neither a share of the {what} nor a list of their names.")
    return [names] if isinstance(names, str) else list(names)


def _named(names: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(
            f"{listing(unknown)} cannot be held out, not being among the {what} of the screen. "
            f"{suggestion(unknown[0], known, what)}"
        )
    if not wanted:
        raise InputError(f"held_out is empty. Name the {what} to hold out, or pass a share.")
    return wanted


def _separable(targets: Mapping[str, frozenset[str]], wanted: Iterable[str]) -> list[str]:
    """Go through combinations and keep those that leave each of their targets in some training label."""
    train = dict(targets)
    uses = Counter(gene for genes in train.values() for gene in genes)
    separable = []
    for combination in wanted:
        leaving = [label for label, genes in train.items() if targets[combination] <= genes]
        lost = Counter(gene for label in leaving for gene in train[label])
        if all(uses[gene] > times for gene, times in lost.items()):
            separable.append(combination)
            uses -= lost
            for label in leaving:
                del train[label]
    return separable


def _check_separable(
    targets: Mapping[str, frozenset[str]], wanted: Sequence[str], separable: Sequence[str]
) -> None:
    stuck = [combination for combination in wanted if combination not in separable]
    if stuck:
        raise InputError(
            f"{listing(stuck)} cannot be held out: a target of it, or of a larger combination that contains "
            "it, would be in no training cell. Hold out fewer, or use split_perturbations."
        )


# Which cells go where


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(check_seed(seed))


def _check_shares(shares: Mapping[str, float]) -> None:
    """Refuse shares of the parts that are not numbers, or none."""
    if not isinstance(shares, Mapping) or not shares:
        raise InputError(f"fractions={shares!r} must be a share for each part, such as {dict(FRACTIONS)}.")
    for part, share in shares.items():
        if not isinstance(share, Real):
            raise InputError(f"The share of {part} must be a number, not {share!r}.")


def _hold_out(
    name: str,
    adata: AnnData,
    held_out: Sequence[str],
    seed: int,
    rng: np.random.Generator,
    validation: float,
    test_controls: float,
) -> Split:
    """Put every cell whose label contains a held-out label into the test part, and share out the others."""
    _check_shares({"validation": validation, "test_controls": test_controls})
    schema = Schema.of(adata)
    labels = cell_labels(adata, schema)
    groups = [frozenset(parse_targets(label, schema.control)) for label in held_out]
    held = {
        label for label, genes in _targets_of_labels(adata).items() if any(group <= genes for group in groups)
    }
    is_held, is_control = labels.isin(held).to_numpy(), (labels == schema.control).to_numpy()
    part = np.full(len(labels), "test", dtype=object)
    seen = ~is_held & ~is_control
    shares = {"train": 1 - validation, "validation": validation}
    part[seen] = _stratified(labels[seen], shares, rng)
    shares = {"train": 1 - validation - test_controls, "validation": validation, "test": test_controls}
    part[is_control] = _stratified(labels[is_control], shares, rng)
    parts = {kind: adata.obs_names[part == kind] for kind in ("train", "validation", "test")}
    return Split(name, parts, seed, tuple(sorted(held_out)))


def _stratified(labels: pd.Series, fractions: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Draw the part of each cell, in the given proportions within each label."""
    shares = np.array(list(fractions.values()), dtype=float)
    if (shares < 0).any() or shares[0] <= 0 or not np.isclose(shares.sum(), 1):
        given = ", ".join(f"{part} {share:g}" for part, share in fractions.items())
        raise InputError(f"The shares of the parts ({given}) must be positive and sum to one.")
    shuffled = labels.iloc[rng.permutation(len(labels))]
    by_label = shuffled.groupby(shuffled, observed=True)
    rank = by_label.cumcount().reindex(labels.index).to_numpy()
    size = by_label.transform("size").reindex(labels.index).to_numpy()
    ends = np.rint(np.cumsum(shares)[:-1, None] * size)
    ends = np.maximum(ends, 1)  # a label with few cells is for training
    return np.array(list(fractions), dtype=object)[(rank >= ends).sum(axis=0)]
