"""Each target of a THP1 ECCITE-seq screen (Papalexi et al. 2021) held out in turn.

    python benchmarks/papalexi_each.py --data FOLDER --out benchmarks/results

As benchmarks/papalexi.py, which says what the folder holds, but with one target left out of every fit: 24
fits, a minute or two each on two cores. Stored after every target: a second run goes on with those that are
missing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
from calibration import METRICS
from papalexi import WITHOUT_FEATURES, read, run
from record import Clock, store_table

from sccvae_pyro.data.schema import Schema, cell_labels
from sccvae_pyro.evaluate.results import CEILING, HELD_OUT

NAME = "papalexi_each"


def targets(data: Path) -> list[str]:
    """All targets that have features."""
    adata = read(data)
    left_out = {Schema.of(adata).control, *WITHOUT_FEATURES}
    return [str(label) for label in cell_labels(adata).cat.categories if label not in left_out]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SCCVAE_DATA"), help="folder of the data")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--again", action="store_true", help="forget what an earlier run has left")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("Left out: Papalexi et al. 2021. Give the folder of the data: --data or SCCVAE_DATA.")
        return

    data, path = Path(arguments.data), arguments.out / f"{NAME}.csv"
    table = pd.read_csv(path) if path.exists() and not arguments.again else pd.DataFrame({"held_out": []})
    about = {"benchmark": "Papalexi et al. 2021, each target held out in turn", "seed": arguments.seed}
    clock = Clock()
    for target in targets(data):
        if target in set(table["held_out"]):
            continue
        with clock.timing(target):
            scores = run(data, arguments.seed, Clock(), [target]).scores
        # The ceiling is of the target, not of a method.
        ceiling = scores.ceiling.assign(target=HELD_OUT, method=CEILING)
        found = pd.concat([scores.per_perturbation, ceiling]).assign(held_out=target)
        found = found[found["metric"].isin(METRICS)].drop(columns="perturbation")
        table = pd.concat([table, found])
        store_table(arguments.out, NAME, table, clock, about)


if __name__ == "__main__":
    main()
