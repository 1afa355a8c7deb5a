"""Prior sensitivity: what changes with a belief, and what does not."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from screens import set_up, small_screen

import sccvae_pyro as sv
from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.sensitivity import (
    CERTAIN,
    RESTART,
    Sensitivity,
    _Answers,
    _density,
    _edges,
    _of_edges,
    _predictions,
)

SMALL = {"n_nodes": 3, "hidden": [16]}
QUICK = {"max_epochs": 2, "batch_size": 128, "n_samples": 10}


@pytest.fixture(scope="module")
def found(screen) -> Sensitivity:
    specs = {
        "default": SMALL,
        "same": {},
        "weak": {"penetrance": {"name": "Fixed", "value": 1e-3}},
        "molecules": {"library": "Latent"},
    }
    return sv.sensitivity(screen, specs, **QUICK)


def of(table: pd.DataFrame, spec: str) -> pd.DataFrame:
    return table[table["spec"] == spec]


def test_the_same_belief_changes_nothing(found):
    same, reference = of(found.predictions, "same"), of(found.predictions, "default")
    assert (same["rms"] == 0).all() and (same["overlap"] == 1).all() and (same["inside"] == 1).all()
    np.testing.assert_allclose(same["along"], 1, atol=1e-5)
    assert (same["along_q05"] < 1).all() and (same["along_q95"] > 1).all()
    assert (same.drop(columns="spec").to_numpy() == reference.drop(columns="spec").to_numpy()).all()
    assert (of(found.strengths, "same")["difference"] == 0).all()
    assert of(found.density, "same")["difference"].item() == 0
    assert (found.summary().loc["same", "ratio"].dropna() == 0).all()


def test_a_restart_changes_something(found):
    restart = of(found.predictions, RESTART)
    assert (restart["rms"] > 0).all() and (restart["overlap"] < 1).all()
    assert of(found.density, RESTART)["difference"].item() != 0
    assert (found.summary().loc[RESTART, "ratio"].dropna() == 1).all()


def test_a_known_strength_shows(found):
    """What is fixed has the fixed value; in sds of the reference, as the reference knows it."""
    strengths = of(found.strengths, "weak")
    np.testing.assert_allclose(strengths[["mean", "q05", "q95"]], 1e-3, rtol=1e-4)
    assert (strengths["difference"] < -0.5).all() and (strengths["in_sds"] < -5).all()
    assert found.summary().loc[("weak", "strengths"), "ratio"] > 5


@pytest.mark.slow
def test_a_prior_against_effects_shows():
    """With enough cells and epochs for effects to be learned where the prior lets them."""
    screen = set_up(small_screen(cells_per_perturbation=60, n_control=150), library_key="total_umi")
    specs = {
        "default": {"n_nodes": 4, "hidden": [16]},
        "none": {"penetrance": {"name": "Fixed", "value": 1e-3}},
    }
    found = sv.sensitivity(screen, specs, n_samples=40, max_epochs=25, batch_size=64)
    summary = found.summary()
    assert summary.loc[("none", "predictions"), "ratio"] > 1.5
    correlation = summary["correlation"].unstack()["predictions"]
    assert correlation["none"] < correlation[RESTART]
    np.testing.assert_allclose(of(found.strengths, "none")["mean"], 1e-3, rtol=1e-4)
    np.testing.assert_allclose(summary.loc[("none", "strengths"), "change"], 1, atol=0.1)
    density = of(found.density, "none").iloc[0]
    assert density["difference"] < -2 * density["se"] < 0


def test_tables_name_every_spec_in_order(found):
    specs = ["default", "same", "weak", "molecules", RESTART]
    for table in (found.predictions, found.strengths, found.density):
        assert list(table["spec"].unique()) == specs
    assert len(found.predictions) == len(found.strengths) == 8 * len(specs)
    assert "Sensitivity of 'default' to 'same'" in repr(found)


def test_densities_of_other_things_are_not_compared(found):
    assert np.isnan(of(found.density, "molecules")["difference"].item())
    assert "library sizes" in found.summary().loc[("molecules", "density"), "note"]


def test_edges_of_free_nodes_are_not_compared(found):
    assert found.edges.empty
    assert found.summary().loc[("same", "edges"), "note"].startswith("free nodes have no names")


def test_edges_of_anchored_nodes_are_compared(screen):
    specs = {
        "a": {"nodes": "Anchored", "hidden": [8]},
        "b": {"graph": "SpikeSlab"},
        "free": {"nodes": "Free"},
    }
    found = sv.sensitivity(screen, specs, **QUICK)
    assert set(found.edges["spec"]) == {"a", "b", RESTART}
    assert of(found.edges, "b")["inclusion"].notna().all()
    summary = found.summary()
    assert summary.loc[("b", "edges"), "change"] > 0 and " -> " in summary.loc[("b", "edges"), "largest"]
    assert summary.loc[("free", "edges"), "note"]


def test_a_graph_without_edges_has_an_empty_table(screen):
    found = sv.sensitivity(screen, {"none": {**SMALL, "graph": "NoGraph"}, "same": {}}, **QUICK)
    assert found.edges.empty and "mean" in found.edges
    assert "NoGraph has no edges" in found.summary().loc[("same", "edges"), "note"]


@pytest.mark.parametrize("form", [np.array, pd.Series])
def test_perturbations_may_be_an_array(screen, form):
    found = sv.sensitivity(
        screen, {"a": SMALL, "b": {}}, perturbations=form(["G0001", "G0002"]), **QUICK | {"max_epochs": 1}
    )
    assert list(of(found.predictions, "b")["perturbation"]) == ["G0001", "G0002"]


def test_numbers_repeat(found, screen):
    again = sv.sensitivity(screen, {"default": SMALL, "same": {}}, **QUICK)
    for table in ("predictions", "strengths", "density"):
        first = getattr(found, table).query("spec not in ['weak', 'molecules']").reset_index(drop=True)
        pd.testing.assert_frame_equal(first, getattr(again, table))


def test_unseen_perturbations_can_be_asked(screen, tmp_path):
    SCCVAE(screen, **SMALL).spec.to_toml(tmp_path / "spec.toml")
    found = sv.sensitivity(
        screen, {"a": tmp_path / "spec.toml", "b": {}}, perturbations="G0000+G0002", held_out=0.2, **QUICK
    )
    assert list(found.predictions["perturbation"]) == ["G0000+G0002"] * 3
    assert found.density["cells"].iloc[0] == round(0.2 * 60) + 10 * round(0.2 * 20)


@pytest.mark.parametrize(
    ("specs", "settings", "message"),
    [
        ({"a": {}, "b": {"grph": "Horseshoe"}}, {}, r"specs\['b'\].*Did you mean 'graph'"),
        ({"a": {}, "b": {"graph": "Horsesho"}}, {}, r"specs\['b'\].*Did you mean 'Horseshoe'"),
        ({"a": {}}, {}, "two or more"),
        ([{}, {}], {}, "two or more"),
        ({"a": {}, RESTART: {}}, {}, "another name"),
        ({"a": {}, "b": {}}, {"held_out": 1.0}, "between 0 and 1"),
        ({"a": {}, "b": {}}, {"held_out": 1e-6}, "larger share"),
        ({"a": {}, "b": {}}, {"n_samples": 1}, "n_samples"),
        ({"a": {}, "b": {}}, {"perturbations": ["G0001", "control"]}, "Leave it out"),
        ({"a": {}, "b": {}}, {"perturbations": ["G0001", "G0001"]}, "asked for twice"),
        ({"a": {}, "b": {}}, {"perturbations": ["nothing"]}, "Cannot predict 'nothing'"),
        ({"a": {}, "b": {1: 2}}, {}, r"specs\['b'\].*no setting '1'"),
        ({"a": {}, "b": {"adata": 1}}, {}, r"specs\['b'\].*no setting 'adata'"),
        ({"a": {}, "b": {"spec": 1}}, {}, r"specs\['b'\].*no setting 'spec'"),
        ({"a": {}, "b": None}, {}, r"specs\['b'\]: None is no spec. Write {}"),
        ({"a": {}, None: {}}, {}, "strings, not None"),
        ({"a": {}, "b": {}}, {"seed": 2**63 - 1}, "none above it for the restart"),
        ({"a": {}, "b": {}}, {"held_out": 0.99}, "held_out=0.99 leaves.*Give a smaller share"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_first_fit(
    screen, specs, settings, message, monkeypatch
):
    monkeypatch.setattr(SCCVAE, "fit", None)
    with pytest.raises(InputError, match=message):
        sv.sensitivity(screen, specs, **settings)


# Comparisons, by hand


def answers(delta=(1.0, 2.0), shift=0.0, edges=(), nodes=(), density=(-1.0, -2.0), along=(1.0, 1.0)):
    """Two genes with intervals of a length of two."""
    delta = np.array([delta]) + shift
    layers = {
        "delta": delta,
        "delta_sd": np.full((1, 2), 0.5),
        "delta_q05": delta - 1,
        "delta_q95": delta + 1,
    }
    effects = AnnData(delta, obs=pd.DataFrame(index=["P"]), layers=layers, obsm={"along": np.array([along])})
    rows = [(*edge, mean, 0.1, mean - 0.2, mean + 0.2) for edge, mean in edges]
    columns = ["source", "target", "mean", "sd", "q05", "q95"]
    table = pd.DataFrame(rows, columns=columns).set_index(["source", "target"])
    return _Answers(effects, table, table, list(nodes), pd.Series(density), 0.0, "Observed")


def test_predictions_by_hand():
    row = _predictions(answers(shift=0.5, along=(0.8, 1.2)), answers()).iloc[0]
    assert row["rms"] == pytest.approx(0.5) and row["in_sds"] == pytest.approx(1.0)
    assert row["overlap"] == pytest.approx(1.5 / 2.5)
    assert row["inside"] == 1 and row["along"] == pytest.approx(1.0)
    far = _predictions(answers(shift=3.0), answers()).iloc[0]
    assert far["overlap"] == pytest.approx(0, abs=1e-9) and far["inside"] == 0


def test_an_edge_that_one_fit_never_draws_is_zero_there():
    own = answers(edges=[(("a", "b"), 0.5), (("a", "z"), 9.0)], nodes="abz")
    other = answers(edges=[(("b", "c"), 0.3)], nodes="abc")
    table = _edges(own, other).set_index(["source", "target"])
    assert table["difference"].to_dict() == pytest.approx({("a", "b"): 0.5})
    own = answers(edges=[(("a", "b"), 0.5)], nodes="abc")
    table = _edges(own, other).set_index(["source", "target"])
    assert table["difference"].to_dict() == pytest.approx({("a", "b"): 0.5, ("b", "c"): -0.3})
    assert table.loc[("b", "c"), "in_sds"] == pytest.approx(-3.0)
    assert np.isnan(table.loc[("a", "b"), "in_sds"])
    said = _of_edges(table.reset_index())
    assert np.isnan(said["in_sds"]) and said["note"] == CERTAIN  # not the sds of the other edge alone
    assert said["change"] == pytest.approx(np.sqrt((0.5**2 + 0.3**2) / 2)) and said["largest"] == "a -> b"


def test_density_is_paired():
    row = _density(answers(density=(-1.5, -2.1)), answers()).iloc[0]
    assert row["difference"] == pytest.approx(-0.3)
    assert row["se"] == pytest.approx(np.std([0.5, 0.1], ddof=1) / np.sqrt(2))
