"""Small simulated screens for tests that need one of their own."""

import tempfile
from pathlib import Path

import numpy as np
from anndata import AnnData

import sccvae_pyro as sv

THP1_TARGETS = (
    "ATF2", "BRD4", "CAV1", "CD86", "CMTM6", "CUL3", "ETV7", "IFNGR1", "IFNGR2", "IRF1", "IRF7", "JAK2",
    "MARCH8", "MYC", "NFKBIA", "PDCD1LG2", "POU2F2", "SMAD4", "SPI1", "STAT1", "STAT2", "STAT3", "STAT5A",
    "TNFRSF14", "UBE2L6",
)  # fmt: skip


def small_screen(seed: int = 0, **sizes) -> AnnData:
    """Counts of 8 perturbations and 2 pairs of them, with features and two batches; not set up."""
    few = {
        "n_perturbations": 8,
        "cells_per_perturbation": 20,
        "n_control": 60,
        "n_genes": 24,
        "n_modules": 2,
        "n_combinations": 2,
        "n_features": 3,
    }
    return sv.datasets.simulate(**{**few, **sizes}, seed=seed)


def set_up(adata: AnnData, **settings) -> AnnData:
    """Set a simulated screen up in the way most tests want it."""
    sv.setup_anndata(
        adata, "perturbation", "control", covariate_keys=["batch"], feature_key="features", **settings
    )
    return adata


def log_values(adata: AnnData) -> AnnData:
    """The same cells as log-normalised, dense values; not set up."""
    values = adata.copy()
    counts = adata.X.toarray()
    values.X = np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).astype(np.float32)
    return values


def like_papalexi() -> str:
    """Folder with a small simulated screen in the place, and with the names, of the THP1 screen."""
    adata = sv.datasets.simulate(len(THP1_TARGETS), 30, 200, n_genes=40, n_modules=3, coherence=0.8, seed=0)
    target = dict(zip(adata.uns["truth"]["nodes"], THP1_TARGETS, strict=True))
    guides = adata.obs["guide"].astype(str).str.split("-", n=1, expand=True)
    adata.obs["guide"] = [target.get(gene, gene) + f"g{guide}" for gene, guide in guides.to_numpy()]
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace(target)
    adata.obs["replicate"] = adata.obs.pop("batch")
    del adata.uns["features"], adata.uns["truth"]
    folder = tempfile.mkdtemp()
    adata.write_h5ad(Path(folder) / "papalexi2021_thp1_eccite.h5ad")
    return folder
