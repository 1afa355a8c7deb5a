"""What every benchmark stores: scores in a tidy CSV and, beside it, how they came about in a JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sccvae_pyro import __version__
from sccvae_pyro.evaluate import Scores
from sccvae_pyro.files import write_text
from sccvae_pyro.inference.export import versions


class Clock:
    """Wall times of named stretches of work, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def store(folder: Path, name: str, scores: Scores, clock: Clock, about: Mapping[str, Any]) -> None:
    """Write ``name.csv`` and ``name.json``.

    Parameters
    ----------
    folder
        Where to write; it is made.
    name
        Name of the benchmark.
    scores
        Scores of all methods. The CSV has a row for each target, metric and method: mean over the
        perturbations, its 95 % interval, and the same of the paired difference to SCCVAE.
    clock
        Wall times.
    about
        Further entries of the JSON: seed, sizes, what was held out.
    """
    table = scores.table(reference="SCCVAE").stack("method", future_stack=True).dropna(how="all")
    perturbations = scores.per_perturbation["perturbation"].nunique()
    store_table(folder, name, table.reset_index(), clock, {**about, "scored_perturbations": perturbations})


def store_table(folder: Path, name: str, table: pd.DataFrame, clock: Clock, about: Mapping[str, Any]) -> None:
    """Write a tidy table as ``name.csv`` and how it came about as ``name.json``; see :func:`store`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(table.to_csv(index=False, float_format="%.6g"), folder / f"{name}.csv")
    how = {
        **about,
        "seconds": clock.seconds,
        "threads": torch.get_num_threads(),
        "versions": versions() | {"sccvae-pyro": __version__},
    }
    write_text(json.dumps(how, indent=2) + "\n", folder / f"{name}.json")
