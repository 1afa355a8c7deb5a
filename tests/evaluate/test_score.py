"""The scoring layer: alignment, pairing, uncertainty, ceilings and tables."""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.features import FeatureTable
from sccvae_pyro.data.loading import profiles
from sccvae_pyro.data.schema import UNS_KEY, setup_anndata
from sccvae_pyro.data.simulate import World, simulate
from sccvae_pyro.errors import InputError, InputWarning
from sccvae_pyro.evaluate import METRICS, Training, predict_baselines, score
from sccvae_pyro.evaluate.results import CEILING


class Screen:
    """Cells of a small world: for training, held out, and a second sample of the held-out perturbations."""

    def __init__(self):
        adata = simulate(45, 80, n_control=300, n_genes=80, n_modules=4, seed=1)
        setup_anndata(adata, "perturbation", "control", library_key="total_umi")
        world = World.from_uns(adata.uns["truth"])
        self.labels = [str(node) for node in world.nodes[::3]]
        unseen = adata.obs["perturbation"].isin(self.labels).to_numpy()
        second = unseen & (np.arange(adata.n_obs) % 2 == 0)
        self.train, self.held_out, self.sampled = (
            adata[rows].copy() for rows in (~unseen, unseen & ~second, second)
        )
        self.sampled.obs["library"] = self.sampled.obs["total_umi"]
        self.truth = world.mean_profiles(["control", *world.nodes])
        self.training = Training.from_anndata(self.train)
        features = FeatureTable.fit([adata.uns["features"]])
        self.baselines = predict_baselines(self.training, features, self.labels)

    def oracle(self, **uncertainty):
        """The true means as a prediction."""
        return as_prediction(self.truth.loc[self.labels], **uncertainty)


def as_prediction(mean, sd=None, draws=None):
    """Means in the layout of ``predict``."""
    obs, var = pd.DataFrame(index=mean.index), pd.DataFrame(index=mean.columns)
    layers = {"mean": mean.to_numpy()} | ({} if sd is None else {"sd": np.full(mean.shape, sd)})
    obsm = {} if draws is None else {"draws": draws.astype(np.float32)}
    return AnnData(mean.to_numpy(), obs, var, layers=layers, obsm=obsm)


@pytest.fixture(scope="module")
def screen():
    return Screen()


@pytest.fixture(scope="module")
def scores(screen):
    predictions = screen.baselines | {"oracle": screen.oracle(sd=0.02)}
    return score(
        predictions,
        screen.held_out,
        screen.train,
        screen.truth,
        cells={"oracle": screen.sampled},
        n_bootstrap=200,
    )


def mean_of(scores, metric, method, target="held-out"):
    return scores.table().loc[(target, metric), (method, "mean")]


# Values


def test_perfect_prediction_is_perfect(scores):
    for metric, expected in {
        "mse": 0.0,
        "mae_de20": 0.0,
        "pearson_delta": 1.0,
        "pearson_systema_de20": 1.0,
        "wmse": 0.0,
        "weighted_r2": 1.0,
        "centroid_accuracy": 1.0,
    }.items():
        assert mean_of(scores, metric, "oracle", "truth") == pytest.approx(expected, abs=1e-12)


def test_trivial_predictions_have_trivial_scores(scores):
    assert mean_of(scores, "pearson_delta", "control") == 0.0
    assert mean_of(scores, "pearson_systema", "perturbed mean") == 0.0
    assert mean_of(scores, "weighted_r2", "perturbed mean") <= 0.0
    for name in ("control", "perturbed mean"):
        assert mean_of(scores, "centroid_accuracy", name) == pytest.approx(0.5)


def test_held_out_mse_is_that_of_the_pseudobulk(screen, scores):
    observed = profiles(screen.held_out).mean.loc[screen.labels].to_numpy()
    predicted = screen.baselines["ridge"].layers["mean"]
    rows = scores.per_perturbation.query("target == 'held-out' and method == 'ridge' and metric == 'mse'")
    expected = pd.Series(np.mean((predicted - observed) ** 2, axis=1), index=screen.labels)
    np.testing.assert_allclose(rows.set_index("perturbation")["value"], expected[rows["perturbation"]])
    assert (rows["n"] == profiles(screen.held_out).n[rows["perturbation"]].to_numpy()).all()


def test_truth_ranks_as_held_out_does_but_without_its_noise(scores):
    assert mean_of(scores, "mse", "ridge", "truth") < mean_of(scores, "mse", "ridge")
    assert mean_of(scores, "mse", "oracle") == pytest.approx(mean_of(scores, "mse", CEILING), rel=0.15)
    assert mean_of(scores, "pearson_delta", "oracle") == pytest.approx(
        mean_of(scores, "pearson_delta", CEILING), abs=0.08
    )


