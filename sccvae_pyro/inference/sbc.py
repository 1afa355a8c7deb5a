"""Simulation-based calibration: whether inference finds again what the program itself has drawn.

Globals are drawn from their priors and cells from the program given them, with the labels, library sizes and
covariates of a screen; the guide is fitted to these cells, and the true value of a quantity ranked among its
posterior draws. Over replicates ranks are uniform if the posterior is right (Talts et al. 2018,
arXiv:1804.06788); whatever is a function of the globals can be ranked (Modrák et al. 2023, Bayesian Anal
20:461). Networks and the shape of the noise are point estimates of the model, no part of its prior: they are
known to the fit, and all else is learned anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from sccvae_pyro.data.features import FeatureTable
from sccvae_pyro.data.loading import Screen
from sccvae_pyro.inference import posterior, svi
from sccvae_pyro.inference.posterior import Draws, Push, seeded, stream
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models import build, scm
from sccvae_pyro.models.program import Program
from sccvae_pyro.models.slot import Described
from sccvae_pyro.models.spec import ModelSpec

CELLS = 128
"""Cells over which a mean profile is taken, the same ones for the truth and all draws."""

PRIOR_DRAWS = 20
"""Draws that tell a quantity that the prior leaves open from a constant."""

STATE, SEEN, UNSEEN = "change of state", "change of mean, seen", "change of mean, unseen"
"""Families of quantities beside the sites of the program."""


@dataclass(frozen=True)
class World:
    """What all replicates share.

    Parameters
    ----------
    program
        The program that generates cells, its networks known.
    spec
        Spec that it was built from.
    features
        Features that it was built with.
    screen
        Cells whose labels, library sizes and covariates the generated ones take.
    unseen
        Perturbations without cells, to be predicted; ``None`` predicts none.
    """

    program: Program
    spec: ModelSpec
    features: FeatureTable | None
    screen: Screen
    unseen: Described | None = None


def replicates(world: World, inference: InferenceSpec, seeds: Iterable[int], n_draws: int) -> pd.DataFrame:
    """Rank one quantity of every family in each replicate; see :func:`replicate`.

    Parameters
    ----------
    world
        What all replicates share.
    inference
        How the guide is fitted; its seed is that of the replicate.
    seeds
        One for each replicate.
    n_draws
        Posterior draws.
    """
    open_ = open_entries(world)
    return pd.concat([replicate(world, inference, seed, n_draws, open_) for seed in seeds], ignore_index=True)


def replicate(
    world: World, inference: InferenceSpec, seed: int, n_draws: int, open_: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Draw a truth, generate cells, fit, and rank one quantity of every family.

    Quantities of one replicate depend on one another, so that a family gives one of them, picked whatever is
    drawn: the ranks of a family are then independent.

    Parameters
    ----------
    world, inference, seed, n_draws
        As in :func:`replicates`.
    open_
        What :func:`open_entries` gives.

    Returns
    -------
    DataFrame
        One row for each ``family``: ``replicate``, the seed; ``entry``, position of the quantity in its
        family; ``truth``; ``mean`` and ``sd`` of the draws; ``rank``, draws below the truth; ``draws``, their
        number.
    """
    rng = np.random.default_rng([seed, 11])
    entries = {family: int(rng.choice(among)) for family, among in open_.items()}
    truth, screen = generate(world, seed)
    found = posterior.draw(fit(world, screen, inference, seed), n_draws, stream(seed, 12))
    actual, drawn = (quantities(world, draws, stream(seed, 13)) for draws in (truth, found))
    rows = []
    for family, entry in entries.items():
        value, draws = float(actual[family][0, entry]), drawn[family][:, entry]
        spread = {"mean": draws.mean(), "sd": draws.std(ddof=1)}
        place = {"rank": rank(value, draws, rng), "draws": n_draws}
        rows.append({"replicate": seed, "family": family, "entry": entry, "truth": value, **spread, **place})
    return pd.DataFrame(rows)


def open_entries(world: World) -> dict[str, np.ndarray]:
    """Find the quantities of each family that the prior leaves open; a family without any is left out."""
    believed = quantities(world, posterior.draw_prior(world.program, PRIOR_DRAWS, 0), 0)
    found = {family: np.flatnonzero(np.ptp(draws, axis=0) > 0) for family, draws in believed.items()}
    return {family: entries for family, entries in found.items() if len(entries)}


