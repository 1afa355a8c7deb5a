"""What the command line does, step by step: prepare a screen, keep a run, try it, tell of it.

A *run* is a folder. It holds the model (see :meth:`sccvae_pyro.SCCVAE.save`), the pseudobulk of its
training cells, the training cells themselves unless the user declines, the held-out cells where there are
any, and, once they exist, the scores.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from sccvae_pyro import report
from sccvae_pyro.assessment import Assessment
from sccvae_pyro.data import datasets
from sccvae_pyro.data.features import (
    FeatureTable,
    gene_set_kernel,
    gene_sets,
    regulon_kernel,
    regulons,
    user_table,
)
from sccvae_pyro.data.labels import parse_targets
from sccvae_pyro.data.loading import profiles
from sccvae_pyro.data.schema import UNS_KEY, Schema, cell_labels, feature_table, setup_anndata
from sccvae_pyro.data.simulate import simulate
from sccvae_pyro.data.splits import split_perturbations
from sccvae_pyro.data.wording import listing, suggestion
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import write_anndata, write_text
from sccvae_pyro.sccvae import SCCVAE

logger = logging.getLogger(__name__)

TRAIN, HELD_OUT, PROFILES = "train.h5ad", "held_out.h5ad", "training_profiles.h5ad"
SCORES, CHECKPOINTS = "scores", "checkpoints"
"""Names within a run."""

FEATURES = "sccvae_features"
"""Key of ``uns`` under which combined features are put."""


# Before training


@dataclass(frozen=True)
class Sources:
    """Where features of the perturbed genes come from; none of them is needed.

    Parameters
    ----------
    gmt
        Gene sets.
    regulons
        Regulatory edges.
    csv
        Table whose first column names genes.
    key
        Table in ``uns`` or ``varm`` of the screen.
    """

    gmt: Path | None = None
    regulons: Path | None = None
    csv: Path | None = None
    key: str | None = None

    def tables(self, adata: AnnData, seen: Sequence[str]) -> list[pd.DataFrame]:
        """One table per source: of sets and regulons the similarity to the seen perturbations.

        They describe every gene of the source, so that any of them can be asked for, measured or not.
        """
        tables = []
        if self.gmt is not None:
            tables.append(gene_set_kernel(self.gmt, seen, gene_sets(self.gmt).index))
        if self.regulons is not None:
            tables.append(regulon_kernel(self.regulons, seen, regulons(self.regulons).index))
        if self.csv is not None:
            tables.append(user_table(_read_features(self.csv), self.csv.stem))
        if self.key is not None:
            tables.append(user_table(feature_table(adata, self.key), self.key))
        return tables


def prepare(
    adata: AnnData,
    sources: Sources,
    held_out: str | None = None,
    leave_out: Sequence[str] = (),
    seed: int = 0,
) -> tuple[AnnData, AnnData | None]:
    """Turn a screen that has been set up into training cells with features, and held-out cells.

    Parameters
    ----------
    adata
        The screen; it may be changed.
    sources
        Where features come from.
    held_out
        Targets to hold out, separated by commas, or a share of the targets such as ``"0.2"``.
    leave_out
        Targets whose cells are dropped, for want of features say.
    seed
        Seed of the split.

    Returns
    -------
    Training cells and, where asked for, held-out cells (with a fifth of the controls among them).

    Raises
    ------
    InputError
        If a target is unknown, or none of the sources knows a perturbed gene.
    """
    if leave_out:
        adata = _without(adata, leave_out)
    targets = _targets(adata)
    if held_out is None:
        logger.info("Nothing is held out: give --hold-out to test predictions of unseen perturbations.")
        train, test = adata, None
    else:
        split = split_perturbations(adata, _share_or_names(held_out, targets), seed, validation=0.0)
        train, test = split.take(adata, "train"), split.take(adata, "test")
        logger.info("Held out: %s.", listing(split.held_out, limit=12))
    _add_features(train, sources, targets)
    return train, test


def names(text: str, known: Iterable[str] = ()) -> list[str]:
    """Names between commas.

    Parameters
    ----------
    text
        What the user wrote.
    known
        Names that there are.

    Raises
    ------
    InputError
        If there is none, or a known name would be cut at a comma of its own.
    """
    found = _between_commas(text)
    if not found:
        raise InputError("The list of names is empty. Separate names by commas, as in STAT1,JAK2.")
    whole = f",{','.join(found)},"
    if cut := [name for name in known if "," in name and f",{','.join(_between_commas(name))}," in whole]:
        raise InputError(
            f"The name {cut[0]!r} holds a comma, which separates names here. Ask for it in Python, with a "
            "list of names, or rename it in the screen."
        )
    return found


def _between_commas(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _share_or_names(text: str, known: Sequence[str]) -> float | list[str]:
    try:
        return float(text)
    except ValueError:
        return names(text, known)


def _targets(adata: AnnData) -> list[str]:
    control = Schema.of(adata).control
    labels = cell_labels(adata).cat.categories
    return sorted({target for label in labels for target in parse_targets(label, control)})


def _without(adata: AnnData, leave_out: Sequence[str]) -> AnnData:
    """Drop the cells that carry any of the targets."""
    known, dropped, control = _targets(adata), set(leave_out), Schema.of(adata).control
    if unknown := sorted(dropped.difference(known)):
        raise InputError(
            f"{listing(unknown)} cannot be left out. {suggestion(unknown[0], known, 'targets of the screen')}"
        )
    labels = cell_labels(adata)
    kept = [label for label in labels.cat.categories if dropped.isdisjoint(parse_targets(label, control))]
    return adata[labels.isin(kept).to_numpy()].copy()


def _add_features(train: AnnData, sources: Sources, targets: Sequence[str]) -> None:
    """Give the training cells the features of all genes that a source knows."""
    schema, seen = Schema.of(train), _targets(train)
    tables = sources.tables(train, seen)
    if not tables:
        return
    known = set().union(*(table.index for table in tables))
    features = FeatureTable.fit(tables, how="outer", fill=known, genes=seen)
    if unknown := [target for target in targets if target not in features.table.index]:
        raise InputError(
            f"None of the feature sources knows {len(unknown)} of {len(targets)} perturbed genes: "
            f"{listing(unknown)}. Add a source that does, or leave their cells out: "
            f"--leave-out {','.join(unknown)}"
        )
    for source, has in features.coverage.loc[list(targets)].items():
        if not has.all():
            logger.info("%s: no entry for %s, taken as average.", source, listing(has.index[~has]))
    train.uns[FEATURES] = features.table
    setup_like(train, replace(schema, feature_key=FEATURES))


def _read_features(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, index_col=0)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read features from {path}: {error}") from error


def setup_like(adata: AnnData, schema: Schema) -> None:
    """Set a screen up by a known schema."""
    settings = asdict(schema)
    del settings["kind"]
    setup_anndata(adata, **settings)


# A run


def keep(run: Path, train: AnnData, held_out: AnnData | None, keep_cells: bool = True) -> None:
    """Write what a run keeps of its data beside the model; scores of an earlier model there are removed."""
    old = [name for name in (SCORES, HELD_OUT) if (run / name).exists()]
    if old:
        logger.warning("%s held another run: its model, %s are replaced or removed.", run, " and ".join(old))
    shutil.rmtree(run / SCORES, ignore_errors=True)
    write_anndata(pseudobulk(train), run / PROFILES)
    for name, cells in ((TRAIN, train if keep_cells else None), (HELD_OUT, held_out)):
        if cells is None:
            (run / name).unlink(missing_ok=True)
        else:
            write_anndata(cells, run / name)


def pseudobulk(adata: AnnData) -> AnnData:
    """Mean profiles, labels x genes: ``X`` means, layer ``var`` cell variances, ``obs["n"]`` cells."""
    mean, var, n = profiles(adata)
    genes = pd.DataFrame(index=mean.columns)
    return AnnData(mean.to_numpy(), pd.DataFrame({"n": n}), genes, layers={"var": var.to_numpy()})


def assess(
    run: Path, held_out: Path, train: Path | None = None, n_samples: int = 200, seed: int = 0
) -> Assessment:
    """Score the model of a run on held-out cells.

    Parameters
    ----------
    run
        Folder of the run.
    held_out
        File with the held-out cells, laid out like the training screen.
    train
        File with the training cells; ``None`` takes those that the run kept.
    n_samples, seed
        Posterior draws of each mean, and the seed of everything.

    Raises
    ------
    InputError
        If a file is missing or does not fit the model.
    """
    model = SCCVAE.load(run)
    if train is None and not (run / TRAIN).exists():
        raise InputError(
            f"The run {run} did not keep its training cells. Pass their file: --train train.h5ad"
        )
    schema = model.coding.schema
    return Assessment.of(
        model, _read_like(held_out, schema), _read_like(train or run / TRAIN, schema), n_samples, seed=seed
    )


def _read_like(path: Path, schema: Schema) -> AnnData:
    adata = datasets.read(path)
    if UNS_KEY not in adata.uns:
        setup_like(adata, replace(schema, feature_key=None))
    return adata


def tell(
    run: Path,
    scores: Path | None = None,
    perturbations: str | None = None,
    n_samples: int = 100,
    seed: int = 0,
) -> report.Evidence:
    """Gather what a report on a run shows.

    Parameters
    ----------
    run
        Folder of the run.
    scores
        Folder of its scores; ``None`` takes those within the run, if any.
    perturbations
        Further perturbations to predict, separated by commas.
    n_samples, seed
        Posterior draws of each mean, and their seed.
    """
    model = SCCVAE.load(run)
    asked = names(perturbations, model.coding.labels) if perturbations else []
    folder = scores or run / SCORES
    assessment = Assessment.load(folder) if scores or folder.exists() else None
    return report.gather(model, datasets.read(run / PROFILES), assessment, asked, n_samples, seed)


# The demonstration


def demo(
    out: Path, seed: int = 0, progress: bool = True, size: dict[str, int] | None = None, **fit: Any
) -> report.Evidence:
    """Simulate a screen, hold out a fifth of its perturbations, learn from the rest, score and report.

    Writes ``report.html``, ``scores/``, ``predictions.h5ad`` and ``model/`` (a run) to the folder.

    Parameters
    ----------
    out
        Folder to write to.
    seed
        Seed of everything.
    progress
        Show the progress of training.
    size
        Sizes of the screen, see :func:`sccvae_pyro.data.simulate.simulate`.
    fit
        Settings of inference.
    """
    logger.info("Simulating a screen whose truth is known.")
    adata = simulate(**(size or {}), seed=seed)
    setup_anndata(
        adata,
        "perturbation",
        "control",
        library_key="total_umi",
        guide_key="guide",
        covariate_keys=("batch",),
    )
    train, held_out = prepare(adata, Sources(key="features"), "0.2", seed=seed)
    assert held_out is not None
    run = out / "model"
    logger.info("Learning from %d cells of %d perturbations.", train.n_obs, len(_targets(train)))
    model = SCCVAE(train).fit(progress=progress, seed=seed, **fit)
    model.save(run)
    keep(run, train, held_out)
    assessment = Assessment.of(model, held_out, train, seed=seed)
    assessment.save(out / SCORES)
    write_anndata(assessment.predictions, out / "predictions.h5ad")
    logger.info("Writing the report.")
    evidence = report.gather(model, pseudobulk(train), assessment, seed=seed)
    write_text(
        report.render(evidence, "A simulated screen, and what its perturbations do"), out / "report.html"
    )
    return evidence
