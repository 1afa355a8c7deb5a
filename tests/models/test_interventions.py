"""Interventions: structural equations by hand, exact evidence, and what is refused."""

import math

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import (
    LinearEncoder,
    Passing,
    _KnownDirection,
    _KnownGraph,
    _KnownNoise,
    program_of,
)
from scipy import stats

from sccvae_pyro import SCCVAE, InputError, priors
from sccvae_pyro.data.loading import Batch
from sccvae_pyro.inference.objectives import NegativeELBO
from sccvae_pyro.models import scm
from sccvae_pyro.models.interventions import Do, Kinds, Scale, Shift
from sccvae_pyro.models.noise import StandardNormal
from sccvae_pyro.models.penetrance import Fixed
from sccvae_pyro.models.program import Priors
from sccvae_pyro.models.responders import AllCells, Beta, Evidence
from sccvae_pyro.models.slot import Sizes, Targets

B = torch.tensor([[0.0, 0.5, -1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.double)
NOISE = torch.tensor([[1.0, -0.3, 0.7]], dtype=torch.double)
TARGETS = Targets(("A", "B", "C"), torch.tensor([0, 1, 2]), torch.zeros(3))
NAMES = {"node_names": ("A", "B", "C"), "perturbation_names": ("A", "B", "C")}
SIZES = Sizes(cells=1, genes=3, nodes=3, perturbations=3, features=0, covariates=0, **NAMES)


def action(member, direction, strength=1.0):
    """Action of the perturbation of node B, whose direction has this value on every node."""
    directions = torch.tensor(direction, dtype=torch.double).expand(3, 3)
    return member.action(torch.full((3,), strength).double(), directions, TARGETS)[1:2]


def test_do_cuts_a_node_from_its_parents_and_sets_it():
    state = scm.respond(NOISE, action(Do(), [0.0, 1.5, 0.0]), B)
    np.testing.assert_allclose(state, [[1.0, 1.5, 0.7 - 1.0 * 1.0 + 2.0 * 1.5]])


def test_do_of_half_a_penetrance_keeps_half():
    own = 0.5 * 1.0 - 0.3
    half = 0.5 * own + 0.5 * 1.5
    state = scm.respond(NOISE, action(Do(), [0.0, 1.5, 0.0], strength=0.5), B)
    np.testing.assert_allclose(state, [[1.0, half, 0.7 - 1.0 + 2.0 * half]])


def test_beyond_full_penetrance_nothing_is_kept():
    state = scm.respond(NOISE, action(Do(), [0.0, 1.5, 0.0], strength=1.4), B)
    assert float(state[0, 1]) == pytest.approx(1.4 * 1.5)


def test_scale_multiplies_what_a_node_has():
    scaled = math.exp(-0.4) * (0.5 * 1.0 - 0.3)
    state = scm.respond(NOISE, action(Scale(), [0.0, -0.4, 0.0]), B)
    np.testing.assert_allclose(state, [[1.0, scaled, 0.7 - 1.0 + 2.0 * scaled]])


@pytest.mark.parametrize("member", [Do(), Scale()], ids=str)
def test_other_nodes_are_pushed(member):
    """Off its own node every intervention is a shift."""
    found = scm.respond(NOISE, action(member, [0.3, 0.0, 0.2]), B)
    own = found[0, 1]
    np.testing.assert_allclose(found[0, [0, 2]], [1.3, 0.9 - 1.3 + 2.0 * own])


def test_combination_adds_actions():
    """One target is set, another pushed: both happen."""
    member = Kinds({"A": "do"})
    directions = torch.diag(torch.tensor([2.0, 0.5, 0.0], dtype=torch.double))
    table = member.action(torch.ones(3).double(), directions, TARGETS)
    state = scm.respond(NOISE, scm.action_of_cells(table, torch.tensor([[0, 1]])), B)
    np.testing.assert_allclose(state, [[2.0, 1.0 - 0.3 + 0.5, 0.7 - 2.0 + 2.0 * 1.2]])


@pytest.mark.parametrize("member", [Do(), Scale(), Kinds()], ids=str)
def test_no_penetrance_is_a_control_cell(member):
    found = scm.respond(NOISE, 0.0 * action(member, [0.3, 1.5, 0.2]), B)
    torch.testing.assert_close(found, scm.propagate(NOISE, B))


@pytest.mark.parametrize("member", [Shift(), Do(), Scale()], ids=str)
def test_answer_is_affine_in_the_noise(member):
    noise = torch.randn(5, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    act = action(member, [0.3, 1.5, 0.2], strength=0.7).expand(5, -1)
    pushed, effect = scm.answer(act, B)
    expected = pushed + (noise.unsqueeze(-2) @ effect).squeeze(-2)
    torch.testing.assert_close(scm.respond(noise, act, B), expected)


@pytest.mark.parametrize("member", [Do(), Scale()], ids=str)
def test_draws_at_once_are_one_by_one(member):
    noise, acts = torch.randn(4, 5, 3).double(), action(member, [0.3, 1.5, 0.2]).expand(4, 5, -1)
    graphs = torch.rand(4, 1, 1, 1).double() * B
    found = scm.respond(noise, acts, graphs)
    expected = [scm.respond(noise[s], acts[s], graphs[s, 0]) for s in range(4)]
    torch.testing.assert_close(found, torch.stack(expected))


# The guide


@pytest.mark.parametrize("kind", ["shift", "do", "scale"])
def test_elbo_is_the_evidence_where_states_are_read_with_normal_error(kind):
    """Every draw gives log p(x | B, direction), whatever graph and intervention: the guide is exact."""
    rng = np.random.default_rng(1)
    K, sd, n = 3, 0.4, 12
    directions = rng.normal(size=(K, K))
    targets = np.repeat(np.arange(K + 1), n // (K + 1))[:, None]
    state = torch.tensor(rng.normal(size=(n, K)) * 1.5)
    batch = Batch(
        state, torch.ones(n).double(), torch.tensor(targets), torch.zeros(n, 0), torch.zeros(n).long()
    )
    members = Priors(
        _KnownGraph(B),
        Fixed(0.6),
        _KnownDirection(torch.tensor(directions)),
        AllCells(),
        StandardNormal(),
        _KnownNoise(sd),
        intervention=Kinds(otherwise=kind),
    )
    encoder = LinearEncoder(torch.eye(K).double(), torch.full((K,), 1 / (1 + sd**2)).double())
    program = program_of(members, Sizes(n, K, K, K, 0, 0, **NAMES), encoder, Passing())
    pyro.set_rng_seed(0)
    with torch.no_grad():
        found = [-float(NegativeELBO(program)(batch)) * n for _ in range(3)]
    expected = 0.0
    for x, (p,) in zip(state.numpy(), targets, strict=True):
        shift, keep = np.zeros(K), np.ones(K)
        if p < K:
            shift = 0.6 * directions[p]
            if kind == "do":
                keep[p] = 1 - 0.6
            if kind == "scale":
                keep[p], shift[p] = math.exp(shift[p]), 0.0
        effect = np.linalg.inv(np.eye(K) - B.numpy() * keep)
        covariance = effect.T @ np.diag(keep**2) @ effect + sd**2 * np.eye(K)
        expected += stats.multivariate_normal(shift @ effect, covariance).logpdf(x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_noise_of_a_node_that_is_cut_is_its_prior():
    state = torch.tensor([[0.4, 1.0, -0.5]], dtype=torch.double)
    trust = torch.tensor([0.8, 0.6, 0.9], dtype=torch.double)
    found = Evidence(state, trust, B, action(Do(), [0.0, 1.5, 0.0])).noise(torch.ones(1).double())
    assert float(found.mean[0, 1]) == pytest.approx(0.0, abs=1e-12)
    assert float(found.variance[0, 1]) == pytest.approx(1.0)


@pytest.mark.parametrize("member", [Do(), Scale()], ids=str)
def test_probability_of_a_response_is_bayes_rule_under_interventions(member):
    """A cut or a scale changes the covariance of what is read, and that tells, too."""
    state, trust = np.array([[0.4, 1.0, -0.5]]), np.array([0.8, 0.6, 0.9])
    act = action(member, [0.0, -1.5, 0.0], strength=0.9)
    evidence = Evidence(torch.tensor(state), torch.tensor(trust), B, act)
    found = float(Beta().expected(torch.tensor([0.3]).double(), evidence)[0])
    keep, shift = np.ones(3), np.zeros(3)
    if isinstance(member, Do):
        keep[1], shift[1] = 0.1, -1.35
    else:
        keep[1] = math.exp(-1.35)
    densities = []
    for kept, pushed in ((keep, shift), (np.ones(3), np.zeros(3))):
        effect = np.linalg.inv(np.eye(3) - B.numpy() * kept)
        covariance = effect.T @ np.diag(kept**2) @ effect + np.diag(1 / trust - 1)
        densities.append(stats.multivariate_normal(pushed @ effect, covariance).pdf(state))
    assert found == pytest.approx(0.3 * densities[0] / (0.3 * densities[0] + 0.7 * densities[1]))


def test_probability_of_a_response_counts_what_children_show():
    """Bayes' rule with the full covariance of what is read: a parent's shift shows in its children."""
    trust = np.array([0.8, 0.6, 0.9])
    state, shift = np.array([[0.4, 1.0, -0.5]]), np.array([[0.5, 0.0, 0.0]])
    evidence = Evidence(*(torch.tensor(part) for part in (state, trust, B.numpy(), shift)))
    found = float(Beta().expected(torch.tensor([0.5]).double(), evidence)[0])
    effect = np.linalg.inv(np.eye(3) - B.numpy())
    covariance = effect.T @ effect + np.diag(1 / trust - 1)
    responds, escapes = (
        stats.multivariate_normal(mean, covariance).pdf(state) for mean in (shift[0] @ effect, np.zeros(3))
    )
    assert found == pytest.approx(responds / (responds + escapes))


# Priors as a language


def test_kinds_are_read_back():
    member = Kinds({"STAT1": "do"}, otherwise="scale")
    assert priors.intervention.Intervention.from_dict(member.to_dict()) == member


def test_unknown_kind_is_refused():
    with pytest.raises(InputError, match=r"STAT1.*'doo'.*'do'"):
        Kinds({"STAT1": "doo"})
    with pytest.raises(InputError, match="otherwise cannot be 'foo'"):
        Kinds({"otherwise": "foo"})


def test_unknown_perturbation_is_refused():
    with pytest.raises(InputError, match=r"'AA'.*'A'"):
        Kinds({"AA": "do"}).check(TARGETS, SIZES)


def test_perturbation_without_a_node_is_refused(screen):
    with pytest.raises(InputError, match=r"G0000.*Anchored"):
        SCCVAE(screen, n_nodes=3, intervention="Do")


def test_model_with_all_kinds_predicts(screen):
    """Penetrance 0 is the control; a node that is set shows its own gene no more than its value."""
    model = SCCVAE(
        screen, nodes="Anchored", direction="OwnNode", intervention=Kinds({"G0001": "do", "G0002": "scale"})
    )
    model.fit(max_epochs=2, batch_size=64, progress=False)
    assert (model.predict(["G0001", "G0002", "G0003"], penetrance=0.0).layers["delta"] == 0).all()
    one, two, pair = model.predict(["G0001", "G0002", "G0001+G0002"]).layers["delta"]
    for delta in (one, two, pair):
        assert np.isfinite(delta).all()
    cells = model.counterfactual(screen[:4].copy(), "G0001", n_samples=4)
    assert np.isfinite(cells.X).all()
