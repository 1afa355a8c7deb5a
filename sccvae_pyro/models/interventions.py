"""Beliefs about what a perturbation does to a node: push it, cut it off and set it, or scale it.

Every member gives the *action* of each perturbation at penetrance 1. An action is linear in penetrance and in
the share that a cell shows, and the actions of a combination add up; what it does to the nodes is
:func:`sccvae_pyro.models.scm.respond`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sccvae_pyro.data.wording import listing, nearest, question, suggestion
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.slot import Member, Sizes, Targets

KINDS = ("shift", "do", "scale")
"""Kinds of an intervention on the own node of a perturbation."""


class Intervention(Member, slot="intervention"):
    """Base of the members that turn strength and direction into an action; nothing is sampled."""

    equations: ClassVar[tuple[str, ...]] = ("u_c = (z_c + share_c * shift_c) (I - B)^-1",)
    """What the action does to a cell."""

    @abstractmethod
    def action(self, strength_p: Tensor, direction_pk: Tensor, targets: Targets | None) -> Tensor:
        """Give the action of each perturbation, ``... x perturbations x actions``."""


@dataclass(frozen=True)
class Shift(Intervention):
    """A perturbation adds to the noise of the nodes, ``u = u B + z + shift``. The default."""

    def action(self, strength_p: Tensor, direction_pk: Tensor, targets: Targets | None) -> Tensor:
        """The shift, ``... x perturbations x nodes``."""
        return strength_p.unsqueeze(-1) * direction_pk


class _OnOwnNode(Intervention):
    """An intervention whose kind on the own node of each perturbation is known; other nodes are pushed."""

    equations = (
        "u_c = (u_c B + z_c) * keep_c + share_c * shift_c",
        "keep_c = max(0, 1 - share_c * guide strength * strength) at own nodes that are cut, "
        "exp(share_c * guide strength * strength * direction) at those scaled, else 1",
    )

    @abstractmethod
    def kind(self, perturbation: str) -> str:
        """Kind of a perturbation, one of :data:`KINDS`."""

    def action(self, strength_p: Tensor, direction_pk: Tensor, targets: Targets | None) -> Tensor:
        """Shift, cut and stretch of every node, ``... x perturbations x 3 nodes``."""
        assert targets is not None
        own_pk = torch.nn.functional.one_hot(targets.own_p, direction_pk.shape[-1] + 1)[:, :-1]
        is_do_pk, is_scale_pk = (self._are(kind, targets, direction_pk) * own_pk for kind in ("do", "scale"))
        push_pk = strength_p.unsqueeze(-1) * direction_pk
        cut_pk = (strength_p.unsqueeze(-1) * is_do_pk).expand_as(push_pk)
        return torch.cat([push_pk * (1 - is_scale_pk), cut_pk, push_pk * is_scale_pk], dim=-1)

    def _are(self, kind: str, targets: Targets, like: Tensor) -> Tensor:
        return like.new_tensor([self.kind(name) == kind for name in targets.names]).unsqueeze(-1)

    def check(self, targets: Targets, sizes: Sizes) -> None:
        """Refuse perturbations that are cut or scaled without a node of their own.

        Raises
        ------
        InputError
            Naming them.
        """
        own = dict(zip(targets.names, targets.own_p.tolist(), strict=True))
        homeless = [name for name in own if self.kind(name) != "shift" and own[name] == sizes.nodes]
        if homeless:
            raise InputError(
                f"intervention {type(self).__name__} acts on the own node of a perturbation, and there is "
                f"none for {listing(homeless)}. Give nodes=Anchored(genes=[...]) with these among the genes."
            )


@dataclass(frozen=True)
class Do(_OnOwnNode):
    """A perturbation cuts its own node from its parents and sets it, ``u_k = direction_k``.

    With a strength or penetrance below 1 the node keeps a part of its own, ``u_k = (1 - c) (u B + z)_k + c
    direction_k``: ``penetrance="Fixed"`` makes it Pearl's *do* in every cell.
    """

    def kind(self, perturbation: str) -> str:
        """``do`` for all."""
        return "do"


@dataclass(frozen=True)
class Scale(_OnOwnNode):
    """A perturbation scales what its own node does, ``u_k = exp(direction_k) (u B + z)_k``.

    It moves no mean of its own: cells differ less in the node where its direction is below zero.
    """

    def kind(self, perturbation: str) -> str:
        """``scale`` for all."""
        return "scale"


@dataclass(frozen=True)
class Kinds(_OnOwnNode):
    """The kind of intervention is known for each perturbation.

    Parameters
    ----------
    kinds
        ``"shift"``, ``"do"`` or ``"scale"`` by the name of the perturbation.
    otherwise
        Kind of all that are not named, unseen ones included.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = "shift"

    def __post_init__(self) -> None:
        if not isinstance(self.kinds, Mapping):
            raise InputError(f"Kinds: kinds must be a table from perturbation to kind, not {self.kinds!r}")
        object.__setattr__(self, "kinds", {str(name): kind for name, kind in self.kinds.items()})
        for name, kind in [*self.kinds.items(), ("otherwise", self.otherwise)]:
            if kind not in KINDS:
                raise InputError(f"Kinds: {name} cannot be {kind!r}. {suggestion(kind, KINDS, 'kinds')}")

    def kind(self, perturbation: str) -> str:
        """As written, or else."""
        return self.kinds.get(perturbation, self.otherwise)

    def check(self, targets: Targets, sizes: Sizes) -> None:
        """Refuse names that are no perturbation of the screen and no node, and kinds without a node.

        Raises
        ------
        InputError
            Naming them.
        """
        known = {*sizes.perturbation_names, *sizes.node_names, *targets.names}
        if unknown := [name for name in self.kinds if name not in known]:
            raise InputError(
                f"Kinds: {listing(unknown)} is no single target of the screen. "
                f"{question(nearest(unknown[0], known, n=1))}Name targets one by one, those of a "
                "combination, too; all others are of the kind 'otherwise'."
            )
        super().check(targets, sizes)
