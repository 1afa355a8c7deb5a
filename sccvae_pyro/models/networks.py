"""Encoder and decoder: the only neural networks of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def mlp(n_in: int, hidden: Sequence[int], n_out: int) -> nn.Sequential:
    """Layers of linear map, layer norm and SiLU, and a last linear map."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(n_in, width), nn.LayerNorm(width), nn.SiLU()]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, n_out))


class Encoder(nn.Module):
    """Propose a causal state for each cell from its expression and covariates.

    Parameters
    ----------
    center, scale
        Mean and standard deviation of the log expression of each gene in the training cells.
    n_covariates, hidden, n_nodes
        Sizes of covariates, hidden layers and latent state.
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self, center: Tensor, scale: Tensor, n_covariates: int, hidden: Sequence[int], n_nodes: int
    ) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        self.body = mlp(len(center) + n_covariates, hidden, n_nodes)
        self.raw_trust_k = nn.Parameter(torch.zeros(n_nodes))

    def forward(self, log_expression_cg: Tensor, covariates_cv: Tensor) -> tuple[Tensor, Tensor]:
        """Give the state of each cell, ``cells x nodes``, and the trust in it, between 0 and 1, nodes."""
        inputs = torch.cat([self.standardise(log_expression_cg), covariates_cv], dim=-1)
        # In single precision a sigmoid reaches 1, a noise of no width; that far the gradient is gone too.
        return self.body(inputs), self.raw_trust_k.clamp(max=8.0).sigmoid()

    def standardise(self, log_expression_cg: Tensor) -> Tensor:
        """Put every gene on one scale, ``cells x genes``."""
        return (log_expression_cg - self.center) / self.scale


class AnchoredEncoder(Encoder):
    """An encoder in which every node reads its own gene directly, beside what the network reads in all.

    Parameters
    ----------
    center, scale, n_covariates, hidden
        As in :class:`Encoder`.
    anchors
        Position of the gene of each node.
    """

    anchors: Tensor

    def __init__(
        self,
        center: Tensor,
        scale: Tensor,
        n_covariates: int,
        hidden: Sequence[int],
        anchors: Sequence[int],
    ) -> None:
        super().__init__(center, scale, n_covariates, hidden, len(anchors))
        self.register_buffer("anchors", torch.tensor(anchors))
        self.own_k = nn.Parameter(torch.full((len(anchors),), 0.5))

    def forward(self, log_expression_cg: Tensor, covariates_cv: Tensor) -> tuple[Tensor, Tensor]:
        """Give the state of each cell, ``cells x nodes``, and the trust in it, between 0 and 1, nodes."""
        state_ck, trust_k = super().forward(log_expression_cg, covariates_cv)
        own_ck = self.standardise(log_expression_cg)[..., self.anchors]
        return state_ck + self.own_k * own_ck, trust_k


class Decoder(nn.Module):
    """Turn a causal state and covariates into a change of each gene from its baseline.

    A linear map carries most effects, a small network the rest; both start near zero, so that
    training begins at the mean of the control cells.
    """

    def __init__(self, n_nodes: int, n_covariates: int, hidden: Sequence[int], n_genes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_nodes + n_covariates, n_genes, bias=False)
        self.body = mlp(n_nodes + n_covariates, hidden, n_genes)
        last = self.body[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            self.linear.weight.mul_(0.1)
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, state_ck: Tensor, covariates_cv: Tensor) -> Tensor:
        """Give the change of each gene, ``... x cells x genes``, on the scale of the likelihood."""
        covariates = covariates_cv.expand(*state_ck.shape[:-1], covariates_cv.shape[-1])
        inputs = torch.cat([state_ck, covariates], dim=-1)
        return self.linear(inputs) + self.body(inputs)


class AnchoredDecoder(Decoder):
    """A decoder in which the gene of a node shows that node alone, with a positive loading.

    Parameters
    ----------
    anchors
        Position of the gene of each node.
    n_covariates, hidden, n_genes
        As in :class:`Decoder`.
    """

    anchors: Tensor

    def __init__(
        self, anchors: Sequence[int], n_covariates: int, hidden: Sequence[int], n_genes: int
    ) -> None:
        super().__init__(len(anchors), n_covariates, hidden, n_genes)
        self.register_buffer("anchors", torch.tensor(anchors))
        self.log_loading_k = nn.Parameter(torch.full((len(anchors),), math.log(0.3)))
        self.covariates_vk = nn.Parameter(torch.zeros(n_covariates, len(anchors)))

    def forward(self, state_ck: Tensor, covariates_cv: Tensor) -> Tensor:
        """Give the change of each gene, ``... x cells x genes``, on the scale of the likelihood."""
        change_cg = super().forward(state_ck, covariates_cv)
        own_ck = self.log_loading_k.exp() * state_ck + covariates_cv @ self.covariates_vk
        return change_cg.index_copy(-1, self.anchors, own_ck)
