"""Where the uncertainty of a predicted mean comes from.

What the guide draws, and what the prior draws of an unseen perturbation, is a function of independent streams
of random numbers, one for each source. Sources that depend on each other are drawn in turn, so that what is
split is the variance of a function of independent factors (Rosenblatt transform; Mara & Tarantola 2012,
Reliab Eng Syst Saf 107:115): to hold a source is to give it the same stream again. Each source gets its
Shapley effect, which shares what sources do together evenly among them (Owen 2014, SIAM/ASA J Uncertain
Quantif 2:245; Song, Nelson & Staum 2016, 4:1060); over several genes, variances are summed
(Gamboa, Janon, Klein & Lagnoux 2014, Electron J Stat 8:575).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import torch
from anndata import AnnData
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample as is_plate

from sccvae_pyro.data.loading import Coding
from sccvae_pyro.data.matrix import BLOCK_VALUES
from sccvae_pyro.inference import posterior, results
from sccvae_pyro.inference.posterior import DRAWS_AT_ONCE, Controls, Draws, Push, stream
from sccvae_pyro.models.program import Program
from sccvae_pyro.models.slot import Perturbations

GRAPH, PENETRANCE, DIRECTION, LIKELIHOOD = "graph", "penetrance", "direction", "likelihood"
TOGETHER, DISCREPANCY = "globals", "discrepancy"

CELL_DRAWS, CELLS_OF_EACH = 16, 32
"""Draws of the globals, and single cells of each of them, behind the spread of single cells."""

PushOf = Callable[[Draws], Push]
"""What the labels do in each draw of the globals."""


class Split(NamedTuple):
    """The variance of predicted means by source, and the spread of single cells beside it.

    Parameters
    ----------
    sources
        Columns ``perturbation``, ``source``, ``variance`` (mean over genes, squared units of a profile),
        ``share`` of the variance of the predicted mean, and ``share_se``, its Monte Carlo standard error. The
        shares of a perturbation sum to one; they are missing where nothing varies.
    labels
        Index: perturbation; ``status``, as in a prediction; ``sd`` of the predicted mean and ``cell_sd`` of
        single cells around it, each a root mean square over genes, in units of a profile.
    genes
        Perturbations x genes: ``X``, the variance of the predicted mean; for each source a layer of its name
        with its share, and one with the standard error, ``_se`` after the name; ``uns["units"]`` of profiles.
    """

    sources: pd.DataFrame
    labels: pd.DataFrame
    genes: AnnData


class Streams(Messenger):
    """Draw the sites of each source from random numbers of its own.

    The numbers behind a site follow from the seed of its source and the name of the site, whatever else is
    drawn before it.

    Parameters
    ----------
    source_of
        Source of each site.
    seeds
        Seed of each source.
    """

    def __init__(self, source_of: Mapping[str, str], seeds: Mapping[str, int]) -> None:
        super().__init__()
        self.source_of, self.seeds = source_of, seeds

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if (name := msg["name"]) in self.source_of:
            # That of the CPU alone, as in `seeded`: seeding all devices would take longer than a draw.
            torch.default_generator.manual_seed(stream(self.seeds[self.source_of[name]], *name.encode()))


class Sources(NamedTuple):
    """What can be told apart.

    ``of_globals``: source of each site that the guide draws; ``of_own``: of each site that an unseen
    perturbation has of its own; ``names``: all sources, among which some may draw nothing.
    """

    of_globals: dict[str, str]
    of_own: dict[str, str]
    names: tuple[str, ...]

    @classmethod
    def of(cls, program: Program) -> Sources:
        """Look where the program draws what."""
        priors, context = program.priors, (program.sizes, Perturbations.of(program.seen))
        samplers = [
            (GRAPH, partial(priors.graph.model, *context)),
            (PENETRANCE, partial(priors.penetrance.model, *context)),
            (PENETRANCE, partial(priors.penetrance.relative, *context)),
            (PENETRANCE, partial(priors.responders.model, *context)),
            (DIRECTION, partial(priors.direction.model, *context)),
            (LIKELIHOOD, partial(priors.likelihood.model, program.sizes, program.baseline)),
        ]
        with posterior.seeded(0):
            found = {site: source for source, sampler in samplers for site in _drawn(sampler)}
            proposed = _drawn(program.guide_globals)
            of_own = {site: found[site] for site in posterior.perturbation_sites(program) & found.keys()}
        if proposed <= found.keys():
            return cls(found, of_own, (GRAPH, PENETRANCE, DIRECTION, LIKELIHOOD))
        # A joint family of posteriors draws one vector behind the sites of all slots.
        return cls(dict.fromkeys(proposed, TOGETHER), of_own, (TOGETHER, PENETRANCE, DIRECTION))

    @property
    def drawn(self) -> list[str]:
        """Sources that draw anything, in order."""
        drawn = {*self.of_globals.values(), *self.of_own.values()}
        return [name for name in self.names if name in drawn]


def _drawn(sampler: Callable[[], object]) -> set[str]:
    """Names of the sites that are drawn, not recorded."""
    sites = poutine.trace(sampler).get_trace().nodes.items()
    return {
        name
        for name, site in sites
        if site["type"] == "sample" and not is_plate(site) and not site["is_observed"]
    }


@torch.no_grad()
def draw_hybrid(
    program: Program, sources: Sources, push_of: PushOf, n: int, key: tuple[int, ...], which: Sequence[int]
) -> tuple[Draws, Push]:
    """Draw globals, and what labels do, each source from one or the other of its two streams.

    Parameters
    ----------
    program
        Fitted program.
    sources
        What can be told apart.
    push_of
        Gives what labels do; it may draw what unseen perturbations have of their own.
    n
        Draws.
    key
        What tells these streams from others.
    which
        0 or 1 for each source that draws anything.
    """

    def streams(stage: int, source_of: Mapping[str, str]) -> Streams:
        pairs = enumerate(zip(sources.drawn, which, strict=True))
        return Streams(source_of, {name: stream(*key, stage, i, bit) for i, (name, bit) in pairs})

    with posterior.seeded(0):
        with streams(0, sources.of_globals), pyro.plate("draws", n, dim=-2):
            values = program.guide_globals()
        draws = posterior.draws_given(program, values, n)
        # Another stage: own sites of an unseen perturbation have the names of those of the seen ones.
        with streams(1, sources.of_own):
            return draws, push_of(draws)


def shapley(hybrids: np.ndarray, n_factors: int) -> np.ndarray:
    """Estimate how much each of some independent factors adds to a variance, its Shapley effect.

    From a function at all combinations of two draws of each factor. With ``W_T`` the contrast of the two in
    every factor of a set ``T``, averaged over the others, ``E W_T^2`` is the sum of ``2^-|S| sigma_S^2`` over
    all sets ``S`` that hold ``T``. Solved for the terms ``sigma_S^2`` of the analysis of variance, the effect
    of a factor, the sum of ``sigma_S^2 / |S|`` over the sets that hold it, is that of ``2 / |T| E W_T^2``
    over those of odd size. So estimates are unbiased and never negative, and effects sum to the variance.

    Parameters
    ----------
    hybrids
        ``2 x 2 x ... x anything``: a dimension for each factor.
    n_factors
        Number of factors.

    Returns
    -------
    ``factors x anything``.
    """
    contrast = np.asarray(hybrids, dtype=np.float64)
    for axis in range(n_factors):
        one, other = np.split(contrast, 2, axis)
        contrast = np.concatenate([(one + other) / 2, (one - other) / 2], axis)
    effects = np.zeros((n_factors, *contrast.shape[n_factors:]))
    for members in itertools.product((0, 1), repeat=n_factors):
        if sum(members) % 2:
            effects[np.flatnonzero(members)] += 2 / sum(members) * np.square(contrast[members])
    return effects


class Effects(NamedTuple):
    """Sums over draws of what sources add to the variance, each ``sources x labels x columns``.

    ``one``: of the effects; ``square``: of their squares; ``product``: of each times the total; ``total``:
    ``1 x labels x columns``, of the square of the total. ``n``: number of draws.
    """

    one: np.ndarray
    square: np.ndarray
    product: np.ndarray
    total: np.ndarray
    n: int

    @classmethod
    def of(cls, effects: np.ndarray) -> Effects:
        """Sum effects, ``sources x draws x labels x columns``."""
        total = effects.sum(axis=0, keepdims=True)
        terms = effects, np.square(effects), effects * total, np.square(total)
        one, square, product, whole = (term.sum(axis=1) for term in terms)
        return cls(one, square, product, whole, effects.shape[1])

    def and_of(self, others: Effects) -> Effects:
        """Sum those of other draws, too."""
        return Effects(*map(operator.add, self, others))

    @property
    def variance(self) -> np.ndarray:
        """Effect of each source."""
        return self.one / self.n

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of each source, and its standard error, that of a ratio of two means."""
        sum_of_all = self.one.sum(axis=0)
        whole = np.where(sum_of_all > 0, sum_of_all, np.nan)
        share = self.one / whole
        left = self.square - 2 * share * self.product + np.square(share) * self.total
        return share, np.sqrt(np.maximum(left, 0.0) * self.n / (self.n - 1)) / whole


