"""Every pair of members of two slots, in few combinations: each can be built, fitted, written and asked.

Members come from the registry, so that a new slot or member is covered once it is there. What cannot be
built from its name alone stands in ``SETTINGS``, what the package refuses in ``REFUSED``.
"""

import copy
import math
import random
from itertools import combinations, product

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample as is_plate
from screens import log_values, set_up, small_screen

from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.inference import results
from sccvae_pyro.inference.agreement import check_sites
from sccvae_pyro.inference.objectives import NegativeELBO, NegativeIWELBO, Particles
from sccvae_pyro.models.slot import Member
from sccvae_pyro.models.spec import SLOTS, ModelSpec

SETTINGS = {
    ("nodes", "Free"): {"n_nodes": 3},
    ("nodes", "Anchored"): {"genes": [f"G{i:04d}" for i in range(8)]},
    ("graph", "KnownGraph"): {"elsewhere": 0.3},
    ("direction", "Simplex"): {"hidden": 4},
    ("intervention", "Kinds"): {"kinds": {"G0001": "do", "G0002": "scale"}},
}
"""Settings of members that need some, or that a test wants small, by slot and name."""

REFUSED = [
    (
        {"nodes": "Free", "direction": "OwnNode"},
        r"OwnNode: there is no node for 'G0000', .*. Give nodes=Anchored",
    ),
    ({"nodes": "Free", "intervention": "Do"}, r"Do acts on the own node .* 'G0000', .* Give nodes=Anchored"),
    (
        {"nodes": "Free", "intervention": "Scale"},
        r"Scale acts on the own node .* 'G0000', .* Give nodes=Anchored",
    ),
    ({"nodes": "Free", "intervention": "Kinds"}, r"Kinds acts on the own node .* Give nodes=Anchored"),
    ({"library": "Latent", "likelihood": "Normal"}, r"Latent is a belief about molecules"),
    ({"library": "Latent", "likelihood": "StudentT"}, r"Latent is a belief about molecules"),
]
"""Names by slot that the package refuses together, and what its message says."""

HIDDEN = (8,)
SEEN, UNSEEN = "G0001", "G0007"
FALL = 0.02
"""What a step should take off the loss, nats a cell: more than rounding, and still linear."""


def is_refused(names, refused):
    return any(together.items() <= names.items() for together, _ in refused)


def pairs_of(names):
    return set(combinations(names.items(), 2))


def covering(members, refused, seed=0):
    """Few combinations of one member a slot that hold every pair which is not refused, greedily.

    Each is built around a pair that is still missing: of many random ones, the one with most such pairs.
    """
    rng = random.Random(seed)
    named = [[(slot, name) for name in names] for slot, names in members.items()]
    pairs = {pair for first, second in combinations(named, 2) for pair in product(first, second)}
    missing = {pair for pair in pairs if not is_refused(dict(pair), refused)}
    chosen = []
    while missing:
        around = dict(min(missing))
        tried = [{slot: rng.choice(names) for slot, names in members.items()} | around for _ in range(100)]
        possible = [names for names in tried if not is_refused(names, refused)]
        chosen.append(max(possible, key=lambda names: len(pairs_of(names) & missing)))
        missing -= pairs_of(chosen[-1])
    return chosen


MEMBERS = {slot: sorted(Member.registry[slot]) for slot in SLOTS}
COMBINATIONS = covering(MEMBERS, REFUSED)


def as_id(names):
    return "-".join(names.values())


def build(names, screens):
    """A model of these members, on a screen of the kind that its likelihood describes."""
    tables = {slot: {"name": name, **SETTINGS.get((slot, name), {})} for slot, name in names.items()}
    likelihood = names.get("likelihood", "NegativeBinomial")
    return SCCVAE.from_spec(
        screens[Member.registry["likelihood"][likelihood].kind], {"hidden": HIDDEN, **tables}
    )


@pytest.fixture(scope="module")
def screens():
    """Counts and log values, with guides, batches and the features of a perturbation that is held out."""
    counts = small_screen()
    counts = counts[~counts.obs["perturbation"].str.contains(UNSEEN)].copy()
    return {
        "counts": set_up(counts, guide_key="guide", library_key="total_umi"),
        "continuous": set_up(log_values(counts), guide_key="guide"),
    }


@pytest.fixture(scope="module", params=COMBINATIONS, ids=as_id)
def model(request, screens):
    return build(request.param, screens)


@pytest.fixture(scope="module")
def cells(model):
    """Control cells, and cells of single perturbations and of pairs."""
    return model._screen[np.arange(0, len(model._screen), 5)]


def latent_shapes(trace):
    """Shapes of the latent sites; the vector that a joint family packs them into is none of the model's."""
    sites = ((name, trace.nodes[name]) for name in trace.stochastic_nodes)
    return {
        name: tuple(site["value"].shape)
        for name, site in sites
        if not (is_plate(site) or site["infer"].get("is_auxiliary"))
    }


