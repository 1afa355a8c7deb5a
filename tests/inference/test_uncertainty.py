"""The split of a variance by source: against closed forms, and what must hold of any fitted model."""

from itertools import combinations
from math import factorial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import (
    LinearDecoder,
    LinearEncoder,
    LinearGaussian,
    _KnownGraph,
    _KnownNoise,
    _NormalDirection,
    program_of,
)
from screens import set_up, small_screen
from torch import nn

from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.inference import results, uncertainty
from sccvae_pyro.inference.discrepancy import Discrepancy
from sccvae_pyro.inference.posterior import Controls
from sccvae_pyro.inference.uncertainty import Effects, Sources, shapley
from sccvae_pyro.models.direction_base import seen_directions
from sccvae_pyro.models.graph import Normal
from sccvae_pyro.models.noise import StandardNormal
from sccvae_pyro.models.penetrance import Fixed, LogNormal
from sccvae_pyro.models.program import Priors
from sccvae_pyro.models.responders import AllCells
from sccvae_pyro.models.slot import Sizes, Targets

LABELS = ["G0001", "G0004+G0005", "G0002+G0003"]
ALL = ("graph", "penetrance", "direction", "likelihood", "discrepancy")


# The estimator


def hybrids_of(function, draws):
    """A function at all combinations of two draws of its factors, ``factors x 2 x draws``."""
    d = len(draws)
    points = [draws[np.arange(d), which] for which in np.ndindex(*[2] * d)]
    return np.stack([function(*point) for point in points]).reshape(*[2] * d, -1)


def test_effects_of_a_function_with_known_ones():
    """The function of Ishigami & Homma (1990): shares .3139, .4424, 0; .2437 of first and last."""

    def ishigami(a, b, c):
        return np.sin(a) + 7 * np.sin(b) ** 2 + 0.1 * c**4 * np.sin(a)

    uniform = np.random.default_rng(0).uniform(-np.pi, np.pi, (3, 2, 100_000))
    effects = shapley(hybrids_of(ishigami, uniform), 3).mean(1)
    np.testing.assert_allclose(effects / effects.sum(), [0.3139 + 0.1218, 0.4424, 0.1218], atol=0.005)
    np.testing.assert_allclose(effects.sum(), 13.845, rtol=0.01)


def test_effects_are_those_of_the_definition():
    """On two values of each factor, both equally probable, all of them are enumerated."""
    values = np.random.default_rng(1).normal(size=(2, 2, 2, 2))

    def told(members):
        """Variance of the mean given some factors."""
        others = tuple(axis for axis in range(4) if axis not in members)
        return values.mean(axis=others).var()

    expected = np.zeros(4)
    for j in range(4):
        rest = [i for i in range(4) if i != j]
        for size in range(4):
            weight = factorial(size) * factorial(3 - size) / factorial(4)
            expected[j] += sum(weight * (told({*s, j}) - told(s)) for s in combinations(rest, size))
    pairs = np.array(list(np.ndindex(*[2] * 8))).reshape(-1, 4, 2)  # every pair of draws of every factor
    found = shapley(hybrids_of(lambda *at: values[at], pairs.transpose(1, 2, 0)), 4)
    np.testing.assert_allclose(found.mean(1), expected)


def test_effects_are_never_negative_and_sum_to_half_the_square_of_opposite_corners():
    hybrids = np.random.default_rng(2).normal(size=(2, 2, 2, 50))
    effects = shapley(hybrids, 3)
    assert (effects >= 0).all()
    pairs = hybrids.reshape(8, 50)
    np.testing.assert_allclose(effects.sum(0), np.square(pairs - pairs[::-1]).mean(0) / 2)


def test_standard_errors_are_those_of_repetitions():
    rng = np.random.default_rng(3)
    scores = []
    for _ in range(400):
        first, second = rng.normal(size=(2, 2, 100)) * [[[2.0]], [[1.0]]]
        hybrids = first[:, None] + second[None]
        share, error = Effects.of(shapley(hybrids, 2)[:, :, None, None]).shares()
        scores.append((share[0, 0, 0] - 0.8) / error[0, 0, 0])
    assert np.std(scores) == pytest.approx(1.0, abs=0.15)


def test_effects_of_parts_are_those_of_the_whole():
    effects = np.random.default_rng(4).uniform(size=(3, 10, 2, 4))
    parts = Effects.of(effects[:, :3]).and_of(Effects.of(effects[:, 3:]))
    for one, other in zip(parts, Effects.of(effects), strict=True):
        np.testing.assert_allclose(one, other)


# Programs with known shares


