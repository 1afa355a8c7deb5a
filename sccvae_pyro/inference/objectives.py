"""What is optimised, and the validation figure that goes with it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import pyro
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample as is_plate
from torch import Tensor, nn

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.program import Program


class KLWeight(Messenger):
    """Scale the log density of the cells' latent sites, in the model and in the guide alike.

    With weight ``w`` the ELBO becomes ``E[log p(x | latents)] - w KL(cells) - KL(globals)``. Globals keep
    their whole prior: with a small weight their scales would shrink to silence their own sampling noise.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and _of_cells(msg):
            msg["scale"] = msg["scale"] * self.weight


class Particles(Messenger):
    """Draw the latent sites of every cell several times, ``particles x cells``, at one draw of globals."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and _of_cells(msg):
            msg["fn"] = msg["fn"].expand((self.number, *msg["fn"].batch_shape[-1:]))


class Loss(nn.Module, ABC):
    """Base of the losses."""

    program: Program

    @abstractmethod
    def forward(self, batch: Batch, kl_weight: float = 1.0) -> Tensor:
        """Estimate the loss, with the KL of the cells' noise at this weight; a scalar."""

    @abstractmethod
    def validate(self, batch: Batch) -> Tensor:
        """Estimate what the best state is chosen by, the smaller the better; a scalar."""


class NegativeELBO(Loss):
    """Negative ELBO per cell, with every global site counted once per screen and every cell once.

    Parameters
    ----------
    program
        Model and guide.
    particles
        Draws of globals and cells that the estimate is averaged over.

    Notes
    -----
    ``Trace_ELBO``, not its mean-field variant: the guide draws ``z`` given the globals, so the
    analytic KL of the latter would be silently wrong.
    """

    def __init__(self, program: Program, particles: int = 1) -> None:
        super().__init__()
        self.program = program
        # A share that is one or zero is summed over; the plate of cells is the only other dimension.
        if program.priors.responders.enumerated:
            self.elbo = TraceEnum_ELBO(num_particles=particles, max_plate_nesting=1)
        else:
            self.elbo = Trace_ELBO(num_particles=particles)

    def forward(self, batch: Batch, kl_weight: float = 1.0) -> Tensor:
        """Estimate the loss; nats per cell, a scalar."""
        # The screen was checked when it was set up; checking every batch again costs a fifth of a step.
        quick = pyro.validation_enabled(False)
        with pyro.settings.context(module_local_params=True), quick, KLWeight(kl_weight):
            loss = self.elbo.differentiable_loss(self.program.model, self.program.guide, batch)
        return loss / self.program.sizes.cells

    def validate(self, batch: Batch) -> Tensor:
        """Negative ELBO of the cells without the globals' own terms; nats per cell."""
        with pyro.settings.context(module_local_params=True):
            return -log_weights(self.program, batch).mean()