def rank(truth: float, draws: np.ndarray, rng: np.random.Generator) -> int:
    """Count the draws below the truth; those equal to it fall to either side at random."""
    ties = int((draws == truth).sum())
    return int((draws < truth).sum()) + int(rng.integers(ties + 1))


@torch.no_grad()
def generate(world: World, seed: int) -> tuple[Draws, Screen]:
    """Draw globals from their priors, and the cells of a screen from the program given them."""
    program, screen = world.program, world.screen
    truth = posterior.draw_prior(program, 1, stream(seed, 10))
    batch = screen[np.arange(len(screen))]
    push = truth.push_of(batch)
    with seeded(stream(seed, 14)):
        share_c = program.priors.responders.share(push.share[0])
        z_ck = program.noise(program.baseline).sample(share_c.shape)
        library_c = program.library(batch.library_c)
        state_ck = scm.respond(z_ck, share_c.unsqueeze(-1) * push.action[0], truth.B[0])
        x_cg = posterior.expression(program, truth, 0, state_ck, library_c, batch.covariates_cv).sample()
    return truth, replace(screen, matrix=x_cg.numpy())


def fit(world: World, screen: Screen, inference: InferenceSpec, seed: int) -> Program:
    """Fit guide and encoder to a screen, all that is no part of the prior held at the truth."""
    spec = inference.model_copy(update={"seed": seed})
    priors = world.program.priors
    program = build.program_of(world.spec, priors, screen, world.features, seed)
    hold(program, world.program)
    svi.fit(program, screen, spec, progress=False)
    return program


@torch.no_grad()
def hold(program: Program, truth: Program) -> None:
    """Give a program the networks, origin, noise, library and data of another one, not to be learned."""
    program.origin_k.copy_(truth.origin_k).requires_grad_(False)
    program.baseline.copy_(truth.baseline)
    program.expression_p.copy_(truth.expression_p)
    for part in ("decoder", "noise", "library"):
        module: nn.Module = getattr(program, part)
        module.load_state_dict(getattr(truth, part).state_dict())
        module.requires_grad_(False)


@torch.no_grad()
def quantities(world: World, draws: Draws, seed: int) -> dict[str, np.ndarray]:
    """What is ranked, by family, each ``draws x entries``: functions of the globals.

    Every site of the globals, and ``B`` where it follows from others; the change of the mean state by each
    perturbation; and the change of the mean profile by each, seen and unseen, over the same cells for all
    draws.
    """
    program = world.program
    found = {name: value.reshape(len(draws), -1) for name, value in draws.values.items()}
    found["B"] = draws.B.reshape(len(draws), -1)
    still = torch.zeros(len(draws), 1, program.sizes.nodes)
    found[STATE] = scm.respond(still, draws.action_pa, draws.B).reshape(len(draws), -1)
    table = {name: value.double().numpy() for name, value in found.items()}
    table[SEEN] = changes(world, draws, Push(draws.action_pa, draws.share_p), seed)
    if world.unseen is not None:
        push = posterior.unseen_push(program, draws, world.unseen, seed + len(draws))
        table[UNSEEN] = changes(world, draws, push, seed)
    return table


def changes(world: World, draws: Draws, push: Push, seed: int) -> np.ndarray:
    """Change of the mean profile by each label, ``draws x (labels x genes)``."""
    program = world.program
    profile = program.priors.likelihood.profile(world.screen.library)
    with seeded(seed):
        rows = torch.randint(len(world.screen), (CELLS,)).numpy()
        covariates_cv = torch.from_numpy(world.screen.covariates[rows])
        z_ck = program.noise(program.baseline).sample((CELLS,))
        response_c = program.priors.responders.response(torch.ones(CELLS))
    parts = []
    for s in range(len(draws)):
        expected = posterior.expected_mean(program, profile, draws, s, covariates_cv)
        parts.append(posterior.mean_changes(expected, z_ck, response_c, push.action[s], push.share[s]))
    return torch.stack(parts).reshape(len(draws), -1).double().numpy()
