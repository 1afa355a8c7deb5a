"""From a fitted program to answers: draws of the globals, population means, cells, counterfactuals.

Everything is computed in chunks: memory grows with the perturbations asked for times the genes
times the draws of one chunk, never with the cells of the screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.models import scm
from sccvae_pyro.models.observation import Profile
from sccvae_pyro.models.program import Program

CELL_CHUNK = 4096
DRAWS_AT_ONCE = 8


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seeded generator and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Draws:
    """Posterior draws of the globals.

    Parameters
    ----------
    values
        Value of every global site, each with a leading dimension of draws, as the guide drew it.
    B
        ``draws x nodes x nodes``.
    strength_p
        ``draws x perturbations``, of the seen perturbations.
    shift_pk
        ``draws x perturbations x nodes``, of the seen perturbations at penetrance 1.
    gene_level
        ``draws x variables x genes``, what the likelihood knows of each gene.
    """

    values: dict[str, Tensor]
    B: Tensor
    strength_p: Tensor
    shift_pk: Tensor
    gene_level: Tensor

    def __len__(self) -> int:
        return len(self.shift_pk)


class Controls(NamedTuple):
    """Control cells as the model starts from them, one row a cell.

    ``state_ck`` and ``trust_ck``: what the encoder proposes; ``library_c`` molecules;
    ``covariates_cv`` coded covariates; ``mean_g`` their observed mean profile.
    """

    state_ck: Tensor
    trust_ck: Tensor
    library_c: Tensor
    covariates_cv: Tensor
    mean_g: np.ndarray


@torch.no_grad()
def draw(program: Program, n_draws: int, seed: int) -> Draws:
    """Draw the globals from the guide.

    Parameters
    ----------
    program
        Fitted program.
    n_draws
        Number of draws.
    seed
        Seed of the draws.

    Returns
    -------
    Draws
    """
    # Few at once: a regression of directions holds a matrix of its basis for each draw and node.
    starts = range(0, n_draws, DRAWS_AT_ONCE)
    with seeded(seed):
        parts = [_draw_at_once(program, min(DRAWS_AT_ONCE, n_draws - start)) for start in starts]
    values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
    return Draws(values, *(torch.cat(tensors) for tensors in zip(*map(_causes, parts), strict=True)))


def _causes(draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draws.B, draws.strength_p, draws.shift_pk, draws.gene_level


def _draw_at_once(program: Program, n_draws: int) -> Draws:
    with pyro.plate("draws", n_draws, dim=-2):
        values = program.guide_globals()
        B, shift_pk = program.causes_given(values, program.seen)
        strength_p = program.strength_given(values)
        gene_level = program.gene_level_given(values)
    K = program.sizes.nodes
    return Draws(
        values,
        scm.drop_cells_dim(B).expand(n_draws, K, K),
        strength_p.expand(n_draws, strength_p.shape[-1]),
        shift_pk.expand(n_draws, *shift_pk.shape[-2:]),
        gene_level.expand(n_draws, *gene_level.shape[-2:]),
    )


@torch.no_grad()
def unseen_shifts(program: Program, draws: Draws, features: Tensor, seed: int) -> Tensor:
    """Draw the shifts of perturbations without cells.

    Population-level sites come from the posterior, what each perturbation has of its own from its prior.

    Parameters
    ----------
    program
        Fitted program.
    draws
        Posterior draws of the globals.
    features
        ``unseen x features``, standardised.
    seed
        Seed of residuals and strengths.

    Returns
    -------
    Tensor, ``draws x unseen x nodes``.
    """
    with seeded(seed):
        own = perturbation_sites(program)
    population = {name: value for name, value in draws.values.items() if name not in own}
    # Not hidden from the plate of draws, as causes_given would: each draw has a strength of its own.
    given = poutine.condition(data=population)
    with seeded(seed), pyro.plate("draws", len(draws), dim=-2), given:
        _, shift_pk = program.causes(program.describe(features))
    return shift_pk.expand(len(draws), *shift_pk.shape[-2:])


def perturbation_sites(program: Program) -> set[str]:
    """Names of the sites that each perturbation has of its own: those inside the plate ``perturbations``."""
    trace = poutine.trace(program.causes).get_trace(program.seen)
    sites = trace.nodes.items()
    return {
        name
        for name, site in sites
        if any(f.name == "perturbations" for f in site.get("cond_indep_stack", ()))
    }


def noise_of(
    state_ck: Tensor, trust_ck: Tensor, B: Tensor, shift_ck: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mean and sd of the noise of cells by abduction, ``cells x nodes``; see :meth:`Program.guide`."""
    return trust_ck * (scm.abduct(state_ck, B) - shift_ck), (1.0 - trust_ck).sqrt()


