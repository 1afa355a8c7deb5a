"""Spec files: reading TOML, and saying in plain words what is wrong with it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from sccvae_pyro.data.wording import suggestion
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import read_text, write_text


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


def write_toml(spec: BaseModel, path: str | Path) -> None:
    """Write a spec as a TOML file: tables below the settings that are none, nothing for what is ``None``.

    Raises
    ------
    InputError
        If there is no writing to the path.
    """
    settings = spec.model_dump(mode="json")
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    lines = _entries({key: value for key, value in settings.items() if key not in tables})
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_entries(table)]
    write_text("\n".join(lines) + "\n", path)


def _entries(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items() if value is not None]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    """A value in TOML; a table within a table stands on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(_entries(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def explain(error: ValidationError, spec: type[BaseModel], what: str) -> str:
    """Say which setting of a spec is wrong, and what there is instead."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return f"The {what} has no setting {key!r}. {suggestion(key, spec.model_fields, 'settings')}"
    said = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"The {what} has {key} = {first['input']!r}: {said}."
