"""The training loop: one seed one result, no traffic between models, resuming after a kill, stopping."""

import os
import signal
import subprocess
import sys

import lightning as L  # noqa: N812 - the name that Lightning gives itself
import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.inference import svi
from sccvae_pyro.inference.module import parameter_groups
from sccvae_pyro.inference.objectives import NegativeELBO
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models.build import GeneStatistics

QUICK = {"max_epochs": 3, "batch_size": 64, "progress": False}


def small_model(screen, **choices):
    return SCCVAE(screen, n_nodes=3, hidden=(8,), **choices)


def assert_same(one, other):
    """The same weights and losses, to the last bit."""
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    assert_same_state(one.program, other.program)


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)


def differs(one, other):
    one, other = one.program.state_dict(), other.program.state_dict()
    return any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def undisturbed(screen):
    return small_model(screen).fit(**QUICK)


# One seed, one result


def test_same_seed_same_numbers(screen, undisturbed):
    torch.rand(5)  # the state of the global generator has no say
    again = small_model(screen).fit(**QUICK)
    assert_same(again, undisturbed)
    np.testing.assert_array_equal(
        again.predict(["G0001"], n_samples=5).X, undisturbed.predict(["G0001"], n_samples=5).X
    )


def test_fitting_again_starts_afresh(screen, undisturbed):
    model = small_model(screen).fit(**QUICK, seed=1)
    assert differs(model, undisturbed)
    assert_same(model.fit(**QUICK), undisturbed)


def test_models_fitted_in_turn_do_not_meet(screen, log_screen, undisturbed):
    """Another kind of values, other sizes, other priors: fitted in between, in the same process."""
    one, other = small_model(screen), SCCVAE(log_screen, n_nodes=4, hidden=(6,), graph="NoGraph")
    other.fit(**QUICK)
    one.fit(**QUICK)
    assert_same(one, undisturbed)
    alone = SCCVAE(log_screen, n_nodes=4, hidden=(6,), graph="NoGraph").fit(**QUICK)
    assert_same(other, alone)
    assert not pyro.get_param_store().keys()


def test_models_trained_step_by_step_in_turn_do_not_meet(screen):
    """Two models of the same names and shapes, one step each: as if each were alone."""

    def start(seed):
        program = SCCVAE(screen, n_nodes=3, hidden=(8,)).program
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for parameter in program.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        return program, NegativeELBO(program), torch.optim.Adam(program.parameters(), 0.01)

    def step(trained, number, seed):
        _, loss, optimiser = trained
        pyro.set_rng_seed(1000 * seed + number)
        optimiser.zero_grad()
        loss(batch).backward()
        optimiser.step()

    batch = small_model(screen)._screen[np.arange(50)]
    together = [start(0), start(1)]
    for number in range(6):
        for seed, trained in enumerate(together):
            step(trained, number, seed)
    for seed, trained in enumerate(together):
        alone = start(seed)
        for number in range(6):
            step(alone, number, seed)
        assert_same_state(trained[0], alone[0])
    assert not torch.equal(*(trained[0].proposal.direction_factor.own_pk for trained in together))


# Resuming

KILLED = """
import os, signal, sys
import anndata, torch
from sccvae_pyro import SCCVAE
from sccvae_pyro.inference.svi import SVIModule

torch.set_num_threads(1)
trained = SVIModule.training_step
steps = 0

def killed_in_the_middle_of_the_third_epoch(self, batch):
    global steps
    steps += 1
    if self.current_epoch == 2 and steps % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return trained(self, batch)

SVIModule.training_step = killed_in_the_middle_of_the_third_epoch
SCCVAE(anndata.read_h5ad(sys.argv[1]), n_nodes=3, hidden=(8,)).fit(
    max_epochs=5, batch_size=64, progress=False, checkpoint_dir=sys.argv[2]
)
"""


def test_killed_run_resumes_as_if_undisturbed(screen, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "screen.h5ad"), str(tmp_path / "checkpoints")]
    run = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    stored = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert stored["epoch"] == 1
    five = {**QUICK, "max_epochs": 5}
    resumed = small_model(screen).fit(**five, checkpoint_dir=tmp_path / "checkpoints", resume=True)
    assert list(resumed.history.index) == [0, 1, 2, 3, 4]
    assert_same(resumed, small_model(screen).fit(**five))


