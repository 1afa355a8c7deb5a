"""Paths through the graph: sums by hand, a full enumeration, and what they say of a program."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from linear_gaussian import LinearEncoder, Passing, _KnownDirection, _KnownGraph, _KnownNoise, program_of

from sccvae_pyro import InputError
from sccvae_pyro.inference import paths, posterior
from sccvae_pyro.inference.paths import Flow
from sccvae_pyro.inference.posterior import Controls, Push
from sccvae_pyro.models.interventions import Do, Scale, Shift
from sccvae_pyro.models.noise import StandardNormal
from sccvae_pyro.models.penetrance import Fixed
from sccvae_pyro.models.program import Priors
from sccvae_pyro.models.responders import AllCells
from sccvae_pyro.models.slot import Sizes

B = np.array([[0.0, 0.5, -1.2], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
NAMES = ("A", "B", "C")


def one(*parts):
    """A flow of a single draw."""
    return Flow(*(np.array(part, dtype=float)[None] for part in parts))


def test_three_nodes_by_hand():
    """A pushed by 2, C by 0.1; the gene is node C: 2 * .5 * 2 by B, 2 * -1.2 directly, and 0.1."""
    flow = one([2.0, 0.0, 0.1], B, [0.0, 0.0, 1.0])
    assert flow.strongest(9) == [(0, 2), (0, 1, 2), (2,)]
    np.testing.assert_allclose([flow.along(p)[0] for p in flow.strongest(9)], [-2.4, 2.0, 0.1])
    np.testing.assert_allclose(flow.total(), -0.3)


def test_four_nodes_and_a_decoder_by_hand():
    """A diamond, A to B and C to D; the gene reads B and D."""
    diamond = np.zeros((4, 4))
    diamond[0, 1], diamond[0, 2], diamond[1, 3], diamond[2, 3] = 0.5, 0.4, 0.6, -0.5
    flow = one([3.0, 0.0, 0.0, 0.0], diamond, [0.0, 0.2, 0.0, 1.0])
    along = {path: flow.along(path)[0] for path in flow.strongest(10)}
    expected = {(0, 1, 3): 0.9, (0, 2, 3): -0.6, (0, 1): 0.3}
    assert list(along) == list(expected)
    np.testing.assert_allclose(list(along.values()), list(expected.values()))
    np.testing.assert_allclose(flow.total(), 0.6)


@pytest.mark.parametrize("seed", range(4))
def test_the_strongest_are_those_of_a_full_enumeration(seed):
    """Six nodes in an order of their own in every draw, some edges absent."""
    rng, K, S = np.random.default_rng(seed), 6, 7
    weights = rng.normal(0, 0.7, (S, K, K)) * (rng.uniform(size=(S, K, K)) < 0.7)
    order = rng.permuted(np.tile(np.arange(K), (S, 1)), axis=1)
    weights *= order[:, :, None] < order[:, None, :]
    flow = Flow(rng.normal(size=(S, K)), weights, rng.normal(size=(S, K)))
    every = [path for n in range(1, K + 1) for path in permutations(range(K), n)]
    along = {path: flow.along(path) for path in every}
    np.testing.assert_allclose(sum(along.values()), flow.total())
    sizes = {path: np.abs(values).mean() for path, values in along.items()}
    assert flow.strongest(12) == sorted(sizes, key=sizes.get, reverse=True)[:12]
    assert len(flow.strongest(10_000)) == sum(size > 0 for size in sizes.values())


def test_a_gene_that_nothing_reaches_has_no_paths():
    flow = one([0.0, 0.0, 1.0], B, [1.0, 0.0, 0.0])
    assert flow.strongest(3) == [] and flow.total() == 0.0
    table = paths.path_table(
        Flow(*(np.repeat(part, 2, 0) for part in (flow.push_k, flow.weight_kk, flow.reading_k))),
        3,
        NAMES,
        "A",
        np.zeros(2),
        np.zeros(2),
    )
    assert table.index[0] == "all other paths" and table["share"].isna().all()


# Programs whose decoder is linear


def world(intervention):
    """Three genes that are nodes, a perturbation of B, and control cells whose state is not zero."""
    direction = torch.tensor([[0.2, 1.5, 0.0]], dtype=torch.double)
    names = {"node_names": NAMES, "perturbation_names": ("B",), "anchors": (0, 1, 2)}
    sizes = Sizes(cells=1, genes=3, nodes=3, perturbations=1, features=0, covariates=0, **names)
    parts = (Fixed(0.8), _KnownDirection(direction), AllCells(), StandardNormal(), _KnownNoise(1.0))
    priors = Priors(_KnownGraph(torch.tensor(B)), *parts, intervention=intervention)
    encoder = LinearEncoder(torch.eye(3).double(), torch.full((3,), 0.5).double())
    program = program_of(priors, sizes, encoder, Passing())
    state = 1.0 + torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    trust = torch.full((3,), 0.7).double()
    controls = Controls(state, trust, torch.ones(20).double(), torch.zeros(20, 0), np.zeros(3))
    draws = posterior.draw(program, 2, seed=0)
    return program, draws, controls, Push(draws.action_pa, draws.share_p)


@pytest.mark.parametrize("intervention", [Shift(), Do(), Scale()], ids=str)
@pytest.mark.parametrize("gene", range(3))
def test_paths_sum_to_the_prediction_where_the_decoder_is_linear(intervention, gene):
    program, draws, controls, push = world(intervention)
    flow = paths.flow(program, draws, controls, push, gene, 20, seed=0)
    means = posterior.population_means(program, draws, controls, push, np.ones(20), 20, seed=0)
    np.testing.assert_allclose(flow.total(), [delta[0, gene] for _, delta in means], atol=1e-12)


def test_a_cut_node_is_pushed_by_what_it_loses_and_its_parents_send_less():
    """At a strength of .8 it keeps a fifth of what it has, and of what comes from A."""
    program, draws, controls, push = world(Do())
    flow = paths.flow(program, draws, controls, push, 2, 20, seed=0)
    (_, noise, _), *_ = posterior.starting_cells(program, draws, controls, 20, seed=0)
    own = (0.5 * noise[:, 0] + noise[:, 1]).mean()
    np.testing.assert_allclose(flow.push_k[0], [0.8 * 0.2, 0.8 * (1.5 - own), 0.0])
    np.testing.assert_allclose(flow.weight_kk[0, 0], [0.0, 0.2 * 0.5, -1.2])
    np.testing.assert_allclose(flow.weight_kk[0, 1], B[1])


def test_a_gene_with_a_node_shows_that_node_alone():
    program, draws, controls, push = world(Shift())
    flow = paths.flow(program, draws, controls, push, 1, 20, seed=0)
    np.testing.assert_allclose(flow.reading_k, [[0.0, 1.0, 0.0]] * 2, atol=1e-12)


# The table


def test_the_table_adds_up_to_the_prediction(fitted):
    table = fitted.paths("G0002", "G0010", n_paths=4, penetrance=0.8, n_samples=50)
    named = table.index[:4]
    assert all(path.endswith(" -> G0010") for path in named) and (table["n_edges"][:4] >= 0).all()
    assert table["share"][:5].sum() == pytest.approx(1.0)
    mean = table["mean"]
    assert mean["all paths"] == pytest.approx(mean[:5].sum())
    parts = ["all paths", "beyond the paths", "beyond the nodes"]
    assert mean["predicted"] == pytest.approx(mean[parts].sum(), abs=1e-7)
    predicted = fitted.predict(["G0002"], penetrance=0.8, n_samples=50)[:, "G0010"]
    for column, layer in {"mean": "delta", "sd": "delta_sd", "q05": "delta_q05", "q95": "delta_q95"}.items():
        assert table.loc["predicted", column] == pytest.approx(predicted.layers[layer].item(), abs=1e-6)


def test_small_effects_are_linear(fitted):
    """What the decoder's curvature adds falls with the square of the penetrance."""
    gaps = []
    for penetrance in (0.2, 0.1):
        table = fitted.paths("G0002", "G0010", penetrance=penetrance, n_samples=30)
        gaps.append(abs(table.loc["beyond the paths", "mean"]) / abs(table.loc["all paths", "mean"]))
    assert gaps[1] < 0.75 * gaps[0] and gaps[0] < 0.05


def test_naming_more_paths_takes_them_from_the_others(fitted):
    few, many = (fitted.paths("G0002", "G0010", n_paths=n, n_samples=20) for n in (2, 6))
    sums = ["all paths", "beyond the paths", "beyond the nodes", "predicted"]
    pd.testing.assert_frame_equal(few.loc[sums], many.loc[sums])
    assert many.loc["all other paths", "sd"] < few.loc["all other paths", "sd"]


def test_what_has_no_paths_is_refused(fitted):
    with pytest.raises(InputError, match="'control' is the control"):
        fitted.paths("control", "G0010")
    with pytest.raises(InputError, match=r"'g0010' are not among the measured genes\. Did you mean 'G0010'"):
        fitted.paths("G0002", "g0010")
    with pytest.raises(InputError, match="n_paths must be a whole number"):
        fitted.paths("G0002", "G0010", n_paths=0)
