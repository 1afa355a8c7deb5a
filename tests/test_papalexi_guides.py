"""Guides of a real screen: THP1 ECCITE-seq (Papalexi et al. 2021), where SCCVAE_DATA names its folder."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("papalexi_guides")


def test_order_is_counted_draw_by_draw(benchmark):
    """Of four draws, one breaks the first step and another the last."""
    drawn = dict(
        zip(
            benchmark.ORDER, np.array([[4, 4, 4, 2], [3, 3, 3, 3], [2, 2, 2, 2], [1, 1, 2.5, 1]]), strict=True
        )
    )
    found = list(benchmark.probability(drawn).values())
    assert found == [0.5, 0.75, 1.0, 0.75]


@pytest.mark.slow
@pytest.mark.skipif(
    "SCCVAE_DATA" not in os.environ, reason="SCCVAE_DATA does not name the folder of the data"
)
def test_strongest_and_weakest_guide_come_out(benchmark):
    """The strongest and the weakest against STAT1; the two between are too close to be ordered."""
    drawn = benchmark.strengths(benchmark.read(Path(os.environ["SCCVAE_DATA"])), seed=0)
    strongest, *between, weakest = (drawn[guide] for guide in benchmark.ORDER)
    for guide in between:
        assert np.mean(strongest > guide) > 0.95
        assert np.mean(guide > weakest) > 0.95
