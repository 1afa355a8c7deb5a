"""Splits: proportions, no leak of what is held out, reproducibility, storage."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sccvae_pyro.data.schema import Schema, cell_labels, parse_targets, setup_anndata
from sccvae_pyro.data.splits import (
    Split,
    perturbation_folds,
    split_cells,
    split_combinations,
    split_perturbations,
)
from sccvae_pyro.errors import InputError

SIZES = {"control": 200, "A": 100, "B": 50, "C": 20, "D": 2, "A+B": 30, "C+B": 30, "A+B+C": 10, "D+E": 10}


@pytest.fixture(scope="module")
def adata():
    labels = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    screen = ad.AnnData(np.ones((len(labels), 3), dtype=np.float32), obs=obs)
    setup_anndata(screen, "perturbation", "control")
    return screen


def labels_of(adata, split, part):
    return cell_labels(adata)[split.parts[part]].astype(str)


def targets_of(adata, split, part):
    return {target for label in labels_of(adata, split, part) for target in parse_targets(label, "control")}


def assert_partition(adata, split):
    cells = np.concatenate(list(split.parts.values()))
    assert len(cells) == len(set(cells)) == adata.n_obs


# Cells


def test_cells_are_stratified(adata):
    split = split_cells(adata, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed=0)
    assert_partition(adata, split)
    for part, share in {"train": 0.6, "validation": 0.2, "test": 0.2}.items():
        counts = labels_of(adata, split, part).value_counts()
        for label in ("control", "A", "B", "C", "A+B", "B+C"):
            assert counts[label] == share * (cell_labels(adata) == label).sum()


def test_small_labels_are_for_training(adata):
    labels = np.array(["control"] * 9 + ["A"])
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(10)])
    lone = ad.AnnData(np.ones((10, 2), dtype=np.float32), obs=obs)
    lone.uns["sccvae"] = adata.uns["sccvae"]
    split = split_cells(lone, {"train": 0.1, "test": 0.9})
    assert labels_of(lone, split, "train").tolist() == ["control", "A"]


def test_parts_keep_the_order_of_the_screen(adata):
    for cells in split_cells(adata).parts.values():
        assert (np.diff(adata.obs_names.get_indexer(cells)) > 0).all()


@pytest.mark.parametrize(
    "fractions", [{"train": 0.7, "test": 0.2}, {"train": 1.2, "test": -0.2}, {"train": 0.0, "test": 1.0}]
)
def test_bad_fractions(adata, fractions):
    with pytest.raises(InputError, match=r"\(train .*, test .*\) must be positive and sum to one"):
        split_cells(adata, fractions)


@pytest.mark.parametrize("fractions", [{}, None, [0.5, 0.5], {"train": "most"}])
def test_fractions_of_another_kind(adata, fractions):
    with pytest.raises(InputError, match=r"must be a (share for each part|number, not 'most')"):
        split_cells(adata, fractions)


# Perturbations


@pytest.mark.parametrize("seed", range(5))
def test_held_out_targets_never_occur_in_training(adata, seed):
    split = split_perturbations(adata, 0.4, seed=seed)
    assert_partition(adata, split)
    assert len(split.held_out) == 2
    for part in ("train", "validation"):
        assert not targets_of(adata, split, part) & set(split.held_out)
    test = labels_of(adata, split, "test")
    for label in test[test != "control"]:
        assert set(label.split("+")) & set(split.held_out)


def test_named_targets(adata):
    split = split_perturbations(adata, ["B"], seed=0)
    assert split.held_out == ("B",)
    assert set(labels_of(adata, split, "test")) == {"control", "B", "A+B", "B+C", "A+B+C"}
    assert set(labels_of(adata, split, "train")) == {"control", "A", "C", "D", "D+E"}
    assert split_perturbations(adata, "B").held_out == ("B",)


def test_controls_are_shared_out(adata):
    split = split_perturbations(adata, ["B"], seed=0, validation=0.1, test_controls=0.25)
    counts = {part: (labels_of(adata, split, part) == "control").sum() for part in split.parts}
    assert counts == {"train": 130, "validation": 20, "test": 50}
    none = split_perturbations(adata, ["B"], test_controls=0.0)
    assert "control" not in set(labels_of(adata, none, "test"))


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (["STAT1"], r"'STAT1' cannot be held out, not being among the targets.*'A', 'B', 'C', 'D', 'E'"),
        (["A+B"], r"'A\+B' cannot be held out"),
        (["control"], "'control' cannot be held out"),
        ([], "held_out is empty"),
        (1.5, "held_out=1.5 is not a share of the targets"),
        (1, "held_out=1 is not a share"),
        (None, "held_out=None is neither a share of the targets nor a list"),
        (0.99, "All 5 targets are held out"),
        (list("ABCDE"), "All 5 targets are held out"),
    ],
)
def test_bad_held_out_targets(adata, held_out, message):
    with pytest.raises(InputError, match=message):
        split_perturbations(adata, held_out)


def test_shares_that_leave_no_training_controls(adata):
    with pytest.raises(InputError, match=r"train -0.1, validation 0.5, test 0.6.*sum to one"):
        split_perturbations(adata, ["B"], validation=0.5, test_controls=0.6)


def test_folds_hold_out_every_target_once(adata):
    folds = perturbation_folds(adata, n_folds=3, seed=1)
    assert sorted(target for fold in folds for target in fold.held_out) == list("ABCDE")
    for fold in folds:
        assert_partition(adata, fold)
        assert not targets_of(adata, fold, "train") & set(fold.held_out)
    assert folds[0].name == "perturbations, fold 1 of 3"


def test_a_share_may_be_of_any_precision(adata):
    assert split_perturbations(adata, np.float32(0.4)).held_out == split_perturbations(adata, 0.4).held_out


def test_shares_must_be_numbers(adata):
    with pytest.raises(InputError, match="share of validation must be a number, not 'few'"):
        split_perturbations(adata, ["B"], validation="few")


@pytest.mark.parametrize("n_folds", [1, 6, 2.5])
def test_bad_number_of_folds(adata, n_folds):
    with pytest.raises(InputError, match=f"n_folds={n_folds} does not suit 5 targets. Pass 2 to 5"):
        perturbation_folds(adata, n_folds)


# Combinations


@pytest.mark.parametrize("seed", range(5))
def test_targets_of_held_out_combinations_are_seen(adata, seed):
    split = split_combinations(adata, 0.5, seed=seed)
    assert_partition(adata, split)
    train = [set(label.split("+")) for label in set(labels_of(adata, split, "train"))]
    for combination in split.held_out:
        targets = set(combination.split("+"))
        assert len(targets) > 1
        assert not any(targets <= genes for genes in train)
    assert targets_of(adata, split, "test") <= targets_of(adata, split, "train")


def test_larger_combinations_go_with_those_they_contain(adata):
    split = split_combinations(adata, ["B+A"])
    assert split.held_out == ("A+B",)
    assert set(labels_of(adata, split, "test")) == {"control", "A+B", "A+B+C"}


def test_a_target_seen_nowhere_else_is_refused(adata):
    with pytest.raises(
        InputError, match=r"'D\+E' cannot be held out: a target.*no training cell.*split_perturbations"
    ):
        split_combinations(adata, ["D+E"])
    only = adata[cell_labels(adata).isin(["control", "A", "D+E"])].copy()
    with pytest.raises(InputError, match="No combination can be held out"):
        split_combinations(only, 0.5)


def test_unknown_or_absent_combinations(adata):
    with pytest.raises(InputError, match=r"'A\+D' cannot be held out, not being among the combinations"):
        split_combinations(adata, ["A+D"])
    with pytest.raises(InputError, match=r"'A' cannot be held out"):
        split_combinations(adata, ["A"])
    singles = adata[cell_labels(adata).isin(["control", "A", "B"])].copy()
    with pytest.raises(InputError, match=r"No cell carries a combination.*Use split_perturbations"):
        split_combinations(singles)


@pytest.mark.parametrize(("held_out", "message"), [([], "held_out is empty"), (None, "neither a share")])
def test_bad_held_out_combinations(adata, held_out, message):
    with pytest.raises(InputError, match=message):
        split_combinations(adata, held_out)


# Every split


@pytest.mark.parametrize("split", [split_cells, split_perturbations, split_combinations, perturbation_folds])
@pytest.mark.parametrize("seed", [1.5, "a", -1, None, True, 2**64])
def test_bad_seed(adata, split, seed):
    with pytest.raises(InputError, match=f"seed must be a whole number from 0 to .* not {seed!r}"):
        split(adata, seed=seed)


@pytest.mark.parametrize("split", [split_cells, split_perturbations, split_combinations])
def test_the_seed_decides(adata, split):
    first, again, other = split(adata, seed=3), split(adata, seed=3), split(adata, seed=4)
    for part in first.parts:
        np.testing.assert_array_equal(first.parts[part], again.parts[part])
    assert any(set(first.parts[part]) != set(other.parts[part]) for part in first.parts)


def test_parts_must_be_disjoint():
    with pytest.raises(InputError, match=r"1 cells .* more than once: 'b' \(the first in 'train', 'test'\)"):
        Split("mine", {"train": np.array(["a", "b"]), "test": np.array(["b", "c"])}, seed=0)


def test_a_split_cannot_be_changed(adata):
    split = split_cells(adata)
    with pytest.raises(ValueError, match="read-only"):
        split.parts["train"][0] = "x"
    with pytest.raises(TypeError):
        split.parts["train"] = np.array([])  # type: ignore[index]


def test_repr_counts(adata):
    assert repr(split_perturbations(adata, ["B"])).startswith("Split('perturbations', train=")


def test_take(adata):
    split = split_perturbations(adata, ["B"])
    train = split.take(adata, "train")
    assert train.obs_names.tolist() == split.parts["train"].tolist()
    assert not train.is_view
    assert Schema.of(train) == Schema.of(adata)


def test_take_from_a_backed_screen(adata, tmp_path):
    adata.write_h5ad(tmp_path / "screen.h5ad")
    backed = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    split = split_cells(backed)
    test = split.take(backed, "test")
    assert not test.isbacked
    assert test.obs_names.tolist() == split.parts["test"].tolist()
    backed.file.close()


def test_take_what_is_not_there(adata):
    split = split_cells(adata)
    with pytest.raises(InputError, match=r"no part 'tests'\. Did you mean 'test'"):
        split.take(adata, "tests")
    with pytest.raises(InputError, match=r"The AnnData lacks \d+ of \d+ cells of 'train'.*made from"):
        split.take(adata[:10], "train")


def test_file_round_trip(adata, tmp_path):
    split = split_combinations(adata, ["A+B"], seed=7)
    split.to_json(tmp_path / "split.json")
    read = Split.from_json(tmp_path / "split.json")
    assert (read.name, read.seed, read.held_out) == ("combinations", 7, ("A+B",))
    assert list(read.parts) == list(split.parts)
    for part in split.parts:
        np.testing.assert_array_equal(read.parts[part], split.parts[part])
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"name": "cells"}',
        '{"name": "x", "seed": 0, "held_out": [], "parts": []}',
        '{"name": "x", "seed": 0, "held_out": [], "parts": {"train": 5}}',
        '{"name": "x", "seed": 0, "held_out": "abc", "parts": {"train": []}}',
        9999 * "[",
    ],
    ids=range(7),
)
def test_bad_file(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"split.json does not hold a split.*to_json"):
        Split.from_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"split.json is not a text in UTF-8"):
        Split.from_json(path)
    with pytest.raises(InputError, match=r"Cannot read .*none.json"):
        Split.from_json(tmp_path / "none.json")
