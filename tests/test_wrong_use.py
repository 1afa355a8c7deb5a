"""Screens that changed, or were set up differently, between one step and the next."""

import numpy as np
import pytest
from screens import small_screen

import sccvae_pyro as sv
from sccvae_pyro.data.schema import cell_labels
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import write_text


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
