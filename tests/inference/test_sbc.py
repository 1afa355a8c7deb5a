"""Simulation-based calibration: the machinery, and what it says of the default model."""

import numpy as np
import pandas as pd
import pytest
from screens import set_up, small_screen

import sccvae_pyro as sv
from sccvae_pyro import plots
from sccvae_pyro.evaluate import uniformity
from sccvae_pyro.evaluate.uniformity import ecdf_band, holm, number_of_bins
from sccvae_pyro.inference import posterior, sbc
from sccvae_pyro.inference.spec import InferenceSpec

N_DRAWS = 99


def ranks_of_normal(n: int, width: float = 1.0, shift: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Ranks where the posterior is known: a mean with a standard normal prior, seen four times.

    The guide is the exact posterior, its sd times ``width`` and its mean moved by ``shift`` of its sds.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    seen = rng.normal(truth[:, None], 1.0, (n, 4))
    mean, sd = seen.sum(1) / 5, 5**-0.5
    draws = rng.normal((mean + shift * sd)[:, None], width * sd, (n, N_DRAWS))
    ranks = [sbc.rank(value, own, rng) for value, own in zip(truth, draws, strict=True)]
    return pd.DataFrame({"family": "mean", "rank": ranks, "draws": N_DRAWS})


def test_exact_posterior_has_uniform_ranks():
    found = pd.concat([uniformity(ranks_of_normal(200, seed=seed)) for seed in range(40)])
    assert (found["p"] < 0.05).mean() < 0.2  # 40 tests at 5 %: more than 8 alarms have a chance of 0.0004
    assert found["inside"].mean() > 0.8
    assert found["spread"].mean() == pytest.approx(1.0, abs=0.02)
    assert found["mean"].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("fault", "column", "low", "high"),
    [
        ({"width": 0.6}, "spread", 1.15, 1.5),
        ({"width": 1.8}, "spread", 0.5, 0.85),
        ({"shift": 0.7}, "mean", 0.2, 0.4),
        ({"shift": -0.7}, "mean", 0.6, 0.8),
    ],
    ids=["too narrow", "too wide", "too high", "too low"],
)
def test_wrong_posterior_is_found_out(fault, column, low, high):
    found = uniformity(ranks_of_normal(300, **fault)).loc["mean"]
    assert found["p_corrected"] < 0.01
    assert not found["inside"]
    assert low < found[column] < high


def test_band_holds_all_of_the_curve_at_its_level():
    n, n_draws = 150, 49
    band = ecdf_band(n, n_draws, level=0.9)
    rng = np.random.default_rng(1)
    sets = rng.multinomial(n, np.full(n_draws + 1, 1 / (n_draws + 1)), size=3000).cumsum(axis=1)[:, :-1] / n
    held = ((sets >= band.low) & (sets <= band.high)).all(axis=1).mean()
    assert held == pytest.approx(0.9, abs=0.025)


def test_ties_are_broken_evenly():
    rng = np.random.default_rng(0)
    ranks = [sbc.rank(0.0, np.array([-1.0, 0.0, 0.0, 1.0]), rng) for _ in range(3000)]
    assert np.bincount(ranks, minlength=5) / 3000 == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], abs=0.04)


def test_correction_is_that_of_holm():
    corrected = holm(np.array([0.01, 0.04, np.nan, 0.03]))
    assert corrected == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)


def test_bins_divide_the_ranks_and_hold_five_each():
    assert number_of_bins(200, 199) == 20
    assert number_of_bins(60, 199) == 10  # 12 do not divide 200
    assert number_of_bins(4, 199) == 1


def test_ranks_outside_their_range_are_refused():
    with pytest.raises(sv.InputError, match="'mean' must lie between 0 and the 99 draws"):
        uniformity(pd.DataFrame({"family": ["mean"], "rank": [100], "draws": [99]}))


def test_picture_of_too_narrow_a_guide_leaves_the_band():
    data = plots.rank_ecdf(ranks_of_normal(300, width=0.5), "mean").data
    assert (data["difference"] > data["high"]).any()
    assert (data["difference"] < data["low"]).any()
    for family in ("B", ["mean"], None):
        with pytest.raises(sv.InputError, match=r"no ranks of .*The families are 'mean'\."):
            plots.rank_ecdf(ranks_of_normal(20), family)


