"""The published direction prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from sccvae_pyro.models.direction_base import DirectionPrior
from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.scm import drop_cells_dim
from sccvae_pyro.models.slot import Given, Perturbations, Sizes, positive, whole


@dataclass(frozen=True)
class Simplex(DirectionPrior):
    """The published direction: a softmax over nodes of a neural map of the features.

    Deterministic given the features, with a normal prior on the weights of the map. Shifts are
    non-negative and sum to the strength: give the penetrance a wide prior, such as
    ``LogNormal(scale=1.0)``, as the size of an effect is nowhere else.

    Parameters
    ----------
    hidden
        Width of the map's two hidden layers.
    weight_scale
        Standard deviation of the prior of its weights, in units of the usual 1 / sqrt(inputs).
    """

    hidden: int = 64
    weight_scale: float = 1.0

    def __post_init__(self) -> None:
        positive(self, hidden=self.hidden, weight_scale=self.weight_scale)
        whole(self, hidden=self.hidden)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample the weights of the map and record ``direction``, ``perturbations x nodes``."""
        features = perturbations.features
        hidden, _ = perturbations.basis
        for layer, (n_in, n_out) in enumerate(self._layers(sizes)):
            sd = features.new_tensor(self.weight_scale / math.sqrt(n_in))
            weights = pyro.sample(
                f"direction_layer{layer}", dist.Normal(0.0, sd).expand([n_in, n_out]).to_event(2)
            )
            hidden = hidden @ drop_cells_dim(weights)
            hidden = nn.functional.leaky_relu(hidden, 0.2) if layer < 2 else hidden
        with perturbations.plate:
            return pyro.deterministic("direction", hidden.softmax(-1), event_dim=1)

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Independent normals over the weights of the map."""
        return _SimplexFactor(self._layers(sizes), self.weight_scale)

    def _layers(self, sizes: Sizes) -> list[tuple[int, int]]:
        return [(1 + sizes.features, self.hidden), (self.hidden, self.hidden), (self.hidden, sizes.nodes)]


class _SimplexFactor(nn.Module):
    def __init__(self, layers: list[tuple[int, int]], weight_scale: float) -> None:
        super().__init__()
        factors = [MeanField(f"direction_layer{i}", n, event_dim=2, scale=0.02) for i, n in enumerate(layers)]
        for factor, (n_in, _) in zip(factors, layers, strict=True):
            nn.init.normal_(factor.loc, std=weight_scale / math.sqrt(n_in))
        self.layers = nn.ModuleList(factors)

    def forward(self, perturbations: Perturbations, given: Given) -> None:
        """Sample the weights."""
        for layer in self.layers:
            layer()
