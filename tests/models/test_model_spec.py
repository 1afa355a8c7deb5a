"""Model specs: what is read, what overrides what, and what is refused."""

from pathlib import Path

import pytest

from sccvae_pyro import SCCVAE, InputError, priors
from sccvae_pyro.models.likelihoods import Likelihood
from sccvae_pyro.models.spec import ModelSpec

ROOT = Path(__file__).parents[2]


def toml(tmp_path, text):
    path = tmp_path / "model.toml"
    path.write_text(text)
    return path


def refused(*parts, source=None, **overrides):
    with pytest.raises(InputError) as error:
        ModelSpec.read(source, **overrides)
    for part in parts:
        assert part in str(error.value)


def test_default_file_is_the_default():
    """What models/default.toml spells out is what SCCVAE(adata) does."""
    assert ModelSpec.read(ROOT / "models/default.toml") == ModelSpec.read()


@pytest.mark.parametrize("path", sorted(ROOT.glob("models/*.toml")), ids=lambda path: path.stem)
def test_shipped_files_can_be_read(path):
    spec = ModelSpec.read(path)
    auto = spec.likelihood == {"name": "auto"}
    kind = "counts" if auto else Likelihood.from_dict(spec.likelihood).kind
    assert spec.priors(kind).likelihood.kind == kind


def test_file_is_read(tmp_path):
    path = toml(
        tmp_path, 'n_nodes = 7\nhidden = [8]\ngraph = "NoGraph"\n[direction]\nname = "Linear"\nscale = 0.1\n'
    )
    spec = ModelSpec.read(path)
    assert (spec.nodes["n_nodes"], spec.hidden) == (7, (8,))
    assert spec.priors("counts").graph == priors.graph.NoGraph()
    assert spec.priors("counts").direction == priors.direction.Linear(scale=0.1)


def test_keywords_override_the_file(tmp_path):
    path = toml(tmp_path, 'n_nodes = 7\ngraph = "NoGraph"\n')
    spec = ModelSpec.read(path, n_nodes=9, hidden=None, graph=priors.graph.Normal(0.3))
    assert spec.nodes == {"name": "Free", "n_nodes": 9}
    assert spec.hidden == ModelSpec().hidden
    assert spec.priors("counts").graph == priors.graph.Normal(0.3)


def test_spec_of_a_model_builds_the_same_model(screen):
    one = SCCVAE(screen, n_nodes=3, hidden=(8,), graph=priors.graph.Normal(0.3))
    other = SCCVAE.from_spec(screen, one.spec)
    assert other.spec == one.spec
    assert other.priors == one.priors


@pytest.mark.parametrize(
    ("kind", "likelihood"),
    [("counts", priors.likelihood.NegativeBinomial()), ("continuous", priors.likelihood.Normal())],
)
def test_likelihood_is_chosen_by_the_values(kind, likelihood):
    assert ModelSpec.read(None, likelihood="auto").priors(kind).likelihood == likelihood


def test_likelihood_of_a_screen_is_chosen_by_its_values(screen, log_screen):
    assert isinstance(SCCVAE(screen, n_nodes=2).priors.likelihood, priors.likelihood.NegativeBinomial)
    assert isinstance(SCCVAE(log_screen, n_nodes=2).priors.likelihood, priors.likelihood.Normal)


@pytest.mark.parametrize(
    ("kind", "likelihood", "message"),
    [
        ("counts", "Normal", "Normal describes continuous values, but this screen holds counts"),
        (
            "continuous",
            "negative_binomial",
            "NegativeBinomial describes counts, but this screen holds continuous values",
        ),
    ],
)
def test_likelihood_of_the_wrong_kind(kind, likelihood, message):
    with pytest.raises(InputError, match=f"{message}. Use likelihood='auto'"):
        ModelSpec.read(None, likelihood=likelihood).priors(kind)


def test_a_spec_holds_every_setting(screen):
    """A name, an object and a table are one spec, which no change of a default would change."""
    by_name = SCCVAE(screen, n_nodes=3, graph="spike_slab").spec
    assert by_name == SCCVAE(screen, n_nodes=3, graph=priors.graph.SpikeSlab()).spec
    assert by_name.graph == {"name": "SpikeSlab", "probability": 0.05, "spike": 0.02, "slab": 0.5}
    assert by_name.penetrance == {"name": "LogNormal", "loc": 0.0, "scale": 0.05}
    assert by_name.likelihood == {"name": "NegativeBinomial", "inverse_dispersion": 5.0}
    within = SCCVAE(screen, n_nodes=3, graph={"name": "LearnedOrder", "graph": "Laplace"}).spec
    assert within.graph["graph"] == {"name": "Laplace", "scale": 0.05}


def test_auto_is_settled_by_the_values(screen, log_screen):
    assert ModelSpec.read(None).likelihood == {"name": "auto"}
    assert SCCVAE(screen, n_nodes=2).spec.likelihood["name"] == "NegativeBinomial"
    assert SCCVAE(log_screen, n_nodes=2).spec.likelihood["name"] == "Normal"


def test_bad_settings():
    refused("'n_node'", "Did you mean 'nodes'", n_node=3)
    refused("n_nodes", "'many'", n_nodes="many")
    refused("n_nodes", "0", n_nodes=0)
    refused("n_nodes", "2.5", n_nodes=2.5)
    refused("hidden", "at least one positive width", hidden=())
    refused("hidden", "at least one positive width", hidden=(8, 0))
    refused("graph", "'Lapace'", "'Laplace'", graph="Lapace")
    refused("Laplace", "'width'", graph={"name": "Laplace", "width": 1.0})
    refused("Laplace", "scale", "-1", graph={"name": "Laplace", "scale": -1})
    refused("graph", "3", graph=3)
    refused("graph", "'auto'", graph="auto")
    refused("likelihood", "'Poison'", "'NegativeBinomial'", likelihood="Poison")


def test_member_of_another_slot():
    refused("graph", "LogNormal", graph=priors.penetrance.LogNormal())


def test_missing_or_broken_file(tmp_path):
    refused("nowhere.toml", ".toml", source=tmp_path / "nowhere.toml")
    refused("model.toml", "not a TOML file", source=toml(tmp_path, "n_nodes = = 3"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    refused("binary.toml", "not a text in UTF-8", source=binary)
    refused("model.toml", "not a TOML file", source=toml(tmp_path, "a = " + 9999 * "["))


def test_mapping_is_not_changed():
    settings = {"n_nodes": 3}
    ModelSpec.read(settings, n_nodes=5)
    assert settings == {"n_nodes": 3}


def test_number_of_free_nodes_replaces_no_others():
    refused("n_nodes", "nodes=Anchored", source={"nodes": "Anchored"}, n_nodes=5)
    assert ModelSpec.read({"nodes": {"name": "Free", "n_nodes": 9}}, n_nodes=5).nodes["n_nodes"] == 5
