"""Modules: planted partitions come back, doubt is doubt, and what does nothing belongs nowhere."""

import numpy as np
import pandas as pd
import pytest
from screens import small_screen
from sklearn.metrics import adjusted_rand_score

import sccvae_pyro as sv
from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.data.simulate import World
from sccvae_pyro.inference import modules
from sccvae_pyro.inference.modules import ALONE, NONE, chance_of_zero, expected_rand, find_modules

NAMES = [f"P{i}" for i in range(9)]
PLANTED = ["M1"] * 4 + ["M2"] * 2 + [ALONE] + [NONE] * 2


def planted(n_draws=60, noise=0.02, seed=0):
    """Draws of 9 perturbations and 30 genes: 4 along one direction, 2 along another, 1 alone, 2 of none."""
    rng = np.random.default_rng(seed)
    size = np.array([1.0, 0.3, 2.0, 0.5, 0.7, 0.4, 0.9, 0.0, 0.0])
    mean = size[:, None] * np.eye(30)[[0, 0, 0, 0, 1, 1, 2, 0, 0]]
    estimated = mean + 0.5 * noise * rng.normal(size=mean.shape)
    deviations = noise * rng.normal(size=(n_draws, *mean.shape))
    return estimated + deviations - deviations.mean(axis=0)


@pytest.fixture(scope="module")
def found():
    return find_modules(planted(), NAMES)


def refused(call, *parts):
    with pytest.raises(InputError) as error:
        call()
    for part in parts:
        assert part in str(error.value)


# Partitions


def test_planted_modules_are_found(found):
    assert list(found.table["module"]) == PLANTED
    assert list(found.summary["n"]) == [4, 2]
    assert (found.summary["stability"] > 0.99).all()
    chosen = found.n_modules[found.n_modules["chosen"]]
    assert list(chosen["clusters"]) == [3]
    assert chosen["agreement"].item() == pytest.approx(1.0, abs=0.01)


def test_strength_and_name_do_not_matter_but_direction_does():
    effects = planted()
    weak = effects * np.array([0.5, 1.0, 5.0, 1, 1, 1, 1, 1, 1])[:, None]
    assert list(find_modules(weak, NAMES).table["module"]) == PLANTED
    effects[:, 1] *= -1
    assert find_modules(effects, NAMES).table["module"]["P1"] == ALONE


def test_order_of_draws_and_perturbations_changes_nothing(found):
    rng = np.random.default_rng(1)
    draws, order = rng.permutation(60), rng.permutation(9)
    again = find_modules(planted()[draws][:, order], [NAMES[i] for i in order])
    table = again.table.loc[NAMES]
    pd.testing.assert_frame_equal(table, found.table, check_exact=False, rtol=1e-8)
    together = again.co_assignment.loc[NAMES, NAMES]
    pd.testing.assert_frame_equal(together, found.co_assignment, check_names=False)
    np.testing.assert_allclose(again.coordinates.loc[NAMES], found.coordinates, atol=1e-8)


def test_draws_that_agree_leave_no_doubt():
    twice = np.repeat(planted(n_draws=2).mean(axis=0)[None, :7], 2, axis=0)
    found = find_modules(twice, NAMES[:7])
    assert set(np.unique(found.co_assignment)) == {0.0, 1.0}
    assert list(found.table["module"]) == PLANTED[:7]
    assert (found.table["p_zero"] == 0).all()


def test_co_assignment_is_the_share_of_draws():
    effects = np.repeat(np.eye(3)[None, [0, 0, 1, 1]], 10, axis=0)
    effects += 1e-3 * np.random.default_rng(0).normal(size=effects.shape)
    effects[:3, 1] = effects[:3, 2]
    found = find_modules(effects, NAMES[:4])
    assert found.co_assignment.loc["P0", "P1"] == pytest.approx(0.7)
    assert found.co_assignment.loc["P1", "P2"] == pytest.approx(0.3)
    assert found.table["membership"]["P1"] == pytest.approx(0.7)


