"""From a program to answers: draws of the globals, population means, cells, counterfactuals.

Everything is computed in chunks: memory grows with the perturbations asked for times the genes
times the draws of one chunk, never with the cells of the screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.util import site_is_subsample as is_plate
from torch import Tensor

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.models import scm
from sccvae_pyro.models.observation import Profile
from sccvae_pyro.models.program import Causes, Program
from sccvae_pyro.models.responders import Evidence
from sccvae_pyro.models.slot import Described

CELL_CHUNK = 4096
DRAWS_AT_ONCE = 8


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seeded generator and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        yield


def stream(*key: int) -> int:
    """Seed of a stream of its own: cells must not repeat the numbers behind the globals of one seed."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@dataclass(frozen=True)
class Draws:
    """Draws of the globals, from the guide or from the prior.

    Parameters
    ----------
    values
        Value of every global site, each with a leading dimension of draws, as it was drawn.
    B
        ``draws x nodes x nodes``.
    strength_p
        ``draws x perturbations``, of the seen perturbations.
    action_pa
        ``draws x perturbations x actions``, of the seen perturbations at penetrance 1, shifts first.
    share_p
        ``draws x perturbations``, mean share of its shift that a cell shows, of the seen perturbations.
    relative_g
        ``draws x guides``, strength of each guide relative to that of its perturbation.
    gene_level
        ``draws x variables x genes``, what the likelihood knows of each gene.
    """

    values: dict[str, Tensor]
    B: Tensor
    strength_p: Tensor
    action_pa: Tensor
    share_p: Tensor
    relative_g: Tensor
    gene_level: Tensor

    def push_of(self, batch: Batch) -> Push:
        """What each cell of a batch carries."""
        causes = Causes(self.B, self.action_pa, self.share_p, self.relative_g)
        return Push(causes.action_of(batch), causes.share_of(batch))

    def with_guides_of(self, program: Program) -> Draws:
        """The same, each perturbation with the mean strength of the guides that its training cells carry."""
        mean_p = program.guide_mix.mean(self.relative_g, self.strength_p.shape[-1])
        return replace(self, action_pa=mean_p.unsqueeze(-1) * self.action_pa)

    def __len__(self) -> int:
        return len(self.action_pa)


class Push(NamedTuple):
    """What perturbations do to a cell, at penetrance 1, for each draw of the globals.

    ``action``: ``draws x labels x actions``, of a full response; ``share``: ``draws x labels``, the mean
    share of it that cells show.
    """

    action: Tensor
    share: Tensor

    def at(self, penetrance: float) -> Push:
        """The same at another penetrance."""
        return self._replace(action=penetrance * self.action)

    def of(self, labels: Any) -> Push:
        """Some of the labels."""
        return Push(self.action[:, labels], self.share[:, labels])


class Controls(NamedTuple):
    """Control cells as the model starts from them, one row a cell.

    ``state_ck`` and ``trust_k``: what the encoder reads; ``library_c`` molecules;
    ``covariates_cv`` coded covariates; ``mean_g`` their observed mean profile.
    """

    state_ck: Tensor
    trust_k: Tensor
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
    return _draw(program, program.guide_globals, n_draws, seed)


@torch.no_grad()
def draw_prior(program: Program, n_draws: int, seed: int) -> Draws:
    """Draw the globals from their priors, whatever the guide has learned.

    Parameters
    ----------
    program
        Program, fitted or not.
    n_draws
        Number of draws.
    seed
        Seed of the draws.

    Returns
    -------
    Draws
    """
    return _draw(program, program.prior_globals, n_draws, seed)


@torch.no_grad()
def draw_weighed(program: Program, n_draws: int, seed: int) -> tuple[Draws, Tensor]:
    """Draw the globals from the guide, as :func:`draw` does, with ``log p - log q`` of each draw.

    Parameters
    ----------
    program, n_draws, seed
        As in :func:`draw`.

    Returns
    -------
    Draws, and for each of them its log density under the priors less that under the guide, nats.
    """
    ratios: list[Tensor] = []

    def propose() -> dict[str, Tensor]:
        with poutine.trace() as proposed:
            values = program.guide_globals()
        with poutine.trace() as believed, poutine.condition(data=values):
            program.globals_()
        ratios.append(_log_prob(believed.trace) - _log_prob(proposed.trace))
        return values

    return _draw(program, propose, n_draws, seed), torch.cat(ratios)


