"""Model specs: one validated object, also as a TOML file, for one choice of priors and likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sccvae_pyro.data.schema import Kind
from sccvae_pyro.data.toml import explain, read_toml
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.direction import DirectionPrior
from sccvae_pyro.models.graph import GraphPrior
from sccvae_pyro.models.likelihoods import Likelihood
from sccvae_pyro.models.noise import NoisePrior
from sccvae_pyro.models.penetrance import PenetrancePrior
from sccvae_pyro.models.program import Priors
from sccvae_pyro.models.responders import RespondersPrior
from sccvae_pyro.models.slot import Member

AUTO_LIKELIHOOD: dict[Kind, str] = {"counts": "NegativeBinomial", "continuous": "Normal"}

SLOTS: dict[str, type[Member]] = {
    "graph": GraphPrior,
    "penetrance": PenetrancePrior,
    "direction": DirectionPrior,
    "responders": RespondersPrior,
    "noise": NoisePrior,
    "likelihood": Likelihood,
}
"""Slots of the program, in the order of its page."""


class ModelSpec(BaseModel):
    """What the model is: sizes, and one member for each slot.

    Parameters
    ----------
    n_nodes
        Latent nodes.
    hidden
        Widths of the hidden layers of encoder and decoder.
    graph, penetrance, direction, responders, noise
        Priors: a member, its name, or a table with its name and settings.
    likelihood
        The same, or ``"auto"``: negative binomial for counts, normal for other values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    n_nodes: int = Field(64, ge=1, le=8192)
    hidden: tuple[int, ...] = (256, 256)
    graph: dict[str, Any] = {"name": "Laplace"}
    penetrance: dict[str, Any] = {"name": "LogNormal"}
    direction: dict[str, Any] = {"name": "GaussianProcess"}
    responders: dict[str, Any] = {"name": "AllCells"}
    noise: dict[str, Any] = {"name": "StandardNormal"}
    likelihood: dict[str, Any] = {"name": "auto"}

    @field_validator(*SLOTS, mode="before")
    @classmethod
    def _as_table(cls, value: Any) -> Any:
        if isinstance(value, Member):
            return value.to_dict()
        return {"name": value} if isinstance(value, str) else value

    @field_validator("hidden")
    @classmethod
    def _positive_widths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("give at least one positive width")
        return value

    @classmethod
    def read(cls, source: Mapping[str, Any] | str | Path | None = None, **overrides: Any) -> ModelSpec:
        """Read a spec from a TOML file or a mapping; keywords that are not ``None`` override it.

        Raises
        ------
        InputError
            If the file is missing or not TOML, or a slot, member or setting is unknown.
        """
        settings = read_toml(source) if isinstance(source, str | Path) else dict(source or {})
        settings.update({key: value for key, value in overrides.items() if value is not None})
        try:
            spec = cls.model_validate(settings)
        except ValidationError as error:
            raise InputError(explain(error, cls, "model spec")) from None
        for slot, base in SLOTS.items():
            if slot != "likelihood" or spec.likelihood != {"name": "auto"}:
                base.from_dict(getattr(spec, slot))
        return spec

    def priors(self, kind: Kind) -> Priors:
        """Build the members, for values of this kind.

        Raises
        ------
        InputError
            If the likelihood does not describe values of this kind.
        """
        table = self.likelihood if self.likelihood != {"name": "auto"} else {"name": AUTO_LIKELIHOOD[kind]}
        likelihood = Likelihood.from_dict(table)
        if likelihood.kind != kind:
            raise InputError(
                f"likelihood {table['name']} describes {likelihood.kind}, but this screen holds {kind}. "
                f"Use likelihood='auto', or set up another layer."
            )
        return Priors(
            GraphPrior.from_dict(self.graph),
            PenetrancePrior.from_dict(self.penetrance),
            DirectionPrior.from_dict(self.direction),
            RespondersPrior.from_dict(self.responders),
            NoisePrior.from_dict(self.noise),
            likelihood,
        )
