"""Simple predictors of perturbation effects that every model has to beat.

All learn from *pseudobulk*, the mean profile of each training perturbation, and return the same
:class:`~anndata.AnnData` as the model does. The effect ("delta") of a perturbation is its mean minus
the mean of the control cells. Hyper-parameters of ridge regression, nearest neighbours and Gaussian
process are chosen on training perturbations alone, and the choices include one that ignores the
features: without signal they fall back to the mean effect.

What learns from features learns from the *single* perturbations; the effect of a combination is the sum
of the predicted effects of its targets, their variances added.

A baseline of one's own is a subclass of :class:`Baseline` or :class:`GeneBaseline`.

The linear and additive baselines follow Ahlmann-Eltze, Huber & Anders 2025, Nat Methods 22:1657.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import special

from sccvae_pyro.data.labels import as_labels, canonical_label, parse_targets
from sccvae_pyro.data.loading import Profiles, profiles
from sccvae_pyro.data.schema import Schema
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.evaluate.metrics import squared_distances

UNITS = "mean log1p(CP10K)"


class Features(Protocol):
    """Features of perturbable genes, such as a :class:`sccvae_pyro.data.features.FeatureTable`."""

    def predictable(self, genes: Sequence[str]) -> pd.DataFrame:
        """Whether each gene has features: a row per gene, with the boolean column ``predictable``."""

    def rows(self, genes: Sequence[str]) -> np.ndarray:
        """Features of these genes, genes x features; an error that names those without."""


@dataclass(frozen=True)
class Effects:
    """Predicted effects.

    Parameters
    ----------
    delta
        Difference to the control mean, perturbations x genes.
    sd
        Standard deviation of the population mean, same shape; ``None`` for a point prediction.
    """

    delta: np.ndarray
    sd: np.ndarray | None = None


@dataclass(frozen=True)
class Training:
    """What baselines learn from: the pseudobulk of the training cells.

    Parameters
    ----------
    genes
        Names of the measured genes (G).
    control
        Label of the control cells.
    control_mean
        Mean of the control cells (G).
    targets
        Target genes of each training perturbation (L).
    delta
        Observed effects, L x G.
    noise
        Sampling variance of the observed means (cell variance over number of cells), L x G.
    """

    genes: pd.Index
    control: str
    control_mean: np.ndarray
    targets: tuple[tuple[str, ...], ...]
    delta: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(cls, profiles: Profiles, control: str) -> Training:
        """Take the control and the perturbations of a pseudobulk apart.

        Raises
        ------
        InputError
            If there is no control row or no perturbation.
        """
        mean, var, n = profiles
        if control not in mean.index or len(mean) < 2:
            raise InputError(
                f"Training cells must hold controls ({control!r}) and at least one perturbation; they hold "
                f"{listing(mean.index)}. Keep the controls in the training part of the split."
            )
        labels = mean.index.drop(control)
        control_mean = mean.loc[control].to_numpy(dtype=float)
        noise = var.loc[labels].to_numpy(dtype=float) / n.loc[labels].to_numpy(dtype=float)[:, None]
        return cls(
            genes=mean.columns,
            control=control,
            control_mean=control_mean,
            targets=tuple(parse_targets(label, control) for label in labels),
            delta=mean.loc[labels].to_numpy(dtype=float) - control_mean,
            noise=noise,
        )

    @classmethod
    def from_anndata(cls, adata: AnnData) -> Training:
        """Pseudobulk the training cells of a screen that has been set up."""
        return cls.of(profiles(adata), Schema.of(adata).control)

    @property
    def mean_delta(self) -> np.ndarray:
        """Mean effect of the training perturbations (G)."""
        return self.delta.mean(axis=0)

    def singles(self) -> Training:
        """Only the perturbations of a single gene."""
        return self._subset([len(targets) == 1 for targets in self.targets])

    def described_by(self, features: Features) -> Training:
        """Only the single perturbations whose target has features.

        Raises
        ------
        InputError
            If fewer than two are left.
        """
        singles = self.singles()
        known = singles._subset(features.predictable(singles.target_genes)["predictable"].tolist())
        if len(known.targets) < 2:
            raise InputError(
                f"A baseline on features learns from single perturbations with features and needs two; "
                f"{len(known.targets)} of {len(singles.targets)} single training perturbations have them. "
                "Add rows to the features."
            )
        return known

    @property
    def target_genes(self) -> list[str]:
        """Target of each single perturbation."""
        return [target for (target,) in self.targets]

    def _subset(self, keep: Sequence[bool]) -> Training:
        rows = np.flatnonzero(keep)
        targets = tuple(self.targets[row] for row in rows)
        return replace(self, targets=targets, delta=self.delta[rows], noise=self.noise[rows])


@dataclass(frozen=True)
class Baseline(ABC):
    """A predictor of mean profiles."""

    def predict(
        self,
        training: Training,
        features: Features | None,
        perturbations: Sequence[str | Sequence[str]],
    ) -> AnnData:
        """Predict mean profiles.

        Parameters
        ----------
        training
            Pseudobulk of the training cells.
        features
            Features of the perturbable genes; ``None`` for baselines that use none.
        perturbations
            Labels; combinations are joined by ``+`` or given as sequences, and the control is allowed.

        Returns
        -------
        AnnData, perturbations x genes: ``X`` and layer ``mean`` hold the mean of log1p(CP10K), layer
        ``delta`` the difference to the control mean. Baselines with uncertainty add ``sd``, ``q05``,
        ``q95``, ``delta_q05`` and ``delta_q95`` of the population mean. ``obs["status"]`` says control,
        seen or unseen.

        Raises
        ------
        InputError
            If a perturbation cannot be predicted; the message names it.
        """
        targets = [parse_targets(label, training.control) for label in as_labels(perturbations)]
        effects = self.effects(training, features, [target for target in targets if target])
        is_control = np.array([not target for target in targets], dtype=bool)
        status = ["control" if not t else "seen" if t in training.targets else "unseen" for t in targets]
        labels = pd.Index([canonical_label(target, training.control) for target in targets])
        return _prediction(
            training, pd.DataFrame({"status": status}, index=labels), _with_control(effects, is_control)
        )

    @abstractmethod
    def effects(
        self, training: Training, features: Features | None, targets: Sequence[tuple[str, ...]]
    ) -> Effects:
        """Predict the effects of perturbations given by their targets, none of them the control."""


def _with_control(effects: Effects, is_control: np.ndarray) -> Effects:
    """Put rows without effect where the control was asked for."""

    def spread_out(values: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(is_control), values.shape[1]))
        rows[~is_control] = values
        return rows

    return Effects(spread_out(effects.delta), None if effects.sd is None else spread_out(effects.sd))


def _prediction(training: Training, obs: pd.DataFrame, effects: Effects) -> AnnData:
    """Lay effects out as predictions are."""
    mean = training.control_mean + effects.delta
    layers = {"mean": mean, "delta": effects.delta}
    if effects.sd is not None:
        half_width = special.ndtri(0.95) * effects.sd
        layers |= {
            "sd": effects.sd,
            "q05": mean - half_width,
            "q95": mean + half_width,
            "delta_q05": effects.delta - half_width,
            "delta_q95": effects.delta + half_width,
        }
    var = pd.DataFrame({"control_mean": training.control_mean}, index=training.genes)
    return AnnData(X=mean.copy(), obs=obs, var=var, layers=layers, uns={"units": UNITS})


# Baselines without features


@dataclass(frozen=True)
class Control(Baseline):
    """No perturbation has an effect."""

    def effects(
        self, training: Training, features: Features | None, targets: Sequence[tuple[str, ...]]
    ) -> Effects:
        """Predict no change."""
        return Effects(np.zeros((len(targets), len(training.genes))))


@dataclass(frozen=True)
class PerturbedMean(Baseline):
    """Every perturbation has the mean effect of the training perturbations, each counted once."""

    def effects(
        self, training: Training, features: Features | None, targets: Sequence[tuple[str, ...]]
    ) -> Effects:
        """Predict the mean effect."""
        return Effects(np.tile(training.mean_delta, (len(targets), 1)))


@dataclass(frozen=True)
class GeneBaseline(Baseline):
    """A predictor of the effects of single genes; those of a combination add."""

    def effects(
        self, training: Training, features: Features | None, targets: Sequence[tuple[str, ...]]
    ) -> Effects:
        """Add the effects of the targets, and their variances."""
        genes = sorted({gene for target in targets for gene in target})
        single = self.gene_effects(training, features, genes)
        belongs = np.array([[gene in target for gene in genes] for target in targets], dtype=float)
        belongs = belongs.reshape(len(targets), len(genes))
        sd = None if single.sd is None else np.sqrt(belongs @ single.sd**2)
        return Effects(belongs @ single.delta, sd)

    @abstractmethod
    def gene_effects(self, training: Training, features: Features | None, genes: Sequence[str]) -> Effects:
        """Predict the effect of perturbing each of these genes alone."""


@dataclass(frozen=True)
class Additive(GeneBaseline):
    """The observed effects of the single perturbations, added (Ahlmann-Eltze et al. 2025).

    A gene whose single perturbation was not measured counts with the mean effect of those that were.
    """

    def gene_effects(self, training: Training, features: Features | None, genes: Sequence[str]) -> Effects:
        """Look the effects up."""
        singles = training.singles()
        fallback = (singles if singles.targets else training).mean_delta
        observed = dict(zip(singles.target_genes, singles.delta, strict=True))
        rows = [observed.get(gene, fallback) for gene in genes]
        return Effects(np.array(rows).reshape(len(genes), len(training.genes)))


# Baselines on features


def _need(features: Features | None, baseline: Baseline) -> Features:
    if features is None:
        raise InputError(
            f"{type(baseline).__name__} learns from features of the perturbed genes. Pass features=."
        )
    return features


@dataclass(frozen=True)
class RidgeFit:
    """A fitted ridge regression with an intercept that is not penalised.

    Parameters
    ----------
    x_mean, y_mean
        Training means (E and G).
    coefficients
        E x G.
    """

    x_mean: np.ndarray
    y_mean: np.ndarray
    coefficients: np.ndarray

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Predict rows x G from rows x E."""
        return self.y_mean + (X - self.x_mean) @ self.coefficients