def _log_prob(trace: poutine.Trace) -> Tensor:
    """Log density of all sites of a trace for each draw, draws."""
    trace.compute_log_prob()
    sites = [site for site in trace.nodes.values() if site["type"] == "sample" and not is_plate(site)]
    return sum(site["log_prob"].flatten(1).sum(1) for site in sites)


def _draw(program: Program, propose: Callable[[], dict[str, Tensor]], n_draws: int, seed: int) -> Draws:
    # Few at once: a regression of directions holds a matrix of its basis for each draw and node.
    starts = range(0, n_draws, DRAWS_AT_ONCE)
    with seeded(seed):
        parts = [_draw_at_once(program, propose, min(DRAWS_AT_ONCE, n_draws - start)) for start in starts]
    values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
    return Draws(values, *(torch.cat(tensors) for tensors in zip(*map(_causes, parts), strict=True)))


def _causes(draws: Draws) -> tuple[Tensor, ...]:
    return draws.B, draws.strength_p, draws.action_pa, draws.share_p, draws.relative_g, draws.gene_level


def _draw_at_once(program: Program, propose: Callable[[], dict[str, Tensor]], n_draws: int) -> Draws:
    with pyro.plate("draws", n_draws, dim=-2):
        values = propose()
    return draws_given(program, values, n_draws)


@torch.no_grad()
def draws_given(program: Program, values: dict[str, Tensor], n_draws: int) -> Draws:
    """Give everything that follows from drawn values of the global sites.

    Parameters
    ----------
    program
        Fitted program.
    values
        Value of every global site, with ``n_draws`` draws in front of the plates.
    n_draws
        Number of draws.

    Returns
    -------
    Draws
    """
    with pyro.plate("draws", n_draws, dim=-2):
        causes = program.causes_given(values, program.seen)
        strength_p = program.strength_given(values)
        gene_level = program.gene_level_given(values)
    K = program.sizes.nodes
    return Draws(
        values,
        scm.drop_cells_dim(causes.B).expand(n_draws, K, K),
        strength_p.expand(n_draws, strength_p.shape[-1]),
        causes.action_pa.expand(n_draws, *causes.action_pa.shape[-2:]),
        causes.share_p.expand(n_draws, causes.share_p.shape[-1]),
        causes.relative_g.expand(n_draws, causes.relative_g.shape[-1]),
        gene_level.expand(n_draws, *gene_level.shape[-2:]),
    )


@torch.no_grad()
def unseen_push(program: Program, draws: Draws, unseen: Described, seed: int) -> Push:
    """Draw actions and shares of perturbations without cells.

    Population-level sites come from the posterior, what each perturbation has of its own from its prior.

    Parameters
    ----------
    program
        Fitted program.
    draws
        Posterior draws of the globals.
    unseen
        What :meth:`Program.describe` says of them.
    seed
        Seed of residuals, strengths and shares.

    Returns
    -------
    Push
    """
    with seeded(seed):
        own = perturbation_sites(program)
    population = {name: value for name, value in draws.values.items() if name not in own}
    # Not hidden from the plate of draws, as causes_given would: each draw has a strength of its own.
    given = poutine.condition(data=population)
    with seeded(seed), pyro.plate("draws", len(draws), dim=-2), given:
        causes = program.causes(unseen)
    n = len(draws)
    return Push(
        causes.action_pa.expand(n, *causes.action_pa.shape[-2:]),
        causes.share_p.expand(n, causes.share_p.shape[-1]),
    )


def perturbation_sites(program: Program) -> set[str]:
    """Names of the sites that each perturbation has of its own: those inside the plate ``perturbations``."""
    trace = poutine.trace(program.causes).get_trace(program.seen)
    sites = trace.nodes.items()
    return {
        name
        for name, site in sites
        if any(f.name == "perturbations" for f in site.get("cond_indep_stack", ()))
    }


