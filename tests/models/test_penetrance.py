"""Penetrance priors: densities, guide factors, strengths from features and of guides."""

import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from screens import set_up, small_screen

import sccvae_pyro as sv
from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.inference import posterior
from sccvae_pyro.models.direction import Linear
from sccvae_pyro.models.penetrance import Gamma, Guides, HalfNormal, LogNormal, OnExpression, OnFeatures
from sccvae_pyro.models.scm import GuideMix, relative_of_cells
from sccvae_pyro.models.slot import Basis, Described, Member, Perturbations, Sizes, Targets

SIZES = Sizes(cells=10, genes=6, nodes=4, perturbations=5, features=3, covariates=0, guides=7)
FEATURES = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
STRENGTH = np.array([0.2, 0.7, 1.0, 1.5, 4.0])
RELATIVE = np.array([0.1, 0.5, 0.9, 1.0, 1.1, 2.0, 5.0])
CATALOGUE = [Gamma(2.0), HalfNormal(0.7), OnFeatures(), Guides(), Guides(strength=Gamma(), spread=0.2)]


def perturbations():
    return Perturbations.of(Described(FEATURES, Linear().basis(FEATURES)(FEATURES)))


def log_prob(fn, site, value, **given):
    data = {site: torch.tensor(value, dtype=torch.float32), **given}
    trace = poutine.trace(poutine.condition(fn, data=data)).get_trace(SIZES, perturbations())
    trace.compute_log_prob()
    return trace.nodes[site]["log_prob"]


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        (Gamma(2.0), stats.gamma(2.0, scale=0.5).logpdf(STRENGTH)),
        (HalfNormal(0.7), stats.halfnorm(scale=0.7).logpdf(STRENGTH)),
        (Guides(LogNormal(0.1, 0.3)), stats.lognorm(s=0.3, scale=math.exp(0.1)).logpdf(STRENGTH)),
    ],
    ids=["gamma", "half-normal", "guides"],
)
def test_density_of_the_strength(prior, expected):
    np.testing.assert_allclose(log_prob(prior.model, "strength", STRENGTH), expected, rtol=1e-5)


def test_density_of_a_strength_that_features_tell():
    weights = torch.tensor([0.3, -0.2, 0.1])
    found = log_prob(OnFeatures(scale=0.4).model, "strength", STRENGTH, strength_weights=weights)
    centre = (FEATURES @ weights).numpy()
    np.testing.assert_allclose(found, stats.lognorm(s=0.4, scale=np.exp(centre)).logpdf(STRENGTH), rtol=1e-4)
    of_weights = log_prob(OnFeatures(weight=0.2).model, "strength_weights", weights.numpy())
    assert float(of_weights) == pytest.approx(stats.norm(scale=0.2).logpdf(weights).sum(), rel=1e-5)


def test_density_of_guides():
    found = log_prob(Guides(spread=0.4).relative, "guide_strength", RELATIVE)
    prior = stats.lognorm(s=0.4, scale=np.exp(-0.08))
    assert prior.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(found, prior.logpdf(RELATIVE), rtol=1e-5)


@pytest.mark.parametrize("prior", CATALOGUE, ids=str)
def test_guide_proposes_what_the_model_samples(prior):
    seen = perturbations()

    def model():
        prior.model(SIZES, seen)
        prior.relative(SIZES, seen)

    with torch.no_grad(), pyro.plate("draws", 3, dim=-2):
        guide = poutine.trace(prior.guide(SIZES, FEATURES)).get_trace(seen)
        replayed = poutine.trace(poutine.replay(model, trace=guide)).get_trace()
        densities = float(guide.log_prob_sum()), float(replayed.log_prob_sum())
    assert np.isfinite(densities).all()
    sites = [
        {name for name in trace.stochastic_nodes if name not in ("perturbations", "guides", "draws")}
        for trace in (guide, replayed)
    ]
    assert sites[0] == sites[1]
    assert guide.nodes["strength"]["value"].shape == (3, 5)


@pytest.mark.parametrize("prior", CATALOGUE, ids=str)
def test_a_member_within_a_member_is_written_and_read(prior):
    assert Member.registry["penetrance"][type(prior).__name__].from_dict(prior.to_dict()) == prior


def test_members_within_members_are_checked():
    with pytest.raises(InputError, match="LogNormal has no setting 'scle'"):
        Guides(strength={"name": "LogNormal", "scle": 1.0})
    with pytest.raises(InputError, match="not Guides again"):
        Guides(strength="Guides")


def test_a_cell_without_a_guide_has_the_strength_of_the_perturbation():
    found = relative_of_cells(torch.tensor([0.5, 2.0]), torch.tensor([1, 2, 0]))
    torch.testing.assert_close(found, torch.tensor([2.0, 1.0, 0.5]))


