"""Model specs: one validated object, also as a TOML file, for one choice of priors and likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from sccvae_pyro.data.schema import Kind
from sccvae_pyro.data.toml import explain, plain, read_toml, write_toml
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.direction import DirectionPrior
from sccvae_pyro.models.families import PosteriorFamily
from sccvae_pyro.models.graph import GraphPrior
from sccvae_pyro.models.interventions import Intervention
from sccvae_pyro.models.library import LibraryPrior, Observed
from sccvae_pyro.models.likelihoods import Likelihood
from sccvae_pyro.models.nodes import Free, Nodes
from sccvae_pyro.models.noise import NoisePrior
from sccvae_pyro.models.penetrance import PenetrancePrior
from sccvae_pyro.models.program import Priors
from sccvae_pyro.models.responders import RespondersPrior
from sccvae_pyro.models.slot import MOST, Member

AUTO_LIKELIHOOD: dict[Kind, str] = {"counts": "NegativeBinomial", "continuous": "Normal"}

AUTO = {"name": "auto"}
"""Stands for the likelihood of :data:`AUTO_LIKELIHOOD` until the kind of values is known."""

_VALUES: dict[str, str] = {"counts": "counts", "continuous": "continuous values"}

SLOTS: dict[str, type[Member]] = {
    "nodes": Nodes,
    "graph": GraphPrior,
    "penetrance": PenetrancePrior,
    "direction": DirectionPrior,
    "intervention": Intervention,
    "responders": RespondersPrior,
    "noise": NoisePrior,
    "library": LibraryPrior,
    "likelihood": Likelihood,
    "posterior": PosteriorFamily,
}
"""Slots of the program, in the order of its page."""


Width = Annotated[int, BeforeValidator(plain), Field(strict=True, le=MOST)]
"""Units of a layer."""


class ModelSpec(BaseModel):
    """What the model is: sizes, and one member for each slot, kept with all of its settings.

    Parameters
    ----------
    hidden
        Widths of the hidden layers of encoder and decoder.
    nodes
        What the latent nodes are: a member, its name, or a table with its name and settings. ``n_nodes = 32``
        is short for free nodes of this number.
    graph, penetrance, direction, intervention, responders, noise, library
        Priors, in the same three ways.
    likelihood
        The same, or ``"auto"``: negative binomial for counts, normal for other values.
    posterior
        How the globals are proposed: a member, its name, or a table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: tuple[Width, ...] = (256, 256)
    nodes: dict[str, Any] = {"name": "Free"}
    graph: dict[str, Any] = {"name": "Laplace"}
    penetrance: dict[str, Any] = {"name": "LogNormal"}
    direction: dict[str, Any] = {"name": "GaussianProcess"}
    intervention: dict[str, Any] = {"name": "Shift"}
    responders: dict[str, Any] = {"name": "AllCells"}
    noise: dict[str, Any] = {"name": "StandardNormal"}
    library: dict[str, Any] = {"name": "Observed"}
    likelihood: dict[str, Any] = AUTO
    posterior: dict[str, Any] = {"name": "Factors"}

    @field_validator(*SLOTS, mode="before")
    @classmethod
    def _as_table(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Member):
            return SLOTS[str(info.field_name)].from_dict(value).to_dict()
        if isinstance(value, type) and issubclass(value, Member):
            raise ValueError(f"write {value.__name__}(), with brackets, or its name {value.__name__!r}")
        if not isinstance(value, str | Mapping):
            raise ValueError("give a member, its name, or a table with its name and settings")
        return {"name": value} if isinstance(value, str) else value

    @field_validator("hidden")
    @classmethod
    def _positive_widths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("give at least one positive width")
        return value

    @classmethod
    def read(cls, source: Mapping[str, Any] | str | Path | None = None, **overrides: Any) -> Self:
        """Read a spec from a TOML file or a mapping; keywords that are not ``None`` override it.

        Raises
        ------
        InputError
            If the file is missing or not TOML, or a slot, member or setting is unknown.
        """
        if not isinstance(source, str | Path | Mapping | None):
            raise InputError(f"Give the path of a .toml file or a mapping as the model spec, not {source!r}")
        settings = read_toml(source) if isinstance(source, str | Path) else dict(source or {})
        given = {key: value for key, value in overrides.items() if value is not None}
        settings = _in_full(settings)
        if "n_nodes" in given and "nodes" in settings:
            _check_free(settings["nodes"])
        settings |= _in_full(given)
        try:
            spec = cls.model_validate(settings)
        except ValidationError as error:
            raise InputError(explain(error, cls, "model spec")) from None
        return spec._spelt_out()

    def _spelt_out(self) -> Self:
        """Write every setting of every member, so that the spec means the same whatever defaults become."""
        members = {
            slot: base.from_dict(getattr(self, slot)).to_dict()
            for slot, base in SLOTS.items()
            if slot != "likelihood" or self.likelihood != AUTO
        }
        return self.model_copy(update=members)

    def to_toml(self, path: str | Path) -> None:
        """Write the spec to a file that :meth:`read` reads back equal.

        Raises
        ------
        InputError
            If there is no writing to the path.
        """
        write_toml(self, path)

    def settled(self, kind: Kind) -> Self:
        """Put the likelihood that goes with values of this kind in the place of ``"auto"``."""
        if self.likelihood != AUTO:
            return self
        return self.model_copy(update={"likelihood": Likelihood.from_dict(AUTO_LIKELIHOOD[kind]).to_dict()})

    def priors(self, kind: Kind) -> Priors:
        """Build the members, for values of this kind.

        Raises
        ------
        InputError
            If the likelihood or the library does not describe values of this kind.
        """
        likelihood = Likelihood.from_dict(self.settled(kind).likelihood)
        if likelihood.kind != kind:
            raise InputError(
                f"likelihood {type(likelihood).__name__} describes {_VALUES[likelihood.kind]}, "
                f"but this screen holds {_VALUES[kind]}. "
                f"Use likelihood='auto', or set up another layer."
            )
        library = LibraryPrior.from_dict(self.library)
        if kind == "continuous" and not isinstance(library, Observed):
            raise InputError(
                f"library {type(library).__name__} is a belief about molecules, and this screen holds "
                "continuous values. Leave library out, or set up the counts."
            )
        return Priors(
            GraphPrior.from_dict(self.graph),
            PenetrancePrior.from_dict(self.penetrance),
            DirectionPrior.from_dict(self.direction),
            RespondersPrior.from_dict(self.responders),
            NoisePrior.from_dict(self.noise),
            likelihood,
            Nodes.from_dict(self.nodes),
            Intervention.from_dict(self.intervention),
            library,
            PosteriorFamily.from_dict(self.posterior),
        )


def _check_free(nodes: Any) -> None:
    """Refuse a number of free nodes for a spec whose nodes are something else."""
    member = Nodes.from_dict(nodes)
    if not isinstance(member, Free):
        raise InputError(
            f"Model spec: n_nodes is a number of free nodes, and the spec has nodes={type(member).__name__}. "
            "Leave n_nodes out, or give nodes={'name': 'Free', 'n_nodes': ...} to replace them."
        )


def _in_full(settings: dict[str, Any]) -> dict[str, Any]:
    """Write out ``n_nodes``, the short form of free nodes."""
    if "n_nodes" not in settings:
        return settings
    if "nodes" in settings:
        raise InputError(
            "Model spec: n_nodes is short for free nodes of this number, and nodes says what they are. "
            "Give one of the two."
        )
    rest = {key: value for key, value in settings.items() if key != "n_nodes"}
    return {**rest, "nodes": {"name": "Free", "n_nodes": settings["n_nodes"]}}
