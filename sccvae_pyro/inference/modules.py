"""Functional modules: perturbations that push cells the same way, with the posterior's doubt about it.

For each posterior draw, perturbations are clustered by the direction of their effect on the population mean
of every gene: what a shift, a cut or a scaling does after it has spread along the graph and passed the
decoder. Node axes mean nothing by themselves, genes do. Effects are compared by their cosine, so that a weak
and a strong perturbation of one pathway are alike; average linkage, up to the mean cosine at which two groups
still count as alike.

Three rules decide the rest:

*No effect.* A perturbation whose posterior does not exclude an effect of zero has no direction to compare
and belongs to no module: it is ``none``. See :func:`chance_of_zero`.

*Consensus.* The probability that two perturbations belong together is the share of draws that put them
together (consensus clustering, Monti et al. 2003, Mach Learn 52:91). Average linkage on one minus it.

*How many.* The tree is cut into the number of clusters that agrees best with the partitions of the draws, by
the posterior expected adjusted Rand index (Fritsch & Ickstadt 2009, Bayesian Anal 4:367): 1 is the partition
of every draw, 0 what chance gives. A cluster of one is no module: it is ``alone``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import linalg, stats
from scipy.cluster import hierarchy

from sccvae_pyro.data.features import read_gmt
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError

NONE, ALONE = "none", "alone"
"""Instead of a module: the posterior does not exclude that there is no effect; an effect like no other's."""

NULL_LEVEL = 0.05
"""An effect whose :func:`chance_of_zero` is at least this is taken for none."""

FEWEST_PERTURBATIONS = 3
"""Perturbations below which there is nothing to cluster."""

ALIKE = 0.5
"""Mean cosine from which the effects of two groups are alike, unless the user says otherwise."""

SHARE_OF_SQUARES, MOST_COMPONENTS = 0.99, 100
"""Of the squared effects, on how many components at most: where an effect is compared with zero."""

_SHOWN = 8  # members that the repr names


@dataclass(frozen=True, eq=False)
class Modules:
    """Modules of perturbations; see :meth:`~sccvae_pyro.sccvae.SCCVAE.modules`.

    Parameters
    ----------
    table
        Index: perturbation. ``module``: ``M1`` (the largest), ``M2``, ..., or :data:`ALONE` or :data:`NONE`;
        ``membership``: probability of sharing a cluster with the other members, their mean, NaN outside
        modules; ``effect``, ``effect_q05``, ``effect_q95``: posterior mean and 90 % interval of the effect
        along its mean direction, root mean square over genes in units of a profile; ``p_zero``: see
        :func:`chance_of_zero`; ``is_null``.
    co_assignment
        Perturbations x perturbations: probability of sharing a cluster. Those without an effect share none.
    linkage
        Consensus tree of the perturbations with an effect, in the order of ``table``, as
        :mod:`scipy.cluster.hierarchy` writes it: distances are one minus the probability; no row below three.
    n_modules
        Score of each candidate: ``clusters``, those of one included; ``agreement``, the posterior expected
        adjusted Rand index; ``chosen``. No row below three perturbations with an effect.
    coordinates
        Perturbations x ``PC1``, ``PC2``: mean effects on their two largest principal directions, root mean
        square over genes. The origin is control, so that angle is direction and distance is size.
    explained
        Share of the squared mean effects along either.
    """

    table: pd.DataFrame
    co_assignment: pd.DataFrame
    linkage: np.ndarray
    n_modules: pd.DataFrame
    coordinates: pd.DataFrame
    explained: tuple[float, float]

    def __repr__(self) -> str:
        counts = self.table["module"].value_counts()
        modules = self.summary
        lines = [
            f"Modules: {len(self.table)} perturbations; {int(modules['n'].sum())} in {len(modules)} modules, "
            f"{counts.get(ALONE, 0)} alone, {counts.get(NONE, 0)} without an effect"
        ]
        for module in modules.itertuples():
            members = module.members.split(", ")
            more = f" and {len(members) - _SHOWN} more" if len(members) > _SHOWN else ""
            lines.append(
                f"  {module.Index} ({module.n}, stability {module.stability:.2f}): "
                f"{', '.join(members[:_SHOWN])}{more}"
            )
        return "\n".join(lines)

    @property
    def summary(self) -> pd.DataFrame:
        """One row for each module: size ``n``, ``stability`` and ``members``, the surest first.

        The stability is the mean probability that two of its members share a cluster.
        """
        inside = self.table[~self.table["module"].isin([NONE, ALONE])]
        rows = {}
        for module, part in inside.sort_values("membership", ascending=False, kind="stable").groupby(
            "module"
        ):
            rows[module] = (len(part), part["membership"].mean(), ", ".join(map(str, part.index)))
        order = sorted(rows, key=lambda module: int(str(module)[1:]))
        columns = ["n", "stability", "members"]
        return pd.DataFrame([rows[m] for m in order], pd.Index(order, name="module"), columns)

    def members(self, module: str) -> list[str]:
        """Perturbations of a module.

        Raises
        ------
        InputError
            If there is no such module.
        """
        known = self.table["module"]
        if module not in set(known):
            raise InputError(f"There is no module {module!r}. There are {listing(known.unique(), 12)}.")
        return [str(name) for name in known.index[known == module]]

    def enrichment(
        self, gene_sets: Mapping[str, Collection[str]] | str | Path, background: Collection[str] | None = None
    ) -> pd.DataFrame:
        """Ask which gene sets the members of each module are in more often than the targets of the screen.

        Hypergeometric tests of all modules against all sets with at least two genes in the background;
        false discovery rate over all of them by Benjamini & Hochberg (1995).

        Parameters
        ----------
        gene_sets
            Genes by the name of their set, or the path of a GMT file.
        background
            Genes that could have been members; ``None`` takes all perturbations of the screen, those without
            an effect included. The whole genome would be wrong: the targets of a screen are chosen.

        Returns
        -------
        DataFrame, the smallest p value first, a row for each module and set that share a gene: ``module``,
        ``gene_set``, ``n_module``, ``n_set`` (genes in the background), ``n_shared``, ``genes``, ``p`` and
        ``q``.

        Raises
        ------
        InputError
            If the file cannot be read, no set has two genes in the background, a member is not in the
            background, or there is no module.
        """
        modules = {str(name): set(self.members(str(name))) for name in self.summary.index}
        if not modules:
            raise InputError("There is no module of two perturbations or more, so nothing can be enriched.")
        known = {str(gene) for gene in (self.table.index if background is None else background)}
        if missing := sorted(set().union(*modules.values()) - known):
            raise InputError(f"The background lacks members of modules: {listing(missing)}. Add them.")
        sets = _sets_within(gene_sets, known)
        rows = [
            (module, name, len(members), len(genes), len(members & genes), ", ".join(sorted(members & genes)))
            for module, members in modules.items()
            for name, genes in sets.items()
        ]
        columns = ["module", "gene_set", "n_module", "n_set", "n_shared", "genes"]
        table = pd.DataFrame(rows, columns=columns)
        table["p"] = stats.hypergeom.sf(table["n_shared"] - 1, len(known), table["n_set"], table["n_module"])
        table["q"] = stats.false_discovery_control(table["p"])
        shared = table[table["n_shared"] > 0]
        return shared.sort_values(["p", "module", "gene_set"], ignore_index=True)