def test_ranks_may_be_whole_floats():
    ranks = ranks_of_normal(60)
    floats = ranks.astype({"rank": float, "draws": "float32", "family": "category"})
    pd.testing.assert_frame_equal(uniformity(floats), uniformity(ranks))
    pd.testing.assert_frame_equal(plots.rank_ecdf(floats, "mean").data, plots.rank_ecdf(ranks, "mean").data)


RANKS = pd.DataFrame({"family": ["a", "a"], "rank": [3, 5], "draws": [19, 19]})


@pytest.mark.parametrize("reader", [uniformity, lambda ranks, **how: plots.rank_ecdf(ranks, "a", **how)])
@pytest.mark.parametrize(
    ("ranks", "level", "message"),
    [
        (RANKS.assign(draws=19.5), 0.95, "'draws'.*whole numbers of at least 1, not 19.5"),
        (RANKS.assign(draws=0), 0.95, "'draws'.*whole numbers of at least 1, not 0"),
        (RANKS.assign(rank=["3", "5"]), 0.95, "'rank'.*whole numbers of at least 0, not '3'"),
        (RANKS.assign(rank=[3, np.nan]), 0.95, "'rank'.*whole numbers of at least 0, not nan"),
        (RANKS.assign(family=["a", np.nan]), 0.95, "'family'.*strings, not nan"),
        (RANKS.assign(family=["1", 1]), 0.95, "'family'.*strings, not 1"),
        (RANKS.drop(columns="draws"), 0.95, "one column 'draws' each"),
        (RANKS[:0], 0.95, "no rows"),
        (None, 0.95, "DataFrame, not NoneType"),
        ({"a": [1]}, 0.95, "DataFrame, not dict"),
        (RANKS, 1.0, "level must be a number between 0 and 1, .*not 1.0"),
        (RANKS, 0, "level must be .*not 0"),
        (RANKS, np.nan, "level must be .*not nan"),
        (RANKS, "0.9", "level must be .*not '0.9'"),
    ],
)
def test_tables_that_hold_no_ranks_are_refused(reader, ranks, level, message):
    with pytest.raises(sv.InputError, match=message):
        reader(ranks, level=level)


QUICK = {"max_epochs": 2, "batch_size": 128}


@pytest.fixture(scope="module")
def fitted():
    """A model of a screen in which one gene with features has no cells."""
    adata = small_screen()
    kept = ~adata.obs["perturbation"].str.contains("G0001").to_numpy()
    return sv.SCCVAE(set_up(adata[kept].copy()), n_nodes=3, hidden=(8,)).fit(QUICK, progress=False)


@pytest.fixture(scope="module")
def calibrated(fitted):
    return fitted.sbc(QUICK, seeds=[3, 4], unseen=["G0001"], n_samples=19)


def test_every_family_gives_one_rank_in_each_replicate(fitted, calibrated):
    sites = {"B", "strength", "direction", "direction_scale", "direction_signal", "inverse_dispersion"}
    derived = {"direction_function_weights", sbc.STATE, sbc.SEEN, sbc.UNSEEN}
    assert set(calibrated["family"]) == sites | derived
    assert not calibrated.duplicated(["replicate", "family"]).any()
    assert calibrated["rank"].between(0, 19).all()


def test_same_seed_gives_the_same_ranks_whatever_other_seeds(fitted, calibrated):
    again = fitted.sbc(QUICK, seeds=[4], unseen=["G0001"], n_samples=19)
    first = calibrated[calibrated["replicate"] == 4].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, first)


@pytest.mark.parametrize("seeds", [np.array([4]), iter([4]), range(4, 5)], ids=["array", "iterator", "range"])
def test_seeds_may_be_any_that_can_be_counted_out(fitted, calibrated, seeds):
    found = fitted.sbc(QUICK, seeds=seeds, unseen=["G0001"], n_samples=19)
    assert found["rank"].tolist() == calibrated["rank"][calibrated["replicate"] == 4].tolist()


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], r"names none: \[\].*range\(100\)"),
        (iter([]), r"names none.*range\(100\)"),
        (3, r"several whole numbers, not 3.*range\(100\)"),
        (None, r"several whole numbers, not None.*range\(100\)"),
        (np.array(3), r"several whole numbers, not array\(3\)"),
        ([0, 1.5], "whole number from 0 .*not 1.5"),
    ],
)
def test_seeds_that_are_none_are_refused(fitted, seeds, message):
    with pytest.raises(sv.InputError, match=message):
        fitted.sbc(QUICK, seeds=seeds)