def noise_of_controls(controls: Controls, rows: Tensor, B: Tensor) -> torch.distributions.MultivariateNormal:
    """Noise of control cells by abduction, ``cells x nodes``."""
    state_ck = controls.state_ck[rows]
    return Evidence(state_ck, controls.trust_k, B, torch.zeros_like(state_ck)).noise(torch.zeros(()))


@torch.no_grad()
def starting_cells(
    program: Program, draws: Draws, controls: Controls, cells_per_draw: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Control cells that each draw of the globals starts from; see :func:`population_means`.

    Yields
    ------
    For each draw: rows of ``controls``, their noise, ``cells x nodes``, and the share of its action that each
    shows if it responds, ``cells``.
    """
    generator = torch.Generator().manual_seed(int(seed))
    n_cells = len(controls.library_c)
    order = torch.randperm(n_cells, generator=generator)
    for s in range(len(draws)):
        rows = order[(s * cells_per_draw + torch.arange(min(cells_per_draw, n_cells))) % n_cells]
        with seeded(stream(seed, 7, s)):
            z_ck = noise_of_controls(controls, rows, draws.B[s]).sample()
            response_c = program.priors.responders.response(torch.ones(len(rows)))
        yield rows, z_ck, response_c


@torch.no_grad()
def population_means(
    program: Program,
    draws: Draws,
    controls: Controls,
    push: Push,
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
    push
        What each label does; cells that escape are averaged out exactly.
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
    yield from means_of_profile(program, draws, controls, push, profile, cells_per_draw, seed)


@torch.no_grad()
def means_of_profile(
    program: Program,
    draws: Draws,
    controls: Controls,
    push: Push,
    profile: Profile,
    cells_per_draw: int,
    seed: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """The same as :func:`population_means`, at a profile that has been tabulated: for call after call."""
    cells = starting_cells(program, draws, controls, cells_per_draw, seed)
    for s, (rows, z_ck, response_c) in enumerate(cells):
        expected = expected_mean(program, profile, draws, s, controls.covariates_cv[rows])
        yield s, mean_changes(expected, z_ck, response_c, push.action[s], push.share[s]).numpy()


def expected_mean(
    program: Program, profile: Profile, draws: Draws, s: int, covariates_cv: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the map from noise and actions of cells, to their mean profile in one draw.

    Parameters
    ----------
    program, draws, s
        Program, draws of its globals, and which of them.
    profile
        See :meth:`~sccvae_pyro.models.observation.Likelihood.profile`.
    covariates_cv
        Coded covariates of the cells.

    Returns
    -------
    Function that gives ``... x genes``, in ``log1p(CP10K)`` or the units of the values.
    """

    def expected(noise_ck: Tensor, action_ca: Tensor) -> Tensor:
        change_cg = program.decode(scm.respond(noise_ck, action_ca, draws.B[s]), covariates_cv)
        return profile(change_cg, program.baseline, covariates_cv, draws.gene_level[s]).mean(-2)

    return expected


def mean_changes(
    expected: Callable[[Tensor, Tensor], Tensor],
    z_ck: Tensor,
    response_c: Tensor,
    action_la: Tensor,
    share_l: Tensor,
) -> Tensor:
    """Mean change of the profile of the same cells under each label, ``labels x genes``.

    Parameters
    ----------
    expected
        What :func:`expected_mean` builds.
    z_ck
        Noise of the cells.
    response_c
        Share of its action that a responding cell shows.
    action_la, share_l
        What each label does in this draw; see :class:`Push`.
    """
    baseline = expected(z_ck, torch.zeros_like(z_ck))
    step = max(1, CELL_CHUNK // len(z_ck))
    parts = [
        expected(z_ck, response_c.unsqueeze(-1) * chunk_la.unsqueeze(-2)) - baseline
        for chunk_la in action_la.split(step)
    ]
    return share_l.unsqueeze(-1) * torch.cat(parts)


def expression(
    program: Program, draws: Draws, s: int, state_ck: Tensor, library_c: Tensor, covariates_cv: Tensor
) -> TorchDistribution:
    """Distribution of the expression of cells in one draw, given their causal state."""
    change_cg = program.decode(state_ck, covariates_cv)
    return program.priors.likelihood.distribution(
        change_cg, program.baseline, library_c, covariates_cv, draws.gene_level[s]
    )


@torch.no_grad()
def sample_cells(
    program: Program, draws: Draws, controls: Controls, push: Push, n_cells: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simulate cells of one perturbation, each from its own draw, control cell and noise.

    Parameters
    ----------
    program, draws, controls
        As in :func:`population_means`.
    push
        What the perturbation does; one label.
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
            share_c = program.priors.responders.share(push.share[s].expand(len(mine)))
            z_ck = noise_of_controls(controls, mine, draws.B[s]).sample()
            state_ck = scm.respond(z_ck, share_c.unsqueeze(-1) * push.action[s], draws.B[s])
            library_c, covariates_cv = controls.library_c[mine], controls.covariates_cv[mine]
            out.append(expression(program, draws, s, state_ck, library_c, covariates_cv).sample())
    order = torch.argsort(which, stable=True)
    values = torch.cat(out)[torch.argsort(order)]
    return values.numpy(), controls.library_c[rows].numpy(), rows.numpy()


@torch.no_grad()
def counterfactual(
    program: Program,
    draws: Draws,
    batch: Batch,
    profile: Profile,
    own: Push,
    new: Push,
    key: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Abduct, act, predict: expected profiles of given cells as they were, and under another perturbation.

    Both share the noise of the cell, draw by draw, so that a new shift equal to the own one changes nothing.

    Parameters
    ----------
    program, draws
        Fitted program and draws of its globals.
    batch
        The cells.
    profile
        From decoded change to expected profile, at the same library sizes for all cells.
    own, new
        What each cell carries, and what it is given. A perturbed cell answers the new perturbation with the
        share that it showed of its own; a control cell has yet to show one.
    key
        Seed, and what tells this batch from others.

    Returns
    -------
    Expected ``log1p(CP10K)`` as the cells were and under the new shift, each ``draws x cells x genes``.
    """
    state_ck, trust_k = program.encode(batch)
    responders = program.priors.responders
    is_control = (batch.targets_cm == program.sizes.perturbations).all(-1)
    factual: list[Tensor] = []
    counter: list[Tensor] = []
    with seeded(stream(*key, 1)):
        for s in range(len(draws)):
            evidence = Evidence(state_ck, trust_k, draws.B[s], own.action[s])
            share_c = responders.propose(own.share[s], evidence)
            z_ck = evidence.noise(share_c).sample()
            new_c = torch.where(is_control, responders.share(new.share[s]), share_c)
            for action, share, kept in ((own.action[s], share_c, factual), (new.action[s], new_c, counter)):
                state = scm.respond(z_ck, share.unsqueeze(-1) * action, draws.B[s])
                change = program.decode(state, batch.covariates_cv)
                kept.append(profile(change, program.baseline, batch.covariates_cv, draws.gene_level[s]))
    return torch.stack(factual), torch.stack(counter)


def log_density(program: Program, draws: Draws, batch: Batch, push: Push, key: tuple[int, int]) -> Tensor:
    """Log density of cells, averaged over draws of the globals, by importance sampling of the noise.

    Parameters
    ----------
    program, draws, batch, push, key
        As in :func:`log_ratios`.

    Returns
    -------
    Tensor, cells; nats.
    """
    return log_ratios(program, draws, batch, push, key).logsumexp(0) - math.log(len(draws))


@torch.no_grad()
def log_ratios(program: Program, draws: Draws, batch: Batch, push: Push, key: tuple[int, int]) -> Tensor:
    """Log importance ratio of each cell, one proposal of its noise for every draw of the globals.

    With ``v`` all that a cell has of its own (noise, share, library), ``log p(x, v | globals) - log q(v | x,
    globals)``.

    Parameters
    ----------
    program, draws
        Fitted program and draws of its globals.
    batch
        The cells.
    push
        What each cell carries.
    key
        Seed, and what tells this batch from others.

    Returns
    -------
    Tensor, ``draws x cells``; nats.
    """
    reading = program.encode(batch)
    with seeded(stream(*key, 2)):
        return torch.stack([_log_ratio(program, draws, s, batch, push, reading) for s in range(len(draws))])


@torch.no_grad()
def log_likelihood(
    program: Program, draws: Draws, batch: Batch, push: Push, particles: int, key: tuple[int, int]
) -> Tensor:
    """Log density of cells given each draw of the globals, what a cell has of its own integrated out.

    The integral is the mean of importance ratios. All draws take the same random numbers, so that the error
    of the mean is nearly the same for each of them: what compares draws, as leave-one-out weights
    do, would take independent errors for a difference between globals.

    Parameters
    ----------
    program, draws, batch, push, key
        As in :func:`log_ratios`.
    particles
        Proposals of each cell for each draw.

    Returns
    -------
    Tensor, ``draws x cells``; nats. A lower bound in expectation that tightens with ``particles``.
    """
    reading = program.encode(batch)
    out = torch.empty(len(draws), len(batch.library_c), dtype=batch.x_cg.dtype)
    for s in range(len(draws)):
        with seeded(stream(*key, 4)), pyro.plate("particles", particles, dim=-2):
            ratio_mc = _log_ratio(program, draws, s, batch, push, reading)
        out[s] = ratio_mc.logsumexp(0) - math.log(particles)
    return out


def _log_ratio(
    program: Program, draws: Draws, s: int, batch: Batch, push: Push, reading: tuple[Tensor, Tensor]
) -> Tensor:
    """Log ratios at one draw of the globals, ``cells``, or ``particles x cells`` within their plate."""
    evidence = Evidence(*reading, draws.B[s], push.action[s])
    counted_c, responders, mean_c = batch.library_c, program.priors.responders, push.share[s]
    share_c, share_ratio = weighed(
        partial(responders.propose, mean_c, evidence), partial(responders.share, mean_c)
    )
    library_c, library_ratio = weighed(
        partial(program.library.propose, counted_c), partial(program.library, counted_c)
    )
    z_ck, noise_ratio = weighed(
        partial(pyro.sample, "z", evidence.noise(share_c)),
        partial(pyro.sample, "z", program.noise(program.baseline)),
    )
    state_ck = scm.respond(z_ck, share_c.unsqueeze(-1) * push.action[s], draws.B[s])
    x = expression(program, draws, s, state_ck, library_c, batch.covariates_cv)
    return x.log_prob(batch.x_cg) + noise_ratio + share_ratio + library_ratio


def weighed(propose: Callable[[], object], prior: Callable[[], Tensor]) -> tuple[Tensor, Tensor | float]:
    """Draw a site of the cells from the guide; give what the model makes of it, and ``log p - log q``, cells.

    Parameters
    ----------
    propose
        Samples the site in the guide, or nothing where the model has none.
    prior
        Samples the site in the model and returns its value.
    """
    with poutine.trace() as proposed:
        propose()
    with poutine.trace() as drawn, poutine.replay(trace=proposed.trace):
        value = prior()
    sites = [(drawn.trace.nodes[name]["fn"], site["fn"]) for name, site in proposed.trace.nodes.items()]
    return value, sum(((p.log_prob(value) - q.log_prob(value)) for p, q in sites), 0.0)


def summarise(draws: np.ndarray, quantiles: Sequence[float] = (0.05, 0.95)) -> dict[str, np.ndarray]:
    """Mean, sd and quantiles over the first axis, under the names that results carry."""
    names = [f"q{round(100 * q):02d}" for q in quantiles]
    table = dict(zip(names, np.quantile(draws, quantiles, axis=0), strict=True))
    return {"mean": draws.mean(axis=0), "sd": draws.std(axis=0, ddof=1), **table}
