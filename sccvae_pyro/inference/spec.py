"""Inference specs: one validated object, also as a TOML file, for one way to fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from sccvae_pyro.data.checks import check_seed
from sccvae_pyro.data.toml import explain, plain, read_toml, write_toml
from sccvae_pyro.errors import InputError


class _Spec(BaseModel):
    """A choice of settings, read from a file or a mapping."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return plain(value)

    @classmethod
    def read(cls, source: Self | Mapping[str, Any] | str | Path | None, **overrides: Any) -> Self:
        """Read a spec from a TOML file or a mapping; keywords override it.

        Raises
        ------
        InputError
            If the file is missing or not TOML, or a setting is unknown or out of range.
        """
        settings = _settings(source)
        changed = {key: value for key, value in overrides.items() if value is not None}
        try:
            return cls.model_validate({**settings, **changed})
        except ValidationError as error:
            raise InputError(explain(error, cls, "inference spec")) from None

    def to_toml(self, path: str | Path) -> None:
        """Write the spec to a file that :meth:`read` reads back equal.

        Raises
        ------
        InputError
            If there is no writing to the path.
        """
        write_toml(self, path)


class InferenceSpec(_Spec):
    """How to fit. The defaults need no tuning.

    Parameters
    ----------
    objective
        ``"elbo"``; ``"iwae"``, the importance-weighted ELBO: tighter for the cells, and slower; or
        ``"published"``, the published training loss, for log-normalised values and for comparison.
    particles
        Draws of a step: of the program, averaged, for ``"elbo"``; of each cell, weighed, for ``"iwae"``.
    max_epochs
        Passes over the training cells; ``None`` takes as many as give about ``target_steps`` steps.
    target_steps
        Gradient steps aimed at where ``max_epochs`` is ``None``.
    batch_size
        Cells of a step; with ``"published"`` of one perturbation, each with a control cell.
    learning_rate
        Peak of the one-cycle schedule, for the networks; with ``"published"`` the rate of all parameters.
    global_rate
        Factor on the learning rate for the variational parameters of the globals. A perturbation
        is in few cells of a batch, so that its gradients are noisy and its steps must be longer.
    kl_start, kl_warmup
        Weight of the KL of the cells' noise at the start, and the fraction of training after which it is 1.
        With ``"iwae"`` it tempers the weights of the cells.
    gradient_clip
        Bound on the norm of the gradient; with ``"published"`` on that of each parameter.
    validation_fraction
        Share of the cells of every perturbation kept for validation, by the same bound.
    patience
        Epochs without a better validation bound after which training stops, once the KL has its full weight.
    precision
        Lightning's precision: ``"32"`` or ``"bf16-mixed"``.
    accelerator, devices
        Lightning's accelerator and number of devices.
    seed
        Seed of initial weights, splits, order of cells and draws.
    """

    objective: Literal["elbo", "iwae", "published"] = "elbo"
    particles: int = Field(1, ge=1, validate_default=True)
    max_epochs: int | None = Field(None, ge=1)
    target_steps: int = Field(3000, ge=1)
    batch_size: int = Field(256, ge=2)
    learning_rate: float = Field(5e-3, gt=0)
    global_rate: float = Field(2.0, gt=0)
    kl_start: float = Field(0.05, ge=0, le=1)
    kl_warmup: float = Field(0.3, ge=0, le=1)
    gradient_clip: float = Field(10.0, gt=0)
    validation_fraction: float = Field(0.05, gt=0, lt=0.5)
    patience: int = Field(15, ge=1)
    precision: Literal["32", "bf16-mixed"] = "32"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = Field(1, ge=1)
    seed: Annotated[int, BeforeValidator(check_seed)] = 0

    @field_validator("particles")
    @classmethod
    def _enough_to_weigh(cls, particles: int, info: ValidationInfo) -> int:
        if info.data.get("objective") == "iwae" and particles < 2:
            raise PydanticCustomError("particles", "with one particle iwae is the elbo; begin with 8")
        return particles


class NUTSSpec(_Spec):
    """How to draw by Hamiltonian Monte Carlo.

    Parameters
    ----------
    n_samples, warmup
        Draws of each chain that are kept, and its steps before them.
    chains
        Number of chains.
    seed
        Seed.
    """

    n_samples: int = Field(500, ge=4)
    warmup: int = Field(500, ge=2)
    chains: int = Field(4, ge=1)
    seed: Annotated[int, BeforeValidator(check_seed)] = 0


def _settings(source: BaseModel | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    if source is None:
        return {}
    if isinstance(source, BaseModel):
        return source.model_dump()
    if not isinstance(source, str | Path | Mapping):
        raise InputError(f"Give the path of a .toml file or a mapping as the inference spec, not {source!r}")
    return dict(source) if isinstance(source, Mapping) else read_toml(source)