def _sets_within(
    gene_sets: Mapping[str, Collection[str]] | str | Path, known: set[str]
) -> dict[str, set[str]]:
    """Genes of each set that are in the background, where there are two or more."""
    if isinstance(gene_sets, str | Path):
        gene_sets = read_gmt(gene_sets)
    if not isinstance(gene_sets, Mapping):
        raise InputError(
            f"gene_sets must be genes by name of their set, or the path of a GMT file, not {gene_sets!r}"
        )
    if written := [name for name, genes in gene_sets.items() if isinstance(genes, str)]:
        raise InputError(f"Gene set {written[0]!r} is one text. Give a list of genes.")
    within = {str(name): known.intersection(map(str, genes)) for name, genes in gene_sets.items()}
    kept = {name: genes for name, genes in within.items() if len(genes) > 1}
    if not kept:
        raise InputError(
            f"None of the {len(within)} gene sets holds two of the {len(known)} genes of the background "
            f"({listing(sorted(known))}). Check that both use the same identifiers (symbols or Ensembl ids)."
        )
    return kept


def find_modules(effects: np.ndarray, names: Sequence[str], similarity: float = ALIKE) -> Modules:
    """Cluster perturbations by draws of their effects.

    Parameters
    ----------
    effects
        Draws x perturbations x genes, difference of the population mean to control.
    names
        Names of the perturbations.
    similarity
        Mean cosine from which the effects of two groups are alike, above 0 and below 1.

    Returns
    -------
    Modules

    Raises
    ------
    InputError
        If there are fewer than three perturbations, or the similarity is out of its range.
    """
    if not 0 < similarity < 1:
        raise InputError(f"similarity must be a cosine above 0 and below 1, not {similarity!r}")
    if len(names) < FEWEST_PERTURBATIONS:
        raise InputError(
            f"Modules need at least {FEWEST_PERTURBATIONS} perturbations; there are {len(names)}: "
            f"{listing(names)}. Fit a screen of more."
        )
    index = pd.Index(names, name="perturbation")
    p_zero = chance_of_zero(effects)
    acts = p_zero < NULL_LEVEL
    scores, linkage, labels, together = _consensus(effects[:, acts], similarity)
    co_assignment = np.eye(len(names))
    co_assignment[np.ix_(acts, acts)] = together
    module = np.full(len(names), NONE, dtype=object)
    module[acts] = _named(labels)
    table = pd.DataFrame(
        {
            "module": module,
            "membership": _membership(module, co_assignment),
            **_sizes(effects),
            "p_zero": p_zero,
            "is_null": ~acts,
        },
        index=index,
    )
    coordinates, explained = _map(effects.mean(axis=0))
    return Modules(
        table,
        pd.DataFrame(co_assignment, index, index.rename(None)),
        linkage,
        scores,
        pd.DataFrame(coordinates, index, ["PC1", "PC2"]),
        explained,
    )


