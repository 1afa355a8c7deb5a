"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import networkx as nx
from anndata import AnnData

from sccvae_pyro.errors import InputError

SUFFIXES = (".h5ad", ".zarr")


def check_anndata_path(path: str | Path) -> Path:
    """Refuse a path that no AnnData can be written to; cheap, so that it can come before long work.

    Raises
    ------
    InputError
        If the suffix is neither ``.h5ad`` nor ``.zarr``, or as in :func:`check_file`.
    """
    path = as_path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"Cannot tell the format of {path}. Give it the suffix .h5ad or .zarr.")
    return check_file(path)


def check_file(path: Path) -> Path:
    """Refuse a path that no file can be written to.

    Raises
    ------
    InputError
        If a folder is in the way (only a zarr store is replaced, and only by another), or as in
        :func:`check_folder`.
    """
    if path.is_dir() and not (path.suffix == ".zarr" and _is_zarr(path)):
        raise InputError(f"{path} is a folder and stays as it is. Name a file that does not exist yet.")
    check_folder(path.parent)
    return path


def as_path(path: object) -> Path:
    """Path of a file or folder.

    Raises
    ------
    InputError
        If it is neither a string nor a path, or cannot be looked up: too long, or in a closed folder.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"Give the path of a file or folder, not {path!r}.")
    try:
        Path(path).exists()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be a path here: {error.strerror}. Name another.") from error
    return Path(path)


def read_text(path: str | Path) -> str:
    """Read a text file, with or without a byte order mark.

    Raises
    ------
    InputError
        If the file cannot be read or is not text, or as in :func:`as_path`.
    """
    path = as_path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
    except ValueError as error:  # bytes that are no characters
        raise InputError(f"{path} is not a text in UTF-8. Unpack or convert it first.") from error


def check_folder(folder: str | Path) -> Path:
    """Refuse a folder that cannot be made or written to; nothing is made.

    Raises
    ------
    InputError
        If a file is in the way, permission is lacking, or as in :func:`as_path`.
    """
    folder = as_path(folder)
    found = next(place for place in (folder, *folder.parents) if place.exists())
    if not found.is_dir():
        raise InputError(f"{found} is a file, so nothing can be written into it. Name another folder.")
    if not os.access(found, os.W_OK | os.X_OK):
        raise InputError(f"There is no permission to write into {found}. Name another folder.")
    return folder


def write_anndata(adata: AnnData, path: str | Path) -> Path:
    """Write an h5ad file or a zarr store, by its suffix."""
    path = check_anndata_path(path)
    return write_whole(path, _write_zarr(adata) if path.suffix == ".zarr" else _write_h5ad(adata))


def write_text(text: str, path: str | Path) -> Path:
    """Write a text file."""
    return write_whole(as_path(path), lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_graphml(graph: nx.DiGraph, path: str | Path) -> Path:
    """Write a graph as GraphML, which Cytoscape, Gephi, igraph and networkx read."""
    return write_whole(Path(path), lambda unfinished: nx.write_graphml(graph, unfinished))


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` make a file or folder beside the path, then put it in its place.

    Raises
    ------
    InputError
        As in :func:`check_file`, or if writing fails; nothing is left then.
    """
    check_file(path)
    unfinished = as_path(path.with_name(f".{path.stem}.unfinished{path.suffix}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(unfinished)
        write(unfinished)
    except Exception as error:  # the writers of HDF5, zarr and torch raise many kinds
        _remove(unfinished)
        raise InputError(f"Cannot write {path}: {error}. Correct that, or name another place.") from error
    if unfinished.is_file():
        _to_disk(unfinished)
    if path.is_dir():
        shutil.rmtree(path)
    return unfinished.replace(path)


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (".zgroup", "zarr.json"))


def _write_zarr(adata: AnnData) -> Callable[[Path], object]:
    def write(unfinished: Path) -> None:
        with warnings.catch_warnings():
            # anndata announces that its default version of the format will change; it reads both.
            warnings.filterwarnings("ignore", message="Writing zarr v2 data")
            adata.write_zarr(unfinished)

    return write


def _write_h5ad(adata: AnnData) -> Callable[[Path], object]:
    return lambda unfinished: adata.write_h5ad(unfinished, compression="gzip")


def _to_disk(path: Path) -> None:
    """Wait until the file is on the disk: a power cut must not leave a complete name with half the bytes."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
