"""Calibration of unseen perturbations over ten simulated worlds, none of them used to choose a default.

    python benchmarks/calibration.py --out benchmarks/results --images docs/images

Each world has its own graph, strengths and genes; a fifth of its perturbations is held out, and its means
are known without noise. Stored after every world: a second run goes on with the worlds that are missing.
Takes a few minutes for each on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from record import Clock, store_table
from scipy import stats
from simulation import run

from sccvae_pyro import plots
from sccvae_pyro.assessment import MODEL
from sccvae_pyro.evaluate.calibration import LEVELS
from sccvae_pyro.evaluate.results import TRUTH, Scores, percent

SEEDS = tuple(range(30, 40))
INTERVALS = tuple(
    f"{name}_{percent(level)}" for name in ("coverage", "width", "cell_coverage") for level in LEVELS
)
METRICS = (
    "mse", "pearson_delta", "pearson_systema", "wmse", "centroid_accuracy", "energy_distance",
    "crps", "energy_score", "spread", "spread_error", "spread_error_genes", "aurc", "cell_crps", *INTERVALS,
)  # fmt: skip
"""What is stored of each world."""


def of_world(scores: Scores, seed: int) -> pd.DataFrame:
    """Mean of each metric and method over the unseen perturbations, and its difference to the model's."""
    table = scores.table(reference=MODEL).stack("method", future_stack=True).dropna(how="all").reset_index()
    return table[table["metric"].isin(METRICS)].assign(seed=seed)


def over_worlds(table: pd.DataFrame, value: str = "mean") -> pd.DataFrame:
    """Mean over worlds and its 95 % interval by t, laid out as :meth:`Scores.table` does."""
    found = table.groupby(["target", "metric", "method"], sort=False)[value]
    summary = found.agg(["mean", "sem", "min", "max", "count"])
    half = summary["sem"] * stats.t.ppf(0.975, summary["count"] - 1)
    summary = summary.assign(low=summary["mean"] - half, high=summary["mean"] + half)
    return summary.unstack("method").swaplevel(axis=1)


def picture(table: pd.DataFrame, pit: pd.DataFrame) -> Figure:
    """Draw coverage of means, and the histogram of their probability integral transform, over all worlds."""
    figure = Figure(figsize=(8.6, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    plots.coverage(over_worlds(table), TRUTH, [MODEL, "GP"], ax=left)
    mean = pit.groupby(["target", "method", "of", "low", "high"], as_index=False)["share"].mean()
    plots.pit_histogram(mean, TRUTH, MODEL, ax=right)
    return figure


def stored(path: Path) -> pd.DataFrame:
    """What an earlier run has left; nothing of the first."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame({"seed": []})


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="worlds (default: 30 to 39)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="folder of the picture")
    parser.add_argument("--again", action="store_true", help="forget what an earlier run has left")
    arguments = parser.parse_args()

    names = ("calibration", "calibration_pit")
    paths = [arguments.out / f"{name}.csv" for name in names]
    for path in paths if arguments.again else ():
        path.unlink(missing_ok=True)
    tables = [stored(path) for path in paths]
    about = {"benchmark": "calibration over simulated worlds, a fifth of the perturbations held out"}
    clock = Clock()
    for seed in arguments.seeds:
        if seed in set(tables[0]["seed"]):
            continue
        with clock.timing(f"world {seed}"):
            scores = run(seed, Clock()).scores
        of_model = scores.pit[scores.pit["method"] == MODEL].assign(seed=seed)
        tables = [pd.concat([tables[0], of_world(scores, seed)]), pd.concat([tables[1], of_model])]
        for name, table in zip(names, tables, strict=True):
            store_table(arguments.out, name, table, clock, about)
    arguments.images.mkdir(parents=True, exist_ok=True)
    picture(*tables).savefig(arguments.images / "calibration.png", dpi=150)


if __name__ == "__main__":
    main()