def ridge_path(X: np.ndarray, Y: np.ndarray, penalties: Sequence[float]) -> list[RidgeFit]:
    """Ridge regressions ``min |Y - 1 b - X W|^2 + penalty |W|^2`` for several penalties, from one SVD.

    An infinite penalty is the mean of ``Y``.
    """
    x_mean, y_mean = X.mean(axis=0), Y.mean(axis=0)
    U, d, Vt = np.linalg.svd(X - x_mean, full_matrices=False)
    projected = U.T @ (Y - y_mean)
    shrinkage = [d / (d**2 + max(penalty, np.finfo(float).tiny)) for penalty in penalties]
    return [RidgeFit(x_mean, y_mean, Vt.T @ (s[:, None] * projected)) for s in shrinkage]


def cross_validated_ridge(
    X: np.ndarray, Y: np.ndarray, penalties: Sequence[float], n_folds: int, seed: int
) -> RidgeFit:
    """Ridge regression at the penalty with the least squared error over left-out rows."""
    folds = np.random.default_rng(seed).permutation(len(X)) % min(n_folds, len(X))
    error = np.zeros(len(penalties))
    for fold in np.unique(folds):
        left_out = folds == fold
        fits = ridge_path(X[~left_out], Y[~left_out], penalties)
        error += [np.sum((fit(X[left_out]) - Y[left_out]) ** 2) for fit in fits]
    return ridge_path(X, Y, [penalties[int(np.argmin(error))]])[0]


