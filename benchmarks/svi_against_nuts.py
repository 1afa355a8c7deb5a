"""The guide against Hamiltonian Monte Carlo, for every graph prior and every penetrance prior.

    PYTHONPATH=tests python benchmarks/svi_against_nuts.py --seed 0 --out benchmarks/results

A linear-Gaussian screen of 100 cells on three nodes (tests/svi_and_nuts.py says what is compared). Takes
minutes for each prior, and is stored after each: a second run goes on with the priors that are missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from svi_and_nuts import compare, members

from sccvae_pyro.files import write_text


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of cells, guide and chains (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--again", action="store_true", help="forget what an earlier run has left")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "svi_against_nuts.csv"
    keep = path.exists() and not arguments.again
    table = pd.read_csv(path) if keep else pd.DataFrame(columns=["slot", "prior", "seed"])
    for slot, member in members():
        key = (slot, type(member).__name__, arguments.seed)
        if key in set(table[["slot", "prior", "seed"]].itertuples(index=False, name=None)):
            continue
        table = pd.concat([table, compare(slot, member, arguments.seed).assign(seed=arguments.seed)])
        write_text(table.to_csv(index=False, float_format="%.3g"), path)


if __name__ == "__main__":
    main()