# In the program


@pytest.fixture(scope="module")
def screen():
    adata = sv.datasets.simulate(
        n_perturbations=6, cells_per_perturbation=40, n_control=120, n_genes=60, n_modules=2, seed=2
    )
    sv.setup_anndata(
        adata, "perturbation", "control", library_key="total_umi", guide_key="guide", feature_key="features"
    )
    return adata


def test_guides_are_told_apart(screen, tmp_path):
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), penetrance="Guides").fit(
        max_epochs=1, batch_size=64, progress=False
    )
    table = model.guides(n_samples=20)
    perturbed = screen.obs["perturbation"] != "control"
    assert list(table.index) == sorted(screen.obs.loc[perturbed, "guide"].unique())
    assert (table["q05"] < table["q95"]).all()
    draws = posterior.draw(model.program, 3, 0)
    cells = model.coding.screen(screen)[np.arange(len(screen))]
    push = draws.push_of(cells)
    row = int(np.flatnonzero(perturbed)[0])
    guide = sorted(table.index).index(screen.obs["guide"].iloc[row])
    label = screen.obs["perturbation"].iloc[row]
    expected = draws.relative_g[:, guide, None] * model._push(draws, [label], 0).action[:, 0]
    torch.testing.assert_close(push.action[:, row], expected)
    model.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model")
    assert loaded.coding.guides == model.coding.guides
    assert loaded.priors.penetrance == model.priors.penetrance
    assert model.to_arviz(n_samples=3).posterior["guide_strength"].dims == ("chain", "draw", "guide")


@pytest.fixture(scope="module")
def paired():
    """A screen with guides of pairs of targets, too."""
    return set_up(small_screen(), guide_key="guide", library_key="total_umi")


@pytest.fixture(scope="module")
def of_guides(paired):
    return SCCVAE(paired, n_nodes=3, hidden=(8,), penetrance="Guides").fit(
        max_epochs=1, batch_size=64, progress=False
    )


def test_guides_stand_with_their_perturbation_and_total_strength(of_guides, paired, tmp_path):
    table, draws = of_guides.guides(), of_guides._draws(1000, 0)
    obs = paired.obs[paired.obs["perturbation"] != "control"].astype(str)
    expected = obs.groupby("guide")["perturbation"].agg(["first", "size"])
    assert table["perturbation"].to_dict() == expected["first"].to_dict()
    assert table["n_cells"].to_dict() == expected["size"].to_dict()
    guide = of_guides.coding.guides.index("G0003-2")
    target = of_guides.coding.perturbations.index("G0003")
    total = (draws.relative_g[:, guide] * draws.strength_p[:, target]).numpy()
    found = table.loc["G0003-2", ["total", "total_q05", "total_q95"]].to_numpy(float)
    np.testing.assert_allclose(found, [total.mean(), *np.quantile(total, [0.05, 0.95])], rtol=1e-5)
    of_several = table["perturbation"].str.contains("+", regex=False)
    assert of_several.any()
    assert (table["total"].isna() == of_several).all()
    of_guides.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.guides(), table[["mean", "sd", "q05", "median", "q95"]])
    with pytest.raises(InputError, match="loaded from disk, without its screen"):
        loaded.guide_order()


