"""A small linear-Gaussian screen, fitted twice: by the guide, and by NUTS, which needs none.

With three nodes in order, five genes, three perturbations of two guides each and known loading ``W``, cell
``i`` with guide ``g`` of perturbation ``p``::

    u_i = (z_i + relative_g strength_p direction_p) (I - B)^-1,   z_i ~ Normal(0, I)
    x_i ~ Normal(u_i W, 0.5^2 I)

and priors of B and strengths as asked for. Compared are what the cells determine: the edges, and the
total effect of each guide, ``relative_g strength_p direction_p (I - B)^-1``; and, for the record, the
strengths, which only their prior tells from the size of directions.
"""

import math
import warnings

import numpy as np
import pandas as pd
import pyro
import torch
from linear_gaussian import LinearDecoder, LinearEncoder, _KnownNoise, _NormalDirection
from torch import nn

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.inference import mcmc, posterior
from sccvae_pyro.inference.objectives import NegativeELBO
from sccvae_pyro.models.direction_base import seen_directions
from sccvae_pyro.models.families import PosteriorFamily
from sccvae_pyro.models.graph import GraphPrior, KnownGraph, LearnedOrder, Normal
from sccvae_pyro.models.noise import StandardNormal
from sccvae_pyro.models.penetrance import Fixed, PenetrancePrior
from sccvae_pyro.models.program import Priors, Program
from sccvae_pyro.models.regression import direction_posterior
from sccvae_pyro.models.responders import AllCells
from sccvae_pyro.models.slot import Given, Member, Perturbations, Sizes

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

NODES, GENES, PERTURBATIONS, GUIDES = 3, 5, 3, 6
CELLS_OF_GUIDE, CONTROLS = 10, 40
B = np.array([[0.0, 0.6, 0.0], [0.0, 0.0, -0.5], [0.0, 0.0, 0.0]])
SD, TAU = 0.5, 1.0
QUANTITIES = ("B", "effect", "strength")


class _SeenDirection(_NormalDirection):
    """Proposed as by the priors with a regression: given strengths, graph and what the cells show."""

    def guide(self, sizes: Sizes, features: torch.Tensor) -> nn.Module:
        return _SeenFactor(self.scale, sizes)


class _SeenFactor(nn.Module):
    def __init__(self, scale: float, sizes: Sizes) -> None:
        super().__init__()
        self.variance = scale**2
        self.state_pk = nn.Parameter(torch.zeros(sizes.perturbations, sizes.nodes))
        self.log_sd_pk = nn.Parameter(torch.full_like(self.state_pk, math.log(0.1)))

    def forward(self, perturbations: Perturbations, given: Given) -> None:
        seen_pk, variance_pk = seen_directions(self.state_pk, self.log_sd_pk, given)
        expected, residual = torch.zeros_like(seen_pk), torch.full_like(seen_pk, self.variance)
        with perturbations.plate:
            pyro.sample("direction", direction_posterior(expected, residual, seen_pk, variance_pk))


def members() -> list[tuple[str, Member]]:
    """Every graph and penetrance prior of the package that NUTS takes, with their defaults.

    Chains do not change the order of nodes: LearnedOrder is compared with a sum over all orders
    (tests/models/test_graphs_exact.py).
    """
    own = {"KnownGraph": KnownGraph([("node_0", "node_1"), ("node_1", "node_2")], elsewhere=0.1)}
    return [
        (slot, own.get(name) or member())
        for slot in ("graph", "penetrance")
        for name, member in sorted(Member.registry[slot].items())
        if member.__module__.startswith("sccvae_pyro.") and member is not LearnedOrder
    ]