def test_gap_closed(scores):
    closed = scores.gap_closed()
    assert {"control", "perturbed mean", CEILING}.isdisjoint(closed.columns.unique("method"))
    assert closed.loc["mse", ("oracle", "share")] == pytest.approx(1.0, abs=0.15)
    assert closed.loc["mse", ("ridge", "share")] < 1.0
    share = closed.loc["mse", "ridge"]
    assert share["low"] <= share["share"] <= share["high"]


def test_forecasts_of_held_out_means_count_their_sampling_noise(screen):
    """Whoever knows the truth is as far from noisy means as their noise, and the interval says so."""
    result = score(screen.oracle(sd=1e-6), screen.held_out, screen.train, screen.truth, n_bootstrap=10)
    for level in (50, 80, 90, 95):
        assert mean_of(result, f"coverage_{level}", "prediction") == pytest.approx(level / 100, abs=0.06)
    assert mean_of(result, "spread", "prediction") == pytest.approx(1e-6)
    assert mean_of(result, "coverage_90", "prediction", "truth") == 1.0


def test_draws_and_normal_layers_agree(screen):
    rng = np.random.default_rng(0)
    mean = screen.truth.loc[screen.labels]
    draws = mean.to_numpy()[:, None] + 0.1 * rng.normal(size=(len(mean), 400, mean.shape[1]))
    genes = mean.columns[::-1]
    shuffled = as_prediction(mean[genes], draws=draws[:, :, ::-1])
    result = score({"draws": shuffled, "normal": screen.oracle(sd=0.1)}, screen.held_out, screen.train)
    for metric in ("crps", "energy_score", "coverage_90", "width_50", "spread"):
        assert mean_of(result, metric, "draws") == pytest.approx(mean_of(result, metric, "normal"), rel=0.05)


def test_sampled_cells_beat_shifted_controls(scores):
    for metric in ("energy_distance", "mmd2", "cell_crps"):
        assert mean_of(scores, metric, "oracle") < mean_of(scores, metric, "control")
    table = scores.table()
    assert table.loc[("held-out", "energy_distance"), ("oracle", "low")] < 0.1
    assert mean_of(scores, "cell_coverage_90", "oracle") == pytest.approx(0.9, abs=0.03)
    assert np.isnan(mean_of(scores, "cell_crps", "ridge")), "no cells were sampled for it"


def test_sampled_cells_may_be_counts_or_log_values(screen):
    logged = AnnData(
        log1p_cp10k(screen.sampled.X, screen.sampled.obs["library"].to_numpy()),
        screen.sampled.obs[["perturbation"]].astype(str),
        screen.sampled.var,
    )
    both = [
        score({"m": screen.oracle()}, screen.held_out, screen.train, cells={"m": cells}, n_bootstrap=10)
        for cells in (screen.sampled, logged)
    ]
    assert mean_of(both[0], "mmd2", "m") == pytest.approx(mean_of(both[1], "mmd2", "m"))


# Tables


def test_every_metric_has_a_meaning_and_a_place(scores):
    metrics = [metric for target, metric in scores.table().index if target == "held-out"]
    assert set(metrics) <= set(METRICS)
    assert metrics == [name for name in METRICS if name in metrics]
    assert set(METRICS) - set(metrics) == {"mse_top1000", "rmse_top1000", "mae_top1000"}


def test_intervals_are_paired_over_perturbations(screen, scores):
    table, paired = scores.table(reference="ridge"), scores.paired("ridge")
    row = ("held-out", "mse")
    assert table.loc[row, ("GP", "low")] <= table.loc[row, ("GP", "mean")] <= table.loc[row, ("GP", "high")]
    difference = table.loc[row, ("GP", "mean")] - table.loc[row, ("ridge", "mean")]
    assert paired.loc[row, ("GP", "difference")] == pytest.approx(difference)
    assert table.loc[row, ("GP", "difference_low")] == paired.loc[row, ("GP", "low")]
    assert (paired.loc[row, "ridge"] == 0).all()
    width = paired.loc[row, ("GP", "high")] - paired.loc[row, ("GP", "low")]
    assert width < table.loc[row, ("GP", "high")] - table.loc[row, ("GP", "low")]
    with pytest.raises(InputError, match="'nobody'"):
        scores.paired("nobody")


def test_bootstrap_interval_is_about_two_standard_errors(scores):
    rows = scores.per_perturbation.query("target == 'held-out' and method == 'GP' and metric == 'rmse'")[
        "value"
    ]
    table = scores.table().loc[("held-out", "rmse"), "GP"]
    error = rows.std() / np.sqrt(len(rows))
    assert table["high"] - table["low"] == pytest.approx(2 * 1.96 * error, rel=0.35)