_PENALTIES = (np.inf, *np.logspace(5, -3, 17))


@dataclass(frozen=True)
class Ridge(GeneBaseline):
    """Ridge regression of the effects on the features of the target, with an intercept.

    Parameters
    ----------
    penalties
        Candidates, strongest first; infinity is the perturbed mean. Cross-validated over training
        perturbations, one penalty for all genes.
    n_folds
        Folds of the cross-validation.
    seed
        Seed of the folds.
    """

    penalties: tuple[float, ...] = _PENALTIES
    n_folds: int = 10
    seed: int = 0

    def gene_effects(self, training: Training, features: Features | None, genes: Sequence[str]) -> Effects:
        """Fit on the single perturbations, predict the genes."""
        features = _need(features, self)
        known = training.described_by(features)
        X = features.rows(known.target_genes)
        fit = cross_validated_ridge(X, known.delta, self.penalties, self.n_folds, self.seed)
        return Effects(fit(features.rows(genes)))


@dataclass(frozen=True)
class Bilinear(GeneBaseline):
    """Linear map between gene embeddings, ``delta = G W p + b`` (Ahlmann-Eltze et al. 2025).

    ``G`` (genes x dimensions) are the principal component scores of the genes across the training
    pseudobulk, controls included. The embedding ``p`` of a perturbation is the row of ``G`` of its target.
    ``b`` is the mean training effect, and ``W`` solves the ridge problem with the same penalty on both
    sides, ``W = (G'G + l I)^-1 G' (Y - b) P (P'P + l I)^-1``.

    As published, only perturbations of measured genes train ``W``. A target that was not measured gets
    its ``p`` from a cross-validated ridge regression of the rows of ``G`` on the features, over all
    measured genes that have features. Unlike the published code, the control is no column of ``Y``, so
    that without signal the prediction is exactly the perturbed mean.

    Parameters
    ----------
    n_components
        Dimensions of the embedding.
    penalty
        ``l``.
    """

    n_components: int = 10
    penalty: float = 0.1

    def gene_effects(self, training: Training, features: Features | None, genes: Sequence[str]) -> Effects:
        """Fit on the single perturbations of measured genes, predict the genes."""
        embedding = self._gene_embedding(training)
        known = training.singles()
        known = known._subset([gene in training.genes for gene in known.target_genes])
        if not known.targets:
            return Effects(np.tile(training.mean_delta, (len(genes), 1)))
        b = known.mean_delta
        P = embedding.loc[known.target_genes].to_numpy()
        G = embedding.to_numpy()
        identity = self.penalty * np.eye(G.shape[1])
        left = np.linalg.solve(G.T @ G + identity, G.T @ (known.delta - b).T @ P)
        W = np.linalg.solve(P.T @ P + identity, left.T).T
        return Effects(self._embed(embedding, features, genes) @ W.T @ G.T + b)

    def _gene_embedding(self, training: Training) -> pd.DataFrame:
        """Principal component scores of the genes, genes x dimensions."""
        pseudobulk = np.vstack([training.control_mean, training.control_mean + training.delta]).T
        U, d, _ = np.linalg.svd(pseudobulk - pseudobulk.mean(axis=0), full_matrices=False)
        return pd.DataFrame((U * d)[:, : self.n_components], index=training.genes)

    def _embed(self, embedding: pd.DataFrame, features: Features | None, genes: Sequence[str]) -> np.ndarray:
        """Rows of the embedding, of genes that were not measured from their features."""
        requested = embedding.reindex(list(genes))
        absent = [gene for gene in genes if gene not in embedding.index]
        if absent:
            features = _need(features, self)
            described = features.predictable(list(embedding.index))["predictable"].to_numpy(dtype=bool)
            anchors = embedding[described]
            if len(anchors) < 2:
                raise InputError(
                    f"Bilinear cannot place the unmeasured {listing(absent)}: only {len(anchors)} of the "
                    "measured genes have features, and two are needed. Leave these perturbations out."
                )
            X = features.rows(list(anchors.index))
            fit = cross_validated_ridge(X, anchors.to_numpy(), _PENALTIES, n_folds=10, seed=0)
            requested.loc[absent] = fit(features.rows(absent))
        return requested.to_numpy()


