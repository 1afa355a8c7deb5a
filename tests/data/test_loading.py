"""Coded cells and minibatches: targets, covariates, order, storage, pseudobulk."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from sccvae_pyro import InputError, setup_anndata
from sccvae_pyro.data.batches import (
    MixedBatches,
    PairedBatches,
    eval_loader,
    paired_train_loader,
    train_loader,
)
from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.loading import Coding, profiles

LABELS = ["control", "B", "A", "B+A", "A", "control", "C", "A + B", "C", "B"]
COUNTS = np.random.default_rng(0).poisson(2.0, (10, 4)).astype(np.float32) + np.eye(10, 4, dtype=np.float32)


def cells(matrix=COUNTS, **settings):
    """Ten cells of three perturbations and one pair, in two batches, of different age; set up."""
    obs = pd.DataFrame(
        {
            "perturbation": LABELS,
            "batch": pd.Categorical(["x", "y"] * 5),
            "age": np.arange(10.0),
            "umi": COUNTS.sum(1) + 50.0,
        },
        index=[f"c{i}" for i in range(10)],
    )
    adata = ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=["g1", "g2", "g3", "g4"]))
    setup_anndata(adata, "perturbation", "control", **settings)
    return adata


def screen_of(adata):
    return Coding.of(adata).screen(adata)


# Coding


def test_perturbations_and_labels():
    coding = Coding.of(cells())
    assert coding.perturbations == ("A", "B", "C")
    assert coding.labels == ("control", "A", "A+B", "B", "C")
    assert coding.genes == ("g1", "g2", "g3", "g4")


def test_targets_are_padded_with_none():
    """A pair has both codes in whatever order it is written; control cells have only the padding, 3."""
    targets = screen_of(cells()).targets
    expected = [{3}, {1, 3}, {0, 3}, {0, 1}, {0, 3}, {3}, {2, 3}, {0, 1}, {2, 3}, {1, 3}]
    assert [set(row) for row in targets] == expected
    assert targets.shape == (10, 2)


def test_control_cells():
    found = screen_of(cells()).is_control
    np.testing.assert_array_equal(found, [label == "control" for label in LABELS])


def test_unseen_target_is_named():
    with pytest.raises(InputError, match=r"'D'.*not seen in training"):
        Coding.of(cells()).targets(["A", "A+D"])


def test_unseen_perturbations_come_after_the_seen():
    coding = Coding.of(cells()).with_unseen(["AA"])
    assert coding.perturbations == ("A", "B", "C", "AA")
    assert [set(row) for row in coding.targets(["A", "AA", "B+AA"])] == [{0, 4}, {3, 4}, {1, 3}]


def test_library_is_that_of_the_column_or_the_sum():
    np.testing.assert_allclose(screen_of(cells()).library, COUNTS.sum(1))
    np.testing.assert_allclose(screen_of(cells(library_key="umi")).library, COUNTS.sum(1) + 50)


# Covariates


def test_covariates_are_coded():
    """Levels as indicators, numbers standardised by the training cells."""
    found = screen_of(cells(covariate_keys=["batch", "age"])).covariates
    age = (np.arange(10.0) - 4.5) / np.arange(10.0).std(ddof=1)
    np.testing.assert_allclose(found, np.column_stack([np.eye(2)[[0, 1] * 5], age]), rtol=1e-6)


def test_coding_of_covariates_is_that_of_training():
    """A part of the cells, with one level and other ages, is coded as in training."""
    adata = cells(covariate_keys=["batch", "age"])
    coding = Coding.of(adata)
    part = adata[::2].copy()
    np.testing.assert_array_equal(coding.screen(part).covariates, coding.screen(adata).covariates[::2])


def test_no_covariates():
    assert screen_of(cells()).covariates.shape == (10, 0)


def test_level_that_training_did_not_see():
    coding = Coding.of(cells(covariate_keys=["batch"]))
    other = cells(covariate_keys=["batch"])
    other.obs["batch"] = ["x", "z"] * 5
    with pytest.raises(InputError, match=r"'batch'.*'z'.*'x', 'y'"):
        coding.screen(other)


# Cells


LAYOUTS = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "integers": lambda counts: counts.astype(np.int64),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_do_not_depend_on_storage(layout):
    screen = screen_of(cells(LAYOUTS[layout](COUNTS)))
    rows = np.array([7, 0, 3])
    batch = screen[rows]
    np.testing.assert_array_equal(batch.x_cg, COUNTS[rows])
    assert batch.x_cg.dtype == torch.float32
    np.testing.assert_array_equal(batch.targets_cm, screen.targets[rows])
    np.testing.assert_array_equal(batch.library_c, screen.library[rows])


@pytest.mark.parametrize("layout", ["csr", "csc", "csr_array"])
def test_sparse_matrices_stay_sparse(layout):
    matrix = screen_of(cells(LAYOUTS[layout](COUNTS))).matrix
    assert sparse.issparse(matrix)
    assert matrix.format == "csr"


@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_backed_batches(tmp_path, layout):
    """Rows in any order, twice the same, from a file."""
    cells(LAYOUTS[layout](COUNTS)).write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    screen = screen_of(backed)
    np.testing.assert_array_equal(screen[np.array([7, 0, 3])].x_cg, COUNTS[[7, 0, 3]])
    backed.file.close()


@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_backed_genes_are_put_in_the_order_of_training(tmp_path, layout):
    coding, order = Coding.of(cells()), ["g3", "g1", "g4", "g2"]
    cells(LAYOUTS[layout](COUNTS))[:, order].copy().write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    screen = coding.screen(backed)
    np.testing.assert_array_equal(screen[np.array([7, 0, 3])].x_cg, COUNTS[[7, 0, 3]])
    for _, batch in screen.batches(np.arange(10), 10):
        np.testing.assert_array_equal(batch.x_cg, COUNTS)
    backed.file.close()


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_genes_are_put_in_the_order_of_training(layout):
    coding = Coding.of(cells())
    other = cells(LAYOUTS[layout](COUNTS))[:, ["g3", "g1", "g4", "g2"]].copy()
    np.testing.assert_array_equal(coding.screen(other)[np.arange(10)].x_cg, COUNTS)


def test_missing_gene_is_named():
    coding = Coding.of(cells())
    with pytest.raises(InputError, match="lacks: 'g2'"):
        coding.screen(cells()[:, ["g1", "g3", "g4"]].copy())


def test_log_expression():
    screen = screen_of(cells(library_key="umi"))
    np.testing.assert_allclose(
        screen.log_expression(np.array([4, 2])), log1p_cp10k(COUNTS, COUNTS.sum(1) + 50)[[4, 2]]
    )
    values = cells(np.log1p(COUNTS) + 0.1)
    np.testing.assert_allclose(screen_of(values).log_expression(np.arange(3)), (np.log1p(COUNTS) + 0.1)[:3])


def test_walking_in_batches():
    screen = screen_of(cells())
    rows, batches = zip(*screen.batches(np.array([5, 1, 9, 0, 2]), 2), strict=True)
    assert [list(part) for part in rows] == [[5, 1], [9, 0], [2]]
    np.testing.assert_array_equal(torch.cat([batch.x_cg for batch in batches]), COUNTS[[5, 1, 9, 0, 2]])


# Order of training


def test_every_epoch_is_another_permutation():
    rows = np.arange(100, 150)
    sampler = MixedBatches(rows, batch_size=10, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(np.concatenate(list(sampler))))
    assert sorted(orders[0]) == sorted(orders[1]) == list(rows)
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    assert orders[0] != list(np.concatenate(list(MixedBatches(rows, batch_size=10, seed=4))))
    assert len(sampler) == 5


def test_pairs_are_of_one_perturbation_and_as_many_control_cells():
    control, perturbed = np.arange(5), [np.arange(10, 17), np.arange(20, 23)]
    sampler = PairedBatches(control, perturbed, batch_size=3, seed=0)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 4
    for batch in batches:
        first, second = np.split(batch, 2)
        assert set(first) <= set(control)
        assert len(set(second // 10)) == 1
    seconds = np.concatenate([np.split(batch, 2)[1] for batch in batches])
    assert sorted(seconds) == sorted(np.concatenate(perturbed))
    sampler.set_epoch(1)
    assert any(list(a) != list(b) for a, b in zip(batches, sampler, strict=True))


@pytest.mark.parametrize(("kept", "missing"), [("control", "perturbed"), ("A", "control")])
def test_pairs_need_both_kinds_of_cells(kept, missing):
    screen = screen_of(cells())
    rows = np.flatnonzero(screen.is_control == (kept == "control"))
    with pytest.raises(InputError, match=f"no {missing} cells"):
        paired_train_loader(screen, rows, batch_size=2, seed=0)


def test_train_batches_are_whole_and_do_not_overlap():
    screen, rows = screen_of(cells()), np.array([0, 1, 2, 4, 5, 6, 8])
    loader = train_loader(screen, rows, batch_size=3, seed=0)
    batches = list(loader)
    assert len(loader) == len(batches) == 2
    found = torch.cat([batch.x_cg for batch in batches]).numpy()
    used = [int(np.flatnonzero((row == COUNTS).all(1))[0]) for row in found]
    assert len(set(used)) == 6
    assert set(used) < set(rows)


def test_small_screen_is_one_batch():
    assert len(train_loader(screen_of(cells()), np.arange(10), batch_size=64, seed=0)) == 1


def test_evaluation_takes_every_row_in_order():
    batches = list(eval_loader(screen_of(cells()), np.array([1, 3, 5, 7, 8]), 2))
    np.testing.assert_array_equal(torch.cat([batch.x_cg for batch in batches]), COUNTS[[1, 3, 5, 7, 8]])


# Pseudobulk


@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
@pytest.mark.parametrize("block", [1, 8, 10_000])
def test_profiles_are_those_of_pandas(layout, block, monkeypatch):
    monkeypatch.setattr("sccvae_pyro.data.loading.BLOCK_VALUES", block)
    found = profiles(cells(LAYOUTS[layout](COUNTS), library_key="umi"))
    table = pd.DataFrame(log1p_cp10k(COUNTS, COUNTS.sum(1) + 50), columns=["g1", "g2", "g3", "g4"])
    groups = table.groupby(pd.Series(LABELS).replace({"B+A": "A+B", "A + B": "A+B"}))
    order = ["control", "A", "A+B", "B", "C"]
    assert list(found.mean.index) == order
    np.testing.assert_allclose(found.mean, groups.mean().loc[order])
    np.testing.assert_allclose(found.var, groups.var().loc[order], atol=1e-12)
    np.testing.assert_array_equal(found.n, groups.size().loc[order])


def test_profiles_of_a_screen_are_those_of_its_cells():
    adata = cells(library_key="umi")
    for one, other in zip(screen_of(adata).profiles(), profiles(adata), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert list(one.index) == list(other.index)


# Values that changed after setting up


CHANGES = {
    "logarithm": (lambda x: np.log1p(x), "counts when setup_anndata was run"),
    "negative": (lambda x: x - np.eye(10, 4)[::-1] * 99, "counts when"),
    "not finite": (lambda x: np.where(np.arange(10)[:, None] == 8, np.nan, x), "nan in cell 'c8', gene 'g1'"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_values_changed_since_set_up_are_refused(layout, change):
    alter, message = CHANGES[change]
    adata = cells(library_key="umi")
    adata.X = LAYOUTS[layout](alter(COUNTS).astype(np.float32))
    with pytest.raises(InputError, match=rf"{message}.*[Rr]un setup_anndata again"):
        profiles(adata)
    screen = screen_of(adata)
    for walk in (lambda: list(screen.batches(np.arange(10), 4)), screen.profiles):
        with pytest.raises(InputError, match=message):
            walk()


def test_the_changed_value_is_located():
    adata = cells()
    adata.X[7, 2] = 0.5
    with pytest.raises(InputError, match=r"0\.5 in cell 'c7', gene 'g3'"):
        profiles(adata)
    with pytest.raises(InputError, match=r"0\.5 in cell 'c7', gene 'g3'"):
        list(screen_of(adata).batches(np.array([1, 7, 3]), 2))


def test_log_values_changed_since_set_up_are_refused():
    adata = cells(np.log1p(COUNTS) + 0.1)
    adata.X = adata.X - adata.X.mean(0)
    with pytest.raises(InputError, match="log-normalised values when setup_anndata was run"):
        profiles(adata)
