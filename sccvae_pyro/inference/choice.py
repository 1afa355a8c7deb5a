"""Which perturbations to measure next.

Effects of candidates, as posterior draws have them, are taken as jointly normal along a few principal
components; a measurement is an effect with the noise of its cells. What measuring some of them would tell is
then known in closed form, and a batch is chosen one by one, each for what it adds: that is within a factor of
``1 - 1/e`` of the best batch (Nemhauser, Wolsey & Fisher 1978, Math Program 14:265; Krause, Singh & Guestrin
2008, J Mach Learn Res 9:235).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.utils.extmath import randomized_svd

from sccvae_pyro.inference import posterior, results
from sccvae_pyro.inference.discrepancy import Discrepancy
from sccvae_pyro.inference.posterior import Controls, Draws, Push, summarise
from sccvae_pyro.models.program import Program

N_COMPONENTS = 10
"""Principal components of the uncertainty of effects that candidates are compared along."""

SKETCHED = 64
"""Candidates that the components are computed from."""

NOISE_CELLS = 1000
"""Control cells that are simulated for the scatter of single cells."""


@dataclass(frozen=True)
class Beliefs:
    """A joint normal view of the effects of candidates.

    The covariance over draws is that of ``deviation``, with the covariances *between* candidates shrunk: a
    few hundred draws show some between any two, and every one would count as knowledge gained.

    Parameters
    ----------
    deviation
        ``candidates x draws x components``: draws of each effect less their mean.
    noise
        ``candidates x components x components``: covariance of what a measurement adds.
    shrinkage
        Share of the covariances between candidates that is taken for chance; see :func:`chance_share`.
    """

    deviation: np.ndarray
    noise: np.ndarray
    shrinkage: float

    @cached_property
    def weighed(self) -> np.ndarray:
        """What a measurement says of the draws, ``candidates x draws x components``.

        An effect is a sum over draws, each times a standard normal variable, and a part of its own. This is
        that sum in units of all that a measurement holds besides.
        """
        own = np.linalg.cholesky(self.noise + self.shrinkage * self._covariance)
        shared = np.sqrt(1 - self.shrinkage) * self._scaled
        return np.linalg.solve(own, shared.swapaxes(1, 2)).swapaxes(1, 2)

    @cached_property
    def _scaled(self) -> np.ndarray:
        return self.deviation / np.sqrt(self.deviation.shape[1] - 1)

    @cached_property
    def _covariance(self) -> np.ndarray:
        return self._scaled.swapaxes(1, 2) @ self._scaled

    @property
    def nothing_measured(self) -> np.ndarray:
        """Covariance of the standard normal variables before anything is measured, ``draws x draws``."""
        return np.eye(self.deviation.shape[1])

    def variance(self) -> np.ndarray:
        """Variance of each effect, summed over components, ``candidates``."""
        return np.trace(self._covariance, axis1=1, axis2=2)

    def information(self, known: np.ndarray) -> np.ndarray:
        """What measuring each candidate would tell of the effects of all, beside what is known; nats.

        Parameters
        ----------
        known
            Covariance of the variables that remains, ``draws x draws``.
        """
        own = _log_det(self.noise + self.shrinkage * self._covariance) - _log_det(self.noise)
        told = _log_det(np.eye(self.noise.shape[-1]) + self._precision(known))
        return 0.5 * (own + told)

    def measured(self, known: np.ndarray, candidate: int) -> np.ndarray:
        """What remains to be known once a candidate has been measured, too, ``draws x draws``."""
        weighed = known @ self.weighed[candidate]
        precision = np.eye(weighed.shape[-1]) + self.weighed[candidate].T @ weighed
        return known - weighed @ np.linalg.solve(precision, weighed.T)

    def remaining(self, known: np.ndarray) -> np.ndarray:
        """Variance that is left of each candidate that has not been measured, ``candidates``."""
        shared = np.einsum("csq,st,ctq->c", self._scaled, known, self._scaled, optimize=True)
        return (1 - self.shrinkage) * shared + self.shrinkage * self.variance()

    def told_of_others(self) -> np.ndarray:
        """Share of the variance of all other candidates that measuring each alone would take away."""
        total, everything = self.variance(), np.einsum("csq,ctq->st", self._scaled, self._scaled)
        shares = np.zeros(len(total))
        for c, weighed in enumerate(self.weighed):
            others = everything - self._scaled[c] @ self._scaled[c].T
            precision = np.eye(weighed.shape[-1]) + weighed.T @ weighed
            told = (1 - self.shrinkage) * np.trace(np.linalg.solve(precision, weighed.T @ others @ weighed))
            left = total.sum() - total[c]
            shares[c] = told / left if left > 0 else 0.0
        return shares

    def _precision(self, known: np.ndarray) -> np.ndarray:
        return self.weighed.swapaxes(1, 2) @ (known @ self.weighed)


def _log_det(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.slogdet(matrices)[1]


def chance_share(deviation: np.ndarray) -> float:
    """Share of the covariances between candidates to expect by chance from so many draws.

    The optimal weight of shrinking them to zero (Schäfer & Strimmer 2005, Stat Appl Genet Mol Biol 4:32):
    the sum of their estimated variances over the sum of their squares. Covariances within a candidate stay.

    Parameters
    ----------
    deviation
        See :class:`Beliefs`.
    """
    n = deviation.shape[1]
    squares = np.square(deviation).sum(-1)  # candidates x draws
    # Sums over all pairs of components of different candidates, as all pairs less those within a candidate.
    fourth = (np.square(squares.sum(0)) - np.square(squares).sum(0)).sum()
    gram = np.einsum("csq,ctq->st", deviation, deviation)
    within = np.square(deviation.swapaxes(1, 2) @ deviation).sum()
    cross = np.square(gram).sum() - within
    if cross <= 0:
        return 1.0
    return float(np.clip(n / (n - 1) * (fourth - cross / n) / cross, 0.0, 1.0))


def choose(beliefs: Beliefs, n: int) -> list[int]:
    """Choose a batch of candidates, each for the information that it adds to those before it."""
    known = beliefs.nothing_measured
    chosen: list[int] = []
    for _ in range(min(n, len(beliefs.deviation))):
        gain = beliefs.information(known)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        known = beliefs.measured(known, chosen[-1])
    return chosen


def information_in_turn(beliefs: Beliefs, order: Sequence[int]) -> list[float]:
    """Information that each candidate adds to those before it, nats."""
    known, gains = beliefs.nothing_measured, []
    for candidate in order:
        gains.append(float(beliefs.information(known)[candidate]))
        known = beliefs.measured(known, candidate)
    return gains


# From a program to beliefs


class Outlook(NamedTuple):
    """What is believed of candidates: their effects together, and the mean effect on the chosen genes.

    ``effect``: ``draws x candidates``, with what the nodes leave unexplained.
    """

    beliefs: Beliefs
    effect: np.ndarray


@torch.no_grad()
def outlook(
    program: Program,
    draws: Draws,
    controls: Controls,
    push: Push,
    discrepancy: Discrepancy,
    labels: Sequence[str],
    n_targets: np.ndarray,
    genes: np.ndarray,
    n_cells: int,
    cells_per_draw: int,
    seed: int,
) -> Outlook:
    """Draw the effects of candidates, one draw of the globals at a time.

    Parameters
    ----------
    program, draws, controls
        Fitted program, draws of its globals, and cells to start from.
    push
        What the candidates do.
    discrepancy
        What the nodes leave unexplained: of what a measurement shows, it tells nothing of the program.
    labels, n_targets
        Names of the candidates, and targets of each.
    genes
        Positions of the genes that matter.
    n_cells
        Cells to be measured of each candidate.
    cells_per_draw, seed
        See :func:`~sccvae_pyro.inference.posterior.population_means`.
    """
    library = controls.library_c.numpy()
    sketched = np.unique(np.linspace(0, len(labels) - 1, SKETCHED).round().astype(int))
    settings = (library, cells_per_draw, seed)
    some = posterior.population_means(program, draws, controls, push.of(sketched), *settings)
    basis_gq = _components(np.stack([delta[:, genes] for _, delta in some]), seed)

    shape = len(draws), len(labels)
    along, effect = np.empty((*shape, basis_gq.shape[1])), np.empty((*shape, 1))
    for s, delta in posterior.population_means(program, draws, controls, push, *settings):
        along[s] = delta[:, genes] @ basis_gq
        effect[s, :, 0] = delta[:, genes].mean(1)
    discrepancy.of_mean(genes).add_to(effect, 1.0, labels, n_targets, seed)

    variance_g = discrepancy.variance(1.0, np.ones(1))[0, genes]
    unexplained = n_targets[:, None, None] * ((basis_gq.T * variance_g) @ basis_gq)
    profiles_cg = _control_profiles(program, draws, controls, seed)[:, genes]
    sampling = np.atleast_2d(np.cov(profiles_cg @ basis_gq, rowvar=False)) / n_cells
    deviation = (along - along.mean(0)).swapaxes(0, 1)
    return Outlook(Beliefs(deviation, unexplained + sampling, chance_share(deviation)), effect[..., 0])


def _components(deltas: np.ndarray, seed: int) -> np.ndarray:
    """Principal components of how draws of effects differ from their mean, ``genes x components``."""
    apart = (deltas - deltas.mean(0)).reshape(-1, deltas.shape[-1])
    n = min(N_COMPONENTS, *apart.shape)
    return randomized_svd(apart, n, random_state=seed)[2].T


def _control_profiles(program: Program, draws: Draws, controls: Controls, seed: int) -> np.ndarray:
    """Simulated profiles of single control cells, ``cells x genes``."""
    nothing = Push(torch.zeros_like(draws.action_pa[:, :1]), torch.ones_like(draws.share_p[:, :1]))
    values, library, _ = posterior.sample_cells(program, draws, controls, nothing, NOISE_CELLS, seed)
    return results.cell_profiles(program, values, library)


def table(
    outlook: Outlook, labels: Sequence[str], status: Sequence[str], n: int, threshold: float | None
) -> pd.DataFrame:
    """Rank candidates; see :meth:`sccvae_pyro.SCCVAE.suggest`."""
    beliefs, effect = outlook
    rows: dict[str, np.ndarray] = {
        "alone": beliefs.information(beliefs.nothing_measured),
        "others": beliefs.told_of_others(),
        "sd": effect.std(axis=0, ddof=1),
    }
    if threshold is None:
        order = choose(beliefs, n)
    else:
        summary = summarise(effect)
        reached = effect >= threshold if threshold >= 0 else effect <= threshold
        rows["probability"] = reached.mean(axis=0)
        rows |= {"effect": summary["mean"], "effect_q05": summary["q05"], "effect_q95": summary["q95"]}
        order = list(np.lexsort((-rows["alone"], -rows["probability"]))[:n])
    found = pd.DataFrame({"status": status, **rows}, index=pd.Index(labels, name="perturbation")).iloc[order]
    found.insert(1, "information", information_in_turn(beliefs, order))
    found.insert(0, "rank", np.arange(1, len(found) + 1))
    found["reason"] = [_reason(row, threshold) for _, row in found.iterrows()]
    return found


def _reason(row: pd.Series, threshold: float | None) -> str:
    told = f"tells {row['others']:.0%} of what is uncertain of the others"
    if threshold is None:
        new = row["information"] / row["alone"] if row["alone"] > 0 else 0.0
        return f"{row['alone']:.2g} nats alone, {new:.0%} of them new; {told}"
    interval = f"{row['effect']:+.2g} ({row['effect_q05']:+.2g} to {row['effect_q95']:+.2g})"
    return f"mean effect {interval}, asked for {threshold:+g}; {told}"
