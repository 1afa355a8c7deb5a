"""Pictures, one module for each question that a person asks.

Every function draws on the axes that it is given, or on new ones, and returns a :class:`Plot`: the axes and
the data that they show. Nothing touches pyplot, so pictures can be made on servers and in threads.
"""

from sccvae_pyro.plots.calibration import coverage, error_against_spread, pit_histogram, risk_coverage
from sccvae_pyro.plots.dose import penetrance_curves
from sccvae_pyro.plots.effects import effect_heatmap
from sccvae_pyro.plots.graph import plot_graph, strongest_edges
from sccvae_pyro.plots.interaction import interaction
from sccvae_pyro.plots.modules import module_heatmap, module_map
from sccvae_pyro.plots.penetrance import penetrance_forest
from sccvae_pyro.plots.posterior import posterior_predictive
from sccvae_pyro.plots.predictions import compare, predicted_against_observed, top_genes
from sccvae_pyro.plots.priors import prior_predictive
from sccvae_pyro.plots.ranks import rank_ecdf
from sccvae_pyro.plots.scores import score_forest
from sccvae_pyro.plots.sensitivity import sensitivity
from sccvae_pyro.plots.style import Plot
from sccvae_pyro.plots.training import training_curve
from sccvae_pyro.plots.uncertainty import uncertainty_split

__all__ = [
    "Plot",
    "compare",
    "coverage",
    "effect_heatmap",
    "error_against_spread",
    "interaction",
    "module_heatmap",
    "module_map",
    "penetrance_curves",
    "penetrance_forest",
    "pit_histogram",
    "plot_graph",
    "posterior_predictive",
    "predicted_against_observed",
    "prior_predictive",
    "rank_ecdf",
    "risk_coverage",
    "score_forest",
    "sensitivity",
    "strongest_edges",
    "top_genes",
    "training_curve",
    "uncertainty_split",
]
