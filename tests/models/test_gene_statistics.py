"""What is read off the cells before anything is fitted, against the distributions they were drawn from."""

import numpy as np
import pandas as pd
from anndata import AnnData

import sccvae_pyro as sv
from sccvae_pyro import SCCVAE
from sccvae_pyro.models.build import LEAST_SCATTER, SCATTER_SHARE, gene_statistics


def cells(values: np.ndarray, **settings: object) -> AnnData:
    """Control cells, and some of two perturbations, without effects."""
    n_cells, n_genes = values.shape
    labels = np.resize(["control", "control", "control", "g0", "g1"], n_cells)
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(n_cells)])
    adata = AnnData(
        values.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(n_genes)])
    )
    sv.setup_anndata(adata, "perturbation", "control", **settings)
    return adata


def statistics_of(adata: AnnData, **settings: object):
    return gene_statistics(SCCVAE(adata, direction="OwnNode", nodes="Anchored", **settings)._screen)


def negative_binomial_cells(seed: int = 0) -> tuple[AnnData, np.ndarray, np.ndarray]:
    """Counts of five genes with dispersions of their own, in cells of very different library sizes."""
    rng = np.random.default_rng(seed)
    proportion, scatter = np.array([0.1, 0.05, 0.04, 0.02, 0.01]), np.array([0.05, 0.2, 0.5, 1.0, 2.0])
    library = rng.lognormal(7, 0.5, 20_000)
    rate = library[:, None] * proportion * rng.gamma(1 / scatter, scatter, (len(library), 5))
    adata = AnnData(rng.poisson(rate))
    adata = cells(adata.X)
    adata.obs["library"] = np.maximum(library, np.asarray(adata.X).sum(1))
    sv.setup_anndata(adata, "perturbation", "control", library_key="library")
    return adata, proportion, scatter


def test_scatter_of_counts_is_that_beyond_counting():
    adata, proportion, scatter = negative_binomial_cells()
    found = statistics_of(adata)
    np.testing.assert_allclose(found.control_mean, proportion, rtol=0.05)
    np.testing.assert_allclose(found.scatter, scatter, rtol=0.15)


def test_scatter_of_values_is_their_variance():
    sd = np.array([0.1, 0.5, 1.0, 2.0])
    values = 10 + sd * np.random.default_rng(0).normal(size=(20_000, 4))
    found = statistics_of(cells(values))
    np.testing.assert_allclose(found.scatter, np.square(sd), rtol=0.05)
    np.testing.assert_allclose(found.scale, sd, rtol=0.05, atol=0.011)


def test_genes_without_scatter_keep_a_little():
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.binomial(20, 0.5, 500), np.zeros(500), rng.poisson(100.0, 500)])
    found = statistics_of(cells(values))
    assert (found.scatter[:2] == LEAST_SCATTER).all()
    assert np.isfinite(found.scatter).all()


def test_blocks_do_not_matter():
    adata, _, _ = negative_binomial_cells()
    screen = SCCVAE(adata, direction="OwnNode", nodes="Anchored")._screen
    for whole, parts in zip(gene_statistics(screen), gene_statistics(screen, block=77), strict=True):
        np.testing.assert_allclose(whole, parts)


def test_a_model_begins_at_a_share_of_the_scatter():
    adata, _, _ = negative_binomial_cells()
    model = SCCVAE(adata, nodes="Anchored", direction="OwnNode")
    begun = model.program.proposal.gene_factor.factor.loc.detach().exp().numpy()
    np.testing.assert_allclose(1 / begun, SCATTER_SHARE * statistics_of(adata).scatter, rtol=1e-4)


def test_two_perturbations_are_too_few_for_features(caplog):
    adata, _, _ = negative_binomial_cells()
    adata.uns["features"] = pd.DataFrame({"a": [0.0, 1.0], "b": [2.0, 0.5]}, index=["g0", "g1"])
    sv.setup_anndata(adata, "perturbation", "control", library_key="library", feature_key="features")
    model = SCCVAE(adata, n_nodes=2)
    assert model.features is None
    assert "2 perturbations are too few" in caplog.text
