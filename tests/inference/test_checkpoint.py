"""A run goes on from its own checkpoint, and from no other."""

import numpy as np
import pytest
import torch
from screens import set_up, small_screen

from sccvae_pyro import SCCVAE, InputError

QUICK = {"max_epochs": 2, "batch_size": 64, "progress": False}


def small_model(screen, **choices):
    return SCCVAE(screen, **{"n_nodes": 3, "hidden": (8,), **choices})


@pytest.fixture(scope="module")
def folder(screen, tmp_path_factory):
    """Checkpoints of a run over the screen."""
    path = tmp_path_factory.mktemp("checkpoints")
    small_model(screen).fit(**QUICK, checkpoint_dir=path)
    return path


def relabelled(screen):
    """Two cells swap their perturbations: no sum over the screen changes but theirs."""
    changed = screen.copy()
    labels = changed.obs["perturbation"].astype(str)
    one, other = (labels.index[labels == name][0] for name in ("G0001", "G0002"))
    labels[one], labels[other] = "G0002", "G0001"
    changed.obs["perturbation"] = labels
    del changed.uns["sccvae"]
    return set_up(changed, library_key="total_umi")


def of_other_features(screen):
    changed = screen.copy()
    changed.uns["features"] = changed.uns["features"] ** 2
    return changed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda screen: set_up(small_screen(seed=1), library_key="total_umi"), "cells"),
        (relabelled, "cells"),
        (of_other_features, "features"),
    ],
)
def test_checkpoints_of_another_screen_are_refused(screen, folder, change, named):
    model = small_model(change(screen))
    with pytest.raises(InputError, match=f"is of another run; it differs in .*'{named}'"):
        model.fit(**QUICK, checkpoint_dir=folder, resume=True)
    assert not model.is_fitted


@pytest.mark.parametrize(
    ("choices", "settings", "named"),
    [
        ({"n_nodes": 4}, {}, "sizes"),
        ({"hidden": (9,)}, {}, "sizes"),
        ({"graph": {"name": "Laplace", "scale": 0.5}}, {}, "priors"),
        ({}, {"batch_size": 32}, "batch_size"),
        ({}, {"max_epochs": 1}, "max_epochs"),
        ({}, {"seed": 1}, "seed"),
    ],
    ids=str,
)
def test_checkpoints_of_another_model_or_of_other_settings_are_refused(
    screen, folder, choices, settings, named
):
    with pytest.raises(InputError, match=f"it differs in .*'{named}'"):
        small_model(screen, **choices).fit(**{**QUICK, **settings}, checkpoint_dir=folder, resume=True)


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_damaged_checkpoints_are_refused(screen, tmp_path, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=r"last\.ckpt is damaged"):
        small_model(screen).fit(**QUICK, checkpoint_dir=tmp_path, resume=True)


def test_checkpoints_of_another_program_are_refused(screen, tmp_path):
    torch.save({"callbacks": {}, "state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="was not written by this version"):
        small_model(screen).fit(**QUICK, checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resume": True}, "Name it as checkpoint_dir"),
        ({"resume": "no", "checkpoint_dir": "checkpoints"}, "resume must be True or False, not 'no'"),
        ({"checkpoint_dir": 5}, "path of a file or folder, not 5"),
        ({"checkpoint_dir": __file__}, "is a file, so nothing can be written into it"),
    ],
    ids=str,
)
def test_no_folder_to_go_on_from(fitted, settings, message):
    before = fitted.program
    with pytest.raises(InputError, match=message):
        fitted.fit(**QUICK, **settings)
    assert fitted.program is before
    assert np.isfinite(fitted.predict(["G0001"], n_samples=2).X).all()