@torch.no_grad()
def population_means(
    program: Program,
    draws: Draws,
    controls: Controls,
    shift_slk: Tensor,
    library: np.ndarray,
    cells_per_draw: int,
    seed: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Mean profile change of each perturbation, for each draw of the globals.

    Control cells are abducted, pushed and predicted; the same cells and the same noise serve every
    perturbation, so that differences carry little Monte Carlo noise. The expectation over
    counts is exact (:class:`~sccvae_pyro.data.counts.ExpectationTable`).

    Parameters
    ----------
    program, draws
        Fitted program and draws of its globals.
    controls
        Cells to start from.
    shift_slk
        ``draws x labels x nodes``.
    library
        Library sizes at which profiles are measured.
    cells_per_draw
        Cells of each draw; consecutive draws take consecutive cells.
    seed
        Seed of the cells' noise.

    Yields
    ------
    Position of the draw and its ``labels x genes`` difference to the control cells, in ``log1p(CP10K)``.
    """
    profile = program.priors.likelihood.profile(library)
    generator = torch.Generator().manual_seed(seed)
    n_cells = len(controls.library_c)
    order = torch.randperm(n_cells, generator=generator)
    for s in range(len(draws)):
        rows = order[(s * cells_per_draw + torch.arange(min(cells_per_draw, n_cells))) % n_cells]
        mean, sd = noise_of(controls.state_ck[rows], controls.trust_ck[rows], draws.B[s], 0.0)
        z_ck = mean + sd * torch.randn(mean.shape, generator=generator)
        expected = partial(
            _mean_profile, program, profile, draws.B[s], draws.gene_level[s], controls.covariates_cv[rows]
        )
        baseline = expected(z_ck)
        step = max(1, CELL_CHUNK // len(rows))
        parts = [expected(z_ck + chunk.unsqueeze(-2)) - baseline for chunk in shift_slk[s].split(step)]
        yield s, torch.cat(parts).numpy()


def _mean_profile(
    program: Program, profile: Profile, B: Tensor, gene_level: Tensor, covariates: Tensor, noise: Tensor
) -> Tensor:
    """Mean over cells of the expected profile, ``... x genes``."""
    change = program.decode(scm.propagate(noise, B), covariates)
    return profile(change, program.baseline, covariates, gene_level).mean(-2)


@torch.no_grad()
def sample_cells(
    program: Program, draws: Draws, controls: Controls, shift_sk: Tensor, n_cells: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simulate cells of one perturbation, each from its own draw, control cell and noise.

    Parameters
    ----------
    program, draws, controls
        As in :func:`population_means`.
    shift_sk
        ``draws x nodes``.
    n_cells
        Cells to simulate.
    seed
        Seed.

    Returns
    -------
    Values ``cells x genes``, library sizes, and the rows of ``controls`` that the cells started from.
    """
    out = []
    with seeded(seed):
        rows = torch.randint(len(controls.library_c), (n_cells,))
        which = torch.arange(n_cells) % len(draws)
        for s in which.unique():
            mine = rows[which == s]
            mean, sd = noise_of(controls.state_ck[mine], controls.trust_ck[mine], draws.B[s], 0.0)
            z_ck = mean + sd * torch.randn_like(mean) + shift_sk[s]
            change = program.decode(scm.propagate(z_ck, draws.B[s]), controls.covariates_cv[mine])
            x = program.priors.likelihood.distribution(
                change,
                program.baseline,
                controls.library_c[mine],
                controls.covariates_cv[mine],
                draws.gene_level[s],
            )
            out.append(x.sample())
    order = torch.argsort(which, stable=True)
    values = torch.cat(out)[torch.argsort(order)]
    return values.numpy(), controls.library_c[rows].numpy(), rows.numpy()


@torch.no_grad()
def counterfactual(
    program: Program, draws: Draws, batch: Batch, own_slk: Tensor, new_slk: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Abduct, act, predict: expected profiles of given cells as they were, and under another perturbation.

    Both share the noise of the cell, draw by draw, so that a new shift equal to the own one changes nothing.

    Parameters
    ----------
    program, draws
        Fitted program and draws of its globals.
    batch
        The cells.
    own_slk, new_slk
        ``draws x cells x nodes``: the shift that each cell carries, and the one it is given.
    seed
        Seed of the noise.

    Returns
    -------
    Expected ``log1p(CP10K)`` as the cells were and under the new shift, each ``draws x cells x genes``.
    """
    profile = program.priors.likelihood.profile(batch.library_c.numpy())
    state_ck, trust_ck = program.encode(batch)
    factual: list[Tensor] = []
    counter: list[Tensor] = []
    with seeded(seed):
        for s in range(len(draws)):
            mean, sd = noise_of(state_ck, trust_ck, draws.B[s], own_slk[s])
            z_ck = mean + sd * torch.randn_like(mean)
            for shift, kept in ((own_slk[s], factual), (new_slk[s], counter)):
                change = program.decode(scm.propagate(z_ck + shift, draws.B[s]), batch.covariates_cv)
                kept.append(profile(change, program.baseline, batch.covariates_cv, draws.gene_level[s]))
    return torch.stack(factual), torch.stack(counter)


@torch.no_grad()
def log_density(program: Program, draws: Draws, batch: Batch, shift_sck: Tensor, seed: int) -> Tensor:
    """Log density of cells, averaged over draws of the globals, by importance sampling of the noise.

    Parameters
    ----------
    program, draws
        Fitted program and draws of its globals.
    batch
        The cells.
    shift_sck
        ``draws x cells x nodes``, the shift that each cell carries.
    seed
        Seed of the noise.

    Returns
    -------
    Tensor, cells; nats.
    """
    state_ck, trust_ck = program.encode(batch)
    prior = program.priors.noise.distribution(program.sizes, batch.library_c)
    weights = []
    with seeded(seed):
        for s in range(len(draws)):
            mean, sd = noise_of(state_ck, trust_ck, draws.B[s], shift_sck[s])
            proposal = torch.distributions.Independent(torch.distributions.Normal(mean, sd), 1)
            z_ck = proposal.sample()
            change = program.decode(scm.propagate(z_ck + shift_sck[s], draws.B[s]), batch.covariates_cv)
            x = program.priors.likelihood.distribution(
                change, program.baseline, batch.library_c, batch.covariates_cv, draws.gene_level[s]
            )
            weights.append(x.log_prob(batch.x_cg) + prior.log_prob(z_ck) - proposal.log_prob(z_ck))
    return torch.stack(weights).logsumexp(0) - math.log(len(draws))


def summarise(draws: np.ndarray, quantiles: Sequence[float] = (0.05, 0.95)) -> dict[str, np.ndarray]:
    """Mean, sd and quantiles over the first axis, under the names that results carry."""
    names = [f"q{round(100 * q):02d}" for q in quantiles]
    table = dict(zip(names, np.quantile(draws, quantiles, axis=0), strict=True))
    return {"mean": draws.mean(axis=0), "sd": draws.std(axis=0, ddof=1), **table}
