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

    table = pd.concat([compare(slot, member, arguments.seed) for slot, member in members()])
    table.insert(0, "seed", arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(table.to_csv(index=False, float_format="%.3g"), arguments.out / "svi_against_nuts.csv")


if __name__ == "__main__":
    main()