def effects_of(
    program: Program,
    controls: Controls,
    sources: Sources,
    push_of: PushOf,
    unexplained: np.ndarray,
    genes: np.ndarray,
    n_draws: int,
    seed: int,
) -> Effects:
    """Find what each source adds to the variance of predicted mean changes.

    Parameters
    ----------
    program, controls
        Fitted program, and cells to start from.
    sources, push_of
        See :func:`draw_hybrid`.
    unexplained
        ``labels x genes``, the variance that the discrepancy adds: independent of all else, and known.
    genes
        Positions of the genes that matter.
    n_draws
        Draws of each of the two streams of every source.
    seed
        Seed.

    Returns
    -------
    Effects of the sources, the discrepancy last; a column for each gene, and one for their mean.
    """
    hybrids = list(itertools.product((0, 1), repeat=len(sources.drawn)))
    drawn = [sources.names.index(name) for name in sources.drawn]
    values = len(hybrids) * len(unexplained) * program.sizes.genes
    profile = program.priors.likelihood.profile(controls.library_c.numpy())
    at_once = int(np.clip(BLOCK_VALUES // values, 1, DRAWS_AT_ONCE))

    def part(start: int) -> Effects:
        n, key = min(at_once, n_draws - start), (seed, 8, start)
        deltas = np.empty((len(hybrids), n, *unexplained.shape), dtype=np.float32)
        # The same cells and noise in all hybrids: what differs is due to the sources alone.
        cells = profile, results.CELLS_PER_DRAW, stream(*key)
        for delta_slg, which in zip(deltas, hybrids, strict=True):
            draws, push = draw_hybrid(program, sources, push_of, n, key, which)
            for s, delta_lg in posterior.means_of_profile(program, draws, controls, push, *cells):
                delta_slg[s] = delta_lg[:, genes]
        effects = np.zeros((len(sources.names) + 1, *deltas.shape[1:]))
        effects[drawn] = shapley(deltas.reshape(*[2] * len(drawn), *deltas.shape[1:]), len(drawn))
        effects[-1] = unexplained
        return Effects.of(np.concatenate([effects, effects.mean(-1, keepdims=True)], axis=-1))

    return reduce(Effects.and_of, map(part, range(0, n_draws, at_once)))


def cell_variance(
    program: Program, controls: Controls, push_of: PushOf, genes: np.ndarray, seed: int
) -> np.ndarray:
    """Mean over genes of the variance of single cells within a draw of the globals, ``labels``.

    Parameters
    ----------
    program, controls, push_of, genes, seed
        As in :func:`effects_of`.
    """
    draws = posterior.draw(program, CELL_DRAWS, seed)
    push = push_of(draws)
    return np.array(
        [
            _within_draws(program, draws, controls, push.of([label]), seed)[genes].mean()
            for label in range(push.share.shape[1])
        ]
    )


def _within_draws(program: Program, draws: Draws, controls: Controls, push: Push, seed: int) -> np.ndarray:
    """Variance of simulated cells of one label around the mean of their draw; genes."""
    n_cells = len(draws) * CELLS_OF_EACH
    values, library, _ = posterior.sample_cells(program, draws, controls, push, n_cells, seed)
    profiles = results.cell_profiles(program, values, library)
    # Cells take the draws in turn.
    return profiles.reshape(CELLS_OF_EACH, len(draws), -1).var(axis=0, ddof=1).mean(axis=0)


def table(
    sources: Sources,
    effects: Effects,
    of_cells: np.ndarray,
    labels: Sequence[str],
    status: Sequence[str],
    genes: np.ndarray,
    coding: Coding,
    settings: dict[str, Any],
) -> Split:
    """Lay out a split; see :meth:`sccvae_pyro.SCCVAE.uncertainty_split`.

    Parameters
    ----------
    sources, effects, of_cells
        What can be told apart, what :func:`effects_of` found, and what :func:`cell_variance` did.
    labels, status
        Names of the labels, and whether they were measured.
    genes
        Positions of the genes that matter.
    coding
        Names of the genes.
    settings
        What was asked for.
    """
    names = [*sources.names, DISCREPANCY]
    variance, (share, error) = effects.variance, effects.shares()
    total = variance.sum(axis=0)
    rows = pd.MultiIndex.from_product([labels, names], names=["perturbation", "source"])
    columns = {"variance": variance, "share": share, "share_se": error}
    summary = pd.DataFrame({name: part[..., -1].T.ravel() for name, part in columns.items()}, index=rows)
    layers = dict(zip(names, share[..., :-1], strict=True))
    layers |= {f"{name}_se": part for name, part in zip(names, error[..., :-1], strict=True)}
    layers = {name: layer.astype(np.float32) for name, layer in layers.items()}
    obs = pd.DataFrame({"status": pd.Categorical(status)}, index=pd.Index(labels, name="perturbation"))
    var = pd.DataFrame(index=pd.Index(np.asarray(coding.genes)[genes]))
    of_genes = AnnData(total[:, :-1].astype(np.float32), obs, var, layers=layers)
    of_genes.uns["units"], of_genes.uns["settings"] = results.units(coding), settings
    spread = obs.assign(sd=np.sqrt(total[:, -1]), cell_sd=np.sqrt(of_cells))
    return Split(summary.reset_index(), spread, of_genes)