def program(graph, penetrance, direction):
    """Two nodes, which are the genes; B[0, 1] is the only edge."""
    sizes = Sizes(cells=8, genes=2, nodes=2, perturbations=1, features=0, covariates=0)
    priors = Priors(graph, penetrance, direction, AllCells(), StandardNormal(), _KnownNoise(0.7))
    eye = torch.eye(2, dtype=torch.double)
    encoder = LinearEncoder(eye, torch.full((2,), 0.5, dtype=torch.double))
    return program_of(priors, sizes, encoder, LinearDecoder(eye))


def effects_of(program, labels, n_draws, monkeypatch, seed=0):
    """Effects on the labels, each a list of targets; ``A`` is seen, ``B`` is not."""
    monkeypatch.setattr(uncertainty, "DRAWS_AT_ONCE", n_draws)
    rows = torch.zeros(2, 2, dtype=torch.double)
    controls = Controls(rows, torch.full((2,), 0.5), torch.ones(2), rows[:, :0], np.zeros(2))

    def describe(names):
        unknown = torch.full((len(names),), torch.nan)
        targets = Targets(tuple(names), torch.full((len(names),), 2), unknown)
        return program.describe(rows[: len(names), :0], targets)

    def push_of(draws):
        unseen = ["B"] if any("B" in label for label in labels) else []
        return results.label_push(program, draws, labels, ["A"], unseen, describe, seed)

    sources = Sources.of(program)
    nothing, genes = np.zeros((len(labels), 2)), np.arange(2)
    found = uncertainty.effects_of(program, controls, sources, push_of, nothing, genes, n_draws, seed)
    return sources, found


def exact_shares(moments):
    """Shares of c, s and b in ``c (s_0, s_1 + b s_0)``, and in both genes, of means and variances."""

    def told(members):
        mean = {name: m for name, (m, _) in moments.items()}
        square = {name: m**2 + v * (name[0] in members) for name, (m, v) in moments.items()}
        first = square["c"] * square["s0"]
        cross = 2 * mean["s1"] * mean["b"] * mean["s0"]
        second = square["c"] * (square["s1"] + cross + square["b"] * square["s0"])
        centre = np.array([mean["s0"], mean["s1"] + mean["b"] * mean["s0"]]) * mean["c"]
        return np.array([first, second]) - centre**2

    shares = []
    for name in "csb":
        one, other = [n for n in "csb" if n != name]
        alone = told({name}) - told(set())
        with_one = sum(told({name, n}) - told({n}) for n in (one, other))
        last = told({"c", "s", "b"}) - told({one, other})
        shares.append((2 * alone + with_one + 2 * last) / 6)
    total = told({"c", "s", "b"})
    return np.column_stack([np.array(shares) / total, np.sum(shares, 1) / total.sum()])


def log_normal(loc, sd):
    """Mean and variance."""
    mean = np.exp(loc + sd**2 / 2)
    return mean, mean**2 * np.expm1(sd**2)


@pytest.fixture
def product():
    """Independent strength, direction and edge, whose effect on the second gene is a product of all three."""
    made = program(Normal(1.0), LogNormal(0.1, 0.4), _NormalDirection(1.3))
    factors = made.proposal
    with torch.no_grad():
        for factor, loc, sd in (
            (factors.graph_factor.factor, [0.8], [0.5]),
            (factors.penetrance_factor.factor, [0.2], [0.3]),
            (factors.direction_factor.factor, [[1.0, -0.5]], [[0.4, 0.2]]),
        ):
            factor.loc.copy_(torch.tensor(loc))
            factor.log_scale.copy_(torch.tensor(sd).log())
    return made


def test_shares_of_a_product_are_exact(product, monkeypatch):
    """Seen: all from the guide. Unseen: the edge from the guide, strength and direction from their priors."""
    sources, effects = effects_of(product, [("A",), ("B",)], 200, monkeypatch)
    assert sources.drawn == ["graph", "penetrance", "direction"]
    share, error = effects.shares()
    edge = {"b": (0.8, 0.5**2)}
    seen = {"c": log_normal(0.2, 0.3), "s0": (1.0, 0.4**2), "s1": (-0.5, 0.2**2)} | edge
    unseen = {"c": log_normal(0.1, 0.4), "s0": (0.0, 1.3**2), "s1": (0.0, 1.3**2)} | edge
    for label, moments in enumerate((seen, unseen)):
        expected = exact_shares(moments)  # of strength, direction, edge
        found, se = share[[1, 2, 0], label], error[[1, 2, 0], label]
        assert (se < 0.07).all()
        assert (np.abs(found - expected) < 4 * se + 1e-12).all()
    np.testing.assert_allclose(share.sum(0), 1.0)
    assert (share[3:] == 0).all() and (error[3:] == 0).all()