def test_a_score_does_not_depend_on_the_other_methods(screen, scores):
    alone = score({"GP": screen.baselines["GP"]}, screen.held_out, screen.train, n_bootstrap=200)
    both = [s.table().xs("held-out")["GP"]["mean"] for s in (alone, scores)]
    pd.testing.assert_series_equal(both[0], both[1].reindex(both[0].index))


def test_same_seed_same_scores(screen):
    first, second, other = (
        score(screen.oracle(sd=0.1), screen.held_out, screen.train, n_bootstrap=20, seed=seed).table()
        for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(other)


def test_risk_coverage_curve(scores):
    curve = scores.risk_coverage().query("target == 'held-out' and method == 'GP'")
    assert curve["coverage"].iloc[-1] == 1.0
    assert curve["risk"].iloc[-1] == pytest.approx(mean_of(scores, "rmse", "GP"))
    assert curve["risk"].mean() == pytest.approx(mean_of(scores, "aurc", "GP"))


def test_pit_histograms_are_shares(scores):
    totals = scores.pit.groupby(["target", "method", "of"])["share"].sum()
    np.testing.assert_allclose(totals, 1.0)
    assert ("held-out", "GP", "means") in totals.index
    assert ("held-out", "oracle", "cells") in totals.index


def test_methods_without_uncertainty_only(screen):
    result = score(screen.baselines["ridge"], screen.held_out, screen.train, n_bootstrap=10)
    assert result.risk_coverage().empty
    assert not any(metric.startswith("coverage") for _, metric in result.table().index)


def test_to_csv(scores, tmp_path):
    scores.to_csv(tmp_path / "new" / "scores")
    files = sorted(path.name for path in (tmp_path / "new" / "scores").iterdir())
    names = ["ceiling", "gap_closed", "per_perturbation", "pit", "risk_coverage", "table"]
    assert files == [f"{name}.csv" for name in names], "no temporary file is left"
    table = pd.read_csv(tmp_path / "new" / "scores" / "table.csv").set_index(["target", "metric", "method"])
    assert table.loc[("held-out", "mse", "GP"), "mean"] == pytest.approx(mean_of(scores, "mse", "GP"))
    read = pd.read_csv(tmp_path / "new" / "scores" / "per_perturbation.csv")
    assert len(read) == len(scores.per_perturbation)


# Inputs


def test_trivial_baselines_are_added(screen):
    result = score(screen.oracle(), screen.held_out, screen.train, n_bootstrap=10)
    methods = list(result.table().columns.unique("method"))
    assert methods == ["control", "perturbed mean", "prediction", CEILING]


def test_missing_prediction_is_left_out_for_all(screen):
    few = screen.oracle()[screen.labels[2:]].copy()
    with pytest.warns(InputWarning, match=screen.labels[0]):
        result = score({"few": few, "all": screen.oracle()}, screen.held_out, screen.train, n_bootstrap=10)
    assert set(result.per_perturbation["perturbation"]) == set(screen.labels[2:])


def test_perturbation_with_few_cells_is_left_out(screen):
    is_first = (screen.held_out.obs["perturbation"] == screen.labels[0]).to_numpy()
    held_out = screen.held_out[~is_first | (is_first.cumsum() <= 3)].copy()
    with pytest.warns(InputWarning, match="fewer than 4"):
        result = score(screen.oracle(), held_out, screen.train, n_bootstrap=10)
    assert screen.labels[0] not in set(result.per_perturbation["perturbation"])


def test_single_perturbation_can_be_scored(screen):
    one = screen.held_out[screen.held_out.obs["perturbation"] == screen.labels[0]].copy()
    result = score(screen.oracle(sd=0.1), one, screen.train, n_bootstrap=10)
    assert np.isnan(mean_of(result, "centroid_accuracy", "prediction"))
    assert mean_of(result, "mse", "prediction") > 0


def test_seen_perturbations_can_be_scored(screen):
    """A split of the cells: the same perturbations in training and among the held-out cells."""
    rows = np.arange(screen.train.n_obs) % 2 == 0
    train, held_out = screen.train[rows].copy(), screen.train[~rows].copy()
    seen = [str(s) for s in held_out.obs["perturbation"].unique() if s != "control"]
    result = score(as_prediction(screen.truth.loc[seen]), held_out, train, n_bootstrap=10)
    assert set(result.per_perturbation["perturbation"]) == set(seen)


@pytest.mark.parametrize("storage", ["dense", "csc", "backed"])
def test_storage_of_the_matrix_does_not_matter(screen, scores, tmp_path, storage):
    held_out = screen.held_out.copy()
    if storage == "dense":
        held_out.X = held_out.X.toarray()
    elif storage == "csc":
        held_out.X = held_out.X.tocsc()
    else:
        del held_out.uns["truth"]
        held_out.write_h5ad(tmp_path / "held_out.h5ad")
        held_out = anndata.read_h5ad(tmp_path / "held_out.h5ad", backed="r")
    result = score({"GP": screen.baselines["GP"]}, held_out, screen.train, n_bootstrap=200)
    both = [s.table().xs("held-out")["GP"]["mean"] for s in (result, scores)]
    pd.testing.assert_series_equal(both[0], both[1].reindex(both[0].index))


def test_bad_inputs_are_named(screen):
    oracle, held_out, train = screen.oracle(), screen.held_out, screen.train
    with pytest.raises(InputError, match="'G0079'"):
        score(oracle[:, :-1].copy(), held_out, train)
    with pytest.raises(InputError, match="'G0079'"):
        score(oracle, held_out[:, :-1].copy(), train)
    with pytest.raises(InputError, match=f"truth lacks '{screen.labels[0]}'"):
        score(oracle, held_out, train, truth=screen.truth.drop(index=screen.labels[0]))
    with pytest.raises(InputError, match="'else'"):
        score(oracle, held_out, train, cells={"else": screen.sampled})
    lacking = screen.sampled[screen.sampled.obs["perturbation"] != screen.labels[0]].copy()
    with pytest.raises(InputError, match=screen.labels[0]):
        score(oracle, held_out, train, cells={"prediction": lacking})
    other = held_out.copy()
    other.uns[UNS_KEY] = {**other.uns[UNS_KEY], "control": "ctrl"}
    with pytest.raises(InputError, match="'ctrl'"):
        score(oracle, other, train)
    with pytest.raises(InputError, match="controls"):
        score(oracle, held_out, train[train.obs["perturbation"] != "control"].copy())
    with (
        pytest.warns(InputWarning, match="no prediction"),
        pytest.raises(InputError, match="None of the held-out perturbations"),
    ):
        score(as_prediction(screen.truth.loc[["control"]]), held_out, train)


def with_hole(prediction, part, value=np.nan):
    layer = prediction.obsm[part] if part == "draws" else prediction.layers[part]
    layer[(1, 0, 3) if part == "draws" else (1, 3)] = value
    return prediction


@pytest.mark.parametrize("part", ["mean", "sd", "draws"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_must_be_finite(screen, part, value):
    draws = np.repeat(screen.truth.loc[screen.labels].to_numpy()[:, None], 5, axis=1)
    broken = with_hole(screen.oracle(sd=0.1, draws=draws), part, value)
    with pytest.raises(InputError, match=f"'mine'.*in '{part}'.*'{screen.labels[1]}', gene 'G0003'"):
        score({"mine": broken}, screen.held_out, screen.train)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_predictions_must_be_laid_out(screen):
    oracle, held_out, train = screen.oracle(), screen.held_out, screen.train
    twice = oracle[[*screen.labels, screen.labels[0]]].copy()
    with pytest.raises(InputError, match=f"'mine' has the perturbations '{screen.labels[0]}' more than once"):
        score({"mine": twice}, held_out, train)
    bare = oracle.copy()
    del bare.layers["mean"]
    with pytest.raises(InputError, match=r"'prediction' has no layer 'mean'.*prediction.X"):
        score(bare, held_out, train)
    with pytest.raises(InputError, match="'mine' is a DataFrame"):
        score({"mine": screen.truth}, held_out, train)


def test_held_out_cells_must_not_be_training_cells(screen):
    known = list(screen.train.obs_names[:5])
    leak = anndata.concat([screen.held_out, screen.train[known]])
    leak.uns[UNS_KEY] = screen.held_out.uns[UNS_KEY]
    message = f"5 of {leak.n_obs} held-out cells are training cells too: '{known[0]}'"
    with pytest.raises(InputError, match=message):
        score(screen.oracle(), leak, screen.train)


@pytest.mark.parametrize("seed", [1.5, "a", -1, None, True, 2**64])
def test_bad_seed(screen, seed):
    with pytest.raises(InputError, match=f"seed must be a whole number from 0 to .* not {seed!r}"):
        score(screen.oracle(), screen.held_out, screen.train, seed=seed)


@pytest.mark.parametrize("number", [0, -1, 1.5, "a", True])
def test_bad_number_of_resamples(screen, number):
    with pytest.raises(InputError, match=f"n_bootstrap must be .* at least 1, not {number!r}"):
        score(screen.oracle(), screen.held_out, screen.train, n_bootstrap=number)


def test_what_is_no_prediction_and_no_truth(screen):
    with pytest.raises(InputError, match="predictions must be an AnnData, or one for each method"):
        score(None, screen.held_out, screen.train)
    with pytest.raises(InputError, match="truth must be a DataFrame, labels x genes, not 5"):
        score(screen.oracle(), screen.held_out, screen.train, truth=5)
    with pytest.raises(InputError, match=r"'prediction' .*below zero"):
        score(screen.oracle(sd=-0.1), screen.held_out, screen.train)