def test_model_is_left_as_it_is(fitted):
    before = {name: value.clone() for name, value in fitted.program.state_dict().items()}
    fitted.sbc(QUICK, seeds=[0], n_samples=9)
    assert all(value.equal(before[name]) for name, value in fitted.program.state_dict().items())


def test_fit_holds_what_is_no_part_of_the_prior(fitted):
    world = sbc.World(fitted.program, fitted.spec, fitted.features, fitted._screen)
    _, screen = sbc.generate(world, 0)
    found = sbc.fit(world, screen, InferenceSpec(**QUICK), 0)
    known = fitted.program.decoder.state_dict()
    assert all(value.equal(known[name]) for name, value in found.decoder.state_dict().items())
    assert found.origin_k.equal(fitted.program.origin_k)
    assert found.baseline.equal(fitted.program.baseline)
    assert not found.encoder.body[0].weight.equal(fitted.program.encoder.body[0].weight)


def test_generated_cells_follow_the_drawn_truth(fitted):
    world = sbc.World(fitted.program, fitted.spec, fitted.features, fitted._screen)
    truth, screen = sbc.generate(world, 1)
    _, other = sbc.generate(world, 2)
    assert screen.rows(np.arange(len(screen))).shape == (len(screen), len(screen.coding.genes))
    assert not np.array_equal(screen.matrix, other.matrix)
    # Under the globals that they were drawn from, cells are more probable than under those of another world.
    rival, _ = sbc.generate(world, 2)
    batch = screen[np.arange(len(screen))]
    found = [
        posterior.log_density(fitted.program, draws, batch, draws.push_of(batch), (0, 0)).mean()
        for draws in (truth, rival)
    ]
    assert found[0] > found[1]


def test_quantities_that_are_known_are_not_ranked():
    model = sv.SCCVAE(set_up(small_screen()), n_nodes=3, hidden=(8,), graph="NoGraph", penetrance="Fixed")
    found = sbc.open_entries(sbc.World(model.program, model.spec, model.features, model._screen))
    assert not {"B", "strength"} & set(found)
    assert len(found["direction"]) == 8 * 3


def test_wrong_use_is_refused(fitted):
    with pytest.raises(sv.InputError, match="not fitted"):
        sv.SCCVAE(set_up(small_screen()), n_nodes=3, hidden=(8,)).sbc()
    with pytest.raises(sv.InputError, match="n_samples must be a whole number of at least 2"):
        fitted.sbc(n_samples=1)
    with pytest.raises(sv.InputError, match="Cannot predict 'GHOST'"):
        fitted.sbc(unseen=["GHOST"])


@pytest.mark.parametrize(
    ("unseen", "message"),
    [
        (["B+A"], r"single genes only, not 'B\+A'. Pass \['A', 'B'\]"),
        ([("A", "B")], r"single genes only, not \('A', 'B'\)"),
        (["control"], "'control', but the control is no perturbation. Leave it out"),
        (None, r"list of genes, not None. Pass \[\] for none"),
        (3, r"list of genes, not 3. Pass \[\] for none"),
        ([3], "label such as 'A' .*not 3"),
    ],
)
def test_unseen_that_is_no_single_gene_is_refused(fitted, unseen, message):
    with pytest.raises(sv.InputError, match=message):
        fitted.sbc(QUICK, seeds=[0], unseen=unseen)


def test_library_sizes_that_the_model_generates_are_refused():
    model = sv.SCCVAE(set_up(small_screen()), n_nodes=3, hidden=(8,), library="Latent")
    model.fit(max_epochs=1, batch_size=64, progress=False)
    with pytest.raises(sv.InputError, match=r"library=Latent\(\) draws others.*Observed"):
        model.sbc(seeds=[0])
