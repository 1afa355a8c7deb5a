"""Screens that changed, or were set up differently, between one step and the next."""

import numpy as np
import pytest
from screens import set_up, small_screen

import sccvae_pyro as sv
from sccvae_pyro.data.schema import cell_labels
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import write_anndata, write_text


def test_a_folder_in_the_way_stays_as_it_is(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="precious is a folder"):
        write_text("report", tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "years of work"


def test_a_label_lost_after_set_up_is_named():
    screen = small_screen()
    sv.setup_anndata(screen, "perturbation", "control")
    screen.obs["perturbation"] = screen.obs["perturbation"].astype(object)
    screen.obs.loc[screen.obs_names[3], "perturbation"] = np.nan
    with pytest.raises(InputError, match=f"no label for '?{screen.obs_names[3]}'?"):
        cell_labels(screen)


def test_cells_set_up_without_the_library_sizes_of_training_are_refused(fitted):
    cells = small_screen()
    sv.setup_anndata(cells, "perturbation", "control", covariate_keys=["batch"])
    with pytest.raises(InputError, match="library_key"):
        fitted.counterfactual(cells, "control")


def test_parts_set_up_differently_cannot_be_scored(screen, fitted):
    held_out = small_screen()
    sv.setup_anndata(held_out, "perturbation", "control", covariate_keys=["batch"])
    with pytest.raises(InputError, match="different library_key"):
        sv.evaluate.score(fitted.predict(["G0001"], n_samples=2), held_out, screen)


def test_a_covariate_that_is_constant_in_training_is_named():
    screen = small_screen(n_combinations=0)
    lone = (screen.obs["perturbation"] == "G0001").to_numpy()
    screen.obs["dose"] = np.where(lone, 2.0, 1.5)
    sv.setup_anndata(screen, "perturbation", "control", covariate_keys=["dose"], feature_key="features")
    with pytest.raises(InputError, match="'dose' has the same value"):
        sv.SCCVAE(screen[~lone].copy())


def test_values_normalised_after_set_up_are_not_counts():
    screen = set_up(small_screen())
    screen.X = np.log1p(screen.X)
    with pytest.raises(InputError, match=r"have changed since: .* in cell 'cell.*Run setup_anndata again"):
        sv.SCCVAE(screen)


def test_values_scaled_after_set_up_are_not_counts():
    """Negative values, met first where control cells describe the genes."""
    screen = small_screen()
    sv.setup_anndata(screen, "perturbation", "control")
    screen.X = screen.X.toarray() - 3
    with pytest.raises(InputError, match=r"-\d in cell 'cell\d+', gene 'G\d+'"):
        sv.SCCVAE(screen)


def test_values_normalised_between_building_and_fitting():
    screen = set_up(small_screen())
    model = sv.SCCVAE(screen, n_nodes=2, hidden=(4,))
    np.log1p(screen.X.data, out=screen.X.data)
    with pytest.raises(InputError, match="have changed since"):
        model.fit(max_epochs=1, progress=False)


def test_cells_normalised_after_set_up_have_no_answers(fitted, screen):
    cells = screen[screen.obs["perturbation"] == "control"].copy()
    cells.X = np.log1p(cells.X)
    for ask in (
        lambda: fitted.get_latent(cells),
        lambda: fitted.counterfactual(cells, "G0001", n_samples=2),
        lambda: fitted.predict(["G0001"], controls=cells, n_samples=2),
    ):
        with pytest.raises(InputError, match="have changed since"):
            ask()


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_backed_cells_may_have_their_genes_in_another_order(fitted, screen, tmp_path, layout):
    cells = screen[:20, ::-1].copy()
    if layout == "dense":
        cells.X = cells.X.toarray()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = sv.datasets.read(tmp_path / "cells.h5ad", backed=True)
    np.testing.assert_array_equal(fitted.get_latent(backed), fitted.get_latent(screen[:20].copy()))
    backed.file.close()


def without(*columns):
    return lambda cells: cells.obs.drop(columns=list(columns), inplace=True)


def with_library(value):
    def change(cells):
        cells.obs["total_umi"] = cells.obs["total_umi"].astype(object if isinstance(value, str) else float)
        cells.obs.iloc[1, cells.obs.columns.get_loc("total_umi")] = value

    return change


def name_genes_alike(cells):
    cells.var_names = ["G0000", "G0000", *cells.var_names[2:]]


CHANGES = [
    (without("perturbation"), "adata.obs has no column 'perturbation'"),
    (without("total_umi"), "adata.obs has no column 'total_umi'"),
    (without("guide"), "adata.obs has no column 'guide'"),
    (without("batch"), "'batch'"),
    (with_library(np.nan), r"must be positive and finite.* 1 of \d+ cells"),
    (with_library(0), "must be positive and finite"),
    (with_library(1e39), "must be positive and finite in single precision"),
    (with_library("many"), "must be a number of molecules"),
    (name_genes_alike, "Duplicated gene names in adata.var_names: 'G0000'"),
    (lambda cells: cells.uns.update(sccvae="counts"), "which setup_anndata did not write"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_cells_that_changed_after_set_up_are_refused(fitted, screen, change, message):
    cells = screen[screen.obs["perturbation"] == "control"].copy()
    change(cells)
    for ask in (
        lambda: sv.SCCVAE(cells),
        lambda: fitted.get_latent(cells),
        lambda: fitted.log_density(cells, n_samples=2),
        lambda: fitted.counterfactual(cells, "G0001", n_samples=2),
        lambda: fitted.predict(["G0001"], controls=cells, n_samples=2),
    ):
        with pytest.raises(InputError, match=message):
            ask()


@pytest.mark.parametrize("cells", [None, "screen.h5ad", 5], ids=str)
def test_what_is_no_screen_is_refused(fitted, cells):
    for ask in (
        lambda: sv.SCCVAE(cells),
        lambda: fitted.get_latent(cells),
        lambda: fitted.counterfactual(cells, "G0001"),
        lambda: fitted.predict(["G0001"], controls=cells or "control"),
        lambda: sv.evaluate.score(fitted.predict(["G0001"], n_samples=2), cells, cells),
    ):
        with pytest.raises(InputError, match="Expected an AnnData, not"):
            ask()


def test_no_cells_are_refused(fitted, screen):
    for ask in (
        lambda: fitted.get_latent(screen[:0]),
        lambda: fitted.predict(["G0001"], controls=screen[:0], n_samples=2),
    ):
        with pytest.raises(InputError, match="no cells"):
            ask()


def test_counts_lost_after_set_up_are_noticed():
    screen = set_up(small_screen())
    screen.X[3] = 0
    with pytest.raises(InputError, match=r"No counts at all in 1 of \d+ cells"):
        sv.SCCVAE(screen)


@pytest.mark.parametrize(
    ("few", "message"),
    [
        (lambda labels: ~labels.duplicated(), "Every label has a single cell"),
        (lambda labels: (labels == "G0001").cumsum().eq(1) & ~labels.duplicated(), "no control cells"),
        (lambda labels: labels == "control", "Every cell is a control"),
    ],
)
def test_screens_too_small_to_learn_from(screen, few, message):
    cells = screen[few(screen.obs["perturbation"].astype(str)).to_numpy()].copy()
    with pytest.raises(InputError, match=message):
        sv.SCCVAE(cells, n_nodes=2, hidden=(4,)).fit(max_epochs=1, progress=False)


def test_control_cells_without_a_count_describe_no_gene():
    screen = small_screen()
    sv.setup_anndata(screen, "perturbation", "control", library_key="total_umi")
    screen.X[(screen.obs["perturbation"] == "control").to_numpy().nonzero()[0]] = 0
    with pytest.raises(InputError, match="No gene is expressed in any control cell"):
        sv.SCCVAE(screen)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_what_cannot_be_written_leaves_nothing(tmp_path, suffix):
    screen = small_screen()
    screen.uns["thing"] = object()
    with pytest.raises(InputError, match=rf"Cannot write .*screen\.{suffix}"):
        write_anndata(screen, tmp_path / f"screen.{suffix}")
    assert not list(tmp_path.iterdir())
