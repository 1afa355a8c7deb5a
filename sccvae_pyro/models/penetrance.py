"""Penetrance priors: beliefs about how strongly a perturbation pushes.

Every member returns the strength ``c`` of each perturbation of the plate it is called in; at 0 a
cell is a control cell, at 1 the shift is the direction itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.factors import MeanField, Plated
from sccvae_pyro.models.scm import drop_cells_dim
from sccvae_pyro.models.slot import Empty, Perturbations, Prior, Sizes, Targets, finite, positive

NARROW = 0.1
"""Sd of log strengths at which their guide starts, where the prior is wider."""


class PenetrancePrior(Prior, slot="penetrance"):
    """Base of the penetrance priors; the site of the strength is ``strength``."""

    reads_features = False
    """Whether it needs features of the perturbed genes."""

    def relative(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Strength of each guide relative to its perturbation, ``guides``; ones unless guides differ."""
        return perturbations.features.new_ones(sizes.guides)


@dataclass(frozen=True)
class LogNormal(PenetrancePrior):
    """Strengths vary around 1 on the log scale. The default.

    ``log strength_p ~ Normal(loc, scale)``. An unseen perturbation draws its strength from the same
    population. Neither setting is learned: the size of the directions is, so that a learned location
    would only drift against it, and a learned spread lets the tail of unseen strengths run away.

    Parameters
    ----------
    loc
        Mean of the log strength.
    scale
        Standard deviation of the log strength between perturbations.
    """

    loc: float = 0.0
    scale: float = 0.05

    def __post_init__(self) -> None:
        finite(self, loc=self.loc)
        positive(self, scale=self.scale)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``strength``, ``perturbations``."""
        zero = perturbations.features.new_zeros(())
        with perturbations.plate:
            return pyro.sample("strength", dist.LogNormal(zero + self.loc, zero + self.scale))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Log-normal for each strength."""
        return _log_normals(sizes, self.loc, self.scale)


@dataclass(frozen=True)
class Fixed(PenetrancePrior):
    """Every perturbation has the same, known strength.

    Parameters
    ----------
    value
        The strength.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        positive(self, value=self.value)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Record ``strength``, ``perturbations``."""
        n_perturbations = perturbations.features.shape[-2]
        with perturbations.plate:
            return pyro.deterministic(
                "strength", perturbations.features.new_full((n_perturbations,), self.value)
            )

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Nothing to learn."""
        return Empty()


@dataclass(frozen=True)
class Gamma(PenetrancePrior):
    """Positive strengths of mean one; the shape says how much they vary.

    ``strength_p ~ Gamma(concentration, concentration)``: at a concentration of 1 many do next to nothing.

    Parameters
    ----------
    concentration
        Shape; the coefficient of variation is its inverse root.
    """

    concentration: float = 4.0

    def __post_init__(self) -> None:
        positive(self, concentration=self.concentration)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``strength``, ``perturbations``."""
        shape = perturbations.features.new_tensor(self.concentration)
        with perturbations.plate:
            return pyro.sample("strength", dist.Gamma(shape, shape))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Log-normal for each strength."""
        return _log_normals(sizes)


@dataclass(frozen=True)
class HalfNormal(PenetrancePrior):
    """Strengths pile up at zero: many perturbations are weak, none is very strong.

    Parameters
    ----------
    scale
        Standard deviation of the normal that is folded.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        positive(self, scale=self.scale)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``strength``, ``perturbations``."""
        scale = perturbations.features.new_tensor(self.scale)
        with perturbations.plate:
            return pyro.sample("strength", dist.HalfNormal(scale))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Log-normal for each strength."""
        return _log_normals(sizes)


@dataclass(frozen=True)
class OnFeatures(PenetrancePrior):
    """Features of the gene say how strong its perturbation is.

    ``log strength_p ~ Normal(features_p . strength_weights, scale)``, weights ``Normal(0, weight)``.
    An unseen perturbation has the strength that its features tell. Features are centred over the seen
    perturbations, whose mean log strength is therefore zero, and the columns of a source together have a
    mean squared norm of one.

    Parameters
    ----------
    weight
        Width of the belief about what a feature does to the log strength: what one source of features tells
        of it has about this spread, however many columns the source has.
    scale
        Standard deviation of the log strength around that.
    """

    weight: float = 0.1
    scale: float = 0.05

    reads_features = True

    def __post_init__(self) -> None:
        positive(self, weight=self.weight, scale=self.scale)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``strength_weights`` and ``strength``, ``perturbations``."""
        zero = perturbations.features.new_zeros(())
        weights_e = pyro.sample(
            "strength_weights", dist.Normal(zero, self.weight).expand([sizes.features]).to_event(1)
        )
        with perturbations.plate:
            loc_p = self.line(weights_e, perturbations)
            return pyro.sample("strength", dist.LogNormal(loc_p, zero + self.scale))

    def line(self, weights_e: Tensor, perturbations: Perturbations) -> Tensor:
        """Expected log strengths, ``... x perturbations``."""
        return (perturbations.features @ drop_cells_dim(weights_e.unsqueeze(-1))).squeeze(-1)

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Normal for each weight, log-normal for each strength given the weights."""
        start = min(NARROW, self.weight)
        return _RegressedFactor(self, MeanField("strength_weights", [sizes.features], 1, scale=start), sizes)


