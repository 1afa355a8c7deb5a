"""Screens from files: a local h5ad or zarr store, or a public screen downloaded once and verified.

The public screens are those of scPerturb (Peidli et al. 2024, Nature Methods 21:531), version 1.4 of its
archive, https://zenodo.org/records/13350497. They are handed over as they were published.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import anndata as ad
import pooch
from anndata import AnnData

from sccvae_pyro.data.simulate import World, simulate
from sccvae_pyro.data.wording import suggestion
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import as_path

__all__ = ["SCREENS", "PublicScreen", "World", "load", "read", "simulate"]

logger = logging.getLogger(__name__)

_SCPERTURB = "https://zenodo.org/records/13350497/files"


@dataclass(frozen=True)
class PublicScreen:
    """Where a public screen is and how to cite it.

    Parameters
    ----------
    url
        Address of the h5ad file.
    checksum
        Algorithm and digest of the file, ``"sha256:..."`` or ``"md5:..."``.
    megabytes
        Size of the download.
    citation
        The paper to cite.
    """

    url: str
    checksum: str
    megabytes: int
    citation: str


SCREENS = MappingProxyType(
    {
        "adamson2016": PublicScreen(
            url=f"{_SCPERTURB}/AdamsonWeissman2016_GSM2406681_10X010.h5ad",
            checksum="sha256:e70fcd49808cab8d724de8d5a332940911206e1c8ef44cc7b568d048ed795c85",
            megabytes=471,
            citation="Adamson et al. 2016, Cell 167:1867, doi:10.1016/j.cell.2016.11.048",
        ),
        "norman2019": PublicScreen(
            url=f"{_SCPERTURB}/NormanWeissman2019_filtered.h5ad",
            checksum="md5:c870e6967d91c017d9da827bab183cd6",
            megabytes=699,
            citation="Norman et al. 2019, Science 365:786, doi:10.1126/science.aax4438",
        ),
        "papalexi2021": PublicScreen(
            url=f"{_SCPERTURB}/PapalexiSatija2021_eccite_RNA.h5ad",
            checksum="sha256:03e9602d124c261281936717d5795445805e6e704a52b0310bcde94225aa0929",
            megabytes=147,
            citation="Papalexi et al. 2021, Nature Genetics 53:322, doi:10.1038/s41588-021-00778-2",
        ),
        "replogle2022_k562_essential": PublicScreen(
            url=f"{_SCPERTURB}/ReplogleWeissman2022_K562_essential.h5ad",
            checksum="sha256:412fd0df8c4ccea9f4db91cd88033c49200838b29d40945e48574be588b48789",
            megabytes=1547,
            citation="Replogle et al. 2022, Cell 185:2559, doi:10.1016/j.cell.2022.05.013",
        ),
        "replogle2022_rpe1": PublicScreen(
            url=f"{_SCPERTURB}/ReplogleWeissman2022_rpe1.h5ad",
            checksum="sha256:12d6a0cf9378c4f09411e27f0ce07b59f1d97731bd576d6fadf112f6f088d1a4",
            megabytes=1237,
            citation="Replogle et al. 2022, Cell 185:2559, doi:10.1016/j.cell.2022.05.013",
        ),
    }
)


def load(name: str, folder: str | Path | None = None, backed: bool = False) -> AnnData:
    """Load a public screen; the first time it is downloaded and its checksum verified.

    Columns and labels are those of the archive: look at ``adata.obs`` before calling
    :func:`sccvae_pyro.setup_anndata`. Labels may name guides, or join the targets of a combination by
    another sign than ``+``.

    Parameters
    ----------
    name
        Key of :data:`SCREENS`.
    folder
        Where the file is kept; ``None`` is the user's cache folder.
    backed
        Leave the expression matrix on disk.

    Raises
    ------
    InputError
        If there is no such screen, or it cannot be downloaded intact.
    """
    if name not in SCREENS:
        raise InputError(f"There is no public screen {name!r}. {suggestion(name, SCREENS, 'screens')}")
    screen = SCREENS[name]
    folder = Path(pooch.os_cache("sccvae_pyro") if folder is None else folder)
    file = f"{name}.h5ad"
    if not (folder / file).exists():
        logger.info("Downloading %s (%d MB). Please cite %s.", name, screen.megabytes, screen.citation)
    try:
        path = pooch.retrieve(screen.url, screen.checksum, fname=file, path=folder, progressbar=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"Cannot download {name}: {error}. Try again, or fetch {screen.url} by other means and open it "
            "with sccvae_pyro.datasets.read(path)."
        ) from error
    return read(path, backed=backed)


def read(path: str | Path, backed: bool = False) -> AnnData:
    """Read a screen from an h5ad file or a zarr store.

    Parameters
    ----------
    path
        File with the suffix ``.h5ad``, or folder with the suffix ``.zarr``.
    backed
        Leave the expression matrix on disk (h5ad only).

    Raises
    ------
    InputError
        If the path does not exist, has another suffix, or does not hold an AnnData.
    """
    path = as_path(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(
            f"Cannot tell the format of {path}. Screens are read from .h5ad and .zarr; convert others with "
            "anndata or scanpy first."
        )
    if not path.exists():
        raise InputError(f"There is no file {path}. Check the path.")
    if backed and path.suffix == ".zarr":
        raise InputError(
            f"{path} cannot be left on disk. Pass an .h5ad file, or read it whole (backed=False)."
        )
    try:
        return (
            ad.read_zarr(path)
            if path.suffix == ".zarr"
            else ad.read_h5ad(path, backed="r" if backed else None)
        )
    except ImportError as error:
        raise InputError(f"Reading {path} needs zarr: pip install 'sccvae-pyro[loaders]'.") from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} does not hold an AnnData, or is damaged: {error}. Write it again."
        ) from error
