"""What is optimised, and the validation figure that goes with it."""

from __future__ import annotations

from typing import Any

import pyro
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from sccvae_pyro.data.loading import Batch
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
        if not msg["is_observed"] and any(frame.name == "cells" for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.weight


class NegativeELBO(nn.Module):
    """Negative ELBO per cell, with every global site counted once per screen and every cell once.

    Parameters
    ----------
    program
        Model and guide.

    Notes
    -----
    ``Trace_ELBO``, not its mean-field variant: the guide draws ``z`` given the globals, so the
    analytic KL of the latter would be silently wrong.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        # A share that is one or zero is summed over; the plate of cells is the only other dimension.
        enumerated = program.priors.responders.enumerated
        self.elbo = TraceEnum_ELBO(max_plate_nesting=1) if enumerated else Trace_ELBO()

    def forward(self, batch: Batch, kl_weight: float = 1.0) -> Tensor:
        """Estimate the loss from one draw; nats per cell, a scalar."""
        # The screen was checked when it was set up; checking every batch again costs a fifth of a step.
        quick = pyro.validation_enabled(False)
        with pyro.settings.context(module_local_params=True), quick, KLWeight(kl_weight):
            loss = self.elbo.differentiable_loss(self.program.model, self.program.guide, batch)
        return loss / self.program.sizes.cells


def log_weights(program: Program, batch: Batch) -> Tensor:
    """Draw once and give each cell's share of the ELBO, ``log p(x, z | globals) - log q(z | x)``.

    The globals' own terms are left out, so that the figure is comparable between sets of cells of
    any size: the mean over held-out cells is the validation ELBO.

    Parameters
    ----------
    program
        Model and guide.
    batch
        Cells.

    Returns
    -------
    Tensor, cells; nats.
    """
    guide = poutine.trace(program.guide).get_trace(batch)
    model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(batch)
    for trace in (guide, model):
        trace.compute_log_prob(site_filter=lambda _, site: _of_cells(site))
    return _cells_log_prob(model) - _cells_log_prob(guide)


def _cells_log_prob(trace: poutine.Trace) -> Tensor:
    return sum(site["unscaled_log_prob"] for site in trace.nodes.values() if _of_cells(site))


def _of_cells(site: dict[str, Any]) -> bool:
    stack = site.get("cond_indep_stack", ())
    return site["type"] == "sample" and any(frame.name == "cells" for frame in stack)