# What has an effect


def chance_of_zero(effects: np.ndarray) -> np.ndarray:
    """How often a perturbation without an effect would be estimated this far from zero.

    A posterior mean lies between what the cells say and the mean of all perturbations. The cells have the
    share ``e / (e + v)`` in it, ``e`` being the variance of posterior means between perturbations, ``v`` the
    posterior variance. The part of the mean of all is taken off, lest what does nothing be credited with
    the effects of others. Without an effect the rest is normal with that share of the posterior variance. Its
    squares in posterior variances, summed over the principal components that hold 99 % of the squared
    effects, are compared with a chi-squared whose scale and degrees of freedom give the same moments
    (Satterthwaite 1946, Biometrics Bull 2:110).

    Parameters
    ----------
    effects
        Draws x perturbations x genes.

    Returns
    -------
    One p value for each perturbation; 1 where no draw has any effect.
    """
    mean, variance = _standardised(_components(effects))
    shared = mean.mean(axis=0)
    between, axes = np.linalg.eigh((mean - shared).T @ (mean - shared) / len(mean))
    share = between.clip(min=0.0) / (between.clip(min=0.0) + variance[:, None])
    own = mean @ axes - (1.0 - share) * (shared @ axes)
    distance = np.square(own).sum(axis=1) / variance
    first, second = share.sum(axis=1), np.square(share).sum(axis=1)
    told = second > 0
    p = np.ones(len(mean))
    p[told] = stats.chi2.sf((distance * first)[told] / second[told], np.square(first[told]) / second[told])
    return p


def _components(effects: np.ndarray) -> np.ndarray:
    """Effects on the principal components of most of their squares, draws x perturbations x components."""
    flat = effects.reshape(-1, effects.shape[-1])
    squares = (flat.T @ flat).astype(float)
    n = len(squares)
    value, vector = linalg.eigh(squares, subset_by_index=[max(n - MOST_COMPONENTS, 0), n - 1])
    held = np.cumsum(value[::-1].clip(min=0.0))
    kept = int(np.searchsorted(held, min(SHARE_OF_SQUARES * np.trace(squares), held[-1]))) + 1
    return effects @ vector[:, ::-1][:, :kept]


