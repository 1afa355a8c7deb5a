"""What a model says of itself."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest

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