def test_own_draws_of_an_unseen_target_are_independent_of_those_of_seen_ones(monkeypatch):
    """With equal variances of both targets, the variance of the combination is their sum."""
    made = program(_KnownGraph(torch.zeros(2, 2).double()), Fixed(1.0), _NormalDirection(1.0))
    with torch.no_grad():
        made.proposal.direction_factor.factor.log_scale.zero_()
    _, effects = effects_of(made, [("A",), ("B",), ("A", "B")], 300, monkeypatch)
    seen, unseen, both = effects.variance[:, :, -1].sum(0)
    assert both == pytest.approx(seen + unseen, rel=0.2)


class _SeenFactor(nn.Module):
    """Directions as the guide proposes them where the prior says nothing."""

    def __init__(self):
        super().__init__()
        self.state_pk, self.log_sd_pk = (
            torch.tensor([[1.0, -2.0]]).double(),
            torch.full((1, 2), -2.0).double(),
        )

    def forward(self, perturbations, given):
        loc, variance = seen_directions(self.state_pk, self.log_sd_pk, given)
        with perturbations.plate:
            pyro.sample("direction", dist.Normal(loc, variance.sqrt()).to_event(1))


class _SeenDirection(_NormalDirection):
    def guide(self, sizes, features):
        return _SeenFactor()


def test_what_directions_take_back_is_not_charged_to_graph_and_strength(monkeypatch):
    """The state is seen: another strength finds another direction, another edge only spreads the error of it.

    With e_k the errors of the shift, of variance v, the second gene is seen at e_1 + b e_0: v of the first
    gene, v (1 + var b) of the second, of which the graph has half of v var b.
    """
    made = program(Normal(1.0), LogNormal(0.0, 0.5), _SeenDirection(1.0))
    with torch.no_grad():
        made.proposal.graph_factor.factor.log_scale.fill_(np.log(0.5))
        made.proposal.graph_factor.factor.loc.zero_()
    _, effects = effects_of(made, [("A",)], 100, monkeypatch)
    share, error = (part[:3, 0, -1] for part in effects.shares())
    assert share[0] == pytest.approx(0.125 / 2.25, abs=4 * error[0]) and error[0] < 0.02
    assert share[1] < 1e-9


def test_spread_of_single_cells_is_that_of_the_program():
    """Around the mean of each draw: the direction, however uncertain, adds nothing to it."""
    world = LinearGaussian.separable(np.ones((800, 1), dtype=int), 1)
    batch = world.draw()
    made = world.program()
    with torch.no_grad():
        made.proposal.direction_factor.factor.log_scale.fill_(np.log(5.0))
        state_ck, trust_k = made.encode(batch)
    controls = Controls(state_ck, trust_k, batch.library_c, batch.covariates_cv, np.zeros(5))

    def push_of(draws):
        return results.label_push(made, draws, [("A",)], ["A"], [], None, 0)

    found = uncertainty.cell_variance(made, controls, push_of, np.arange(5), 0)
    assert found[0] == pytest.approx(np.diag(world.cell_covariance).mean(), rel=0.1)


def test_variance_of_the_discrepancy_is_that_of_its_draws():
    parts = (
        np.array([0.1, 0.0]),
        np.array([0.5, 2.0]),
        np.array([0.2, 0.0]),
        np.array([8.0, 8.0]),
        np.array(9.0),
    )
    deltas = np.zeros((20_000, 2, 2), dtype=np.float32)
    Discrepancy(*parts).add_to(deltas, 0.5, ["A", "A+B"], np.array([1, 2]), 0)
    found = Discrepancy(*parts).variance(0.5, np.array([1, 2]))
    np.testing.assert_allclose(found, deltas.var(0), rtol=0.08)
    assert (Discrepancy.none(3).variance(1.0, np.array([1])) == 0).all()


# Fitted models


@pytest.fixture(scope="module")
def found(fitted):
    return fitted.uncertainty_split(LABELS, n_samples=6)


def test_layout(found, fitted):
    assert list(found.sources) == ["perturbation", "source", "variance", "share", "share_se"]
    assert list(found.sources["source"]) == [*ALL] * 3
    assert list(found.labels.index) == LABELS == list(found.genes.obs_names)
    assert list(found.labels["status"]) == ["seen", "unseen", "unseen"]
    assert list(found.genes.var_names) == list(fitted.coding.genes)
    assert sorted(found.genes.layers) == sorted([*ALL, *(f"{name}_se" for name in ALL)])


def test_shares_sum_to_one(found):
    np.testing.assert_allclose(found.sources.groupby("perturbation")["share"].sum(), 1.0)
    np.testing.assert_allclose(sum(found.genes.layers[name] for name in ALL), 1.0, rtol=1e-5)
    assert (found.sources[["variance", "share", "share_se"]] >= 0).all(axis=None)