@dataclass(frozen=True)
class NearestNeighbours(GeneBaseline):
    """Mean effect of the training perturbations whose features are nearest (Euclidean).

    Parameters
    ----------
    candidates
        Numbers of neighbours to choose from by leave-one-out over the training perturbations; all of
        them, which is the perturbed mean, is always a candidate.
    """

    candidates: tuple[int, ...] = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50)

    def gene_effects(self, training: Training, features: Features | None, genes: Sequence[str]) -> Effects:
        """Choose the number of neighbours, then average over them."""
        features = _need(features, self)
        known = training.described_by(features)
        X = features.rows(known.target_genes)
        k = self._choose(X, known.delta)
        return Effects(_neighbour_weights(squared_distances(features.rows(genes), X), k) @ known.delta)

    def _choose(self, X: np.ndarray, Y: np.ndarray) -> int:
        n_others = len(X) - 1
        distances = squared_distances(X, X)
        np.fill_diagonal(distances, np.inf)
        candidates = [n_others, *(k for k in self.candidates if k < n_others)]
        errors = [np.sum((_neighbour_weights(distances, k) @ Y - Y) ** 2) for k in candidates]
        best = candidates[int(np.argmin(errors))]
        return len(X) if best == n_others else best


def _neighbour_weights(distances: np.ndarray, k: int) -> np.ndarray:
    """``1 / k`` at the k nearest columns of each row."""
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
    weights = np.zeros_like(distances)
    np.put_along_axis(weights, nearest, 1.0 / k, axis=1)
    return weights


