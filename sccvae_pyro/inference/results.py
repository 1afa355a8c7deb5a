"""Posterior draws as the tables and AnnData objects that users ask for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.loading import Batch, Coding, Screen
from sccvae_pyro.data.matrix import BLOCK_VALUES
from sccvae_pyro.inference import posterior
from sccvae_pyro.inference.posterior import Controls, Draws, Push
from sccvae_pyro.models import scm
from sccvae_pyro.models.program import Program
from sccvae_pyro.models.responders import Evidence, RespondersPrior
from sccvae_pyro.models.slot import Described

KEPT_CONTROLS = 1024
"""Control cells that a fitted model remembers, to predict without the data."""

CELLS_PER_DRAW = 64
DISCREPANCY_DRAWS, DISCREPANCY_CELLS = 16, 32
BLOCK_CELLS = 1024
SHARES_PER_DRAW = 8


def remember_controls(program: Program, screen: Screen, seed: int) -> Controls:
    """Encode a random share of the control cells, and take the mean profile of all of them."""
    rows = np.flatnonzero(screen.is_control)
    kept = np.sort(np.random.default_rng(seed).permutation(rows)[:KEPT_CONTROLS])
    return controls_of(program, screen, kept)._replace(mean_g=mean_profile(screen, rows))


@torch.no_grad()
def controls_of(program: Program, screen: Screen, rows: np.ndarray) -> Controls:
    """Encode control cells."""
    batch = screen[rows]
    state_ck, trust_k = program.encode(batch)
    return Controls(state_ck, trust_k, batch.library_c, batch.covariates_cv, mean_profile(screen, rows))


def controls_from(tensors: Mapping[str, Tensor]) -> Controls:
    """Put stored control cells together again."""
    return Controls(
        tensors["state_ck"],
        tensors["trust_k"],
        tensors["library_c"],
        tensors["covariates_cv"],
        tensors["mean_g"].numpy(),
    )


def mean_profile(screen: Screen, rows: np.ndarray, block: int = 4096) -> np.ndarray:
    """Mean of ``log1p(CP10K)`` (or of the values) over the rows, streamed; genes."""
    total = np.zeros(len(screen.coding.genes))
    for start in range(0, len(rows), block):
        total += screen.log_expression(rows[start : start + block]).sum(axis=0, dtype=np.float64)
    return total / len(rows)


def label_push(
    program: Program,
    draws: Draws,
    parsed: Sequence[Sequence[str]],
    known: Sequence[str],
    unseen: Sequence[str],
    describe: Callable[[Sequence[str]], Described],
    seed: int,
) -> Push:
    """What each label does: the sum of the actions of its targets, and the mean of their shares.

    Parameters
    ----------
    program, draws
        Fitted program and draws of its globals.
    parsed
        Targets of each label.
    known, unseen
        Seen perturbations in the order of their codes, and the unseen ones among the targets.
    describe
        Describes the unseen.
    seed
        Seed of what the prior decides about the unseen.

    Returns
    -------
    Push
    """
    action_pa, share_p = draws.action_pa, draws.share_p
    if unseen:
        others = posterior.unseen_push(program, draws, describe(unseen), posterior.stream(seed, 6))
        action_pa, share_p = torch.cat([action_pa, others.action], 1), torch.cat([share_p, others.share], 1)
    code = {name: i for i, name in enumerate([*known, *unseen])}
    width = max([1, *map(len, parsed)])
    table = torch.full((len(parsed), width), len(code))
    for row, targets in zip(table, parsed, strict=True):
        row[: len(targets)] = torch.tensor([code[t] for t in targets], dtype=torch.long)
    return Push(scm.action_of_cells(action_pa, table), scm.share_of_cells(share_p, table))


def population_deltas(
    program: Program, draws: Draws, controls: Controls, push: Push, seed: int
) -> np.ndarray:
    """Difference of each label's mean profile to control, ``draws x labels x genes``."""
    out = np.empty((*push.share.shape, program.sizes.genes), dtype=np.float32)
    library = controls.library_c.numpy()
    for s, delta in posterior.population_means(program, draws, controls, push, library, CELLS_PER_DRAW, seed):
        out[s] = delta
    return out


