"""Which cells of a real screen responded? THP1 ECCITE-seq (Papalexi et al. 2021), beside Mixscape.

    python benchmarks/papalexi_responders.py --data FOLDER --seeds 0 1 2 --out benchmarks/results

All 25 targets, no features. The table has for each seed and target the fraction of responders, its posterior
mean, sd and 90 % interval; the share of cells that more probably responded than not (`likely`); whether the
target has no effect by `modules()` (`is_null`): nothing then tells its fraction but that of the others; and
the share that Mixscape calls knock-outs.

Papalexi et al. 2021 (Nat Genet 53:322) show the shares of Mixscape in a figure, without numbers. Those here
are of Seurat's `RunMixscape` on the 20,729 cells of the same screen with all of its genes, as the
documentation of a port of it, GenomicAI/truecell, gives them to two digits: eleven targets have knock-outs,
the other fourteen none.

The folder (or the environment variable SCCVAE_DATA) is that of benchmarks/papalexi.py.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
from papalexi import read
from record import Clock, store_table

from sccvae_pyro import SCCVAE
from sccvae_pyro.inference.posterior import summarise

MIXSCAPE = {
    "STAT2": 0.80,
    "JAK2": 0.78,
    "SMAD4": 0.82,
    "STAT1": 0.75,
    "IFNGR2": 0.74,
    "IFNGR1": 0.73,
    "IRF1": 0.68,
    "MYC": 0.23,
    "SPI1": 0.44,
    "CUL3": 0.38,
    "BRD4": 0.45,
}
"""Share of the cells of a target that Seurat's Mixscape calls knock-outs; none of those of all others."""

DRAWS = 1000


def fractions(data: Path, seed: int, clock: Clock) -> pd.DataFrame:
    """Fit, and summarise the fraction of responders of every target."""
    adata = read(data)
    with clock.timing(f"fit, seed {seed}"):
        model = SCCVAE(adata, responders="Beta").fit(seed=seed, progress=False)
    drawn = model.to_arviz(n_samples=DRAWS, seed=seed).posterior["responders"].sel(chain=0)
    table = pd.DataFrame(summarise(drawn.to_numpy()), index=drawn["perturbation"].to_numpy())
    cells = model.responders(adata, seed=seed)
    by_target = cells["mean"].groupby(cells["perturbation"].astype(str))
    table["cells"] = by_target.size()
    table["likely"] = by_target.agg(lambda probability: (probability > 0.5).mean())
    table["is_null"] = model.modules(seed=seed).table["is_null"]
    table["mixscape"] = pd.Series(MIXSCAPE).reindex(table.index, fill_value=0.0)
    return table.rename_axis("target").reset_index().assign(seed=seed)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SCCVAE_DATA"), help="folder of the data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the fits")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("Left out: Papalexi et al. 2021. Give the folder of the data: --data or SCCVAE_DATA.")
        return

    clock = Clock()
    tables = [fractions(Path(arguments.data), seed, clock) for seed in arguments.seeds]
    about = {"benchmark": "Papalexi et al. 2021, fractions of responders", "seeds": arguments.seeds}
    store_table(arguments.out, "papalexi_responders", pd.concat(tables), clock, about)


if __name__ == "__main__":
    main()
