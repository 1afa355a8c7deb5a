"""The tables of the README, from the stored results of the benchmarks.

    python benchmarks/tables.py

rewrites what stands between `<!-- table:NAME -->` and `<!-- end -->` in README.md from
benchmarks/results/NAME.csv. The best value of a column is bold, whoever reaches it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"

TARGETS = {"simulation": "truth", "papalexi": "held-out"}
"""What the scores of each table are against."""

METHODS = ("SCCVAE", "GP", "ridge", "kNN", "bilinear", "perturbed mean", "control", "noise ceiling")
FEWEST = 5
"""Perturbations below which an interval over them says nothing and is left out."""

MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Column(NamedTuple):
    """A metric as the table shows it: multiplied by ``factor``; best is the highest, lowest or nearest."""

    metric: str
    title: str
    best: float
    factor: float = 1.0
    digits: int = 2


HIGHEST, LOWEST = float("inf"), float("-inf")
COLUMNS = (
    Column("pearson_delta", "Pearson delta ↑", HIGHEST),
    Column("pearson_systema", "Pearson delta to training mean ↑", HIGHEST),
    Column("mse", "MSE x 1e-3 ↓", LOWEST, 1e3, 1),
    Column("centroid_accuracy", "centroid accuracy ↑", HIGHEST),
    Column("wmse", "weighted MSE x 1e-3 ↓", LOWEST, 1e3, 0),
    Column("crps", "CRPS x 1e-3 ↓", LOWEST, 1e3, 1),
    Column("coverage_90", "90 % coverage", 0.9),
)


def table(name: str) -> str:
    """Write the stored results of a benchmark as a table in Markdown."""
    scores = pd.read_csv(RESULTS / f"{name}.csv").set_index(["target", "metric", "method"]).loc[TARGETS[name]]
    how = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    with_interval = how["scored_perturbations"] >= FEWEST
    methods = [method for method in METHODS if method in scores.index.unique("method")]
    columns = {column.title: _cells(scores, column, methods, with_interval) for column in COLUMNS}
    rows = [[method, *(cells[method] for cells in columns.values())] for method in methods]
    lines = [["method", *columns], ["---", *("---:" for _ in columns)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(scores: pd.DataFrame, column: Column, methods: list[str], with_interval: bool) -> dict[str, str]:
    """Cell of each method; what rounds to the best value is bold, unless all do. A ceiling never is."""
    stated = scores.xs(column.metric, level="metric")[["mean", "low", "high"]].reindex(methods)
    shown = (column.factor * stated).round(column.digits)
    distance = _distance(shown["mean"].drop("noise ceiling", errors="ignore"), column.best)
    best = distance.index[(distance == distance.min()) & (distance.min() < distance.max())]
    return {
        method: _cell(*shown.loc[method], column.digits, with_interval, method in best) for method in methods
    }


def _distance(values: pd.Series, best: float) -> pd.Series:
    """How far each value is from the best there could be."""
    if best in (HIGHEST, LOWEST):
        return -values if best == HIGHEST else values
    return (values - best).abs()


def _cell(mean: float, low: float, high: float, digits: int, with_interval: bool, bold: bool) -> str:
    if pd.isna(mean):
        return "–"
    text = f"**{mean:.{digits}f}**" if bold else f"{mean:.{digits}f}"
    return f"{text} <sub>{low:.{digits}f}–{high:.{digits}f}</sub>" if with_interval else text


def filled(text: str) -> str:
    """Put every table into the text, between its marks."""
    return MARKED.sub(lambda mark: f"{mark[1]}{table(mark[2])}{mark[3]}", text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