def test_likeness_is_a_cosine():
    angle = np.deg2rad([0, 50, 180])
    mean = np.column_stack([np.cos(angle), np.sin(angle)])
    effects = mean + 1e-4 * np.random.default_rng(0).normal(size=(10, 3, 2))
    assert list(find_modules(effects, NAMES[:3]).table["module"]) == ["M1", "M1", ALONE]
    assert list(find_modules(effects, NAMES[:3], similarity=0.7).table["module"]) == [ALONE] * 3


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0, 0, 1]])
def test_agreement_is_one_with_the_partition_of_every_draw(labels):
    labels = np.array(labels)
    together = (labels[:, None] == labels).astype(float)
    assert expected_rand(labels, together) == 1.0


def test_agreement_with_one_draw_is_the_adjusted_rand_index():
    one, other = np.random.default_rng(0).integers(4, size=(2, 30))
    together = (other[:, None] == other).astype(float)
    assert expected_rand(one, together) == pytest.approx(adjusted_rand_score(one, other))


# No effect


def test_a_sure_effect_has_no_chance_of_zero_and_none_has(found):
    assert (found.table["p_zero"][:7] < 0.001).all()
    assert (found.table["p_zero"][7:] > 0.05).all()
    low = found.table["effect_q05"]
    assert (low[:7] > 0).all() and (low <= found.table["effect"]).all()
    np.testing.assert_allclose(found.table["effect"]["P0"], 1 / np.sqrt(30), rtol=0.02)