def test_guides_of_a_perturbation_are_ordered(of_guides):
    order, draws = of_guides.guide_order(), of_guides._draws(1000, 0)
    guides, table = list(of_guides.coding.guides), of_guides.guides()
    sizes = table.groupby("perturbation").size()
    assert len(order) == (sizes * (sizes - 1) // 2).sum()
    assert order["probability"].between(0.5, 1).all()
    for row in order.itertuples():
        assert {table.loc[name, "perturbation"] for name in (row.stronger, row.weaker)} == {row.perturbation}
        one, other = (draws.relative_g[:, guides.index(name)] for name in (row.stronger, row.weaker))
        assert row.probability == pytest.approx((one > other).float().mean().item())
    assert order.groupby("perturbation")["probability"].apply(lambda p: p.is_monotonic_decreasing).all()


def test_guides_need_a_column(screen):
    without = screen.copy()
    sv.setup_anndata(without, "perturbation", "control", library_key="total_umi", feature_key="features")
    with pytest.raises(InputError, match="guide_key"):
        SCCVAE(without, n_nodes=3, hidden=(8,), penetrance="Guides")
    model = SCCVAE(without, n_nodes=3, hidden=(8,)).fit(max_epochs=1, batch_size=64, progress=False)
    with pytest.raises(InputError, match="equally strong"):
        model.guides()


def test_cells_of_a_guide_that_training_did_not_see_are_those_of_the_perturbation(screen):
    kept = screen[screen.obs["guide"] != "G0001-1"].copy()
    sv.setup_anndata(
        kept, "perturbation", "control", library_key="total_umi", guide_key="guide", feature_key="features"
    )
    model = SCCVAE(kept, n_nodes=3, hidden=(8,), penetrance="Guides")
    codes = model.coding.screen(screen).guides
    assert (codes[(screen.obs["guide"] == "G0001-1").to_numpy()] == len(model.coding.guides)).all()


@pytest.mark.parametrize("prior", [LogNormal(scale=0.05), OnFeatures(scale=0.05), OnExpression(scale=0.05)])
def test_strengths_are_not_proposed_wider_than_they_are_believed(prior):
    factor = prior.guide(SIZES, torch.zeros(SIZES.perturbations, SIZES.features))
    log_scale = getattr(factor, "factor", factor).log_scale
    assert float(log_scale.detach().max()) == pytest.approx(math.log(0.05))


@pytest.mark.parametrize("prior", [OnFeatures(scale=0.05), OnExpression(scale=0.05)])
def test_strengths_go_where_the_drawn_line_goes(prior):
    """At the start the guide is the prior given the weights, so that their log ratio is zero."""
    pyro.set_rng_seed(0)
    factor = prior.guide(SIZES, FEATURES)
    targets = Targets(tuple("abcde"), torch.zeros(5).long(), torch.linspace(-1, 1, 5))

    def seen():
        return Perturbations.of(Described(FEATURES, Basis(torch.ones(5, 1), torch.zeros(5)), targets))

    with torch.no_grad():
        guide = poutine.trace(factor).get_trace(seen())
        model = poutine.trace(poutine.replay(prior.model, trace=guide)).get_trace(SIZES, seen())
        traces = [(trace.compute_log_prob(), trace)[1] for trace in (guide, model)]
    of_guide, of_model = (trace.nodes["strength"]["log_prob"] for trace in traces)
    torch.testing.assert_close(of_guide, of_model)


def test_mean_strength_over_the_cells_of_a_perturbation():
    """Two perturbations: a quarter and a half of the first have a guide; of the second, none is known."""
    mix = GuideMix(torch.tensor([0, 0, 2]), torch.tensor([0.25, 0.5, 0.0]))
    found = mix.mean(torch.tensor([[2.0, 3.0, 9.0], [1.0, 1.0, 9.0]]), 2)
    torch.testing.assert_close(found, torch.tensor([[0.25 * 2 + 0.5 * 3 + 0.25, 1.0], [1.0, 1.0]]))


def test_guides_are_counted_where_they_are_alone(of_guides, paired):
    """Cells of a pair carry guides of the pair, which tell of neither perturbation."""
    obs, mix = paired.obs, of_guides.program.guide_mix
    for guide, target, portion in zip(of_guides.coding.guides, *map(list, mix), strict=True):
        label = obs.loc[obs["guide"] == guide, "perturbation"].iloc[0]
        if "+" in label:
            assert (int(target), float(portion)) == (len(of_guides.coding.perturbations), 0.0)
            continue
        assert of_guides.coding.perturbations[int(target)] == label
        alone = obs["perturbation"] == label
        assert float(portion) == pytest.approx((obs.loc[alone, "guide"] == guide).mean())


def test_cells_as_measured_are_pushed_as_their_guides_push(of_guides):
    """The mean over cells of what the guides of a perturbation do is what its cells show."""
    draws, screen = of_guides._draws(5, 0), of_guides._screen
    rows = np.flatnonzero((screen.labels == "G0003").to_numpy())
    of_cells = draws.push_of(screen[rows]).action.mean(1)
    code = of_guides.coding.perturbations.index("G0003")
    found = draws.with_guides_of(of_guides.program).action_pa[:, code]
    torch.testing.assert_close(found, of_cells)
    assert not torch.allclose(found, draws.action_pa[:, code])


def test_a_factor_on_all_guides_of_a_perturbation_changes_no_state(of_guides):
    """The guide proposes directions given what its guides do on average: the two cannot drift apart."""
    program = of_guides.program
    values = program.guide_globals()
    factor = 3.0 * torch.ones_like(values["guide_strength"])
    stronger = values | {"guide_strength": factor * values["guide_strength"]}
    seen = program.guide_mix.target_g.unique()[:-1]  # the last are guides of pairs
    one, three = (program.given(drawn).strength_p[seen] for drawn in (values, stronger))
    torch.testing.assert_close(three, 3.0 * one)
