"""The report: what it says follows from the scores, and the page stands alone."""

from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sccvae_pyro import report
from sccvae_pyro.assessment import Assessment
from sccvae_pyro.data.features import FeatureTable
from sccvae_pyro.data.loading import Coding
from sccvae_pyro.data.schema import setup_anndata
from sccvae_pyro.data.simulate import simulate
from sccvae_pyro.data.splits import split_perturbations
from sccvae_pyro.errors import InputError
from sccvae_pyro.evaluate import BASELINES, Scores, Training
from sccvae_pyro.inference.curves import PENETRANCES, follow
from sccvae_pyro.inference.modules import find_modules
from sccvae_pyro.inference.uncertainty import Split
from sccvae_pyro.verdict import UNTESTED, judge
from sccvae_pyro.workflow import pseudobulk


class StandIn:
    """Answers like a fitted model; its predictions are those of a Gaussian process."""

    def __init__(self, train):
        self.coding = Coding.of(train)
        self.training = Training.from_anndata(train)
        self.features = FeatureTable.fit([train.uns["features"]])
        self.history = pd.DataFrame({"train_loss": [3.0, 2.0], "validation_loss": [3.1, 2.2]})

    def __repr__(self):
        return "StandIn(<b>)"

    def predictable(self, genes):
        return self.features.predictable(genes)

    def predict(self, perturbations, penetrance=1.0, n_samples=100, return_draws=False, seed=0):
        prediction = BASELINES["GP"].predict(self.training, self.features, perturbations)
        for layer in ("delta", "delta_q05", "delta_q95"):
            prediction.layers[layer] *= penetrance
        if return_draws:
            rng = np.random.default_rng(seed)
            mean, sd = (prediction.layers[name][:, None] for name in ("mean", "sd"))
            shape = (len(perturbations), n_samples, prediction.n_vars)
            prediction.obsm["draws"] = mean + sd * rng.normal(size=shape)
        return prediction

    def penetrance_curves(self, perturbations, n_samples, seed):
        def band_at(penetrance):
            found = self.predict(perturbations, penetrance).layers
            return {"delta": found["delta"], "low": found["delta_q05"], "high": found["delta_q95"]}

        return follow(band_at, PENETRANCES, perturbations, self.coding.genes, None, "gene")

    def sample_cells(self, perturbation, n, seed=0):
        counts = np.random.default_rng(seed).poisson(2.0, size=(n, len(self.coding.genes)))
        obs = pd.DataFrame({"perturbation": perturbation, "library": counts.sum(1)})
        obs.index = obs.index.astype(str)
        return AnnData(counts, obs, pd.DataFrame(index=pd.Index(self.coding.genes)))

    def penetrance(self, n_samples, seed):
        names = self.coding.perturbations
        return pd.DataFrame({"median": 1.0, "q05": 0.8, "q95": 1.2}, index=pd.Index(names))

    def modules(self, n_samples, seed):
        return find_modules(two_groups(self.coding.perturbations), self.coding.perturbations)

    def uncertainty_split(self, perturbations, n_samples, seed):
        rows = [(label, source, 0.5, 0.01) for label in perturbations for source in ("graph", "discrepancy")]
        sources = pd.DataFrame(rows, columns=["perturbation", "source", "share", "share_se"])
        columns = {"status": "seen", "sd": 0.1, "cell_sd": 0.7}
        labels = pd.DataFrame(columns, index=pd.Index(perturbations, name="perturbation"))
        return Split(sources, labels, AnnData(np.ones((1, 1)), uns={"units": "mean log1p(CP10K)"}))

    def edges(self, n_samples, seed):
        ends = {"source": ["node_0", "node_1"], "target": ["node_1", "node_2"]}
        return pd.DataFrame({**ends, "mean": [0.5, -0.3], "q05": [0.1, -0.7], "q95": [0.9, 0.1]})


def two_groups(names):
    """Draws of effects: the first three on one gene, the next two on another, none of the rest."""
    effects = 0.05 * np.random.default_rng(0).normal(size=(40, len(names), 4))
    effects[:, :3, 0] += 1.0
    effects[:, 3:5, 1] += 1.0
    return effects - np.where(np.arange(len(names)) < 5, 0.0, 1.0)[:, None] * effects.mean(axis=0)


@pytest.fixture(scope="module")
def trial():
    adata = simulate(15, 12, n_control=60, n_genes=40, n_modules=3, n_features=5, seed=1)
    setup_anndata(adata, "perturbation", "control", library_key="total_umi", feature_key="features")
    split = split_perturbations(adata, 0.4, validation=0.0)
    train, held_out = split.take(adata, "train"), split.take(adata, "test")
    model = StandIn(train)
    assessment = Assessment.of(model, held_out, train, n_samples=30, n_cells=10)
    return SimpleNamespace(
        model=model, assessment=assessment, evidence=report.gather(model, pseudobulk(train), assessment)
    )


@pytest.fixture(scope="module")
def page(trial):
    return report.render(trial.evidence, title="Screen <1>")