@pytest.mark.parametrize(("spread", "shared"), [(10.0, 0.0), (1.5, 0.0), (1.5, 5.0)])
def test_nulls_are_called_effects_as_rarely_as_the_level_says(spread, shared):
    """Exact posteriors from data of variance 1, the population as prior; half of them are none."""
    rng = np.random.default_rng(0)
    n, k = 4000, 12
    acting = spread * rng.normal(size=(n, k)) + shared * np.eye(k)[0]
    true = np.where(np.arange(n)[:, None] < n // 2, acting, 0.0)
    share = true.var(axis=0) / (true.var(axis=0) + 1)
    mean = share * (true + rng.normal(size=(n, k))) + (1 - share) * true.mean(axis=0)
    effects = mean + np.sqrt(share) * rng.normal(size=(60, n, k))
    called = chance_of_zero(effects) < modules.NULL_LEVEL
    assert 0.03 < called[n // 2 :].mean() < 0.08
    assert called[: n // 2].mean() > 0.8


def test_nothing_at_all_has_no_effect():
    found = find_modules(np.zeros((5, 4, 3)), NAMES[:4])
    assert (found.table["module"] == NONE).all() and found.linkage.shape == (0, 4)
    assert len(found.n_modules) == 0 and len(found.summary) == 0
    assert "4 without an effect" in repr(found)


def test_two_with_an_effect_are_left_alone():
    effects = planted()[:, [0, 1, 7, 8]]
    effects[:, 2:] -= effects[:, 2:].mean(axis=0)
    assert list(find_modules(effects, NAMES[:4]).table["module"]) == [ALONE, ALONE, NONE, NONE]


# What is returned


def test_repr_names_the_members(found):
    text = repr(found)
    assert "9 perturbations; 6 in 2 modules, 1 alone, 2 without an effect" in text
    assert "M2 (2, stability 1.00): P4, P5" in text
    assert found.members("M2") == ["P4", "P5"] and found.members(NONE) == ["P7", "P8"]
    refused(lambda: found.members("M9"), "'M9'", "'M1'")


def test_map_has_its_origin_at_control(found):
    distance = np.linalg.norm(found.coordinates, axis=1)
    np.testing.assert_allclose(distance[:4], found.table["effect"][:4], rtol=0.05)
    assert 0 < found.explained[1] < found.explained[0] < 1


def test_too_few_perturbations_are_refused():
    refused(lambda: find_modules(planted()[:, :2], NAMES[:2]), "at least 3", "'P0', 'P1'")


@pytest.mark.parametrize("similarity", [0.0, 1.0, -1, 2, float("nan")])
def test_a_similarity_out_of_range_is_refused(similarity):
    refused(lambda: find_modules(planted(), NAMES, similarity), "similarity", repr(similarity))


# Enrichment


def test_enrichment_is_hypergeometric(found):
    sets = {"all of M1": NAMES[:4], "mixed": ["P0", "P4", "P8"], "elsewhere": ["X", "Y"], "single": ["P0"]}
    table = found.enrichment(sets).set_index(["module", "gene_set"])
    first = table.loc[("M1", "all of M1")]
    assert first["p"] == pytest.approx(1 / 126)  # 1 of the 9-choose-4 ways
    assert (first["n_module"], first["n_set"], first["n_shared"]) == (4, 4, 4)
    assert first["genes"] == "P0, P1, P2, P3"
    assert first["q"] == pytest.approx(4 / 126)  # 2 modules x 2 sets
    assert set(table.index.get_level_values("gene_set")) == {"all of M1", "mixed"}
    assert table["p"].is_monotonic_increasing


def test_enrichment_against_another_background(found):
    everything = [*NAMES, *(f"Q{i}" for i in range(91))]
    assert found.enrichment({"a": NAMES[:4]}, background=everything)["p"].iloc[0] < 1e-6
    refused(lambda: found.enrichment({"a": NAMES[:4]}, background=NAMES[1:]), "background", "'P0'")


def test_enrichment_reads_gene_set_files(found, tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("a set\tdescription\tP0\tP1\tP2\tP3\n", encoding="utf-8")
    pd.testing.assert_frame_equal(found.enrichment(path), found.enrichment({"a set": NAMES[:4]}))
    refused(lambda: found.enrichment(tmp_path / "none.gmt"), "none.gmt", "Check the path")


def test_enrichment_refuses_what_it_cannot_test(found):
    refused(lambda: found.enrichment({"a": ["X", "Y"]}), "None of the 1 gene sets", "same identifiers")
    refused(lambda: found.enrichment(["P0", "P1"]), "gene_sets must be")
    refused(lambda: found.enrichment({"a": "P0"}), "'a'", "list of genes")
    lone = find_modules(planted()[:, 6:], NAMES[6:])
    refused(lambda: lone.enrichment({"a": NAMES}), "no module")


# Of a model


def test_modules_of_a_fitted_model(fitted):
    found = fitted.modules(n_samples=20)
    names = list(fitted.coding.perturbations)
    assert list(found.table.index) == list(found.co_assignment.columns) == names
    assert found.co_assignment.equals(found.co_assignment.T)
    again = fitted.modules(n_samples=20)
    pd.testing.assert_frame_equal(found.table, again.table)


@pytest.mark.parametrize("intervention", ["Do", "Scale"])
def test_modules_of_other_interventions(screen, intervention):
    targets = sorted(set("+".join(screen.obs["perturbation"].cat.categories).split("+")) - {"control"})
    model = SCCVAE(
        screen,
        hidden=(16,),
        nodes=sv.priors.nodes.Anchored(targets),
        direction="OwnNode",
        intervention=intervention,
    )
    model.fit(max_epochs=2, batch_size=64, progress=False)
    assert list(model.modules(n_samples=5).table.index) == targets


def test_a_model_that_cannot_say_is_refused(fitted):
    adata = small_screen(n_perturbations=2, n_combinations=0)
    sv.setup_anndata(adata, "perturbation", "control")
    model = SCCVAE(adata, n_nodes=3, hidden=(8,))
    refused(model.modules, "not fitted")
    model.fit(max_epochs=1, progress=False)
    refused(model.modules, "at least 3")
    refused(lambda: fitted.modules(n_samples=1), "n_samples")


@pytest.mark.slow
def test_planted_modules_of_a_screen_are_found():
    adata = sv.datasets.simulate(
        40, 60, n_control=600, n_genes=150, n_modules=4, coherence=0.8, null_share=0.25, seed=1
    )
    sv.setup_anndata(
        adata,
        "perturbation",
        "control",
        library_key="total_umi",
        covariate_keys=["batch"],
        feature_key="features",
    )
    table = SCCVAE(adata, n_nodes=32, hidden=(64,)).fit(seed=1, progress=False).modules(seed=1).table
    world = World.from_uns(adata.uns["truth"])
    row = pd.Index(world.nodes).get_indexer(table.index)
    null, found = world.strength[row] == 0, ~table["is_null"].to_numpy()
    assert found[null].mean() <= 0.2 and found[~null].mean() >= 0.5
    module = table["module"].where(table["module"] != ALONE, table.index)
    assert adjusted_rand_score(world.modules[row][found & ~null], module[found & ~null]) > 0.7
