"""What every interchangeable part of the model has in common.

A slot is a place in the program (graph, penetrance, direction, noise, likelihood); a member of a
slot is a small frozen dataclass. Members register themselves by name, so that a belief can be
written as an object, as a name, or as a table in a TOML file, and so that a member written outside
this package is found like our own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from sccvae_pyro.data.wording import listing, suggestion
from sccvae_pyro.errors import InputError

SMALLEST, LARGEST = 1e-15, 1e15
"""Bounds of settings: their squares are numbers in single precision."""

MOST = 8192
"""Most nodes, units of a layer, factors or landmarks: beyond, their matrices outgrow everything else."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of one model.

    Parameters
    ----------
    cells, genes, nodes, perturbations, features, covariates
        Numbers of training cells, genes, latent nodes, seen perturbations, features of a
        perturbation, and columns of coded covariates.
    guides
        Guides of the perturbed cells; 0 where guides are not labelled.
    node_names
        Names of the latent nodes in their order; empty names them ``node_0``, ``node_1`` and so on.
    anchors
        Position of the gene of each node, where nodes are anchored to genes.
    perturbation_names
        Names of the seen perturbations in the order of their codes.
    causes_first
        Positions of the nodes in the causal order that the screen suggests; empty where none is asked for,
        or where nodes are not genes.
    """

    cells: int
    genes: int
    nodes: int
    perturbations: int
    features: int
    covariates: int
    guides: int = 0
    node_names: tuple[str, ...] = ()
    anchors: tuple[int, ...] = ()
    perturbation_names: tuple[str, ...] = ()
    causes_first: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("node_names", "anchors", "perturbation_names", "causes_first"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # read from JSON, they are lists


class Member(ABC):
    """A member of a slot: how it is named, checked, written down and read back."""

    slot: ClassVar[str]
    registry: ClassVar[dict[str, dict[str, type[Member]]]] = {}

    def __init_subclass__(cls, slot: str | None = None, base: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if slot is not None:
            cls.slot = slot
            Member.registry[slot] = {}
        elif hasattr(cls, "slot") and not base and not cls.__name__.startswith("_"):
            _refuse_taken(cls)
            Member.registry[cls.slot][cls.__name__] = cls

    def __init__(self, *_: Any, **__: Any) -> None:
        settings_of(type(self))  # a dataclass has an __init__ of its own

    def to_dict(self) -> dict[str, Any]:
        """Write the member as plain values: its ``name`` and its settings."""
        values = {f.name: getattr(self, f.name) for f in settings_of(type(self))}
        written = {
            key: value.to_dict() if isinstance(value, Member) else value for key, value in values.items()
        }
        return {"name": type(self).__name__, **written}

    @classmethod
    def from_dict(cls, spec: Self | str | Mapping[str, Any]) -> Self:
        """Read a member of this slot.

        Parameters
        ----------
        spec
            A member, its name, or a mapping with ``name`` and settings.

        Returns
        -------
        The member.

        Raises
        ------
        InputError
            If the name or a setting is unknown, the message lists the known ones; or if it is a member of
            another slot.
        """
        if isinstance(spec, cls):
            return spec
        if isinstance(spec, Member):
            raise InputError(
                f"{spec} belongs to the slot {spec.slot}, not to {cls.slot}. Pass it as {spec.slot}="
            )
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, Mapping) or "name" not in spec:
            raise InputError(f"{cls.slot} must be one of {cls.known()} or a table with a name, not {spec!r}")
        settings = {key: value for key, value in spec.items() if key != "name"}
        member = _look_up(cls.slot, str(spec["name"]))
        known = settings_of(member)
        accepted = {f.name for f in known}
        required = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
        unknown = sorted(set(settings) - accepted)
        if unknown:
            raise InputError(
                f"{cls.slot} {member.__name__} has no setting {unknown[0]!r}. "
                f"{suggestion(unknown[0], sorted(accepted), 'settings')}"
            )
        if missing := sorted(required - set(settings)):
            raise InputError(f"{cls.slot} {member.__name__} needs the setting {missing[0]!r}")
        return member(**settings)  # type: ignore[return-value]

    @classmethod
    def known(cls) -> list[str]:
        """Names of the members of this slot."""
        return sorted(Member.registry[cls.slot])

    def check(self, targets: Targets, sizes: Sizes) -> None:
        """Refuse perturbations that the member cannot speak of; by default it can of all.

        Parameters
        ----------
        targets
            The perturbed genes.
        sizes
            Sizes of the model, with the names of nodes and seen perturbations.

        Raises
        ------
        InputError
            Naming the perturbations at fault, and the way out.
        """
        return


def settings_of(member: type[Member]) -> tuple[Field[Any], ...]:
    """The settings of a member, the fields of its dataclass.

    Raises
    ------
    InputError
        If the class is no dataclass of its own: settings that it adds would not be read.
    """
    if "__dataclass_fields__" not in vars(member):
        raise InputError(f"{member.__name__} is no dataclass. Write @dataclass(frozen=True) above the class.")
    return fields(member)  # type: ignore[arg-type]


class Basis(NamedTuple):
    """Functions of the features that directions are a linear map of.

    ``functions_pb`` is ``perturbations x functions``, the constant first; ``missed_p`` the prior
    variance of each perturbation that the functions miss, in units of that of the map.
    """

    functions_pb: Tensor
    missed_p: Tensor


class Targets(NamedTuple):
    """The perturbed genes themselves.

    ``names``: of the perturbations; ``own_p``: the node of each target, or the number of nodes where it has
    none; ``expression_p``: how strongly control cells express it, on the scale of the likelihood's baseline
    and standardised over the seen perturbations; NaN where it is not measured.
    """

    names: tuple[str, ...]
    own_p: Tensor
    expression_p: Tensor


def own_nodes(names: Sequence[str], sizes: Sizes) -> Tensor:
    """Node of each perturbation that bears its name; the number of nodes where there is none."""
    position = {name: k for k, name in enumerate(sizes.node_names)}
    return torch.tensor([position.get(name, sizes.nodes) for name in names], dtype=torch.long)


class Given(NamedTuple):
    """What the guide has drawn before it comes to directions.

    ``strength_p``: ``... x perturbations``, mean over the cells that carry each alone, whatever their guide;
    ``B``: ``... x nodes x nodes``.
    """

    strength_p: Tensor
    B: Tensor


class Described(NamedTuple):
    """Perturbations: standardised features, ``perturbations x features``, their basis, and the targets."""

    features: Tensor
    basis: Basis
    targets: Targets | None = None


class Perturbations(NamedTuple):
    """The perturbations that the program speaks of: the seen ones in training, unseen ones in prediction.

    ``features``, ``basis`` and ``targets`` describe them; ``plate`` counts each of them once.
    """

    features: Tensor
    basis: Basis
    targets: Targets | None
    plate: pyro.plate

    @classmethod
    def of(cls, described: Described) -> Perturbations:
        """Make the plate that goes with the features."""
        return cls(*described, pyro.plate("perturbations", described.features.shape[-2], dim=-1))


class Prior(Member):
    """A prior over global variables: what the model samples and the guide factor that goes with it."""

    @abstractmethod
    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample the prior's sites and return the value that the program uses."""

    @abstractmethod
    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Build the guide factor; calling it with the perturbations samples the same sites."""

    @property
    def recorded(self) -> Mapping[str, str]:
        """How values that are recorded, not drawn, follow from sites: what :func:`describe` says of them."""
        return {}


class Empty(nn.Module):
    """The guide factor of a prior without sites."""

    def forward(self, *context: object) -> None:
        """Sample nothing."""


def positive(member: Member, **values: float) -> None:
    """Refuse settings that are not positive numbers, or beyond :data:`SMALLEST` and :data:`LARGEST`.

    Raises
    ------
    InputError
        Naming the member, the setting and the value.
    """
    for name, value in values.items():
        number = _plain(member, name, value)
        if not (_is_number(number) and 0 < number < math.inf):
            raise InputError(f"{type(member).__name__}: {name} must be a positive number, not {value!r}")
        if not SMALLEST <= number <= LARGEST:
            raise InputError(
                f"{type(member).__name__}: {name} must lie between {SMALLEST:g} and {LARGEST:g}, for "
                f"single precision, not {value!r}"
            )


def whole(member: Member, **values: int) -> None:
    """Refuse settings that are not whole numbers from 1 to :data:`MOST`.

    Raises
    ------
    InputError
        Naming the member, the setting and the value.
    """
    for name, value in values.items():
        number = _plain(member, name, value)
        if not (isinstance(number, int) and _is_number(number) and 1 <= number <= MOST):
            raise InputError(
                f"{type(member).__name__}: {name} must be a whole number from 1 to {MOST}, not {value!r}"
            )


def finite(member: Member, **values: float) -> None:
    """Refuse settings that are not numbers, or beyond :data:`LARGEST` in size.

    Raises
    ------
    InputError
        Naming the member, the setting and the value.
    """
    for name, value in values.items():
        if not (_is_number(number := _plain(member, name, value)) and abs(number) <= LARGEST):
            raise InputError(
                f"{type(member).__name__}: {name} must be a finite number, at most {LARGEST:g} in size, "
                f"not {value!r}"
            )


def share(member: Member, **values: float) -> None:
    """Refuse settings that are not numbers from 0 to 1.

    Raises
    ------
    InputError
        Naming the member, the setting and the value.
    """
    for name, value in values.items():
        if not (_is_number(number := _plain(member, name, value)) and 0 <= number <= 1):
            raise InputError(f"{type(member).__name__}: {name} must lie between 0 and 1, not {value!r}")


def names(member: Member, **values: Any) -> None:
    """Keep settings as tuples of names, each named once, in an order that counts.

    Raises
    ------
    InputError
        Naming the member, the setting and what is wrong.
    """
    for name, value in values.items():
        listed = isinstance(value, Iterable) and not isinstance(value, str | Mapping | Set)
        found = tuple(value) if listed else ()
        if not listed or not all(isinstance(entry, str) for entry in found):
            raise InputError(f"{type(member).__name__}: {name} must be a list of names, not {value!r}")
        if twice := sorted({entry for entry in found if found.count(entry) > 1}):
            raise InputError(f"{type(member).__name__}: {name} names {listing(twice)} more than once")
        object.__setattr__(member, name, found)


def _plain(member: Member, name: str, value: Any) -> Any:
    """Keep a setting as a number of Python: a NumPy scalar could not be written down."""
    if isinstance(value, np.generic):
        value = value.item()
        object.__setattr__(member, name, value)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_taken(member: type[Member]) -> None:
    """Refuse a class whose name would be looked up as that of another; its own module may define it again."""
    taken = _by_spelling(member.slot).get(_spelling(member.__name__))
    if taken is not None and taken.__module__ != member.__module__:
        raise InputError(
            f"The name {member.__name__!r} is taken in the slot {member.slot}, by {taken.__name__} of "
            f"{taken.__module__}. Give the class another name."
        )


def _look_up(slot: str, name: str) -> type[Member]:
    found = _by_spelling(slot).get(_spelling(name))
    if found is None:
        raise InputError(
            f"There is no {slot} {name!r}. {suggestion(name, sorted(Member.registry[slot]), 'members')} "
            "If it is a class of your own, define or import it first."
        )
    return found


def _by_spelling(slot: str) -> dict[str, type[Member]]:
    return {_spelling(name): member for name, member in Member.registry[slot].items()}


def _spelling(name: str) -> str:
    """A name without case and underscores, so that ``negative_binomial`` is ``NegativeBinomial``."""
    return name.lower().replace("_", "")
