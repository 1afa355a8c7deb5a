"""What a model says of itself."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch

import sccvae_pyro as sv
from sccvae_pyro import SCCVAE
from sccvae_pyro.models.factors import MeanField, Plated
from sccvae_pyro.models.penetrance import PenetrancePrior
from sccvae_pyro.models.slot import Member


@pytest.fixture(scope="module")
def screen():
    adata = sv.datasets.simulate(
        n_perturbations=4, cells_per_perturbation=10, n_control=30, n_genes=20, n_modules=2, seed=0
    )
    sv.setup_anndata(
        adata, "perturbation", "control", library_key="total_umi", guide_key="guide", feature_key="features"
    )
    return adata


def lines_of(screen, **priors):
    return SCCVAE(screen, n_nodes=3, hidden=(4,), **priors).describe().splitlines()


def test_every_slot_and_site_is_named(screen):
    text = "\n".join(lines_of(screen, penetrance="Guides", responders="Beta"))
    for slot in ("graph", "penetrance", "direction", "responders", "noise", "likelihood"):
        assert f"\n{slot} " in "\n" + text
    assert "B ~ Laplace(0, 0.05)   (3 x 3)" in text
    assert "strength[perturbations] ~ LogNormal(0, 0.05)" in text
    assert "guide_strength[guides] ~ LogNormal(-0.125, 0.5)" in text
    assert "responders_mean ~ Beta(4, 1)" in text
    assert "share[cells] ~ Bernoulli(·) | responders" in text
    assert "direction[perturbations] ~ Normal(·, ·) | direction_scale" in text
    assert "(I - B)^-1" in text


def test_a_site_stands_with_its_slot(screen):
    lines = lines_of(screen)
    start, end = (
        next(i for i, x in enumerate(lines) if x.startswith(slot)) for slot in ("direction", "intervention")
    )
    assert {line.split("[")[0].split(" ~")[0].strip() for line in lines[start + 1 : end]} == {
        "direction", "direction_scale", "direction_signal", "direction_function_weights",
    }  # fmt: skip


def site_lines(model):
    """Lines of the sites, without those of the members, which begin at the margin."""
    return [line.strip() for line in model.describe().splitlines() if line.startswith(" ")]


def test_a_draw_is_no_constant(screen):
    """What depends on a draw is a dot, also where it is one number for all entries."""
    genes = tuple(f"G{i:04d}" for i in range(4))
    own = SCCVAE(
        screen, hidden=(4,), nodes=sv.priors.nodes.Anchored(genes), direction="OwnNode", responders="Beta"
    )
    assert "responders[perturbations] ~ Beta(·, ·) | responders_mean" in site_lines(own)
    assert (
        "direction[perturbations] ~ Normal(·, ·) | direction_off_target, direction_own   (4 each)"
        in site_lines(own)
    )
    assert own.describe() == own.describe()


def test_describing_leaves_the_random_state(screen):
    model = SCCVAE(screen, n_nodes=3, hidden=(4,))
    before = torch.get_rng_state()
    model.describe()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("slot", "member", "line"),
    [
        ("graph", "SpikeSlab", "B ~ 0.95 Normal(0, 0.02) + 0.05 Normal(0, 0.5)   (3 x 3)"),
        (
            "graph",
            {"name": "KnownGraph", "allowed": [["node_0", "node_1", 0.25]]},
            "B ~ 0.75 Normal(0, 0.02) + 0.25 Normal(0, 0.5)   (3 x 3)",
        ),
        ("graph", "NoGraph", "B = 0   (3 x 3)"),
        (
            "graph",
            {"name": "LearnedOrder", "graph": "SpikeSlab"},
            "edge_weight ~ 0.95 Normal(0, 0.02) + 0.05 Normal(0, 0.5)   (3 x 3)",
        ),
        (
            "graph",
            "LearnedOrder",
            "B = edge_weight_jk where order_score_j < order_score_k, else 0   (3 x 3)",
        ),
        (
            "graph",
            {"name": "LearnedOrder", "graph": "LowRank"},
            "edge_weight = edge_source_j . edge_target_k + edge_sparse_jk, on the edges that there may be   "
            "(3 x 3)",
        ),
        ("penetrance", {"name": "Fixed", "value": 0.5}, "strength[perturbations] = 0.5   (4 each)"),
        ("noise", "Flow", "z[cells] ~ Normal(0, 1), transformed   (3 each)"),
        ("noise", "Mixture", "z[cells] ~ mixture of 4: Normal(·, 1)   (3 each)"),
    ],
    ids=str,
)
def test_a_swapped_prior_is_spelt_out(screen, slot, member, line):
    assert line in site_lines(SCCVAE(screen, n_nodes=3, hidden=(4,), **{slot: member}))


def test_zero_inflation_is_spelt_out(screen):
    lines = site_lines(SCCVAE(screen, n_nodes=3, hidden=(4,), likelihood="ZeroInflatedNegativeBinomial"))
    assert any(
        line.startswith("x[cells] ~ 0 with probability ·, else NegativeBinomial(·, ·) | ") for line in lines
    )


@pytest.fixture
def gumbel():
    """A prior from outside the package, which leaves the catalogue as it was."""

    @dataclass(frozen=True)
    class GumbelOfOnesOwn(PenetrancePrior):
        """Strengths with a tail."""

        def model(self, sizes, perturbations):
            zero = perturbations.features.new_zeros(())
            with perturbations.plate:
                return pyro.sample("strength", dist.Gumbel(zero + 1.0, zero + 0.25))

        def guide(self, sizes, features):
            return Plated(MeanField("strength", [sizes.perturbations], 0))

    yield GumbelOfOnesOwn()
    del Member.registry["penetrance"]["GumbelOfOnesOwn"]


def test_a_prior_of_ones_own_is_described(screen, gumbel):
    lines = lines_of(screen, penetrance=gumbel)
    (said,) = (line for line in lines if line.startswith("penetrance"))
    assert said.endswith("GumbelOfOnesOwn(): Strengths with a tail.")
    assert any("strength[perturbations] ~ Gumbel(1, 0.25)" in line for line in lines)


def test_describing_changes_nothing(screen):
    model = SCCVAE(screen, n_nodes=3, hidden=(4,)).fit(max_epochs=1, batch_size=32, progress=False)
    before = model.predict(["G0001"], n_samples=4).X
    model.describe()
    assert (before == model.predict(["G0001"], n_samples=4).X).all()
