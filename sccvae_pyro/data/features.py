"""Features of perturbed genes: what is known of a gene before any cell with its perturbation is seen.

Builders turn one source (control cells, gene sets, regulons, a user's table) into a DataFrame with a row
per gene; a gene that the source knows nothing about has no row, never a row of zeros. :class:`FeatureTable`
puts the blocks of several sources on one scale and tells which genes are predictable.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.preprocessing import normalize

from sccvae_pyro.data.checks import check_counts, check_feature_table, check_is_table, check_seed
from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.matrix import expression_matrix, select_rows
from sccvae_pyro.data.schema import Schema, cell_labels, library_sizes
from sccvae_pyro.data.values import check_unchanged
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import read_text

logger = logging.getLogger(__name__)


# One source each


def control_pca(adata: AnnData, n_components: int = 50, seed: int = 0) -> pd.DataFrame:
    """Embed each measured gene by its expression across control cells.

    Genes are the samples and control cells the variables of a principal component analysis of
    ``log1p(CP10K)`` (of the values as they are where they are not counts), as in the published model.

    Parameters
    ----------
    adata
        Screen after :func:`sccvae_pyro.setup_anndata`; only its control cells are loaded.
    n_components
        Components to keep; fewer where there are fewer genes or control cells.
    seed
        Start vector of the iterative eigensolver.

    Returns
    -------
    DataFrame, genes x components. Genes without expression in any control cell are absent.

    Raises
    ------
    InputError
        If no gene is expressed in any.
    """
    schema = Schema.of(adata)
    is_control = (cell_labels(adata, schema) == schema.control).to_numpy()
    values = select_rows(expression_matrix(adata, schema.layer), is_control)
    check_unchanged(values, schema.kind, adata.obs_names[is_control], adata.var_names)
    if schema.kind == "counts":
        values = log1p_cp10k(values, library_sizes(adata, schema)[is_control])
    expressed = np.asarray(values.sum(axis=0)).ravel() > 0
    if not expressed.any():
        raise InputError(
            "No gene is expressed in any control cell, so these describe none. Give features (feature_key)."
        )
    samples = sparse.csr_matrix(values).T.tocsr()[expressed]
    return _block(
        "control_pca", _principal_components(samples, n_components, seed), adata.var_names[expressed]
    )


def gene_sets(
    path: str | Path, genes: Collection[str] | None = None, n_components: int = 50, seed: int = 0
) -> pd.DataFrame:
    """Embed each gene by the sets it is a member of: latent semantic analysis of the membership matrix.

    Parameters
    ----------
    path
        Gene sets in GMT format: name, description, then the members, separated by tabs.
    genes
        Rows to return; ``None`` returns every gene of the file. The embedding is that of all genes.
    n_components
        Singular vectors to keep; fewer where there are fewer genes or sets.
    seed
        Start vector of the iterative solver.

    Returns
    -------
    DataFrame, genes x components. Genes that are in no set are absent.
    """
    profiles, known = _membership(read_gmt(path))
    table = _block("gene_sets", _singular_vectors(profiles, n_components, seed), known)
    return table.loc[_known(genes, known, path)]


def gene_set_kernel(
    path: str | Path, genes: Collection[str], rows: Collection[str] | None = None
) -> pd.DataFrame:
    """Similarity of each gene to the perturbed genes by the gene sets they share.

    The similarity is the cosine between memberships weighted by inverse set frequency, so that a small
    shared set counts for more than a large one, and genes of one pathway have like rows.

    Parameters
    ----------
    path
        Gene sets in GMT format.
    genes
        The perturbed genes, the columns.
    rows
        Genes to describe; ``None`` describes ``genes``.

    Returns
    -------
    DataFrame, rows x genes, in [0, 1]. Genes that are in no set, or share none with any column, are absent.
    """
    profiles, known = _membership(read_gmt(path))
    return _kernel("gene_set_kernel", [profiles], known, path, genes, rows)


def regulons(
    path: str | Path, genes: Collection[str] | None = None, n_components: int = 50, seed: int = 0
) -> pd.DataFrame:
    """Embed each gene by its targets and its regulators: singular vectors of their signed edges.

    Parameters
    ----------
    path
        Regulatory edges, see :func:`read_regulons`.
    genes
        Rows to return; ``None`` returns every gene of the file.
    n_components
        Singular vectors to keep.
    seed
        Start vector of the iterative solver.

    Returns
    -------
    DataFrame, genes x components. Genes without an edge are absent.
    """
    profiles, known = _regulation(read_regulons(path))
    table = _block("regulons", _singular_vectors(sparse.hstack(profiles), n_components, seed), known)
    return table.loc[_known(genes, known, path)]


def regulon_kernel(
    path: str | Path, genes: Collection[str], rows: Collection[str] | None = None
) -> pd.DataFrame:
    """Similarity of each gene to the perturbed genes by shared targets, shared regulators and direct edges.

    A gene's profile of targets holds the signs of its edges and a one for itself, and likewise its profile
    of regulators; the similarity is the mean of the two cosines, with rare targets and regulators
    weighted up. It is negative where two genes regulate the same targets in opposite directions.

    Parameters
    ----------
    path
        Regulatory edges, see :func:`read_regulons`.
    genes
        The perturbed genes, the columns.
    rows
        Genes to describe; ``None`` describes ``genes``.

    Returns
    -------
    DataFrame, rows x genes, in [-1, 1]. Genes without an edge, or unlike every column, are absent.
    """
    profiles, known = _regulation(read_regulons(path))
    return _kernel("regulon_kernel", profiles, known, path, genes, rows)


def user_table(table: pd.DataFrame, name: str = "user_table") -> pd.DataFrame:
    """Validate a table of the user's own, e.g. embeddings of a language model.

    Parameters
    ----------
    table
        Index: genes; columns: numeric features.
    name
        Label of the source.

    Returns
    -------
    DataFrame of doubles, a copy.

    Raises
    ------
    InputError
        If the table is empty, has duplicates, or holds anything but finite numbers.
    """
    check_feature_table(table, name)
    return table.astype(float).rename(index=str, columns=str).rename_axis(columns=name)


# One table of all sources


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of several sources on one scale.

    Every column is centred and scaled; every source is scaled by the root of its number of columns, so that
    its rows have a mean squared norm of one and a source of 200 columns does not outweigh one of 10.

    Parameters
    ----------
    table
        Genes x features, standardised; columns are called ``source:feature``.
    center, scale
        What was subtracted from each raw column and what it was divided by.
    coverage
        Genes x sources, boolean: which sources know which genes, also of genes that are not in ``table``.
    """

    table: pd.DataFrame
    center: pd.Series
    scale: pd.Series
    coverage: pd.DataFrame

    @classmethod
    def fit(
        cls,
        tables: Sequence[pd.DataFrame],
        how: Literal["inner", "outer"] = "inner",
        fill: Collection[str] = (),
        genes: Collection[str] | None = None,
    ) -> FeatureTable:
        """Concatenate the tables of several sources and learn their scale.

        Parameters
        ----------
        tables
            One table for each source; ``table.columns.name`` labels it.
        how
            ``"inner"`` keeps the genes that all sources know; ``"outer"`` keeps those that any source
            knows and demands that the others are named in ``fill``.
        fill
            With ``"outer"``: genes that a source may lack; there they take the source's mean.
        genes
            Genes over which centre and scale are taken, usually the perturbed ones; ``None`` takes all rows.

        Raises
        ------
        InputError
            If the sources share no genes, a gene lacks a source undeclared, or no column varies.
        """
        blocks = _labelled(tables)
        known = _union(blocks.values())
        coverage = pd.DataFrame(
            {name: known.isin(block.index) for name, block in blocks.items()}, index=known
        )
        kept = _kept_genes(coverage, how, fill)
        reference = kept if genes is None else kept[kept.isin(list(genes))]
        if len(reference) < 2:
            raise InputError(
                f"The features of {listing(blocks)} share {len(reference)} genes, too few to scale them. "
                "Check that the tables and genes use the same identifiers (symbols or Ensembl ids)."
            )
        parts = [_standardise(name, block.reindex(kept), reference) for name, block in blocks.items()]
        table = pd.concat([values for values, _, _ in parts], axis=1)
        center = pd.concat([center for _, center, _ in parts])
        scale = pd.concat([scale for _, _, scale in parts])
        if table.shape[1] == 0:
            raise InputError(f"No column of {listing(blocks)} varies between genes. Pass other features.")
        return cls(table, center, scale, coverage)

    def predictable(self, genes: Iterable[str]) -> pd.DataFrame:
        """Say of each gene whether an unseen perturbation of it can be predicted, and why not.

        Returns
        -------
        DataFrame with columns ``gene``, ``predictable`` (bool) and ``reason`` (empty where it is).

        Raises
        ------
        InputError
            If a gene is not a string.
        """
        genes = list(genes)
        if wrong := [gene for gene in genes if not isinstance(gene, str)]:
            raise InputError(f"Genes are asked for by their names, not by {wrong[0]!r}.")
        reasons = [self._reason(gene) for gene in genes]
        return pd.DataFrame(
            {"gene": genes, "predictable": [not reason for reason in reasons], "reason": reasons}
        )

    def _reason(self, gene: str) -> str:
        if gene in self.table.index:
            return ""
        if gene in self.coverage.index:
            return f"no features in {_lacking(self.coverage, gene)}"
        spelling = self.table.index[self.table.index.str.casefold() == gene.casefold()]
        hint = f" (did you mean {spelling[0]}?)" if len(spelling) else ""
        return f"no features in any source ({', '.join(self.coverage.columns)}){hint}"

    def rows(self, genes: Sequence[str]) -> np.ndarray:
        """Features of the genes, genes x features.

        Raises
        ------
        InputError
            If any gene has no features; the message names it and says why.
        """
        answers = self.predictable(genes)
        missing = answers[~answers["predictable"]].drop_duplicates("gene")
        if len(missing):
            shown = "; ".join(f"{row.gene!r}: {row.reason}" for row in missing.head(6).itertuples())
            raise InputError(
                f"No features for {len(missing)} of {len(genes)} genes: {shown}. "
                "Add rows for them to the tables, or leave them out."
            )
        return self.table.loc[list(genes)].to_numpy()


