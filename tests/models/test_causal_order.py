"""The causal order at which learning begins: moments by hand, all orders enumerated, a known screen."""

from itertools import pairwise, permutations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sccvae_pyro import SCCVAE, setup_anndata
from sccvae_pyro.models.causal_order import moments, order_by_insertion

CHAIN = ("c", "a", "d", "b")
"""Order of causes, which neither names nor columns tell."""


def chain_screen(seed: int = 0, weight: float = 0.7) -> AnnData:
    """Draw continuous expression of four genes in a chain, each perturbed in turn, in two batches."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(["control", *sorted(CHAIN)], [400, 100, 100, 100, 100])
    batch = rng.integers(0, 2, len(labels))
    values = pd.DataFrame(rng.normal(size=(len(labels), 4)), columns=list(CHAIN))
    for gene in CHAIN:
        values.loc[labels == gene, gene] -= 2.0
    for cause, effect in pairwise(CHAIN):
        values[effect] += weight * values[cause]
    values = values[sorted(CHAIN)] + 3.0 * batch[:, None] + 10.0
    obs = pd.DataFrame(
        {"perturbation": labels, "batch": batch.astype(str)}, index=[f"c{i}" for i in values.index]
    )
    adata = AnnData(values.to_numpy(np.float32), obs=obs, var=pd.DataFrame(index=sorted(CHAIN)))
    setup_anndata(adata, "perturbation", "control", covariate_keys=("batch",))
    return adata


def chain_model(adata: AnnData, **more: object) -> SCCVAE:
    """Build a model of the chain that has the order to learn."""
    return SCCVAE(
        adata,
        nodes="Anchored",
        direction="OwnNode",
        graph="LearnedOrder",
        likelihood="Normal",
        hidden=(8,),
        **more,
    )


def test_a_chain_is_ordered_by_its_perturbations():
    sizes = chain_model(chain_screen()).program.sizes
    assert tuple(sizes.node_names[k] for k in sizes.causes_first) == CHAIN


def test_nothing_is_read_where_no_order_is_learned():
    adata = chain_screen()
    assert (
        SCCVAE(adata, nodes="Anchored", direction="OwnNode", likelihood="Normal").program.sizes.causes_first
        == ()
    )
    free = SCCVAE(adata, n_nodes=3, graph="LearnedOrder", likelihood="Normal")
    assert free.program.sizes.causes_first == ()


def test_scores_begin_at_the_suggested_order():
    program = chain_model(chain_screen()).program
    score_k = program.proposal.graph_factor.score.loc.detach().numpy()
    assert tuple(np.argsort(score_k)) == program.sizes.causes_first
    assert score_k.std() == pytest.approx(1.0, rel=0.3)


def test_moments_are_those_of_least_squares():
    adata = chain_screen()
    screen = chain_model(adata)._screen
    found = moments(screen, [0, 2])
    x, labels = np.asarray(adata.X)[:, [0, 2]].astype(float), adata.obs["perturbation"].astype(str)
    known = np.column_stack([np.ones(len(x)), adata.obs["batch"] == "1"]).astype(float)
    residual = x - known @ np.linalg.lstsq(known, x, rcond=None)[0]
    mean = pd.DataFrame(residual).groupby(labels.to_numpy()).mean()
    np.testing.assert_allclose(found.covariance_gg, residual.T @ residual / len(x), rtol=1e-4)
    np.testing.assert_allclose(
        found.effects_pg, mean.drop("control") - mean.loc["control"], rtol=1e-3, atol=1e-5
    )
    assert found.size_p.tolist() == [100, 100, 100, 100] and found.n_control == 400


def test_combinations_tell_no_effects():
    adata = chain_screen()
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    adata.obs["perturbation"] = np.where(
        np.arange(len(labels)) % 2, labels, np.where(labels == "a", "a+b", labels)
    )
    setup_anndata(adata, "perturbation", "control", covariate_keys=("batch",))
    found = moments(chain_model(adata)._screen, [0, 1, 2, 3])
    assert found.size_p.tolist() == [50, 100, 100, 100]


@pytest.mark.parametrize("seed", range(5))
def test_insertions_find_the_best_of_all_orders_or_nearly(seed):
    weight = np.random.default_rng(seed).exponential(size=(6, 6))

    def gain(order):
        return np.triu(weight[np.ix_(order, order)], 1).sum()

    gains = [gain(list(order)) for order in permutations(range(6))]
    found = order_by_insertion(weight)
    assert sorted(found) == list(range(6))
    assert np.mean(np.array(gains) > gain(found) + 1e-9) <= 0.01  # of 720 orders


def test_a_gene_that_never_varies_comes_somewhere():
    adata = chain_screen()
    values = np.asarray(adata.X).copy()
    values[:, 1] = 0.0
    adata.X = values
    setup_anndata(adata, "perturbation", "control", covariate_keys=("batch",))
    assert sorted(chain_model(adata).program.sizes.causes_first) == [0, 1, 2, 3]