def test_genes_add_up_to_the_whole(found):
    total = found.genes.X.mean(1)
    np.testing.assert_allclose(found.labels["sd"], np.sqrt(total), rtol=1e-5)
    variance = found.sources.set_index(["perturbation", "source"])["variance"].unstack()
    for name in ALL:
        of_genes = (found.genes.X * found.genes.layers[name]).mean(1)
        np.testing.assert_allclose(variance.loc[LABELS, name], of_genes, rtol=1e-4)


def test_the_sum_is_the_variance_of_a_prediction(found, fitted):
    predicted = fitted.predict(LABELS, n_samples=400)
    expected = np.sqrt(np.square(predicted.layers["delta_sd"]).mean(1))
    np.testing.assert_allclose(found.labels["sd"], expected, rtol=0.1)


def test_order_of_labels_changes_nothing(found, fitted):
    other = fitted.uncertainty_split(LABELS[::-1], n_samples=6)
    keys = ["perturbation", "source"]
    one, two = (table.sources.set_index(keys).sort_index() for table in (found, other))
    np.testing.assert_allclose(one.to_numpy(), two.to_numpy(), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.labels["cell_sd"], other.labels.loc[LABELS, "cell_sd"], rtol=1e-6)


def test_one_seed_gives_the_same_numbers_and_leaves_the_state_alone(found, fitted):
    before = torch.get_rng_state()
    again = fitted.uncertainty_split(LABELS, n_samples=6)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.sources.equals(found.sources) and again.labels.equals(found.labels)
    assert not fitted.uncertainty_split(LABELS, n_samples=6, seed=1).sources.equals(found.sources)


def test_some_genes(fitted):
    genes = list(fitted.coding.genes[3:5])[::-1]
    found = fitted.uncertainty_split(["G0001"], genes=genes, n_samples=4)
    assert list(found.genes.var_names) == genes
    whole = fitted.uncertainty_split(["G0001"], n_samples=4)
    np.testing.assert_allclose(found.genes.X, whole.genes[:, genes].X)


def test_without_penetrance_nothing_is_uncertain_but_cells_differ(fitted):
    found = fitted.uncertainty_split(["G0001"], penetrance=0.0, n_samples=3)
    assert (found.sources["variance"] == 0).all() and found.sources["share"].isna().all()
    assert (found.labels["sd"] == 0).all() and (found.labels["cell_sd"] > 0).all()


def test_what_is_not_drawn_has_no_share():
    screen = set_up(small_screen())
    seen = screen[screen.obs["perturbation"] != "G0003"].copy()
    known = {"graph": "NoGraph", "penetrance": "Fixed"}
    model = SCCVAE(seen, n_nodes=3, hidden=(8,), **known).fit(max_epochs=2, progress=False)
    table = model.uncertainty_split(["G0001", "G0003"], n_samples=4).sources.set_index("source")
    assert (table.loc[["graph", "penetrance"], ["variance", "share", "share_se"]] == 0).all(axis=None)
    assert (table.loc["direction", "variance"] > 0).all()


def test_globals_that_are_drawn_together_are_one_source():
    screen = set_up(small_screen(n_combinations=0))
    seen = screen[screen.obs["perturbation"] != "G0003"].copy()
    model = SCCVAE(seen, n_nodes=3, hidden=(8,), posterior="LowRank").fit(max_epochs=2, progress=False)
    model.discrepancy = Discrepancy.none(screen.n_vars)
    table = model.uncertainty_split(["G0001", "G0003"], n_samples=8).sources
    share = table.set_index(["perturbation", "source"])["share"].unstack()
    assert sorted(share) == ["direction", "discrepancy", "globals", "penetrance"]
    assert share.loc["G0001", "globals"] == pytest.approx(1.0)
    assert share.loc["G0003", "direction"] > 0.01 and share.loc["G0003", "penetrance"] > 0


def test_bad_input_is_refused(fitted):
    with pytest.raises(InputError, match="Cannot predict"):
        fitted.uncertainty_split(["NOGENE"])
    with pytest.raises(InputError, match="control is no perturbation"):
        fitted.uncertainty_split(["G0001", "control"])
    with pytest.raises(InputError, match="asked for twice"):
        fitted.uncertainty_split(["G0001", "G0001"])
    with pytest.raises(InputError, match="not among the measured genes"):
        fitted.uncertainty_split(["G0001"], genes=["NOGENE"])
    with pytest.raises(InputError, match="n_samples"):
        fitted.uncertainty_split(["G0001"], n_samples=1)
    with pytest.raises(InputError, match="penetrance"):
        fitted.uncertainty_split(["G0001"], penetrance=-1.0)
    with pytest.raises(InputError, match="seed"):
        fitted.uncertainty_split(["G0001"], seed=-1)