def test_resuming_needs_no_checkpoint(screen, undisturbed, tmp_path):
    """The same command serves the first run and every later one."""
    model = small_model(screen)
    assert_same(model.fit(**QUICK, checkpoint_dir=tmp_path, resume=True), undisturbed)
    assert (tmp_path / "last.ckpt").is_file()
    assert_same(small_model(screen).fit(**QUICK, checkpoint_dir=tmp_path, resume=True), undisturbed)


def test_without_resume_a_run_starts_afresh(screen, undisturbed, tmp_path):
    small_model(screen).fit(**QUICK, checkpoint_dir=tmp_path, seed=1)
    assert_same(small_model(screen).fit(**QUICK, checkpoint_dir=tmp_path), undisturbed)


# History, the best state and early stopping


def test_history(undisturbed):
    assert list(undisturbed.history.columns) == ["train_loss", "validation_loss"]
    assert undisturbed.history.index.name == "epoch"
    assert np.isfinite(undisturbed.history.to_numpy()).all()


def test_training_improves_the_loss(screen, fitted):
    """By more than the noise of its estimates, over all cells and at the full weight of the KL."""
    batch = fitted._screen[np.arange(len(fitted._screen))]
    start = SCCVAE(screen, n_nodes=5, hidden=(16,)).program
    pyro.set_rng_seed(0)
    with torch.no_grad():
        before, after = (
            np.array([float(NegativeELBO(program)(batch)) for _ in range(20)])
            for program in (start, fitted.program)
        )
    standard_error = np.hypot(before.std(ddof=1), after.std(ddof=1)) / np.sqrt(20)
    assert after.mean() < before.mean() - 4 * standard_error


def test_best_epoch_is_kept(screen, monkeypatch):
    """Validation losses that rise after the second epoch: its weights are the ones that come back."""
    states = []

    def validation_step(self, batch):
        if self.trainer.current_epoch == len(states):
            states.append({name: value.clone() for name, value in self.program.state_dict().items()})
        loss = torch.tensor([3.0, 1.0, 2.0][self.current_epoch])
        self.log(svi.VALIDATION, loss, batch_size=len(batch.library_c))

    monkeypatch.setattr(svi.SVIModule, "validation_step", validation_step)
    model = small_model(screen).fit(**QUICK)
    found = model.program.state_dict()
    assert all(torch.equal(found[name], value) for name, value in states[1].items())
    assert not all(torch.equal(found[name], value) for name, value in states[2].items())


@pytest.mark.parametrize(("warmup", "epochs"), [(0.0, 4), (0.5, 7)])
def test_stopping_waits_for_the_full_weight_of_the_kl(screen, monkeypatch, tmp_path, warmup, epochs):
    """Losses that only rise: three epochs of patience, counted from where the weight is 1.

    The best epoch is the first, and yet every epoch leaves a checkpoint to go on from.
    """

    def validation_step(self, batch):
        self.log(svi.VALIDATION, torch.tensor(float(self.current_epoch)), batch_size=len(batch.library_c))

    monkeypatch.setattr(svi.SVIModule, "validation_step", validation_step)
    settings = {**QUICK, "max_epochs": 8, "patience": 3, "kl_warmup": warmup}
    model = small_model(screen).fit(**settings, checkpoint_dir=tmp_path)
    assert len(model.history) == epochs
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == epochs - 1


def test_weight_of_the_kl_rises_to_one(screen):
    spec = InferenceSpec(kl_start=0.2, kl_warmup=0.5)
    module = svi.SVIModule(NegativeELBO(small_model(screen).program), spec, n_steps=100)
    weights = []
    for step in (0, 25, 50, 99):
        module.trainer = _At(step)
        weights.append(module.kl_weight())
    assert weights == pytest.approx([0.2, 0.6, 1.0, 1.0])


class _At(L.Trainer):
    """A trainer that has made so many steps."""

    def __init__(self, step):
        super().__init__(
            logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
        )
        self.step = step

    @property
    def global_step(self):
        return self.step


