"""Metrics, baselines and calibration of predicted perturbation effects."""

from sccvae_pyro.evaluate.baselines import BASELINES, Training, predict_baselines
from sccvae_pyro.evaluate.graphs import score_graph
from sccvae_pyro.evaluate.results import METRICS, Metric, Scores
from sccvae_pyro.evaluate.score import score
from sccvae_pyro.evaluate.uniformity import uniformity

__all__ = [
    "BASELINES",
    "METRICS",
    "Metric",
    "Scores",
    "Training",
    "predict_baselines",
    "score",
    "score_graph",
    "uniformity",
]
