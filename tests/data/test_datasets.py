"""Reading screens from files, and downloading public ones from a server of the test's own."""

import functools
import hashlib
import http.server
import threading

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from sccvae_pyro.data import datasets
from sccvae_pyro.errors import InputError


@pytest.fixture
def adata():
    return ad.AnnData(np.ones((3, 2), dtype=np.float32), obs=pd.DataFrame(index=["a", "b", "c"]))


@pytest.fixture
def served(adata, tmp_path):
    """A screen behind http, as the address and the content of its file."""
    folder = tmp_path / "served"
    folder.mkdir()
    adata.write_h5ad(folder / "screen.h5ad")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/screen.h5ad", (folder / "screen.h5ad").read_bytes()
        server.shutdown()
        thread.join()


def register(monkeypatch, url, checksum):
    screen = datasets.PublicScreen(url=url, checksum=checksum, megabytes=1, citation="Someone 2020")
    monkeypatch.setattr(datasets, "SCREENS", {"mine2020": screen})


# Files


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_read(adata, tmp_path, suffix):
    path = tmp_path / f"screen.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    read = datasets.read(path)
    np.testing.assert_array_equal(read.X, adata.X)
    assert not read.isbacked


def test_read_backed(adata, tmp_path):
    adata.write_h5ad(tmp_path / "screen.h5ad")
    read = datasets.read(str(tmp_path / "screen.h5ad"), backed=True)
    assert read.isbacked
    read.file.close()


def test_read_refuses(tmp_path):
    with pytest.raises(InputError, match=r"Cannot tell the format of .*screen.csv.*\.h5ad and \.zarr"):
        datasets.read(tmp_path / "screen.csv")
    with pytest.raises(InputError, match=r"There is no file .*none.h5ad"):
        datasets.read(tmp_path / "none.h5ad")
    (tmp_path / "store.zarr").mkdir()
    with pytest.raises(InputError, match=r"store.zarr cannot be left on disk.*backed=False"):
        datasets.read(tmp_path / "store.zarr", backed=True)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_read_damaged(tmp_path, suffix):
    path = tmp_path / f"screen.{suffix}"
    if suffix == "h5ad":
        path.write_bytes(b"not hdf5")
    else:
        path.mkdir()
    with pytest.raises(InputError, match=rf"screen.{suffix} does not hold an AnnData, or is damaged"):
        datasets.read(path)


@pytest.mark.filterwarnings("ignore:.*was written without encoding metadata")
def test_read_what_is_no_anndata(tmp_path):
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(InputError, match=r"other\.h5ad does not hold an AnnData"):
        datasets.read(tmp_path / "other.h5ad")


# Public screens


def test_load_downloads_once(adata, served, monkeypatch, tmp_path, caplog):
    url, content = served
    register(monkeypatch, url, f"sha256:{hashlib.sha256(content).hexdigest()}")
    with caplog.at_level("INFO", logger="sccvae_pyro"):
        loaded = datasets.load("mine2020", tmp_path / "cache")
    np.testing.assert_array_equal(loaded.X, adata.X)
    assert "Please cite Someone 2020" in caplog.text
    register(monkeypatch, "http://127.0.0.1:1/gone.h5ad", f"md5:{hashlib.md5(content).hexdigest()}")
    np.testing.assert_array_equal(datasets.load("mine2020", tmp_path / "cache").X, adata.X)


def test_load_refuses_another_content(served, monkeypatch, tmp_path):
    register(monkeypatch, served[0], f"sha256:{'0' * 64}")
    with pytest.raises(InputError, match=r"Cannot download mine2020: .*hash.*datasets.read\(path\)"):
        datasets.load("mine2020", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.h5ad"))


def test_load_without_a_connection(monkeypatch, tmp_path):
    register(monkeypatch, "http://127.0.0.1:1/gone.h5ad", f"sha256:{'0' * 64}")
    with pytest.raises(InputError, match=r"Cannot download mine2020.*fetch http://127.0.0.1:1/gone.h5ad"):
        datasets.load("mine2020", tmp_path)


def test_unknown_screen():
    with pytest.raises(InputError, match=r"no public screen 'papalexi'. Did you mean 'papalexi2021'"):
        datasets.load("papalexi")


@pytest.mark.parametrize("name", datasets.SCREENS)
def test_every_screen_has_a_whole_checksum_and_a_citation(name):
    algorithm, digest = datasets.SCREENS[name].checksum.split(":")
    assert len(digest) == {"sha256": 64, "md5": 32}[algorithm]
    assert int(digest, 16)
    assert "doi:" in datasets.SCREENS[name].citation
