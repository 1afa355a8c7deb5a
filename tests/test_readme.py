"""The README says what is so: tables are those of the stored results, code runs, links lead somewhere."""

import ast
import re
import runpy
from pathlib import Path

import pandas as pd
import pytest

import sccvae_pyro as sv
from sccvae_pyro import SCCVAE
from sccvae_pyro.models.slot import Member

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {
    "simulate(seed=0)": "simulate(10, 20, 60, 30, n_modules=2, n_features=3, seed=0)",
    ".fit(seed=0)": ".fit(seed=0, max_epochs=2, batch_size=64, progress=False)",
}
"""What makes the example small enough for a test."""


@pytest.fixture(scope="module")
def tables():
    """The script that writes the tables, as a dictionary of its names."""
    return runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_tables_are_the_stored_results(tables):
    text = README.read_text(encoding="utf-8")
    assert [name for _, name, _ in tables["MARKED"].findall(text)] == ["simulation", "papalexi"]
    assert tables["filled"](text) == text


def test_best_is_bold_whoever_it_is(tables, monkeypatch, tmp_path):
    """A worse mean is never bold, the nearest coverage is, and the noise ceiling takes no part."""
    rows = [("SCCVAE", 0.2, 0.99), ("GP", 0.3, 0.88), ("noise ceiling", 0.9, float("nan"))]
    frame = pd.DataFrame(
        [
            {"target": "truth", "metric": column.metric, "method": method, "mean": value, "low": 0, "high": 1}
            for column in tables["COLUMNS"]
            for method, mean, coverage in rows
            for value in [coverage if column.metric == "coverage_90" else mean]
        ]
    )
    frame.to_csv(tmp_path / "simulation.csv", index=False)
    (tmp_path / "simulation.json").write_text('{"scored_perturbations": 2}')
    monkeypatch.setitem(tables["table"].__globals__, "RESULTS", tmp_path)
    _, _, model, process, ceiling = tables["table"]("simulation").splitlines()
    assert model == "| SCCVAE | 0.20 | 0.20 | **200.0** | 0.20 | **200** | **200.0** | 0.99 |"
    assert process == "| GP | **0.30** | **0.30** | 300.0 | **0.30** | 300 | 300.0 | **0.88** |"
    assert "*" not in ceiling


def test_example_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    example, swap = blocks(README, "python")
    for large, small in SMALL.items():
        assert large in example
        example = example.replace(large, small)
    found = {}
    exec(compile(example, README.name, "exec"), found)
    assert {"delta", "delta_q05", "delta_q95"} <= set(found["prediction"].layers)
    assert ("held-out", "mse") in found["scores"].index
    assert SCCVAE.load(tmp_path / "run").is_fitted
    exec(compile(swap, README.name, "exec"), found)
    assert type(found["model"].priors.graph).__name__ == "NoGraph"


def test_priors_of_ones_own_run(screen, monkeypatch):
    """The classes that the how-to writes can be defined, fitted and described."""
    members = {slot: dict(known) for slot, known in Member.registry.items()}
    monkeypatch.setattr(Member, "registry", members)
    section = (ROOT / "docs" / "how_to.md").read_text(encoding="utf-8").split("## Add a prior of my own")[1]
    found = {"sv": sv, "train": screen}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL)):
        exec(compile(block.replace("(train,", "(train, n_nodes=3,"), f"block {number}", "exec"), found)
        model = found["model"].fit(max_epochs=1, progress=False)
        assert "~ StudentT(4, 0, 0.05)   (3 x 3)" in model.describe()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_code_exist(page, screen):
    """Whatever a block of code reads off the package or a model is there."""
    model = SCCVAE(screen, n_nodes=2, hidden=(4,))
    spoken_of = {"sv": sv, "priors": sv.priors, "features": sv.features, "model": model, "small": model}
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            path = dotted(node)
            if len(path) > 1 and path[0] in spoken_of:
                found = spoken_of[path[0]]
                for name in path[1:]:
                    assert hasattr(found, name), ".".join(path)
                    found = getattr(found, name)


def dotted(node):
    """Names of a chain such as ``sv.plots.compare``; nothing for what is no such chain."""
    if isinstance(node, ast.Name):
        return [node.id]
    above = dotted(node.value) if isinstance(node, ast.Attribute) else []
    return [*above, node.attr] if above else []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if not link.startswith("https://"):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not heading or heading in headings(target), link


def headings(page):
    """Anchors that a page of Markdown offers."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
