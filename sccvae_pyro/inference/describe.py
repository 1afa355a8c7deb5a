"""A program in words and equations, read off the program itself: a prior of one's own is described, too."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.inspect import get_model_relations

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.models.program import Program
from sccvae_pyro.models.slot import Member
from sccvae_pyro.models.spec import SLOTS

SHIFT = "shift_c = guide strength * sum of strength_p * direction_p over the perturbations p of cell c"
EXPRESSION = "x_c ~ likelihood(decoder(u_c, covariates_c), library size_c)"
"""What holds whatever the priors; between the two stands the equation of the intervention."""


def describe(program: Program, batch: Batch) -> str:
    """Write the program as equations with the chosen priors.

    Parameters
    ----------
    program
        The program.
    batch
        Some cells, of which only the shapes matter.

    Returns
    -------
    One line for each prior, one for each site, and the equations that join them. A site that depends on
    others names them after a bar; a number of its distribution that differs between entries is a dot.
    """
    equations = dict(_equations(program, batch))
    lines = []
    for slot in SLOTS:
        lines.append(f"{slot:<12} {_said(getattr(program.priors, slot))}")
        lines += [f"{'':<12}   {equations.pop(name)}" for name in _sites_of(slot, equations)]
    structure = (SHIFT, *program.priors.intervention.equations, EXPRESSION)
    return "\n".join([*lines, f"{'':<12}", *(f"{'':<12} {line}" for line in structure)])


def _said(member: Member) -> str:
    """Name, settings and first sentence of a member."""
    summary = (inspect.getdoc(type(member)) or "").split("\n\n")[0].replace("\n", " ")
    return f"{member!r}: {summary.removesuffix(' The default.')}"


SITES = {
    "nodes": (),
    "graph": ("B", "edge", "order"),
    "penetrance": ("strength", "guide_strength"),
    "direction": ("direction",),
    "intervention": (),
    "responders": ("responders", "share"),
    "noise": ("z",),
    "library": ("library",),
}
"""How the names of the sites of a slot begin; what is left belongs to the likelihood."""


def _sites_of(slot: str, equations: dict[str, str]) -> list[str]:
    return [name for name in equations if slot not in SITES or name.startswith(SITES[slot])]


def _equations(program: Program, batch: Batch) -> Iterator[tuple[str, str]]:
    """Name and equation of every site, in the order in which the model samples them."""
    with warnings.catch_warnings(), torch.no_grad(), pyro.validation_enabled(False):
        warnings.simplefilter("ignore")
        relations = get_model_relations(program.model, (batch,))
        trace = poutine.trace(program.model).get_trace(batch)
    plates = {site: plate for plate, sites in relations["plate_sample"].items() for site in sites}
    for name, parents in relations["sample_sample"].items():
        site = trace.nodes[name]
        index = f"[{plates[name]}]" if name in plates else ""
        given = f" | {', '.join(parents)}" if parents else ""
        shape = " x ".join(map(str, site["fn"].event_shape))
        per = f"   ({shape} each)" if index and shape else f"   ({shape})" if shape else ""
        yield name, f"{name}{index} ~ {_family(site['fn'])}{given}{per}"


def _family(fn: Any) -> str:
    """Name of a distribution with its settings; a setting that differs between entries is a dot."""
    while True:
        if isinstance(fn, dist.Independent | dist.ExpandedDistribution) or (
            isinstance(fn, dist.TransformedDistribution) and type(fn) is dist.TransformedDistribution
        ):
            fn = fn.base_dist
        else:
            break
    names = [name for name in fn.arg_constraints if not (name == "logits" and "probs" in fn.arg_constraints)]
    settings = [_setting(getattr(fn, name)) for name in names if hasattr(fn, name)]
    return f"{type(fn).__name__}({', '.join(settings)})"


def _setting(value: Any) -> str:
    value = torch.as_tensor(value)
    same = value.numel() > 0 and bool((value == value.reshape(-1)[0]).all())
    return f"{float(value.reshape(-1)[0]):.4g}" if same else "·"