def combine(
    *tables: pd.DataFrame,
    how: Literal["inner", "outer"] = "inner",
    fill: Collection[str] = (),
    genes: Collection[str] | None = None,
) -> pd.DataFrame:
    """Standardised features of several sources as one DataFrame; see :meth:`FeatureTable.fit`."""
    return FeatureTable.fit(tables, how, fill, genes).table


def _labelled(tables: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables by the label of their source; a table without one is numbered."""
    blocks: dict[str, pd.DataFrame] = {}
    for number, table in enumerate(tables, start=1):
        check_is_table(table, f"Table {number}")
        name = str(table.columns.name or f"table{number}")
        if name in blocks:
            raise InputError(
                f"Two feature tables are called {name!r}. Set table.columns.name of one of them."
            )
        blocks[name] = user_table(table, name)
    if not blocks:
        raise InputError("There is no feature table to combine. Pass at least one.")
    return blocks


def _union(blocks: Iterable[pd.DataFrame]) -> pd.Index:
    return pd.Index(dict.fromkeys(gene for block in blocks for gene in block.index))


def _kept_genes(coverage: pd.DataFrame, how: str, fill: Collection[str]) -> pd.Index:
    """Genes that get a row, given which sources know them."""
    complete = coverage.all(axis=1)
    if how == "inner":
        return coverage.index[complete]
    if how != "outer":
        raise InputError(f"how={how!r} is unknown. Pass 'inner' or 'outer'.")
    partial = coverage[~complete & ~coverage.index.isin(list(fill))]
    if len(partial):
        gene = partial.index[0]
        raise InputError(
            f"{len(partial)} genes lack a source: {listing(partial.index)} (the first has none in "
            f"{_lacking(partial, gene)}). Add rows, use how='inner', or name them in fill= to take its mean."
        )
    return coverage.index


def _lacking(coverage: pd.DataFrame, gene: str) -> str:
    return ", ".join(coverage.columns[~coverage.loc[gene].to_numpy(dtype=bool)])


def _standardise(
    name: str, block: pd.DataFrame, reference: pd.Index
) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Scale a block to rows of mean squared norm one over the reference genes; missing rows become zero."""
    block = block.add_prefix(f"{name}:")
    center, sd = block.loc[reference].mean(), block.loc[reference].std(ddof=0)
    varies = sd > 1e-9 * (1 + center.abs())
    if not varies.all():
        logger.info(
            "Dropped %d constant columns of %s: %s.", (~varies).sum(), name, listing(sd.index[~varies])
        )
    center, scale = center[varies], sd[varies] * np.sqrt(varies.sum())
    return ((block.loc[:, varies] - center) / scale).fillna(0.0), center, scale


# Files


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Read gene sets from a GMT file: set name to members.

    Raises
    ------
    InputError
        If the file is absent or empty, a line is not ``name, description, members`` separated by tabs, or
        two sets have one name.
    """
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(_lines(path), start=1):
        name, *rest = line.split("\t")
        members = [gene.strip() for gene in rest[1:] if gene.strip()]
        if not members:
            raise InputError(
                f"Line {number} of {path} is not a gene set: {line[:60]!r}. A GMT line holds a name, a "
                "description and the members, separated by tabs."
            )
        if name in sets:
            raise InputError(f"Line {number} of {path} is a second set {name!r}. Give it a name of its own.")
        sets[name] = members
    if not sets:
        raise InputError(f"{path} holds no gene set.")
    return sets


def read_regulons(path: str | Path) -> pd.DataFrame:
    """Read signed regulatory edges.

    CollecTRI's table (comma-separated; header with ``source``, ``target``, ``weight``) and TRRUST's
    (tab-separated; no header; regulator, target, mode, reference) are told apart by their first line. The
    signs of several reports of an edge are summed; unknown or contradictory ones count as activating, as in
    CollecTRI.

    Returns
    -------
    DataFrame with columns ``source``, ``target`` and ``sign`` (1 or -1), one row per edge.

    Raises
    ------
    InputError
        If the file is absent or is neither of the two.
    """
    lines = _lines(path)
    header = next(csv.reader(lines[:1]), [])
    if {"source", "target", "weight"} <= set(header):
        edges = pd.DataFrame(csv.DictReader(lines))
        sign = np.sign(pd.to_numeric(edges["weight"], errors="coerce"))
    elif lines and lines[0].count("\t") >= 2:
        edges = pd.DataFrame([line.split("\t")[:3] for line in lines], columns=["source", "target", "mode"])
        sign = edges["mode"].map({"Activation": 1.0, "Repression": -1.0, "Unknown": 0.0})
    else:
        raise InputError(
            f"{path} does not hold regulons. Its first line should be source,target,weight (CollecTRI), or a "
            "regulator, a target and a mode separated by tabs (TRRUST)."
        )
    if sign.isna().any():
        line = int(np.argmax(sign.isna()))
        raise InputError(
            f"{path} has an edge without a sign: {' '.join(map(str, edges.iloc[line]))!r}. Correct it."
        )
    total = sign.groupby([edges["source"], edges["target"]]).sum()
    return total.ge(0).map({True: 1, False: -1}).rename("sign").reset_index()


def _lines(path: str | Path) -> list[str]:
    return [line for line in read_text(path).splitlines() if line.strip()]


# From sources to numbers


def _membership(sets: dict[str, list[str]]) -> tuple[sparse.csr_matrix, pd.Index]:
    """Weighted profile of each gene over the sets (genes x sets, rows of unit length), and the genes."""
    pairs = [(gene, column) for column, members in enumerate(sets.values()) for gene in set(members)]
    codes, genes = pd.factorize(np.array([gene for gene, _ in pairs], dtype=object), sort=True)
    shape = (len(genes), len(sets))
    member = sparse.csr_matrix((np.ones(len(pairs)), (codes, [column for _, column in pairs])), shape=shape)
    return _weighted(member), pd.Index(genes)


def _regulation(edges: pd.DataFrame) -> tuple[list[sparse.csr_matrix], pd.Index]:
    """Weighted profiles of each gene over its targets and over its regulators, itself included in both."""
    codes, genes = pd.factorize(pd.concat([edges["source"], edges["target"]], ignore_index=True), sort=True)
    source, target = np.split(codes, 2)
    shape = (len(genes), len(genes))
    others = source != target
    sign = edges["sign"].to_numpy(dtype=float)[others]
    signed = sparse.csr_matrix((sign, (source[others], target[others])), shape=shape) + sparse.identity(
        len(genes)
    )
    return [_weighted(signed), _weighted(signed.T)], pd.Index(genes)


def _weighted(profiles: sparse.spmatrix) -> sparse.csr_matrix:
    """Weight columns by inverse frequency and scale rows to unit length."""
    profiles = sparse.csr_matrix(profiles)
    frequency = np.bincount(profiles.indices, minlength=profiles.shape[1])
    weight = np.log1p(profiles.shape[0] / np.maximum(frequency, 1))
    return normalize(profiles @ sparse.diags(weight))


def _kernel(
    name: str,
    profiles: Sequence[sparse.csr_matrix],
    known: pd.Index,
    path: str | Path,
    genes: Collection[str],
    rows: Collection[str] | None,
) -> pd.DataFrame:
    """Mean cosine between profiles, of rows and genes that the source knows."""
    columns = _known(genes, known, path)
    index = columns if rows is None else _known(rows, known, path)
    at_rows, at_columns = known.get_indexer(index), known.get_indexer(columns)
    cosine = sum((profile[at_rows] @ profile[at_columns].T).toarray() for profile in profiles) / len(profiles)
    table = pd.DataFrame(cosine, index=index, columns=pd.Index(columns, name=name))
    return table[(table != 0).any(axis=1)]


def _known(genes: Collection[str] | None, known: pd.Index, path: str | Path) -> pd.Index:
    """Those of the genes that the source knows, in their order."""
    if genes is None:
        return known
    wanted = pd.Index(dict.fromkeys(genes))
    found = wanted[wanted.isin(known)]
    if len(found) == 0:
        raise InputError(
            f"{path} knows none of the {len(wanted)} genes ({listing(wanted)}); it knows {listing(known)}. "
            "Check that both use the same identifiers (symbols or Ensembl ids) and species."
        )
    if len(found) < len(wanted):
        logger.info("%s knows nothing of %s.", path, listing(wanted.difference(found)))
    return found


def _principal_components(samples: sparse.csr_matrix, n_components: int, seed: int) -> np.ndarray:
    """Scores of the centred samples; sparse data stay sparse unless all components are wanted."""
    check_counts(n_components=n_components)
    if n_components < min(samples.shape):
        return PCA(n_components, svd_solver="arpack", random_state=_state(seed)).fit_transform(samples)
    return PCA(min(samples.shape), svd_solver="full").fit_transform(samples.toarray())


def _singular_vectors(profiles: sparse.spmatrix, n_components: int, seed: int) -> np.ndarray:
    """Left singular vectors times singular values."""
    check_counts(n_components=n_components)
    if n_components < min(profiles.shape):
        svd = TruncatedSVD(n_components, algorithm="arpack", random_state=_state(seed))
        return svd.fit_transform(sparse.csr_matrix(profiles))
    left, values, _ = np.linalg.svd(profiles.toarray(), full_matrices=False)
    return left * values


def _state(seed: int) -> int:
    """Seed as scikit-learn takes it, of 32 bits."""
    return check_seed(seed) % 2**32


def _block(name: str, scores: np.ndarray, genes: pd.Index) -> pd.DataFrame:
    columns = pd.Index([str(number) for number in range(1, scores.shape[1] + 1)], name=name)
    return pd.DataFrame(scores, index=pd.Index(genes, name=None), columns=columns)