class _RegressedFactor(nn.Module):
    """Cells tell little of strengths beside directions, so that strengths go where the drawn line goes."""

    def __init__(self, prior: OnFeatures | OnExpression, weights: MeanField, sizes: Sizes) -> None:
        super().__init__()
        self.prior, self.weights = prior, weights
        self.own_p = nn.Parameter(torch.zeros(sizes.perturbations))
        self.log_scale = nn.Parameter(torch.full_like(self.own_p, min(NARROW, prior.scale)).log())

    def forward(self, perturbations: Perturbations) -> None:
        """Sample weights, then strengths around their line."""
        line_p = self.prior.line(self.weights(), perturbations)
        with perturbations.plate:
            pyro.sample("strength", dist.LogNormal(line_p + self.own_p, self.log_scale.exp()))


@dataclass(frozen=True)
class OnExpression(PenetrancePrior):
    """How strongly control cells express a gene says how strong its perturbation is.

    ``log strength_p ~ Normal(strength_slope expression_p, scale)``, slope ``Normal(0, weight)``, with the
    target's log proportion of the molecules of control cells (its mean value where the screen holds no
    counts), standardised over the seen perturbations: silencing a silent gene does little.

    Parameters
    ----------
    weight
        Width of the belief about the slope.
    scale
        Standard deviation of the log strength around the line.
    """

    weight: float = 0.2
    scale: float = 0.05

    def __post_init__(self) -> None:
        positive(self, weight=self.weight, scale=self.scale)

    def check(self, targets: Targets, sizes: Sizes) -> None:
        """Refuse targets that are not measured.

        Raises
        ------
        InputError
            Naming them.
        """
        unmeasured = [n for n, e in zip(targets.names, targets.expression_p, strict=True) if e.isnan()]
        if unmeasured:
            raise InputError(
                "penetrance OnExpression reads the expression of the perturbed genes, and "
                f"{listing(unmeasured)} are not measured. "
                "Keep them among the genes, or use another penetrance."
            )

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``strength_slope`` and ``strength``, ``perturbations``."""
        zero = perturbations.features.new_zeros(())
        slope = pyro.sample("strength_slope", dist.Normal(zero, self.weight))
        with perturbations.plate:
            loc_p = self.line(slope, perturbations)
            return pyro.sample("strength", dist.LogNormal(loc_p, zero + self.scale))

    def line(self, slope: Tensor, perturbations: Perturbations) -> Tensor:
        """Expected log strengths, ``... x perturbations``."""
        assert perturbations.targets is not None
        return slope * perturbations.targets.expression_p

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Normal for the slope, log-normal for each strength given the slope."""
        start = min(NARROW, self.weight)
        return _RegressedFactor(self, MeanField("strength_slope", [], 0, scale=start), sizes)


@dataclass(frozen=True)
class Guides(PenetrancePrior):
    """Guides of one perturbation differ in strength; perturbations vary as another prior says.

    ``log guide_strength_g ~ Normal(-spread^2 / 2, spread)``, relative to the strength of the perturbation and
    of mean one: predictions are for a guide of average strength, which a ``Do`` cuts in full where weaker
    guides leave a part. Needs ``guide_key``.

    Parameters
    ----------
    strength
        Belief about the strength of perturbations: a member of this slot, its name, or a table.
    spread
        Standard deviation of the log strength between the guides of a perturbation.
    """

    strength: PenetrancePrior = LogNormal()
    spread: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", PenetrancePrior.from_dict(self.strength))
        positive(self, spread=self.spread)
        if isinstance(self.strength, Guides):
            raise InputError("Guides: strength must be a belief about perturbations, not Guides again")

    @property
    def reads_features(self) -> bool:  # type: ignore[override]
        """As the belief about perturbations does."""
        return self.strength.reads_features

    def check(self, targets: Targets, sizes: Sizes) -> None:
        """Ask the belief about perturbations."""
        self.strength.check(targets, sizes)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``strength``, ``perturbations``."""
        return self.strength.model(sizes, perturbations)

    def relative(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``guide_strength``, ``guides``."""
        zero = perturbations.features.new_zeros(())
        # Of mean one, so that a perturbation acts as its guides do on average.
        loc = zero - 0.5 * self.spread**2
        with pyro.plate("guides", sizes.guides, dim=-1):
            return pyro.sample("guide_strength", dist.LogNormal(loc, zero + self.spread))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Log-normal for each guide, and the factor of the strengths."""
        if not sizes.guides:
            raise InputError(
                "penetrance Guides needs labelled guides. Name their column: guide_key in "
                "setup_anndata, or --guide-key."
            )
        return _GuidesFactor(self.strength.guide(sizes, features), self.spread, sizes.guides)


class _GuidesFactor(nn.Module):
    def __init__(self, strength: nn.Module, spread: float, n_guides: int) -> None:
        super().__init__()
        self.strength = strength
        start, to_positive = min(NARROW, spread), [transforms.ExpTransform()]
        self.relative = MeanField("guide_strength", [n_guides], 0, scale=start, transforms=to_positive)

    def forward(self, perturbations: Perturbations) -> None:
        """Sample strengths and relative strengths."""
        self.strength(perturbations)
        with pyro.plate("guides", len(self.relative.loc), dim=-1):
            self.relative()


def _log_normals(sizes: Sizes, loc: float = 0.0, spread: float = NARROW) -> Plated:
    """Log-normal for each strength, no wider at the start than its prior: cells can only narrow it."""
    start, to_positive = min(NARROW, spread), [transforms.ExpTransform()]
    return Plated(MeanField("strength", [sizes.perturbations], 0, loc, start, transforms=to_positive))
