"""The benchmark of responders: what the oracle knows, and how effects are measured."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from sccvae_pyro.data.simulate import World, simulate

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("responders")


@pytest.fixture(scope="module")
def world():
    return World.draw(n_perturbations=1, n_genes=30, n_modules=1, seed=1)


def test_oracle_is_the_likelihood_ratio(benchmark, world):
    """Against a fine grid over the noise of the only node."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(200 * np.exp(world.log_proportion(rng.normal(size=(6, 1)), np.zeros(6, int))))
    push = np.linspace(-3.0, -1.0, 6)
    found = benchmark.Oracle(world).log_ratio(counts.astype(float), push, 0, np.zeros(6, int))
    noise = np.linspace(-9, 9, 4001)
    mean = np.exp(world.log_proportion(noise[:, None], np.zeros(4001, int)))
    for row, (cell, shift) in enumerate(zip(counts, push, strict=True)):
        m, r = cell.sum() * mean, world.inverse_dispersion
        log_p = stats.nbinom.logpmf(cell, r, r / (r + m)).sum(1)
        responded, escaped = (special.logsumexp(log_p + stats.norm(at, 1).logpdf(noise)) for at in (shift, 0))
        assert found[row] == pytest.approx(responded - escaped, abs=0.02)


def test_what_counts_tell_is_less_than_the_state_and_grows_with_them(benchmark, world):
    few, many = (benchmark.Oracle(world).sizes(library).iloc[0] for library in (300.0, 1e6))
    assert few["state_sd"] == many["state_sd"]
    push = abs(world.strength * world.shift).item() * world.guide_strength.mean()
    assert many["state_sd"] == pytest.approx(push)
    assert few["read_sd"] < many["read_sd"] < push


def test_oracle_tells_simulated_cells_apart(benchmark):
    """As well as two normals that far apart."""
    adata = simulate(
        n_perturbations=2, cells_per_perturbation=600, n_control=10, n_genes=60, n_modules=2, seed=4
    )
    world = World.from_uns(adata.uns["truth"])
    oracle = benchmark.Oracle(world)
    size = oracle.sizes(float(adata.obs["total_umi"].median()))["read_sd"]
    for node, name in enumerate(world.nodes):
        own = np.flatnonzero(adata.obs["perturbation"] == name)
        score = benchmark.score_oracle(oracle, adata, own, node)
        found = benchmark._auroc(adata.uns["truth"]["responded"][own], score)
        assert found == pytest.approx(stats.norm.cdf(size[name] / np.sqrt(2)), abs=0.06)


def test_sizes_are_put_in_bins(benchmark):
    scores = pd.DataFrame(
        {
            "perturbation": ["a", "a", "b", "b", "c", "c"],
            "method": ["SCCVAE", "oracle"] * 3,
            "auroc": [0.5, 0.6, 0.9, 1.0, 0.8, 0.9],
            "read_sd": [0.5, 0.5, 2.0, 2.0, 2.5, 2.5],
        }
    )
    table = benchmark.by_size(scores, "read_sd")
    assert list(table["perturbations"]) == [1, 2]
    assert table["SCCVAE"].tolist() == pytest.approx([0.5, 0.85])