def _standardised(components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means in coordinates in which the posterior of a typical perturbation is round.

    The shape of the posterior is that of all perturbations pooled, as it depends on the genes; its variance
    is the perturbation's own, as it depends on its cells.

    Returns
    -------
    Means, perturbations x components, and the variance of each perturbation.
    """
    n_draws, n, k = components.shape
    mean = components.mean(axis=0)
    deviations = components - mean
    pooled = np.einsum("spi,spj->ij", deviations, deviations) / ((n_draws - 1) * n)
    value, vector = np.linalg.eigh(pooled)
    # Draws that do not differ in a direction leave rounding errors there.
    to_round = vector / np.sqrt(value.clip(min=max(1e-12 * np.trace(pooled), 1e-24)))
    variance = np.square(deviations @ to_round).sum(axis=(0, 2)) / ((n_draws - 1) * k)
    return mean @ to_round, variance.clip(min=1e-9)


def _sizes(effects: np.ndarray) -> dict[str, np.ndarray]:
    """Effect of every draw along its mean direction, root mean square over genes: mean and 90 % interval."""
    mean = effects.mean(axis=0)
    norm = np.linalg.norm(mean, axis=1)
    along = np.einsum("spg,pg->sp", effects, mean) / np.where(norm > 0, norm, 1.0)
    along /= np.sqrt(effects.shape[-1])
    low, high = np.quantile(along, [0.05, 0.95], axis=0)
    return {"effect": along.mean(axis=0), "effect_q05": low, "effect_q95": high}


def _map(mean: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Mean effects on their two largest principal directions, and the share of squares in each."""
    left, value, right = np.linalg.svd(mean, full_matrices=False)
    sign = np.where(right.sum(axis=1) < 0, -1.0, 1.0)  # fixed by the genes, whatever the order of the rows
    scores = np.zeros((len(mean), max(2, len(value))))
    scores[:, : len(value)] = left * value * sign / np.sqrt(mean.shape[1])
    squares = np.square(scores).sum(axis=0)
    first, second = squares[:2] / max(squares.sum(), 1e-300)
    return scores[:, :2], (float(first), float(second))


# Who belongs together


def _consensus(
    effects: np.ndarray, similarity: float
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    """Cluster each draw and all of them together: scores, tree, cluster and co-assignment.

    Fewer than three perturbations are left alone.
    """
    n = effects.shape[1]
    columns = ["clusters", "agreement", "chosen"]
    if n < FEWEST_PERTURBATIONS:
        return pd.DataFrame(columns=columns), np.zeros((0, 4)), np.arange(n), np.eye(n)
    trees = [_tree(_cosine_distance(draw)) for draw in effects]
    together = co_assignment_of(np.array([_cut(tree, "distance", 1.0 - similarity) for tree in trees]))
    consensus = _tree(1.0 - together)
    partitions = {k: _cut(consensus, "maxclust", k) for k in range(1, n + 1)}
    agreement = {k: expected_rand(labels, together) for k, labels in partitions.items()}
    best = max(partitions, key=lambda k: (round(agreement[k], 9), -k))  # the fewest of equals
    scores = pd.DataFrame([(k, agreement[k], k == best) for k in partitions], columns=columns)
    return scores, consensus, partitions[best], together


def _cosine_distance(effects: np.ndarray) -> np.ndarray:
    """One minus the cosine of rows."""
    effects = effects.astype(float)
    norm = np.linalg.norm(effects, axis=1, keepdims=True)
    unit = effects / np.where(norm > 0, norm, 1.0)
    return 1.0 - unit @ unit.T


def _tree(distance: np.ndarray) -> np.ndarray:
    """Average linkage of a matrix of distances."""
    upper = distance[np.triu_indices(len(distance), k=1)]
    return hierarchy.linkage(upper.clip(min=0.0), method="average")


def _cut(tree: np.ndarray, criterion: str, at: float) -> np.ndarray:
    """Cluster of each leaf, cutting at a distance, or into a number (fewer where heights tie)."""
    return hierarchy.fcluster(tree, at, criterion)


def co_assignment_of(partitions: np.ndarray) -> np.ndarray:
    """Share of partitions that put two together.

    Parameters
    ----------
    partitions
        Draws x perturbations, cluster of each.

    Returns
    -------
    Perturbations x perturbations.
    """
    n_draws, n = partitions.shape
    codes = partitions + np.arange(n_draws)[:, None] * (partitions.max() + 1)
    member = np.zeros((n, int(codes.max()) + 1), dtype=np.float32)
    member[np.tile(np.arange(n), n_draws), codes.ravel()] = 1.0
    return (member @ member.T).astype(float) / n_draws


def expected_rand(labels: np.ndarray, together: np.ndarray) -> float:
    """Posterior expected adjusted Rand index of a partition (Fritsch & Ickstadt 2009, eq. 5).

    Parameters
    ----------
    labels
        Cluster of each perturbation.
    together
        Probability that two share a cluster.

    Returns
    -------
    1 where every draw is this partition, 0 where it agrees with them as chance would have it.
    """
    upper = np.triu_indices(len(labels), k=1)
    joined, probability = (labels[:, None] == labels[None, :])[upper], together[upper]
    expected = joined.sum() * probability.sum() / len(joined)
    most = (joined.sum() + probability.sum()) / 2
    if most == expected:  # all together or all apart: there is no chance to correct for
        return float(np.array_equal(joined, probability))
    return float(((joined * probability).sum() - expected) / (most - expected))


def _named(labels: np.ndarray) -> list[str]:
    """Name clusters by size, the first of equals first; one alone has no name of its own."""
    found, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = sorted(range(len(found)), key=lambda i: (-counts[i], first[i]))
    names = {found[i]: f"M{rank}" if counts[i] > 1 else ALONE for rank, i in enumerate(order, start=1)}
    return [names[label] for label in labels]


def _membership(module: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Mean co-assignment of each perturbation with the other members of its module."""
    inside = ~np.isin(module, [NONE, ALONE])
    same = (module[:, None] == module[None, :]) & inside[:, None] & ~np.eye(len(module), dtype=bool)
    return np.where(inside, (together * same).sum(axis=1) / np.maximum(same.sum(axis=1), 1), np.nan)
