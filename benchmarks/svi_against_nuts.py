"""The guide against Hamiltonian Monte Carlo, for every graph prior and every penetrance prior.

    PYTHONPATH=tests python benchmarks/svi_against_nuts.py --seed 0 --out benchmarks/results

A linear-Gaussian screen of 100 cells on three nodes (tests/svi_and_nuts.py says what is compared). Takes
minutes for each prior.
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
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    tables: list[pd.DataFrame] = []
    for slot, member in members():
        tables.append(compare(slot, member, arguments.seed).assign(seed=arguments.seed))
        # After every prior: what is done is kept, should a later one take too long.
        table = pd.concat(tables).to_csv(index=False, float_format="%.3g")
        write_text(table, arguments.out / "svi_against_nuts.csv")


if __name__ == "__main__":
    main()
