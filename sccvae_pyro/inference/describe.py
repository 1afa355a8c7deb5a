"""A program in words and equations, read off the program itself: a prior of one's own is described, too."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.inspect import get_model_relations

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.inference.posterior import seeded
from sccvae_pyro.models.factors import StrictlyUpperTriangular
from sccvae_pyro.models.program import Program
from sccvae_pyro.models.slot import Member, Prior
from sccvae_pyro.models.spec import SLOTS

SHIFT = "shift_c = guide strength * sum of strength_p * direction_p over the perturbations p of cell c"
EXPRESSION = "x_c ~ likelihood(decoder(u_c, covariates_c), library size_c)"
"""What holds whatever the priors; between the two stands the equation of the intervention."""

VARIES = "·"
"""What stands for a number that differs between entries, or from draw to draw."""

Pick = Callable[[torch.Tensor], torch.Tensor]


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
    others names them after a bar; a number of its distribution that differs between entries, or from draw to
    draw, is a dot.
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
        with seeded(0):
            relations = get_model_relations(program.model, (batch,))
        traces = [_traced(program, batch, seed) for seed in (1, 2)]
    plates = {site: plate for plate, sites in relations["plate_sample"].items() for site in sites}
    recorded = _recorded(program)
    for name, parents in relations["sample_sample"].items():
        fns = [_unwrapped(trace.nodes[name]["fn"]) for trace in traces]
        index = f"[{plates[name]}]" if name in plates else ""
        shape = " x ".join(map(str, traces[0].nodes[name]["fn"].event_shape))
        per = f"   ({shape} each)" if index and shape else f"   ({shape})" if shape else ""
        if isinstance(fns[0], dist.Delta):
            rule = recorded.get(name, f"f({', '.join(parents)})")
            said = f"= {_value(fns, rule)}"
        else:
            given = f" | {', '.join(parents)}" if parents else ""
            said = f"~ {_family(fns)}{given}"
        yield name, f"{name}{index} {said}{per}"


def _recorded(program: Program) -> dict[str, str]:
    """What the priors say of values that they record."""
    said = (prior.recorded for prior in program.priors if isinstance(prior, Prior))
    return {site: rule for rules in said for site, rule in rules.items()}


def _value(fns: Sequence[dist.Delta], rule: str) -> str:
    """A recorded value: the number where it is one, else how it follows."""
    number = _setting([fn.v for fn in fns])
    return rule if number == VARIES else number


def _traced(program: Program, batch: Batch, seed: int) -> poutine.Trace:
    with seeded(seed):
        return poutine.trace(program.model).get_trace(batch)


def _unwrapped(fn: Any) -> Any:
    """The distribution within what only gives it a shape, a mask or the layout of a matrix."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution) or (
        type(fn) is dist.TransformedDistribution
        and all(isinstance(step, StrictlyUpperTriangular) for step in fn.transforms)
    ):
        fn = fn.base_dist
    return fn


def _family(fns: Sequence[Any], pick: Pick = lambda value: value) -> str:
    """Name of a distribution, of two draws of the program, with its settings.

    ``pick`` takes a component of a mixture out of the settings of all.
    """
    fns = [_unwrapped(fn) for fn in fns]
    if isinstance(fns[0], dist.MixtureSameFamily):
        return _mixture(fns)
    if isinstance(fns[0], dist.ZeroInflatedDistribution):
        return f"0 with probability {_setting([fn.gate for fn in fns])}, else {_within(fns)}"
    if type(fns[0]) is dist.TransformedDistribution:
        return f"{_within(fns)}, transformed"
    known = fns[0].arg_constraints
    names = [name for name in known if not (name == "logits" and "probs" in known) and hasattr(fns[0], name)]
    settings = (_setting([pick(torch.as_tensor(getattr(fn, name))) for fn in fns]) for name in names)
    return f"{type(fns[0]).__name__}({', '.join(settings)})"


def _within(fns: Sequence[Any]) -> str:
    return _family([fn.base_dist for fn in fns])


def _mixture(fns: Sequence[Any]) -> str:
    """Components with their weights; where they are more than two, their number and family."""
    components = [fn.component_distribution for fn in fns]
    weights = [fn.mixture_distribution.probs for fn in fns]
    if (number := weights[0].shape[-1]) > 2:
        return f"mixture of {number}: {_family(components)}"
    whole = components[0].batch_shape + components[0].event_shape
    place = len(components[0].batch_shape) - 1
    return " + ".join(
        f"{_setting([weight[..., k] for weight in weights])} "
        + _family(components, lambda value, k=k: value.expand(whole).select(place, k))  # type: ignore[misc]
        for k in range(number)
    )


def _setting(values: Sequence[Any]) -> str:
    """The number that a setting is in all entries and draws, or a dot where there is none."""
    entries = torch.cat([torch.as_tensor(value).detach().reshape(-1) for value in values])
    same = len(entries) > 0 and bool((entries == entries[0]).all())
    return f"{float(entries[0]):.4g}" if same else VARIES
