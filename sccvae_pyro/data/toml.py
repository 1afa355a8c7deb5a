"""Spec files: reading TOML, and saying in plain words what is wrong with it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from sccvae_pyro.data.wording import suggestion
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import read_text


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    InputError
        If there is no such file or it is not TOML.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no spec {str(path)!r}. Give the path of a .toml file.")
    try:
        return tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not a TOML file: {error}") from None


def plain(value: Any) -> Any:
    """Turn a number of NumPy into one of Python: settings are of no other types than files hold."""
    return value.item() if isinstance(value, np.generic) else value


def explain(error: ValidationError, spec: type[BaseModel], what: str) -> str:
    """Say which setting of a spec is wrong, and what there is instead."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"The {what} has no setting {key!r}. {suggestion(key, spec.model_fields, 'settings')}"
    said = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"The {what} has {key} = {first['input']!r}: {said}."
