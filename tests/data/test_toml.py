"""Specs as TOML files: what is written is read back equal."""

import pytest

from sccvae_pyro import SCCVAE, InputError, priors
from sccvae_pyro.inference.spec import InferenceSpec, NUTSSpec
from sccvae_pyro.models.spec import ModelSpec


@pytest.mark.parametrize(
    "settings",
    [
        {"n_nodes": 7, "graph": priors.graph.LearnedOrder(priors.graph.Horseshoe())},
        {"graph": priors.graph.KnownGraph([("A", "B"), ("A", "C", 1e-7)], forbidden=[("B", "C")])},
        {"intervention": priors.intervention.Kinds({'a "gene"': "do", "ä\x7f\n": "scale", "HLA-A": "shift"})},
    ],
    ids=["nested", "edges", "odd names"],
)
def test_a_model_spec_comes_back(settings, tmp_path):
    spec = ModelSpec.read(None, **settings)
    spec.to_toml(tmp_path / "model.toml")
    assert ModelSpec.read(tmp_path / "model.toml") == spec


def test_an_inference_spec_comes_back(tmp_path):
    path = tmp_path / "inference.toml"
    for spec in (InferenceSpec(objective="iwae", particles=8, learning_rate=1e-5), NUTSSpec(chains=2)):
        spec.to_toml(path)
        assert type(spec).read(path) == spec
    InferenceSpec().to_toml(path)
    assert "max_epochs" not in path.read_text()


def test_a_spec_of_a_model_builds_it_again(fitted, screen, tmp_path):
    fitted.spec.to_toml(tmp_path / "model.toml")
    assert SCCVAE.from_spec(screen, tmp_path / "model.toml").priors == fitted.priors


def test_a_saved_model_is_a_spec(fitted, screen, tmp_path):
    fitted.save(tmp_path / "model")
    again = SCCVAE.from_spec(screen, tmp_path / "model")
    assert again.spec == fitted.spec
    assert not again.is_fitted
    assert SCCVAE.from_spec(screen, tmp_path / "model", graph="NoGraph").spec.graph == {"name": "NoGraph"}
    with pytest.raises(InputError, match="holds no model"):
        SCCVAE.from_spec(screen, tmp_path)
