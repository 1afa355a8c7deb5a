"""THE model: SCCVAE as a Pyro program.

With row vectors, ``c`` a cell, ``p`` a perturbation, ``k`` a latent node and ``g`` a gene::

    B         ~ graph prior                        nodes x nodes, a DAG
    strength  ~ penetrance prior                   perturbations
    direction ~ direction prior(features)          perturbations x nodes
    z_c       ~ noise prior                        nodes
    share_c   ~ responder prior                    how much of its shift the cell shows
    shift_c   = relative_g(c) * sum of strength_p direction_p over the perturbations p of the cell
    u_c       = (z_c + share_c shift_c) (I - B)^-1 linear structural causal model
    library_c ~ library prior                      molecules of the cell
    x_c       ~ likelihood(decoder(u_c))           genes

A shift is the usual intervention; a node may also be cut from its parents and set, or scaled. All three are
an *action*, and ``u_c`` the answer of the structural equations to it.

The guide is amortised over cells and proposes by abduction: an encoder reads the state ``u_c`` off ``x_c``,
each node with a learned trust, and ``z_c`` is drawn from its normal posterior given that reading, ``B`` and
the action that the guide has just drawn (:class:`Evidence`). Gradients flow through that into ``B`` and the
shifts: it is how perturbations are recovered. Directions that features tell are proposed given strengths, as
cells determine only the product of the two.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.models import scm
from sccvae_pyro.models.direction import DirectionPrior
from sccvae_pyro.models.families import Factors, OwnFactors, PosteriorFamily, values_of
from sccvae_pyro.models.graph import GraphPrior
from sccvae_pyro.models.interventions import Intervention, Shift
from sccvae_pyro.models.library import LibraryPrior, Observed
from sccvae_pyro.models.networks import Decoder, Encoder
from sccvae_pyro.models.nodes import Free, Nodes
from sccvae_pyro.models.noise import NoisePrior
from sccvae_pyro.models.observation import Likelihood
from sccvae_pyro.models.penetrance import PenetrancePrior
from sccvae_pyro.models.responders import Evidence, RespondersPrior
from sccvae_pyro.models.slot import Basis, Described, Given, Perturbations, Sizes, Targets, own_nodes


class Priors(NamedTuple):
    """One member for each slot."""

    graph: GraphPrior
    penetrance: PenetrancePrior
    direction: DirectionPrior
    responders: RespondersPrior
    noise: NoisePrior
    likelihood: Likelihood
    nodes: Nodes = Free()
    intervention: Intervention = Shift()
    library: LibraryPrior = Observed()
    posterior: PosteriorFamily = Factors()


class Causes(NamedTuple):
    """The causal globals.

    ``B``, nodes x nodes; ``action_pa``, perturbations x actions, the shifts of all nodes first; ``share_p``,
    perturbations: the mean share of its action that a cell of the perturbation shows; ``relative_g``, guides:
    strength of a guide relative to that of its perturbation.
    """

    B: Tensor
    action_pa: Tensor
    share_p: Tensor
    relative_g: Tensor

    def action_of(self, batch: Batch) -> Tensor:
        """Action of a full response of each cell, ``... x cells x actions``."""
        relative_c = scm.relative_of_cells(self.relative_g, batch.guides_c)
        return relative_c.unsqueeze(-1) * scm.action_of_cells(self.action_pa, batch.targets_cm)

    def share_of(self, batch: Batch) -> Tensor:
        """Mean share of it that a cell like this shows, ``... x cells``."""
        return scm.share_of_cells(self.share_p, batch.targets_cm)


class Program(PyroModule):
    """The generative model and its guide.

    Parameters
    ----------
    priors
        One member for each slot.
    sizes
        Sizes of the model.
    features
        ``perturbations x features`` of the seen perturbations, standardised.
    baseline
        Decoder's baseline, see :meth:`Likelihood.baseline`.
    encoder, decoder
        The networks.
    expression
        How strongly control cells express each seen target, see :class:`Targets`; ``None`` takes all alike.
    scatter
        Where the guide of the gene-level variables begins, see :meth:`Likelihood.guide`.
    guide_mix
        Guides of each seen perturbation; ``None`` where guides are not labelled or not yet known.
    """

    features: Tensor
    functions_pb: Tensor
    missed_p: Tensor
    own_p: Tensor
    expression_p: Tensor
    baseline: Tensor
    guide_target_g: Tensor
    guide_portion_g: Tensor

    def __init__(
        self,
        priors: Priors,
        sizes: Sizes,
        features: Tensor,
        baseline: Tensor,
        encoder: Encoder,
        decoder: Decoder,
        expression: Tensor | None = None,
        scatter: Tensor | None = None,
        guide_mix: scm.GuideMix | None = None,
    ) -> None:
        super().__init__()
        self.priors, self.sizes = priors, sizes
        self.basis = priors.direction.basis(features)
        self.register_buffer("features", features)
        self.register_buffer("functions_pb", self.basis(features).functions_pb)
        self.register_buffer("missed_p", self.basis(features).missed_p)
        self.register_buffer("own_p", own_nodes(sizes.perturbation_names, sizes))
        unknown = features.new_zeros(sizes.perturbations)
        self.register_buffer("expression_p", unknown if expression is None else expression)
        self.register_buffer("baseline", baseline)
        nobody = torch.full((sizes.guides,), sizes.perturbations)
        mix = scm.GuideMix(nobody, features.new_zeros(sizes.guides)) if guide_mix is None else guide_mix
        self.register_buffer("guide_target_g", mix.target_g)
        self.register_buffer("guide_portion_g", mix.portion_g)
        self.encoder, self.decoder = encoder, decoder
        # Where the state of the control cells lies is shared by encoder and decoder: one number a node to
        # learn it, instead of a slow refit of both, keeps the mean of their noise at zero.
        self.origin_k = nn.Parameter(features.new_zeros(sizes.nodes))
        self.proposal: nn.Module = OwnFactors(
            priors.graph.guide(sizes, features),
            priors.penetrance.guide(sizes, features),
            priors.responders.guide(sizes, features),
            priors.direction.guide(sizes, features),
            priors.likelihood.guide(sizes, scatter),
        )
        self.noise = priors.noise.module(sizes)
        self.library = priors.library.module()
        self.proposal = priors.posterior.module(self.proposal, self.globals_, self.guide_globals)

    @property
    def seen(self) -> Described:
        """The perturbations of training."""
        return Described(self.features, Basis(self.functions_pb, self.missed_p), self.targets)

    @property
    def guide_mix(self) -> scm.GuideMix:
        """Guides of each perturbation of training."""
        return scm.GuideMix(self.guide_target_g, self.guide_portion_g)

    @property
    def targets(self) -> Targets:
        """The perturbed genes of training."""
        return Targets(self.sizes.perturbation_names, self.own_p, self.expression_p)

    def describe(self, features: Tensor, targets: Targets) -> Described:
        """Describe other perturbations, as the priors see them.

        Raises
        ------
        InputError
            If a prior cannot speak of one of them.
        """
        self.check(targets)
        return Described(features, self.basis(features), targets)

    def check(self, targets: Targets) -> None:
        """Ask every prior whether it can speak of these perturbations.

        Raises
        ------
        InputError
            From the first that cannot.
        """
        for prior in self.priors:
            prior.check(targets, self.sizes)

    def causes(self, described: Described) -> Causes:
        """Sample the causal globals."""
        perturbations = Perturbations.of(described)
        B = self.priors.graph.model(self.sizes, perturbations)
        strength_p = self.priors.penetrance.model(self.sizes, perturbations)
        direction_pk = self.priors.direction.model(self.sizes, perturbations)
        share_p = self.priors.responders.model(self.sizes, perturbations)
        relative_g = self.priors.penetrance.relative(self.sizes, perturbations)
        action_pa = self.priors.intervention.action(strength_p, direction_pk, described.targets)
        return Causes(B, action_pa, share_p, relative_g)

    def model(self, batch: Batch) -> Tensor:
        """Generate the expression of a batch of cells, ``cells x genes``."""
        causes = self.causes(self.seen)
        gene_level = self.priors.likelihood.model(self.sizes, self.baseline)
        with self.cells(batch):
            z_ck = pyro.sample("z", self.noise(self.baseline))
            share_c = self.priors.responders.share(causes.share_of(batch))
            action_ca = share_c.unsqueeze(-1) * causes.action_of(batch)
            u_ck = scm.respond(z_ck, action_ca, causes.B)
            change_cg = self.decode(u_ck, batch.covariates_cv)
            library_c = self.library(batch.library_c)
            x_c = self.priors.likelihood.distribution(
                change_cg, self.baseline, library_c, batch.covariates_cv, gene_level
            )
            return pyro.sample("x", x_c, obs=batch.x_cg)

    def guide(self, batch: Batch) -> None:
        """Propose globals, then share and noise of each cell by abduction, and its library."""
        causes = self.causes_given(self.guide_globals(), self.seen)
        state_ck, trust_k = self.encode(batch)
        evidence = Evidence(state_ck, trust_k, causes.B, causes.action_of(batch))
        with self.cells(batch):
            self.library.propose(batch.library_c)
            share_c = self.priors.responders.propose(causes.share_of(batch), evidence)
            pyro.sample("z", evidence.noise(share_c))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Read the state off the expression, ``cells x nodes``, and say how well each node is read."""
        log_x_cg = self.priors.likelihood.encoder_input(batch.x_cg, batch.library_c)
        state_ck, trust_k = self.encoder(log_x_cg, batch.covariates_cv)
        return state_ck + self.origin_k, trust_k

    def decode(self, state_ck: Tensor, covariates_cv: Tensor) -> Tensor:
        """Give the change of each gene from its baseline, ``... x cells x genes``."""
        return self.decoder(state_ck - self.origin_k, covariates_cv)

    def guide_globals(self) -> dict[str, Tensor]:
        """Propose all globals; give the drawn value of each site."""
        return self.proposal(Perturbations.of(self.seen), self.given)

    def globals_(self) -> None:
        """Sample all globals from their priors."""
        self.causes(self.seen)
        self.priors.likelihood.model(self.sizes, self.baseline)

    def prior_globals(self) -> dict[str, Tensor]:
        """Draw all globals from their priors; give the drawn value of each site."""
        with poutine.trace() as drawn:
            self.globals_()
        nodes = drawn.trace.nodes
        # A value that is only recorded, such as a fixed strength, follows from the program and is no draw.
        return {
            name: value for name, value in values_of(drawn.trace).items() if not nodes[name]["is_observed"]
        }

    def strength_given(self, values: dict[str, Tensor]) -> Tensor:
        """Give the strength of each perturbation that follows from drawn globals, hidden from the trace."""
        with poutine.block(), poutine.condition(data=values):
            return self.priors.penetrance.model(self.sizes, Perturbations.of(self.seen))

    def given(self, values: dict[str, Tensor]) -> Given:
        """Give what directions are proposed from, which follows from drawn globals, hidden from the trace."""
        with poutine.block(), poutine.condition(data=values):
            seen = Perturbations.of(self.seen)
            B = self.priors.graph.model(self.sizes, seen)
            relative_g = self.priors.penetrance.relative(self.sizes, seen)
        mean_p = self.guide_mix.mean(relative_g, self.sizes.perturbations)
        return Given(self.strength_given(values) * mean_p, B)

    def causes_given(self, values: dict[str, Tensor], described: Described) -> Causes:
        """What follows from drawn globals, computed by the model's own code and hidden from the trace."""
        with poutine.block(), poutine.condition(data=values):
            return self.causes(described)

    def gene_level_given(self, values: dict[str, Tensor]) -> Tensor:
        """The gene-level variables that follow from drawn globals, ``... x variables x genes``."""
        with poutine.block(), poutine.condition(data=values):
            return self.priors.likelihood.model(self.sizes, self.baseline)

    def cells(self, batch: Batch) -> pyro.plate:
        """The plate of cells: a batch counts for all cells of the screen."""
        return pyro.plate("cells", self.sizes.cells, subsample=batch.library_c, dim=-1)