def draw_cells(seed: int) -> Batch:
    """Cells of the screen; guides of a perturbation are equally strong, and all strengths one."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(0, TAU, (PERTURBATIONS, NODES))
    guides = np.repeat(np.arange(GUIDES + 1), [CELLS_OF_GUIDE] * GUIDES + [CONTROLS])
    targets = np.where(guides < GUIDES, guides // 2, PERTURBATIONS)
    shift = np.vstack([direction, np.zeros(NODES)])[targets]
    state = (rng.normal(size=(len(guides), NODES)) + shift) @ np.linalg.inv(np.eye(NODES) - B)
    x = state @ loading() + rng.normal(0, SD, (len(guides), GENES))
    ones = torch.ones(len(guides)).double()
    return Batch(
        torch.tensor(x),
        ones,
        torch.tensor(targets)[:, None],
        torch.zeros(len(guides), 0).double(),
        torch.tensor(guides),
    )


def loading() -> np.ndarray:
    """What a unit of each node adds to each gene, the same in every world."""
    return np.linalg.qr(np.random.default_rng(0).normal(size=(GENES, NODES)))[0].T


def program_with(slot: str, member: Member, posterior_family: PosteriorFamily | None = None) -> Program:
    """The program with one prior to look at; the others leave the rest as known as it is."""
    chosen: dict[str, Member] = {"graph": Normal(0.5), "penetrance": Fixed(), slot: member}
    graph, penetrance = chosen["graph"], chosen["penetrance"]
    assert isinstance(graph, GraphPrior) and isinstance(penetrance, PenetrancePrior)
    sizes = Sizes(
        cells=GUIDES * CELLS_OF_GUIDE + CONTROLS,
        genes=GENES,
        nodes=NODES,
        perturbations=PERTURBATIONS,
        features=1,
        covariates=0,
        guides=GUIDES,
        perturbation_names=tuple("abc"),
    )
    priors = Priors(graph, penetrance, _SeenDirection(TAU), AllCells(), StandardNormal(), _KnownNoise(SD))
    if posterior_family is not None:
        priors = priors._replace(posterior=posterior_family)
    standardised = torch.tensor([-1.0, 0.0, 1.0]).double() * 1.5**0.5
    trust = torch.full((NODES,), 1 / (1 + SD**2)).double()
    return Program(
        priors,
        sizes,
        standardised[:, None],
        torch.zeros(GENES).double(),
        LinearEncoder(torch.tensor(loading().T.copy()), trust),
        LinearDecoder(torch.tensor(loading())),
        standardised,
    ).double()


def fit(program: Program, batch: Batch, seed: int, n_steps: int = 500, rate: float = 0.05) -> None:
    """Fit guide and encoder, all cells at once."""
    pyro.set_rng_seed(seed)
    loss = NegativeELBO(program)
    parameters = [*program.proposal.parameters(), *program.encoder.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=n_steps)
    for _ in range(n_steps):
        optimiser.zero_grad()
        loss(batch).backward()
        optimiser.step()
        schedule.step()


def summaries(draws: posterior.Draws) -> dict[str, np.ndarray]:
    """What is compared, ``draws x entries``."""
    shift_gk = draws.relative_g.unsqueeze(-1) * draws.action_pa.repeat_interleave(2, dim=-2)
    effect_gk = torch.linalg.solve(torch.eye(NODES) - draws.B, shift_gk, left=False)
    upper = draws.B.flatten(-2)[:, (torch.ones(NODES, NODES) - torch.eye(NODES)).bool().flatten()]
    parts = zip(QUANTITIES, (upper, effect_gk.flatten(-2), draws.strength_p), strict=True)
    return {name: part.numpy() for name, part in parts}


def compare(
    slot: str, member: Member, seed: int = 0, n_samples: int = 200, warmup: int = 150
) -> pd.DataFrame:
    """Fit both ways; a row for each quantity that the data and the prior leave open.

    Returns
    -------
    Columns ``slot``, ``prior``, ``quantity``, ``entries``; ``error`` and ``worst``, root mean square and
    largest difference of the means, in sds by NUTS; ``noise``, the largest Monte Carlo error of a mean by
    NUTS, in the same unit; ``slope``, of the means by the guide on those by NUTS, through the origin;
    ``sd_ratio``, median of the sds by the guide over those by NUTS; ``diverging``, share of the draws.
    """
    batch = draw_cells(seed)
    program = program_with(slot, member)
    fit(program, batch, seed)
    guide = summaries(posterior.draw(program, 2000, seed))
    chains = mcmc.sample(program, batch, n_samples, warmup, chains=1, seed=seed)
    exact = summaries(chains.draws)
    assert all(np.isfinite(draws).all() for draws in exact.values()), "a chain has left the numbers"
    rows = []
    for quantity in QUANTITIES:
        open_ = exact[quantity].std(0) > 1e-9
        if not open_.any():
            continue
        found, truth = guide[quantity][:, open_], exact[quantity][:, open_]
        sd, mean = truth.std(0), truth.mean(0)
        difference = (found.mean(0) - mean) / sd
        size = np.array([arviz.ess(entry[None]) for entry in truth.T])
        rows.append(
            {
                "slot": slot,
                "prior": type(member).__name__,
                "quantity": quantity,
                "entries": int(open_.sum()),
                "error": np.sqrt(np.square(difference).mean()),
                "worst": np.abs(difference).max(),
                "noise": 1 / np.sqrt(size.min()),
                "slope": (found.mean(0) * mean).sum() / np.square(mean).sum(),
                "sd_ratio": np.median(found.std(0) / sd),
                "diverging": float(chains.diverging.double().mean()),
            }
        )
    return pd.DataFrame(rows)