@pytest.mark.parametrize(
    ("members", "refused"),
    [
        (MEMBERS, REFUSED),
        (
            {"a": "xyz", "b": "uv", "c": "rst"},
            [({"a": "x", "b": "u"}, ""), ({"a": "y", "b": "v", "c": "r"}, "")],
        ),
    ],
    ids=["registry", "refusals"],
)
def test_combinations_hold_every_pair(members, refused):
    chosen = covering(members, refused)
    held = set.union(*map(pairs_of, chosen))
    for (a, first), (b, second) in combinations(members.items(), 2):
        for pair in product(product([a], first), product([b], second)):
            assert (pair in held) != is_refused(dict(pair), refused), pair
    assert not any(is_refused(names, refused) for names in chosen)
    assert chosen == covering(members, refused)
    assert len(chosen) < 1.5 * math.prod(sorted(map(len, members.values()))[-2:])


@pytest.mark.parametrize(
    ("names", "message"), [pytest.param(*refusal, id=as_id(refusal[0])) for refusal in REFUSED]
)
def test_refused_with_the_reason(names, message, screens):
    with pytest.raises(InputError, match=message):
        build(names, screens)


@pytest.mark.parametrize("particles", [1, 3])
def test_guide_proposes_what_the_model_samples(model, cells, particles):
    """The same sites, of the same shapes as a draw from the prior, with a density of every cell."""
    program = model.program
    pyro.set_rng_seed(0)
    with torch.no_grad(), Particles(particles):
        prior = poutine.trace(program.model).get_trace(cells)
        guide = poutine.trace(program.guide).get_trace(cells)
        posterior = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(cells)
    assert latent_shapes(guide) == latent_shapes(prior) == latent_shapes(posterior)
    for trace in (guide, posterior):
        trace.compute_log_prob()
        assert torch.isfinite(trace.log_prob_sum())
    assert posterior.nodes["x"]["fn"].shape() == (particles, *cells.x_cg.shape)
    assert posterior.nodes["x"]["log_prob"].shape == (particles, len(cells.library_c))


@pytest.mark.parametrize("particles", [1, 3])
def test_pyro_finds_nothing_amiss(model, cells, particles):
    """Its own checks of sites, plates and shapes, of enumerated sites too; warnings are errors here."""
    program = model.program
    elbo = NegativeELBO(program, particles).elbo
    with pyro.validation_enabled(True), pyro.settings.context(module_local_params=True):
        assert np.isfinite(elbo.differentiable_loss(program.model, program.guide, cells).item())


def losses(program):
    """The objectives that the responders allow."""
    yield NegativeELBO(program)
    if not program.priors.responders.enumerated:
        yield NegativeIWELBO(program, particles=3)


def seeded(loss, cells):
    """The loss at the random numbers of one seed."""
    pyro.set_rng_seed(0)
    return loss(cells)


def test_a_step_lowers_the_loss(model, cells):
    """At the same random numbers, along finite gradients of all parameters, by as much as they say."""
    for loss in losses(copy.deepcopy(model.program)):
        parameters = [parameter for parameter in loss.parameters() if parameter.numel()]
        before = seeded(loss, cells)
        gradients = torch.autograd.grad(before, parameters)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        step = FALL / sum(gradient.square().sum() for gradient in gradients)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= step * gradient
        assert (before - seeded(loss, cells)).item() == pytest.approx(FALL, rel=0.2)


def test_model_and_guide_speak_of_the_same_sites(model, cells):
    check_sites(model.program, cells)


def test_equations_name_no_class_of_a_wrapper(model):
    sites = [line for line in model.describe().splitlines() if line.startswith("  ")]
    wrappers = ("Distribution(", "Mixture(", "SameFamily(", "Independent(", "Delta(")
    assert not [line for line in sites if any(wrapper in line for wrapper in wrappers)]


def test_spec_is_written_and_read(model, tmp_path):
    """From objects to plain values, to the text of a file, and back."""
    model.spec.to_toml(tmp_path / "model.toml")
    spec = ModelSpec.read(tmp_path / "model.toml")
    kind = model.coding.schema.kind
    assert spec == model.spec
    assert spec.priors(kind) == model.priors
    assert ModelSpec.read(model.priors._asdict(), hidden=HIDDEN).priors(kind) == model.priors


def test_predictions_survive_saving(model, tmp_path):
    """Of a seen and an unseen perturbation, by a model with what a fit leaves behind, but no fit."""
    model.history = pd.DataFrame({"train_loss": [0.0], "validation_loss": [0.0]}, pd.Index([0], name="epoch"))
    model.controls = results.remember_controls(model.program, model._screen, seed=0)
    prediction = model.predict([SEEN, UNSEEN], n_samples=3)
    assert list(prediction.obs["status"]) == ["seen", "unseen"]
    assert prediction.shape == (2, len(model.coding.genes))
    assert np.isfinite(list(prediction.layers.values())).all()
    model.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model").predict([SEEN, UNSEEN], n_samples=3)
    for name, values in prediction.layers.items():
        np.testing.assert_array_equal(loaded.layers[name], values)
