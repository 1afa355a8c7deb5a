"""Beliefs about what the latent nodes are: free factors, or measured genes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sccvae_pyro.data.wording import listing, nearest, question
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.networks import AnchoredDecoder, AnchoredEncoder, Decoder, Encoder
from sccvae_pyro.models.slot import Member, Sizes, names, whole


class Placed(NamedTuple):
    """The nodes of one model: how many, and the names and genes of those that are anchored."""

    number: int
    names: tuple[str, ...] = ()
    anchors: tuple[int, ...] = ()


class Nodes(Member, slot="nodes"):
    """Base of the members that say what the nodes are; nothing is sampled."""

    @abstractmethod
    def place(self, genes: Sequence[str], perturbations: Sequence[str]) -> Placed:
        """Give the nodes for measured genes and seen perturbations of these names."""

    @abstractmethod
    def encoder(self, center: Tensor, scale: Tensor, sizes: Sizes, hidden: Sequence[int]) -> Encoder:
        """Build the encoder; see :class:`~sccvae_pyro.models.networks.Encoder`."""

    @abstractmethod
    def decoder(self, sizes: Sizes, hidden: Sequence[int]) -> Decoder:
        """Build the decoder; see :class:`~sccvae_pyro.models.networks.Decoder`."""


@dataclass(frozen=True)
class Free(Nodes):
    """Latent factors without names: whatever explains the cells. The default.

    Parameters
    ----------
    n_nodes
        Number of nodes; more cost little, those without evidence fall silent.
    """

    n_nodes: int = 64

    def __post_init__(self) -> None:
        whole(self, n_nodes=self.n_nodes)

    def place(self, genes: Sequence[str], perturbations: Sequence[str]) -> Placed:
        """Nameless nodes."""
        return Placed(self.n_nodes)

    def encoder(self, center: Tensor, scale: Tensor, sizes: Sizes, hidden: Sequence[int]) -> Encoder:
        """Build an encoder that reads all genes for every node."""
        return Encoder(center, scale, sizes.covariates, hidden, sizes.nodes)

    def decoder(self, sizes: Sizes, hidden: Sequence[int]) -> Decoder:
        """Build a decoder in which every node may act on every gene."""
        return Decoder(sizes.nodes, sizes.covariates, hidden, sizes.genes)


@dataclass(frozen=True)
class Anchored(Nodes):
    """Nodes are measured genes: edges run between genes, and a perturbation can act on its own node.

    Node k has a positive loading on the gene of the same name, and no other node enters the gene's term: what
    reaches it comes along the edges, or, of counts, because all genes share the molecules. Genes without a
    node are decoded from all nodes.

    Parameters
    ----------
    genes
        Names of the genes; empty for the measured ones among the seen perturbations. Name the targets of
        unseen perturbations that are to act on a node of their own. A graph in the order of the model takes
        this order, causes first.
    """

    genes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names(self, genes=self.genes)

    def place(self, genes: Sequence[str], perturbations: Sequence[str]) -> Placed:
        """Find the genes.

        Raises
        ------
        InputError
            If a named gene is not measured, or no seen perturbation is.
        """
        position = {gene: g for g, gene in enumerate(genes)}
        if unknown := [gene for gene in self.genes if gene not in position]:
            near = question(nearest(unknown[0], genes, n=1))
            raise InputError(
                f"Anchored: {listing(unknown)} are not among the measured genes. {near}"
                "Nodes are anchored to genes that the cells show: name others, or keep them in the data."
            )
        names = self.genes or tuple(name for name in perturbations if name in position)
        if not names:
            raise InputError(
                f"Anchored: no perturbed gene is measured (perturbed are {listing(perturbations)}). "
                "Name genes that are, with genes=[...], or use nodes='Free'."
            )
        return Placed(len(names), names, tuple(position[name] for name in names))

    def encoder(self, center: Tensor, scale: Tensor, sizes: Sizes, hidden: Sequence[int]) -> Encoder:
        """Build an encoder in which every node reads its own gene directly."""
        return AnchoredEncoder(center, scale, sizes.covariates, hidden, sizes.anchors)

    def decoder(self, sizes: Sizes, hidden: Sequence[int]) -> Decoder:
        """Build a decoder in which the gene of a node shows that node alone."""
        return AnchoredDecoder(sizes.anchors, sizes.covariates, hidden, sizes.genes)