@dataclass(frozen=True)
class GaussianProcess(GeneBaseline):
    """Gaussian processes on the features, one for each principal component of the training effects.

    The score of component k for gene p is ``m_k + s_k (sqrt(rho_k) f_k(e_p) + sqrt(1 - rho_k) r_kp)``:
    ``f_k`` is a Gaussian process with unit variance and a squared exponential kernel of length ``l_k``,
    ``r_kp`` standard normal. Amplitude ``s_k``, share ``rho_k`` and length maximise the marginal
    likelihood, ``s_k`` in closed form, the others on a grid: ``rho = 0`` is the perturbed mean.
    Components beyond those kept have ``rho = 0``. Rasmussen & Williams 2006, ch. 2 and 5.

    The residual is partly real and partly sampling noise of the training means. The latter is known from
    the cells and is taken out, gene by gene, of the predicted variance: ``sd`` is of the population mean.

    Parameters
    ----------
    n_components
        Principal components of the training effects.
    lengths
        Candidates for the kernel length, in units of the median distance between training genes.
    shares
        Candidates for ``rho``, below 1.
    """

    n_components: int = 20
    lengths: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)
    shares: tuple[float, ...] = tuple(np.round(np.arange(0.0, 1.0, 0.03), 2))

    def gene_effects(self, training: Training, features: Features | None, genes: Sequence[str]) -> Effects:
        """Posterior mean and standard deviation of the population mean of each gene."""
        features = _need(features, self)
        known = training.described_by(features)
        center = known.mean_delta
        U, d, Vt = np.linalg.svd(known.delta - center, full_matrices=False)
        scores, components = (U * d)[:, : self.n_components], Vt[: self.n_components]
        mean, var = self._predict_scores(features.rows(known.target_genes), features.rows(genes), scores)
        left_over = np.var(known.delta - center - scores @ components, axis=0)
        sd = _population_sd(var @ components**2 + left_over, known.noise.mean(axis=0), len(known.targets))
        return Effects(center + mean @ components, sd)

    def _predict_scores(
        self, X: np.ndarray, X_new: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predictive mean and variance of each component, residual included, new genes x components."""
        within, across = squared_distances(X, X), squared_distances(X_new, X)
        median = np.median(within[np.triu_indices(len(X), k=1)])
        unit = 2.0 * (median if median > 0 else 1.0)
        fits = [
            fit_shares(np.exp(-within / (length**2 * unit)), scores, self.shares) for length in self.lengths
        ]
        best = np.argmax([fit.log_likelihood for fit in fits], axis=0)
        mean, var = np.zeros((2, len(X_new), scores.shape[1]))
        for k, choice in enumerate(best):
            covariance = np.exp(-across / (self.lengths[choice] ** 2 * unit))
            mean[:, k], var[:, k] = fits[choice].predict(k, covariance)
        return mean, var


def _population_sd(variance: np.ndarray, noise: np.ndarray, n_training: int) -> np.ndarray:
    """Take sampling noise out of a variance; return the standard deviation that is left.

    A real part smaller than the standard error of an estimated variance cannot be told from none, so
    no less than that is left.
    """
    resolution = min(np.sqrt(2.0 / n_training), 1.0)
    return np.sqrt(np.maximum(variance - noise, resolution * variance))


@dataclass(frozen=True)
class ShareFits:
    """Best share and amplitude of each component under one kernel matrix.

    Parameters
    ----------
    eigenvalues, eigenvectors
        Of the kernel matrix of the training genes (L, and L x L).
    rotated
        Scores of the components along the eigenvectors, L x components.
    share, amplitude2, log_likelihood
        ``rho``, ``s^2`` and the maximum of the log marginal likelihood (components each).
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    rotated: np.ndarray
    share: np.ndarray
    amplitude2: np.ndarray
    log_likelihood: np.ndarray

    def predict(self, component: int, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictive mean and variance of the scores of new genes, residual included.

        Parameters
        ----------
        component
            Which component.
        covariance
            Kernel between new and training genes, new x L.
        """
        rho = self.share[component]
        cross = rho * covariance @ self.eigenvectors
        spectrum = rho * self.eigenvalues + 1.0 - rho
        mean = cross @ (self.rotated[:, component] / spectrum)
        return mean, self.amplitude2[component] * (1.0 - np.sum(cross**2 / spectrum, axis=1))


def fit_shares(kernel: np.ndarray, scores: np.ndarray, shares: Sequence[float]) -> ShareFits:
    """Maximise the marginal likelihood of ``N(0, s^2 (rho K + (1 - rho) I))`` for each component.

    Parameters
    ----------
    kernel
        ``K``, L x L, with unit diagonal.
    scores
        Observations, L x components.
    shares
        Candidates for ``rho``.
    """
    eigenvalues, eigenvectors = np.linalg.eigh(kernel)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    rotated = eigenvectors.T @ scores
    rho = np.array(shares)
    spectrum = rho[:, None] * eigenvalues + 1.0 - rho[:, None]
    amplitude2 = (1.0 / spectrum) @ rotated**2 / len(scores)
    floor = np.finfo(float).tiny
    log_likelihood = -0.5 * (
        len(scores) * (np.log(2.0 * np.pi * np.maximum(amplitude2, floor)) + 1.0)
        + np.log(spectrum).sum(axis=1)[:, None]
    )
    best = np.argmax(log_likelihood, axis=0)
    chosen = (best, np.arange(scores.shape[1]))
    return ShareFits(
        eigenvalues, eigenvectors, rotated, rho[best], amplitude2[chosen], log_likelihood[chosen]
    )


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "control": Control(),
        "perturbed mean": PerturbedMean(),
        "additive": Additive(),
        "bilinear": Bilinear(),
        "ridge": Ridge(),
        "kNN": NearestNeighbours(),
        "GP": GaussianProcess(),
    }
)
"""Every baseline under its name in score tables."""

TRIVIAL = ("control", "perturbed mean")
"""Baselines that know nothing about the perturbation."""


def predict_baselines(
    training: Training, features: Features | None, perturbations: Sequence[str | Sequence[str]]
) -> dict[str, AnnData]:
    """Predict with every baseline; "additive" is left out where no combination is asked for.

    Parameters and errors are those of :meth:`Baseline.predict`.
    """
    perturbations = as_labels(perturbations)
    combined = any(len(parse_targets(label, training.control)) > 1 for label in perturbations)
    names = [name for name in BASELINES if combined or name != "additive"]
    return {name: BASELINES[name].predict(training, features, perturbations) for name in names}