def prediction(
    deltas: np.ndarray,
    labels: Sequence[str],
    status: Sequence[str],
    coding: Coding,
    control_mean: np.ndarray,
    settings: dict[str, Any],
    keep_draws: bool,
) -> AnnData:
    """Lay out draws of population differences as a prediction, one row per label."""
    delta = posterior.summarise(deltas)
    layers = {
        "mean": control_mean + delta["mean"],
        "sd": delta["sd"],
        "q05": control_mean + delta["q05"],
        "q95": control_mean + delta["q95"],
        "delta": delta["mean"],
        "delta_sd": delta["sd"],
        "delta_q05": delta["q05"],
        "delta_q95": delta["q95"],
    }
    layers = {name: np.asarray(layer, dtype=np.float32) for name, layer in layers.items()}
    obs = pd.DataFrame({"status": pd.Categorical(status)}, index=pd.Index(labels))
    var = pd.DataFrame({"control_mean": control_mean}, index=pd.Index(coding.genes))
    result = AnnData(X=layers["mean"].copy(), obs=obs, var=var, layers=layers)
    result.uns["units"] = units(coding)
    result.uns["settings"] = settings
    if keep_draws:
        result.obsm["draws"] = np.ascontiguousarray(
            np.swapaxes(deltas, 0, 1) + control_mean.astype(np.float32)
        )
    return result


def units(coding: Coding) -> str:
    """What the numbers of a mean profile are."""
    return "mean log1p(CP10K)" if coding.schema.kind == "counts" else "mean value"


