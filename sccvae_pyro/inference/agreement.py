"""Whether model and guide of a program speak of the same sites: asked once, before anything is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample as is_plate

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.program import Program


def check_sites(program: Program, batch: Batch) -> None:
    """Compare the sites of model and guide: a prior of one's own brings both.

    A site that only the model has would be drawn from its prior in every step and never learned.

    Parameters
    ----------
    program
        Program, on the device of the batch; left as it is, and so is the random state.
    batch
        Some cells.

    Raises
    ------
    InputError
        If a site is in one of the two only, or the guide's draws of it are of another shape or outside the
        prior's support. The message names the sites.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        model, guide = _sites(program.model, batch), _sites(program.guide, batch)
    proposed = {name: site for name, site in guide.items() if not site["infer"].get("is_auxiliary")}
    in_model, in_guide = sorted(model.keys() - guide.keys()), sorted(proposed.keys() - model.keys())
    if in_model or in_guide:
        raise InputError(
            "Model and guide do not sample the same sites. "
            f"Only the model has {listing(in_model) or 'none'}, "
            f"only the guide {listing(in_guide) or 'none'}. "
            "A prior of your own must give a site one name in both."
        )
    for name, site in proposed.items():
        _check_draw(name, site["value"], model[name])


def _sites(run: Callable[[Batch], object], batch: Batch) -> dict[str, Any]:
    """What is sampled and not observed, by name."""
    nodes = poutine.trace(run).get_trace(batch).nodes.items()
    return {
        name: site
        for name, site in nodes
        if site["type"] == "sample" and not site["is_observed"] and not is_plate(site)
    }


def _check_draw(name: str, value: torch.Tensor, prior: dict[str, Any]) -> None:
    """Refuse a proposed value that the prior could not have drawn."""
    found, expected = tuple(value.shape), tuple(prior["value"].shape)
    if found != expected:
        raise InputError(
            f"The guide draws the site {name!r} of shape {found}, the model of shape {expected}. "
            "Give both the same plates and event dimensions."
        )
    # What overflows lies outside, too; training tells of that, and of the settings that lead to it.
    support, finite = prior["fn"].support, value.isfinite()
    if not bool((support.check(value) | ~finite.all()).all()):
        raise InputError(
            f"The guide draws values of the site {name!r} outside the support of its prior, {support}. "
            "Map them to it, as MeanField does with its transforms."
        )