class Page(HTMLParser):
    """Tags that are open, addresses that are referred to, and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.addresses, self.ids, self.words = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


# The page


def test_page_stands_alone(page):
    parsed = Page(page)
    assert parsed.open == []
    pictures = [address for address in parsed.addresses if address.startswith("data:image/png;base64,")]
    anchors = [address for address in parsed.addresses if address.startswith("#")]
    assert len(pictures) + len(anchors) == len(parsed.addresses)
    assert len(pictures) >= 20
    assert {anchor[1:] for anchor in anchors} <= set(parsed.ids)
    assert "http" not in parsed.text and "@import" not in page and "url(" not in page


def test_page_says_who_acts_alike(trial, page):
    names = trial.model.coding.perturbations
    text = Page(page).text
    assert (
        f"Of {len(names)} targets, 5 are in 2 modules, 0 act like no other, and {len(names) - 5} show" in text
    )
    for members in (names[:3], names[3:5]):
        assert all(name in text.split("Which perturbations act alike?")[1] for name in members)


def test_page_says_where_the_uncertainty_comes_from(trial, page):
    split = trial.evidence.uncertainty
    assert len(split.labels) == 6 and split.labels.index.is_unique, "three seen and three held out"
    assert "Where does the uncertainty come from?" in page
    assert "Where does the uncertainty" not in report.render(replace(trial.evidence, uncertainty=None))


def test_page_without_modules(trial):
    few = Page(report.render(replace(trial.evidence, modules=None)))
    assert "modules" not in few.ids and "#modules" not in few.addresses
    idle = two_groups(range(15))[:, 5:]
    nothing = find_modules(idle, [f"P{i}" for i in range(10)])
    page = Page(report.render(replace(trial.evidence, modules=nothing)))
    assert "0 are in 0 modules, 0 act like no other, and 10 show" in page.text


def test_page_answers_its_questions(page, trial):
    text = Page(page).text
    for question in (
        "What does each perturbation do?",
        "What would unseen perturbations do?",
        "How sure is the model?",
        "Does it beat the simple baselines?",
    ):
        assert question in text
    assert trial.evidence.verdict.headline in text
    for label in trial.assessment.predictions.obs_names:
        assert label in text


def test_text_of_the_user_is_escaped(page):
    assert "Screen &lt;1&gt;" in page and "StandIn(&lt;b&gt;)" in page
    assert "Screen <1>" not in page and "<b>)" not in page


def test_same_evidence_same_page(page, trial):
    assert report.render(trial.evidence, title="Screen <1>") == page


def test_page_without_held_out_cells_says_so(trial):
    training = trial.evidence.training
    evidence = report.gather(trial.model, training, perturbations=["G0000+G0001"])
    text = Page(report.render(evidence)).text
    assert UNTESTED.headline in text and "Nobody knows yet" in text
    assert "Asked for" in text and "G0000+G0001" in text


def test_page_of_a_model_without_a_graph(trial):
    flat = replace(trial.evidence, edges=trial.evidence.edges.assign(mean=0.0), assessment=None)
    assert "This model has no graph" in Page(report.render(flat)).text


def test_page_of_values_that_are_not_counts(trial):
    effects = trial.evidence.effects.copy()
    effects.uns["units"] = "mean value"
    text = Page(report.render(replace(trial.evidence, effects=effects, assessment=None))).text
    assert "in units of mean value." in text and "doubling" not in text


def test_page_of_a_training_without_validation_cells(trial):
    history = trial.evidence.history.assign(validation_loss=np.nan)
    text = Page(report.render(replace(trial.evidence, history=history, assessment=None))).text
    assert "Training ran for 2 epochs. The loss may" in text
    assert (
        "epoch 2, which predicted the validation cells best"
        in Page(report.render(replace(trial.evidence, assessment=None))).text
    )


# What it is made of


def test_description_names_only_what_is_sure():
    genes = pd.DataFrame(index=["A", "B", "C", "D"])
    delta = np.array([[1.0, -0.5, 0.4, 0.0]])
    layers = {"delta": delta, "delta_q05": delta - 0.45, "delta_q95": delta + 0.45}
    (row,) = report.describe(AnnData(delta, pd.DataFrame(index=["P"]), genes, layers=layers))
    assert row["raised"].split("\N{NO-BREAK SPACE}") == ["A", "+1.00"]
    assert row["lowered"].split("\N{NO-BREAK SPACE}") == ["B", "\N{MINUS SIGN}0.50"]
    assert row["n_changed"] == 2


def test_score_table_marks_the_best(trial):
    table = trial.assessment.scores.table()
    laid_out = report.score_table(table, "held-out")
    assert laid_out["rows"][-1]["kind"] == "ceiling"
    for column, (metric, _, better) in enumerate(laid_out["columns"]):
        cells = {row["name"]: row["cells"][column] for row in laid_out["rows"] if row["kind"] != "ceiling"}
        best = [name for name, cell in cells.items() if cell["best"]]
        means = table.loc[("held-out", metric)].xs("mean", level="statistic").drop("noise ceiling")
        assert best
        assert report.METHODS.get(means.idxmax() if better == "higher" else means.idxmin(), "SCCVAE") in best
    assert not any(cell["best"] for cell in laid_out["rows"][-1]["cells"])


# The trial


def test_assessment_survives_the_disk(trial, tmp_path):
    trial.assessment.save(tmp_path)
    loaded = Assessment.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.scores.table(), trial.assessment.scores.table())
    assert judge(loaded.scores) == judge(trial.assessment.scores)
    np.testing.assert_allclose(loaded.observed.layers["se"], trial.assessment.observed.layers["se"])
    assert not list(tmp_path.glob(".*"))
    assert (loaded.scores.n_bootstrap, loaded.scores.seed) == (1000, 0)
    (tmp_path / "pit.csv").unlink()
    with pytest.raises(InputError, match=r"pit\.csv"):
        Assessment.load(tmp_path)


def test_assessment_measures_the_truth_of_a_simulation(trial):
    scores = trial.assessment.scores
    assert set(scores.per_perturbation["target"]) == {"held-out", "truth"}
    assert "SCCVAE" in set(scores.per_perturbation["method"])
    assert trial.evidence.is_unseen
    assert "draws" not in trial.assessment.predictions.obsm


# The verdict


def scores_of(model, baseline, n=20, coverage=0.9):
    """Scores in which every measure of the model and of one baseline is given, up to a little noise."""
    rng = np.random.default_rng(0)
    rows = []
    for method, level in {"SCCVAE": model, "ridge": baseline, "control": 0.0}.items():
        for row in range(n):
            noise = 0.02 * rng.normal()
            values = {
                "pearson_delta": level + noise,
                "centroid_accuracy": level + noise,
                "mse": 1 - level + noise,
            }
            if method == "SCCVAE":
                values["coverage_90"] = coverage
            rows += [("held-out", method, f"P{row}", metric, value, 9) for metric, value in values.items()]
    columns = ["target", "method", "perturbation", "metric", "value", "n"]
    ceiling = pd.DataFrame({"perturbation": ["P0"], "metric": ["pearson_delta"], "value": [0.95]})
    return Scores(pd.DataFrame(rows, columns=columns), ceiling, pd.DataFrame(), n_bootstrap=200)


def test_verdict_when_the_model_wins():
    verdict = judge(scores_of(model=0.7, baseline=0.5))
    assert verdict.tone == "good" and "beats the best simple baseline" in verdict.headline
    assert {c.outcome for c in verdict.comparisons} == {"better"}
    assert any("0.95" in sentence for sentence in verdict.sentences)


def test_verdict_when_a_baseline_wins():
    verdict = judge(scores_of(model=0.5, baseline=0.7))
    assert verdict.tone == "bad" and "ridge regression" in verdict.headline
    assert {c.outcome for c in verdict.comparisons} == {"worse"}


def test_verdict_when_each_wins_something():
    scores = scores_of(model=0.7, baseline=0.5)
    tidy = scores.per_perturbation
    worse = (tidy["method"] == "SCCVAE") & (tidy["metric"] == "mse")
    mixed = replace(scores, per_perturbation=tidy.assign(value=tidy["value"] + 0.5 * worse))
    verdict = judge(mixed)
    assert verdict.tone == "level"
    assert "ahead in 2 of 3 measures, behind “ridge regression” in 1" in verdict.headline


def test_verdict_when_nobody_wins():
    verdict = judge(scores_of(model=0.6, baseline=0.6))
    assert verdict.tone == "level" and "level" in verdict.headline


def test_verdict_on_few_perturbations_calls_nothing():
    verdict = judge(scores_of(model=0.7, baseline=0.5, n=2))
    assert verdict.tone == "open" and "Only 2 perturbations" in verdict.headline
    assert {c.outcome for c in verdict.comparisons} == {"open"}
    assert "too few" in verdict.calibration[0]
    assert "Only 1 perturbation to" in judge(scores_of(model=0.7, baseline=0.5, n=1)).headline


@pytest.mark.parametrize(
    ("coverage", "words"), [(0.5, "too narrow"), (0.9, "at their word"), (1.0, "wider than")]
)
def test_verdict_on_intervals(coverage, words):
    verdict = judge(scores_of(0.6, 0.5, coverage=coverage))
    assert words in verdict.calibration[0] and verdict.calibration[0] in verdict.sentences


def test_verdict_says_whether_the_perturbations_were_seen():
    assert "unseen" in judge(scores_of(0.7, 0.5)).headline
    assert "known" in judge(scores_of(0.7, 0.5), unseen=False).headline


@pytest.mark.parametrize(
    ("name", "content"), [("per_perturbation.csv", ""), ("settings.json", ""), ("settings.json", "[]")]
)
def test_damaged_scores_are_named(trial, tmp_path, name, content):
    trial.assessment.save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name} is damaged"):
        Assessment.load(tmp_path)
