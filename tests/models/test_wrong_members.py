"""Settings of members that are no settings: each refused with what to write instead."""

import numpy as np
import pytest

from sccvae_pyro import SCCVAE, InputError, priors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"direction": priors.direction.OwnNode}, r"OwnNode\(\), with brackets"),
        ({"graph": priors.noise.Laplace()}, "slot noise, not to graph. Pass it as noise="),
        ({"graph": priors.likelihood.Normal()}, "slot likelihood, not to graph"),
        ({"graph": priors.posterior.LowRank(2)}, "slot posterior, not to graph"),
        ({"posterior": priors.noise.Flow()}, "slot noise, not to posterior"),
        ({"likelihood": priors.noise.Laplace()}, "slot noise, not to likelihood"),
        ({"graph": {"name": "Ordered", "graph": priors.noise.Laplace()}}, "slot noise, not to graph"),
        ({"nodes": 5}, "a member, its name, or a table"),
        ({"nodes": ["G0001"]}, "a member, its name, or a table"),
        ({"hidden": ["16"]}, "hidden.0 = '16'"),
        ({"hidden": [True]}, "hidden.0 = True"),
        ({"hidden": [10**12]}, "hidden.0 = 1000000000000: .* less than or equal to 8192"),
        ({"n_nodes": True}, "whole number from 1 to 8192, not True"),
        ({"nodes": {"name": "Anchored", "genes": 3}}, "list of names, not 3"),
        ({"nodes": {"name": "Anchored", "genes": None}}, "list of names, not None"),
        ({"nodes": {"name": "Anchored", "genes": {"G0000": 1}}}, "list of names"),
        ({"nodes": {"name": "Anchored", "genes": {"G0000"}}}, "list of names"),
        ({"n_nodes": 2, "posterior": {"name": "LowRank", "rank": True}}, "not True"),
        ({"n_nodes": 2, "posterior": {"name": "LowRank", "rank": 10**3}}, "rank must be at most"),
        (
            {"nodes": "Anchored", "intervention": {"name": "Kinds", "kinds": {"G0002+G0004": "do"}}},
            "one by one",
        ),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(screen, settings, message):
    with pytest.raises(InputError, match=message):
        SCCVAE(screen, **{"hidden": (4,), **settings})


def test_numbers_of_numpy_are_numbers():
    free, own = priors.nodes.Free(np.int64(4)), priors.direction.OwnNode(size=np.float32(3))
    assert (free, type(free.n_nodes)) == (priors.nodes.Free(4), int)
    assert (own, type(own.size)) == (priors.direction.OwnNode(size=3.0), float)


@pytest.mark.parametrize("spec", [5, ["x"]])
def test_specs_of_another_kind_are_refused(screen, fitted, spec):
    with pytest.raises(InputError, match=r"path of a .toml file or a mapping"):
        SCCVAE.from_spec(screen, spec)
    with pytest.raises(InputError, match=r"path of a .toml file or a mapping"):
        fitted.nuts(screen[:10], spec)


def test_numbers_of_draws_are_checked(fitted, screen):
    with pytest.raises(InputError, match="n_samples"):
        fitted.get_latent(screen[:5], n_samples=0)
    with pytest.raises(InputError, match="n_samples"):
        fitted.log_density(screen[:5], n_samples=1.5)
    with pytest.raises(InputError, match="no cells"):
        fitted.nuts(screen[:0])


def test_what_a_prior_refuses_cannot_be_predicted(screen):
    features = screen.uns["features"]
    adata = screen.copy()
    adata.uns["features"] = features.rename(index={"G0007": "NEW"})
    without = adata[~adata.obs["perturbation"].astype(str).str.contains("G0007")].copy()
    model = SCCVAE(without, hidden=(4,), n_nodes=3, penetrance="OnExpression")
    table = model.predictable(["NEW", "G0001"]).set_index("gene")
    assert table["predictable"].tolist() == [False, True]
    assert "'NEW'" in table.loc["NEW", "reason"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.graph.Laplace(1e-300), "Laplace: scale must lie between 1e-15 and"),
        (lambda: priors.penetrance.Fixed(1e30), r"Fixed: value must lie between .* 1e\+15"),
        (lambda: priors.penetrance.LogNormal(loc=1e30), r"LogNormal: loc must be .* at most 1e\+15 in size"),
        (lambda: priors.direction.GaussianProcess(length=1e-300), "GaussianProcess: length must lie between"),
        (lambda: priors.noise.StudentT(df=1e300), "StudentT: df must lie between"),
        (lambda: priors.graph.LowRank(rank=2**70), "LowRank: rank must be a whole number from 1 to 8192"),
        (lambda: priors.graph.SpikeSlab(probability=True), "SpikeSlab: probability must .* not True"),
        (lambda: priors.graph.Random(density=True), "Random: density must .* not True"),
        (lambda: priors.graph.Random(seed=True), "seed must be a whole number .* not True"),
    ],
)
def test_settings_beyond_single_precision_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