class NegativeIWELBO(Loss):
    """Negative importance-weighted ELBO per cell (Burda et al. 2016, ICLR): tighter than the ELBO.

    Given the globals, cells are independent, and each has a weight of its own. With M particles of each cell
    and one draw of the globals the bound is the mean of::

        sum_c log 1/M sum_m p(x_c, z_cm | globals) / q(z_cm | x_c, globals) + log p(globals) - log q(globals)

    It rises from the ELBO, at one particle, to what is left when the noise of the cells has its exact
    posterior: it forgives what the encoder proposes for the cells, not what the guide says of the globals.

    Parameters
    ----------
    program
        Model and guide.
    particles
        Draws of each cell's noise.

    Raises
    ------
    InputError
        If the share of a cell is enumerated, as with ``Beta``: its draws have no gradient.

    Notes
    -----
    Pyro's ``RenyiELBO`` gives a whole batch, globals included, one weight. Its log is a sum over all cells,
    spread over hundreds of nats, so that one particle has all the weight and the bound stays the ELBO's.
    """

    def __init__(self, program: Program, particles: int) -> None:
        super().__init__()
        responders = program.priors.responders
        if responders.enumerated:
            raise InputError(
                "objective 'iwae' needs a gradient of every draw, and with "
                f"responders={type(responders).__name__} a cell responds or does not. "
                "Fit with objective='elbo', which sums over both."
            )
        self.program, self.particles = program, particles

    def forward(self, batch: Batch, kl_weight: float = 1.0) -> Tensor:
        """Estimate the loss from one draw of the globals; nats per cell, a scalar.

        With ``kl_weight`` below 1 the weights are tempered, ``p(x | z) (p(z) / q(z)) ** kl_weight``, as in
        :class:`KLWeight`: the noise is held to its prior little by little. It is a bound at 1 alone.
        """
        with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
            guide, model = _traces(self.program, batch, self.particles)
        _check_gradients(guide)
        globals_ = model.log_prob_sum(_not_of_cells) - guide.log_prob_sum(_not_of_cells)
        # The mean over the batch stands for that over the screen: a batch counts for all cells.
        return -globals_ / self.program.sizes.cells - _cell_bounds(guide, model, kl_weight).mean()

    def validate(self, batch: Batch) -> Tensor:
        """Negative bound of the cells without the globals' own terms; nats per cell."""
        with pyro.settings.context(module_local_params=True):
            return -log_weights(self.program, batch, self.particles).mean()


def log_weights(program: Program, batch: Batch, particles: int = 1) -> Tensor:
    """Give each cell's share of the bound at one draw of the globals, the log of its mean weight.

    A weight is ``p(x, z | globals) / q(z | x, globals)``; the log of a single one is the cell's share of the
    ELBO. The globals' own terms are left out, so that the figure is comparable between sets of cells of
    any size: the mean over held-out cells is the validation ELBO.

    Parameters
    ----------
    program
        Model and guide.
    batch
        Cells.
    particles
        Draws of each cell's noise.

    Returns
    -------
    Tensor, cells; nats.
    """
    return _cell_bounds(*_traces(program, batch, particles))


def _traces(program: Program, batch: Batch, particles: int) -> tuple[poutine.Trace, poutine.Trace]:
    """Guide, and model at its draws."""
    with Particles(particles):
        guide = poutine.trace(program.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(batch)
    return guide, model


def _cell_bounds(guide: poutine.Trace, model: poutine.Trace, kl_weight: float = 1.0) -> Tensor:
    """Log of the mean weight of each cell, cells."""
    for trace in (guide, model):
        trace.compute_log_prob(site_filter=lambda _, site: _of_cells(site))
    ratio_mc = _cells_log_prob(model, observed=False) - _cells_log_prob(guide, observed=False)
    log_weight_mc = _cells_log_prob(model, observed=True) + kl_weight * ratio_mc
    return log_weight_mc.logsumexp(0) - math.log(len(log_weight_mc))


def _cells_log_prob(trace: poutine.Trace, observed: bool) -> Tensor:
    """Log density of the cells' data, or of their latent sites, ``particles x cells``."""
    sites = [site for site in trace.nodes.values() if _of_cells(site) and site["is_observed"] == observed]
    return sum(site["unscaled_log_prob"] for site in sites)


def _check_gradients(guide: poutine.Trace) -> None:
    """Refuse guides of a prior of one's own that draw without a gradient: the loss would have a wrong one."""
    for name, site in guide.nodes.items():
        if site["type"] == "sample" and not is_plate(site) and not site["fn"].has_rsample:
            raise InputError(
                f"objective 'iwae' needs a gradient of every draw, and the guide draws {name!r} without one. "
                "Fit with objective='elbo'."
            )


def _not_of_cells(name: str, site: dict[str, Any]) -> bool:
    return not _of_cells(site)


def _of_cells(site: dict[str, Any]) -> bool:
    stack = site.get("cond_indep_stack", ())
    return site["type"] == "sample" and any(frame.name == "cells" for frame in stack)
