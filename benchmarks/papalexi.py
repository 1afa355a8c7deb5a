"""JAK2 and STAT1 held out of a THP1 ECCITE-seq screen (Papalexi et al. 2021), scored on their cells.

    python benchmarks/papalexi.py --data FOLDER --out benchmarks/results

The folder (or the environment variable SCCVAE_DATA) holds what the project does not distribute:

    papalexi2021_thp1_eccite.h5ad  raw counts; obs: perturbation, guide, replicate, total_umi
    cascade_c5_subset.gmt          gene sets, GO biological process
    collectri.csv                  regulatory edges, CollecTRI

The steps are those of `sccvae fit` and `sccvae evaluate`. Features are the similarities to the targets of
training by shared gene sets and by shared regulation. Neither source knows MARCH8, whose cells are left
out; a target that one of them does not know (ETV7, CMTM6, UBE2L6) takes its mean.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from anndata import AnnData
from record import Clock, store

from sccvae_pyro import SCCVAE, datasets, setup_anndata
from sccvae_pyro.assessment import Assessment
from sccvae_pyro.workflow import Sources, prepare

SCREEN, GENE_SETS, REGULONS = "papalexi2021_thp1_eccite.h5ad", "cascade_c5_subset.gmt", "collectri.csv"
HELD_OUT, WITHOUT_FEATURES = ("JAK2", "STAT1"), ("MARCH8",)


def read(data: Path) -> AnnData:
    """Read the screen and say which columns mean what."""
    adata = datasets.read(data / SCREEN)
    setup_anndata(
        adata,
        "perturbation",
        "control",
        library_key="total_umi",
        guide_key="guide",
        covariate_keys=("replicate",),
    )
    return adata


def run(data: Path, seed: int, clock: Clock, targets: Sequence[str] = HELD_OUT) -> Assessment:
    """Read, hold out the targets, fit, predict and score."""
    adata = read(data)
    with clock.timing("features and split"):
        sources = Sources(gmt=data / GENE_SETS, regulons=data / REGULONS)
        train, held_out = prepare(adata, sources, ",".join(targets), WITHOUT_FEATURES, seed)
    with clock.timing("fit"):
        model = SCCVAE(train).fit(seed=seed, progress=False)
    with clock.timing("predict and evaluate"):
        return Assessment.of(model, held_out, train, seed=seed)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SCCVAE_DATA"), help="folder of the data")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--keep", type=Path, help="folder for predictions and all scores, if wanted")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("Left out: Papalexi et al. 2021. Give the folder of the data: --data or SCCVAE_DATA.")
        return

    clock = Clock()
    assessment = run(Path(arguments.data), arguments.seed, clock)
    if arguments.keep is not None:
        assessment.save(arguments.keep)
    about = {
        "benchmark": "Papalexi et al. 2021, two targets held out",
        "seed": arguments.seed,
        "held_out": list(HELD_OUT),
        "left_out_without_features": list(WITHOUT_FEATURES),
    }
    store(arguments.out, "papalexi", assessment.scores, clock, about)


if __name__ == "__main__":
    main()
