"""Hamiltonian Monte Carlo on the same program: what the posterior is, where a screen is small enough.

The guide is an approximation. NUTS (Hoffman & Gelman 2014, JMLR 15:1593) needs none: it draws the globals
together with the noise of every cell. Decoder, origin and shape of the noise are held as they were fitted;
they are point estimates here as there.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor
from torch.distributions import biject_to, constraints

from sccvae_pyro.data.loading import Batch, Screen
from sccvae_pyro.errors import InputError
from sccvae_pyro.inference.posterior import Draws, draws_given, seeded
from sccvae_pyro.models.factors import StrictlyUpperTriangular
from sccvae_pyro.models.families import values_of
from sccvae_pyro.models.noise import Mixture
from sccvae_pyro.models.program import Program

# Where the components of a mixture lie, so does it; torch leaves that to be said.
biject_to.register(
    constraints.MixtureSameFamilyConstraint, lambda mixture: biject_to(mixture.base_constraint)
)

MOST_LATENTS = 2000
"""Values of cell noise, cells times nodes, beyond which a chain takes hours."""


class Chains(NamedTuple):
    """Draws of the globals, chain after chain; ``diverging``, ``chains x draws``: which went astray."""

    draws: Draws
    diverging: Tensor


def sample_screen(
    program: Program,
    screen: Screen,
    n_samples: int,
    warmup: int,
    chains: int,
    seed: int,
    progress: bool = False,
) -> Chains:
    """Draw from the posterior of the globals given the cells of a small screen; see :func:`sample`.

    Raises
    ------
    InputError
        If the responders are discrete, the noise is a mixture, or cells and nodes too many.
    """
    _check_continuous(program)
    _check_size(len(screen), program.sizes.nodes)
    _, batch = next(screen.batches(np.arange(len(screen)), len(screen)))
    return sample(program, batch, n_samples, warmup, chains, seed, progress)


def sample(
    program: Program,
    batch: Batch,
    n_samples: int,
    warmup: int,
    chains: int,
    seed: int,
    progress: bool = False,
) -> Chains:
    """Draw from the posterior of the globals, all responders being continuous.

    Parameters
    ----------
    program
        Fitted program; left as it is.
    batch
        All cells: they are taken as the whole screen, not as a part of it.
    n_samples
        Draws of each chain.
    warmup
        Steps of each chain before them, in which its step size and scales are adapted.
    chains
        Number of chains, one after the other, each from its own draw of the guide.
    seed
        Seed.
    progress
        Show a progress bar of each chain, with its step size and the share of proposals accepted.

    Returns
    -------
    Chains
    """
    program = _held(program, len(batch.library_c))
    seeds = (1000 * seed + chain for chain in range(chains))
    runs = [_chain(program, batch, n_samples, warmup, own, progress) for own in seeds]
    moved = {name: torch.cat([values[name] for values, _ in runs]) for name in runs[0][0]}
    draws = draws_given(program, _values(program, moved), n_samples * chains)
    return Chains(draws, torch.stack([diverging for _, diverging in runs]))


def _check_continuous(program: Program) -> None:
    responders = program.priors.responders
    if responders.enumerated:
        raise InputError(
            f"NUTS follows gradients, and with responders={type(responders).__name__} a cell responds or "
            "does not. Build the model with responders AllCells or Dose, or use fit(), which sums over both."
        )
    if isinstance(program.priors.noise, Mixture):
        raise InputError(
            "NUTS cannot move noise=Mixture. Build the model with another noise, or stay with fit()."
        )
    if program.priors.graph.learns_order:
        raise InputError(
            "NUTS seldom gets from one order of the nodes to another, and graph=LearnedOrder has them all. "
            "Give the order with Ordered(graph, order=[...]), or stay with fit()."
        )


def _check_size(n_cells: int, n_nodes: int) -> None:
    if not n_cells:
        raise InputError("NUTS was given no cells. Pass the cells that it is to learn from.")
    if n_cells * n_nodes > MOST_LATENTS:
        raise InputError(
            f"NUTS would draw the noise of {n_cells} cells on {n_nodes} nodes, {n_cells * n_nodes} values; "
            f"it is made for at most {MOST_LATENTS}. Pass at most {MOST_LATENTS // n_nodes} cells, fit a "
            "model of fewer nodes, or stay with fit(), which has no such limit."
        )


def _held(program: Program, n_cells: int) -> Program:
    """Copy the program for a screen of so many cells, with all that it has learned held."""
    copy = deepcopy(program).requires_grad_(False).eval()
    copy.sizes = replace(program.sizes, cells=n_cells)
    return copy


def _chain(
    program: Program, batch: Batch, n_samples: int, warmup: int, seed: int, progress: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of the sites that are moved, those of the cells left out, and which of them diverged."""
    with seeded(seed), pyro.validation_enabled(False), pyro.settings.context(module_local_params=True):
        start = values_of(poutine.trace(program.guide).get_trace(batch))
        # Compiled, a gradient takes a sixth of the time: nearly all of it goes to Pyro's handlers.
        kernel = NUTS(
            poutine.reparam(program.model, _reparam),
            init_strategy=init_to_value(values=start),
            jit_compile=True,
            ignore_jit_warnings=True,
        )
        mcmc = MCMC(kernel, num_samples=n_samples, warmup_steps=warmup, disable_progbar=not progress)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "`torch.jit", DeprecationWarning
            )  # Pyro knows no other compiler
            mcmc.run(batch)
    diverging = torch.zeros(n_samples, dtype=torch.bool)
    diverging[mcmc.diagnostics()["divergences"]["chain 0"]] = True
    samples = mcmc.get_samples()
    return {
        name: value for name, value in samples.items() if name not in ("z", "share", "library")
    }, diverging


def _reparam(site: dict[str, Any]) -> Reparam | None:
    """Say in which coordinates a site is moved.

    Matrices of edges by their edges: the entries that no edge has are no coordinates. Normal globals in units
    of their prior, so that a scale can go to zero without a funnel (Betancourt & Girolami 2015).
    """
    if site["is_observed"]:
        return None
    fn = site["fn"]
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    if any(isinstance(transform, StrictlyUpperTriangular) for transform in getattr(fn, "transforms", ())):
        return TransformReparam()
    done = site["name"].endswith("_decentered")  # asked about again, once it is in units of its prior
    is_global = all(frame.name != "cells" for frame in site["cond_indep_stack"])
    return LocScaleReparam(0.0) if isinstance(fn, dist.Normal) and is_global and not done else None


@torch.no_grad()
def _values(program: Program, moved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of the program's own sites that follow from the moved ones, as a guide would draw them."""
    one = poutine.trace(poutine.reparam(program.globals_, _reparam)).get_trace()
    plated = {name for name in moved if len(one.nodes[name]["fn"].batch_shape)}
    data = {name: value if name in plated else value.unsqueeze(1) for name, value in moved.items()}
    n_draws = len(next(iter(moved.values())))
    with pyro.plate("draws", n_draws, dim=-2), poutine.condition(data=data):
        found = values_of(poutine.trace(poutine.reparam(program.globals_, _reparam)).get_trace())
    return {name: found[name] for name in values_of(poutine.trace(program.globals_).get_trace())}