def test_every_parameter_is_trained_at_its_rate(screen):
    program = small_model(screen).program
    networks, globals_ = parameter_groups(program, InferenceSpec(learning_rate=0.01, global_rate=3.0))
    assert (networks["lr"], globals_["lr"]) == pytest.approx((0.01, 0.03))
    ids = [id(parameter) for group in (networks, globals_) for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in program.parameters())
    assert id(program.proposal.direction_factor.own_pk) in ids[len(networks["params"]) :]
    assert id(program.encoder.body[0].weight) in ids[: len(networks["params"])]


# Held-out cells


def test_validation_cells_come_from_every_label(screen):
    spec = InferenceSpec(validation_fraction=0.1)
    coded = small_model(screen)._screen
    train, validation = svi.split_rows(coded, spec)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(len(coded)))
    held, size = (coded.labels.iloc[rows].value_counts() for rows in (validation, np.arange(len(coded))))
    assert (held.sort_index() == (0.1 * size).astype(int).sort_index()).all()


def test_tiny_labels_still_leave_validation_cells(screen):
    coded = small_model(screen)._screen
    train, validation = svi.split_rows(coded, InferenceSpec(validation_fraction=0.001))
    assert list(coded.labels.iloc[validation]) == ["control"]
    assert len(train) + len(validation) == len(coded)


def test_validation_cells_are_not_trained_on(screen, monkeypatch):
    """Change the expression of the validation cells: no weight changes."""
    _, validation = svi.split_rows(small_model(screen)._screen, InferenceSpec(seed=0))
    other = screen.copy()
    counts = other.X.toarray()
    counts[validation] = 1.0
    other.X = counts
    monkeypatch.setattr(svi, "_restore", lambda module, best: None)  # the last state, not the best
    one, two = small_model(screen), small_model(other)
    # What is read off all cells before training is not what is tested here.
    monkeypatch.setattr(
        "sccvae_pyro.models.build.gene_statistics",
        lambda screen: GeneStatistics(np.zeros(24), np.ones(24), np.full(24, 0.04), np.ones(24)),
    )
    one.fit(**QUICK)
    two.fit(**QUICK)
    assert_same_state(one.program, two.program)
    assert not one.history["validation_loss"].equals(two.history["validation_loss"])


def test_a_loaded_model_cannot_be_fitted(undisturbed, tmp_path):
    undisturbed.save(tmp_path / "model")
    with pytest.raises(InputError, match="without its screen"):
        SCCVAE.load(tmp_path / "model").fit(**QUICK)


def test_fitting_leaves_the_random_state_of_the_caller_alone(screen):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small_model(screen).fit(**QUICK)
    torch.testing.assert_close(torch.rand(3), expected)


# Settings that cannot be, and fits that diverge


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", np.inf),
        ("learning_rate", np.nan),
        ("learning_rate", True),
        ("learning_rate", "0.1"),
        ("global_rate", np.inf),
        ("max_epochs", True),
        ("max_epochs", "1"),
        ("batch_size", 64.0),
    ],
)
def test_settings_of_another_type_are_refused(screen, setting, value):
    with pytest.raises(InputError, match=f"{setting} = "):
        small_model(screen).fit(**{**QUICK, setting: value})


def test_settings_of_numpy_are_numbers():
    found = InferenceSpec.read(None, max_epochs=np.int64(2), learning_rate=np.float32(0.5))
    assert found == InferenceSpec(max_epochs=2, learning_rate=0.5)


@pytest.mark.parametrize(
    ("choices", "settings"),
    [
        ({}, {"learning_rate": 1e6}),
        ({}, {"global_rate": 1e9}),
        ({"penetrance": {"name": "LogNormal", "loc": 100}}, {}),
        ({"direction": {"name": "GaussianProcess", "scale": 1e15}}, {}),
    ],
    ids=str,
)
def test_a_fit_that_diverges_says_so(screen, choices, settings):
    model = small_model(screen, **choices)
    with pytest.raises(InputError, match=r"diverged.* Lower learning_rate or global_rate, or give priors"):
        model.fit(**QUICK, **settings)
    assert not model.is_fitted


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what this machine does not have")
def test_a_machine_without_the_accelerator(screen):
    with pytest.raises(InputError, match="Cannot train on this machine"):
        small_model(screen).fit(**QUICK, accelerator="gpu")