def cell_profiles(program: Program, values: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Profiles of simulated cells: ``log1p(CP10K)`` of counts, else the values; cells x genes."""
    is_counts = program.priors.likelihood.kind == "counts"
    return np.asarray(log1p_cp10k(values, library)) if is_counts else values


def sampled_cells(values: np.ndarray, library: np.ndarray, label: str, coding: Coding) -> AnnData:
    """Lay out simulated cells."""
    names = pd.Index([f"{label}_{i}" for i in range(len(values))])
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical([label] * len(values)), "library": library}, index=names
    )
    if coding.schema.kind != "counts":
        obs = obs.drop(columns="library")
    return AnnData(X=values, obs=obs, var=pd.DataFrame(index=pd.Index(coding.genes)))


def counterfactual(
    program: Program,
    draws: Draws,
    screen: Screen,
    library: np.ndarray,
    new: Push,
    label: str,
    obs: pd.DataFrame,
    seed: int,
) -> AnnData:
    """Expected profiles of cells as they were and under another perturbation, in chunks of cells.

    All are at the same library sizes, ``library``, so that no cell depends on those it is asked for with.
    """
    profile = program.priors.likelihood.profile(library)
    n_genes = program.sizes.genes
    chunk = max(1, posterior.CELL_CHUNK * 8 // len(draws))
    layers = {
        name: np.empty((len(screen), n_genes), dtype=np.float32)
        for name in ("factual", "counterfactual", "effect", "effect_q05", "effect_q95")
    }
    for rows, batch in screen.batches(np.arange(len(screen)), chunk):
        own = draws.push_of(batch)
        same = new.of([0] * len(rows))
        factual, counter = posterior.counterfactual(
            program, draws, batch, profile, own, same, (seed, int(rows[0]))
        )
        effect = posterior.summarise((counter - factual).numpy())
        layers["factual"][rows], layers["counterfactual"][rows] = factual.mean(0), counter.mean(0)
        layers["effect"][rows], layers["effect_q05"][rows], layers["effect_q95"][rows] = (
            effect["mean"],
            effect["q05"],
            effect["q95"],
        )
    result = AnnData(
        X=layers["counterfactual"].copy(),
        obs=obs.copy(),
        var=pd.DataFrame(index=pd.Index(screen.coding.genes)),
        layers=layers,
    )
    result.uns["perturbation"], result.uns["units"] = label, units(screen.coding).removeprefix("mean ")
    return result


@torch.no_grad()
def latent(program: Program, draws: Draws, screen: Screen, kind: str, block: int = 2048) -> np.ndarray:
    """Posterior mean of the state (``"u"``) or noise (``"z"``) of cells, ``cells x nodes``."""
    out = np.empty((len(screen), program.sizes.nodes), dtype=np.float32)
    for rows, batch in screen.batches(np.arange(len(screen)), block):
        state_ck, trust_k = program.encode(batch)
        total = torch.zeros_like(state_ck)
        own = draws.push_of(batch)
        for s in range(len(draws)):
            evidence = Evidence(state_ck, trust_k, draws.B[s], own.action[s])
            share_c = program.priors.responders.expected(own.share[s], evidence)
            z_ck = evidence.noise(share_c).mean
            action_ca = share_c.unsqueeze(-1) * own.action[s]
            total += z_ck if kind == "z" else scm.respond(z_ck, action_ca, draws.B[s])
        out[rows] = (total / len(draws)).numpy()
    return out


@torch.no_grad()
def responders(program: Program, draws: Draws, screen: Screen, seed: int, block: int = 2048) -> pd.DataFrame:
    """Share of its shift that each cell shows, over draws of the globals.

    Where cells respond or escape, of the probability of a response; where by degrees, of the share itself,
    with what a cell leaves open of it even if the globals are known.
    """
    table = {name: np.empty(len(screen)) for name in ("mean", "sd", "q05", "q95")}
    for rows, batch in screen.batches(np.arange(len(screen)), block):
        state_ck, trust_k = program.encode(batch)
        own = draws.push_of(batch)
        with posterior.seeded(posterior.stream(seed, 6, int(rows[0]))):
            shares = [
                _shares(
                    program.priors.responders,
                    own.share[s],
                    Evidence(state_ck, trust_k, draws.B[s], own.action[s]),
                )
                for s in range(len(draws))
            ]
        for name, values in posterior.summarise(torch.cat(shares).numpy()).items():
            table[name][rows] = values
    return pd.DataFrame(table)


def _shares(prior: RespondersPrior, mean_c: Tensor, evidence: Evidence) -> Tensor:
    """What one draw of the globals says of the share of each cell, ``values x cells``."""
    if prior.enumerated:
        return prior.expected(mean_c, evidence).unsqueeze(0)
    several = evidence.state_ck.expand(SHARES_PER_DRAW, *evidence.state_ck.shape)
    return prior.propose(mean_c, evidence._replace(state_ck=several))


def log_density(program: Program, draws: Draws, screen: Screen, push: Push, seed: int) -> np.ndarray:
    """Importance-sampled log density of each cell given its label, nats; ``cells``."""
    out = np.empty(len(screen))
    for rows, batch, own in labelled_batches(program, draws, screen, push):
        out[rows] = posterior.log_density(program, draws, batch, own, (seed, int(rows[0]))).numpy()
    return out


def log_likelihood(
    program: Program, draws: Draws, screen: Screen, push: Push, particles: int, seed: int
) -> np.ndarray:
    """Log density of each cell given each draw of the globals, nats; ``draws x cells``.

    Genes and particles are summed over a block of cells at a time: only the result grows with the cells.
    """
    out = np.empty((len(draws), len(screen)), dtype=np.float32)
    for rows, batch, own in labelled_batches(program, draws, screen, push, particles):
        key = (seed, int(rows[0]))
        out[:, rows] = posterior.log_likelihood(program, draws, batch, own, particles, key).numpy()
    return out


def labelled_batches(
    program: Program,
    draws: Draws,
    screen: Screen,
    push: Push,
    particles: int = 1,
    rows: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, Batch, Push]]:
    """Walk cells in blocks: their rows, the batch, and what each cell carries by its label and guide.

    Blocks are of :data:`BLOCK_CELLS` cells, or fewer where genes, particles or draws are many. Without
    ``rows``, all cells.
    """
    codes = torch.from_numpy(screen.labels.cat.codes.to_numpy().astype(np.int64))
    of_cell = (particles * program.sizes.genes, len(draws) * push.action.shape[-1] // 4)
    size = int(np.clip(BLOCK_VALUES // max(of_cell), 1, BLOCK_CELLS))
    walked = np.arange(len(screen)) if rows is None else rows
    for block, batch in screen.batches(walked, size):
        own = push.of(codes[torch.as_tensor(block)])
        relative_c1 = scm.relative_of_cells(draws.relative_g, batch.guides_c).unsqueeze(-1)
        yield block, batch, own._replace(action=relative_c1 * own.action)


def penetrance_table(draws: Draws, perturbations: Sequence[str]) -> pd.DataFrame:
    """Summarise the strength of each seen perturbation."""
    summary = posterior.summarise(draws.strength_p.numpy(), (0.05, 0.5, 0.95))
    table = pd.DataFrame(summary, index=pd.Index(perturbations, name="perturbation"))
    return table.rename(columns={"q50": "median"})


def guide_table(draws: Draws, guides: Sequence[str], screen: Screen | None) -> pd.DataFrame:
    """Summarise the strength of each guide, relative to that of its perturbation and in total.

    Without the screen nothing says which perturbation a guide is of, and its total is left out. So is that
    of a guide of several targets, each with a strength of its own.
    """
    summary = posterior.summarise(draws.relative_g.numpy(), (0.05, 0.5, 0.95))
    table = pd.DataFrame(summary, index=pd.Index(guides, name="guide")).rename(columns={"q50": "median"})
    if screen is None:
        return table
    row_g = _cell_of_each_guide(screen)
    target_g = screen.targets[row_g, 0]
    total = posterior.summarise((draws.relative_g * draws.strength_p[:, target_g]).numpy(), (0.05, 0.95))
    several = (screen.targets[row_g] < len(screen.coding.perturbations)).sum(1) > 1
    for name, column in (("total", "mean"), ("total_q05", "q05"), ("total_q95", "q95")):
        table[name] = np.where(several, np.nan, total[column])
    table.insert(0, "perturbation", screen.labels.to_numpy()[row_g].astype(str))
    table.insert(1, "n_cells", np.bincount(screen.guides, minlength=len(guides))[: len(guides)])
    return table


def _cell_of_each_guide(screen: Screen) -> np.ndarray:
    """Row of the first cell of each guide: all of its cells are of one perturbation."""
    codes, first = np.unique(screen.guides, return_index=True)
    return first[codes < len(screen.coding.guides)]


def guide_pairs(draws: Draws, guides: Sequence[str], screen: Screen) -> pd.DataFrame:
    """Say of each pair of guides of one perturbation which is the stronger, and how probably."""
    labels = pd.Series(screen.labels.to_numpy()[_cell_of_each_guide(screen)].astype(str))
    relative_g = draws.relative_g.numpy()
    rows = []
    for label, members in labels.groupby(labels).groups.items():
        for one, other in itertools.combinations(members, 2):
            above = float((relative_g[:, one] > relative_g[:, other]).mean())
            pair = (guides[one], guides[other], above)
            rows.append((label, *(pair if above >= 0.5 else (guides[other], guides[one], 1 - above))))
    table = pd.DataFrame(rows, columns=["perturbation", "stronger", "weaker", "probability"])
    return table.sort_values(["perturbation", "probability"], ascending=[True, False], ignore_index=True)


def edge_table(program: Program, draws: Draws, nodes: Sequence[str]) -> pd.DataFrame:
    """Summarise the edges that any draw has, the strongest first."""
    rows, columns = np.nonzero((draws.B != 0).any(0).numpy())
    values = draws.B[:, rows, columns].numpy()
    names = np.asarray(nodes)
    table = pd.DataFrame({"source": names[rows], "target": names[columns], **posterior.summarise(values)})
    table["present"] = (values != 0).mean(axis=0)
    table["probability_positive"] = (values > 0).mean(axis=0) / table["present"]
    inclusion = program.priors.graph.inclusion(draws.B, program.sizes)
    if inclusion is not None:
        table["inclusion"] = inclusion[rows, columns].numpy()
    order = table["mean"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)
