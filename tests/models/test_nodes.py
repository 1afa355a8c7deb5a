"""Nodes anchored to genes, perturbations that act on them, and strengths that follow expression."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import stats
from screens import set_up, small_screen

from sccvae_pyro import SCCVAE, InputError, priors
from sccvae_pyro.models.networks import AnchoredDecoder, AnchoredEncoder
from sccvae_pyro.models.nodes import Anchored, Free, Nodes
from sccvae_pyro.models.own_node import OwnNode
from sccvae_pyro.models.penetrance import OnExpression
from sccvae_pyro.models.slot import Basis, Described, Perturbations, Sizes, Targets

QUICK = {"max_epochs": 2, "batch_size": 64, "progress": False}
SIZES = Sizes(10, 6, 4, 3, 0, 0, node_names=("A", "B", "C", "D"), perturbation_names=("A", "B", "D"))
TARGETS = Targets(("A", "B", "D"), torch.tensor([0, 1, 3]), torch.tensor([-1.0, 0.0, 1.5]))
ACYCLIC = {"nodes": "Anchored", "direction": "OwnNode"}


def perturbations():
    basis = Basis(torch.ones(3, 1), torch.zeros(3))
    return Perturbations.of(Described(torch.zeros(3, 0), basis, TARGETS))


# Nodes


def test_nodes_are_the_measured_perturbed_genes():
    placed = Anchored().place(("g0", "B", "A"), ("A", "B", "unmeasured"))
    assert placed == (2, ("A", "B"), (2, 1))


def test_nodes_are_the_genes_that_are_named():
    placed = Anchored(("B", "g0")).place(("g0", "B", "A"), ("A",))
    assert placed == (2, ("B", "g0"), (1, 0))


def test_gene_that_is_not_measured_is_refused():
    with pytest.raises(InputError, match=r"'stat1' are not among.*Did you mean 'STAT1'"):
        Anchored(("stat1",)).place(("STAT1",), ())


def test_no_measured_target_is_refused():
    with pytest.raises(InputError, match=r"no perturbed gene is measured.*'A'"):
        Anchored().place(("g0",), ("A",))


def test_genes_named_twice_or_as_text_are_refused():
    with pytest.raises(InputError, match="'A' more than once"):
        Anchored(("A", "A"))
    with pytest.raises(InputError, match="'STAT1'"):
        Anchored("STAT1")


@pytest.mark.parametrize("member", [Free(3), Anchored(("A", "B"))], ids=str)
def test_nodes_are_read_back(member):
    assert Nodes.from_dict(member.to_dict()) == member


def test_number_and_kind_of_nodes_contradict_each_other(screen):
    with pytest.raises(InputError, match="n_nodes is short for free nodes"):
        SCCVAE(screen, n_nodes=3, nodes="Anchored")


def test_gene_of_a_node_shows_that_node_alone():
    torch.manual_seed(0)
    decoder = AnchoredDecoder([4, 1], 1, (8,), 6)
    with torch.no_grad():
        decoder.covariates_vk.copy_(torch.tensor([[0.2, -0.3]]))
    state, covariates = torch.randn(5, 2, requires_grad=True), torch.ones(5, 1)
    change = decoder(state, covariates)
    for gene, node, offset in ((4, 0, 0.2), (1, 1, -0.3)):
        torch.testing.assert_close(change[:, gene], 0.3 * state[:, node] + offset)
    (gradient,) = torch.autograd.grad(change[:, 0].sum(), state)
    assert (gradient != 0).all()  # a gene without a node shows all of them


def test_node_reads_its_gene():
    torch.manual_seed(0)
    encoder = AnchoredEncoder(torch.ones(6), 2.0 * torch.ones(6), 0, (8,), [4, 1])
    x = torch.randn(1, 6, requires_grad=True)
    with torch.no_grad():
        encoder.body[-1].weight.zero_()
    state, trust = encoder(x, torch.zeros(1, 0))
    torch.testing.assert_close(state, 0.5 * (x[:, [4, 1]] - 1.0) / 2.0 + encoder.body[-1].bias)
    assert trust.shape == (2,)


# Own node


def log_prob(model, site, value, **given):
    data = {site: torch.tensor(value, dtype=torch.float32), **given}
    trace = poutine.trace(poutine.condition(model, data=data)).get_trace(SIZES, perturbations())
    trace.compute_log_prob()
    return trace.nodes[site]["log_prob"].numpy()


def test_density_of_the_own_push():
    own, size = np.array([-3.0, 2.0, 0.1]), 2.4
    population = {"direction_size": size, "direction_spread": 0.3, "direction_down": 0.8}
    given = {name: torch.tensor(value) for name, value in population.items()}
    found = log_prob(OwnNode().model, "direction_own", own, **given)
    down, up = (stats.norm(mean, 0.3 * size).pdf(own) for mean in (-size, size))
    np.testing.assert_allclose(found, np.log(0.8 * down + 0.2 * up), rtol=1e-4)


def test_density_of_the_probability_of_a_sign():
    found = log_prob(OwnNode(down=0.7).model, "direction_down", 0.4)
    assert float(found) == pytest.approx(stats.beta(7.0, 3.0).logpdf(0.4), rel=1e-5)


def test_density_of_the_direction():
    own, direction = np.array([-3.0, 2.0, 0.5]), np.linspace(-1, 1, 12).reshape(3, 4)
    given = {"direction_own": torch.tensor(own).float(), "direction_off_target": torch.tensor(0.3)}
    found = log_prob(OwnNode().model, "direction", direction, **given)
    mean = np.zeros((3, 4))
    mean[[0, 1, 2], [0, 1, 3]] = own
    np.testing.assert_allclose(found, stats.norm(mean, 0.3).logpdf(direction).sum(1), rtol=1e-4)


@pytest.mark.parametrize(
    ("site", "median"),
    [("direction_size", 2.0), ("direction_spread", 0.5), ("direction_off_target", 0.1)],
    ids=["size", "spread", "off target"],
)
def test_density_of_the_sizes(site, median):
    found = log_prob(OwnNode(size=2.0, spread=0.5, off_target=0.1).model, site, 0.4)
    assert float(found) == pytest.approx(stats.lognorm(s=0.5, scale=median).logpdf(0.4), rel=1e-5)


def test_unseen_pushes_follow_the_belief_about_the_sign():
    """Of 1,000 draws, each with a probability of its own, a tenth goes up: within four standard errors."""
    pyro.set_rng_seed(0)
    with torch.no_grad(), pyro.plate("draws", 1000, dim=-2):
        trace = poutine.trace(OwnNode(down=0.9).model).get_trace(SIZES, perturbations())
    up = (trace.nodes["direction_own"]["value"] > 0).double().mean(-1)
    assert float(up.mean()) == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 1000))


@pytest.mark.parametrize("sign", [-1.0, 1.0], ids=["down", "up"])
def test_sign_is_learned_from_the_seen(sign):
    """Of 30 perturbations that all go one way, Beta(9.5, .5) learns what the conjugate posterior says."""
    pyro.set_rng_seed(0)
    prior, own = OwnNode(), sign * torch.linspace(2.0, 4.0, 30)
    factor = prior.guide(SIZES, torch.zeros(3, 0))
    named = Targets(tuple(map(str, range(30))), torch.arange(30) % 4, torch.zeros(30))
    described = Described(torch.zeros(30, 0), Basis(torch.ones(30, 1), torch.zeros(30)), named)

    def model():
        hidden = poutine.block(hide=["direction", "direction_off_target"])
        with hidden, poutine.condition(data={"direction_own": own}):
            prior.model(SIZES, Perturbations.of(described))

    def guide():
        factor.size()
        factor.spread()
        factor.down()

    optimiser = torch.optim.Adam(factor.parameters(), lr=0.05)
    loss = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    for _ in range(400):
        optimiser.zero_grad()
        loss.differentiable_loss(model, guide).backward()
        optimiser.step()
    with torch.no_grad():
        found = factor.down.distribution().sample((4000,)).mean()
    exact = stats.beta(9.5 + 30 * (sign < 0), 0.5 + 30 * (sign > 0))
    assert float(found) == pytest.approx(exact.mean(), abs=0.02)


@pytest.mark.parametrize("down", [0.0, 1.0, 1.5, "yes"])
def test_belief_about_the_sign_is_a_probability(down):
    with pytest.raises(InputError, match=f"down.*{down}"):
        OwnNode(down=down)


def test_perturbation_without_a_node_is_refused(screen):
    with pytest.raises(InputError, match=r"'G0001'.*Anchored"):
        SCCVAE(screen, nodes=Anchored(("G0000",)), direction="OwnNode")


@pytest.fixture(scope="module")
def anchored():
    """Two perturbations held out, both among the nodes."""
    adata = set_up(small_screen())
    names = tuple(adata.uns["truth"]["nodes"])
    seen = adata[~adata.obs["perturbation"].astype(str).str.contains("G0003|G0004")].copy()
    model = SCCVAE(seen, nodes=Anchored(names), direction="OwnNode", hidden=(16,))
    return model.fit("inference/quick.toml", max_epochs=30, batch_size=64, progress=False)


def test_edges_are_between_genes(anchored):
    edges = anchored.edges(n_samples=10)
    assert set(edges["source"]) | set(edges["target"]) == {f"G000{k}" for k in range(8)}


def test_unseen_perturbation_acts_on_its_own_gene(anchored):
    """Its gene falls, and more than any other of the network."""
    nodes = [f"G000{k}" for k in range(8)]
    for gene in ("G0003", "G0004"):
        predicted = anchored.predict([gene])
        assert predicted.obs["status"].item() == "unseen"
        delta = predicted[:, nodes].layers["delta"][0]
        assert nodes[int(np.argmin(delta))] == gene
        assert delta.min() < 0


def test_what_can_be_predicted_has_a_node(anchored):
    table = anchored.predictable(["G0001", "G0003", "G0020"]).set_index("gene")
    assert table["predictable"].tolist() == [True, True, False]
    assert table.loc["G0003", "reason"] == "acts on its own node"
    with pytest.raises(InputError, match=r"no node for 'G0020'.*Anchored"):
        anchored.predict(["G0020"])


def test_anchored_model_is_read_back(anchored, tmp_path):
    anchored.save(tmp_path)
    loaded = SCCVAE.load(tmp_path)
    assert loaded.nodes == anchored.nodes
    np.testing.assert_array_equal(loaded.predict(["G0003"]).X, anchored.predict(["G0003"]).X)


# Expression


def test_density_of_a_strength_that_expression_tells():
    strength = np.array([0.5, 1.0, 2.0])
    found = log_prob(OnExpression(scale=0.3).model, "strength", strength, strength_slope=torch.tensor(0.4))
    centre = np.exp(0.4 * TARGETS.expression_p.numpy())
    np.testing.assert_allclose(found, stats.lognorm(s=0.3, scale=centre).logpdf(strength), rtol=1e-4)
    of_slope = log_prob(OnExpression(weight=0.2).model, "strength_slope", 0.1)
    assert float(of_slope) == pytest.approx(stats.norm(scale=0.2).logpdf(0.1), rel=1e-5)


def test_expression_of_the_targets_is_that_of_control_cells(screen):
    """Standardised log proportion of the molecules of control cells, half a molecule added to each gene."""
    program = SCCVAE(screen, n_nodes=3, hidden=(4,), penetrance="OnExpression").program
    control = screen[screen.obs["perturbation"] == "control"]
    total = np.asarray(control.X.sum(0)).ravel()
    names = program.sizes.perturbation_names
    log_mean = np.log(total[screen.var_names.get_indexer(names)] + 0.5)
    expected = (log_mean - log_mean.mean()) / log_mean.std()
    np.testing.assert_allclose(program.expression_p, expected, rtol=1e-4)


def test_target_that_is_not_measured_is_refused(screen):
    without = screen[:, [gene for gene in screen.var_names if gene != "G0002"]].copy()
    with pytest.raises(InputError, match=r"OnExpression.*'G0002'"):
        SCCVAE(without, n_nodes=3, penetrance="OnExpression")


def test_unseen_target_has_its_own_expression(screen):
    seen = screen[~screen.obs["perturbation"].astype(str).str.contains("G0003")].copy()
    model = SCCVAE(seen, n_nodes=3, hidden=(8,), penetrance=priors.penetrance.OnExpression())
    model.fit(**QUICK)
    expression = model._describe(["G0003"]).targets.expression_p.numpy()
    assert np.isfinite(expression).all()
    assert np.isfinite(model.predict(["G0003"]).X).all()
