"""The notebooks run, and what is stored of them is what their scripts say."""

from pathlib import Path

import jupytext
import matplotlib
import nbformat
import pytest

from sccvae_pyro.models.slot import Member

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))
SMALL = {
    "quickstart": """
SIZE = {"n_perturbations": 12, "cells_per_perturbation": 20, "n_control": 60, "n_genes": 30}
MAX_EPOCHS = 2
SEED = 0
""",
    "priors": """
SIZE = {"n_perturbations": 12, "cells_per_perturbation": 10, "n_control": 40, "n_genes": 30}
MAX_EPOCHS = 1
N_SAMPLES = 4
SEED = 0
""",
    "uncertainty": """
SIZE = {"n_perturbations": 12, "cells_per_perturbation": 10, "n_control": 40, "n_genes": 30}
MAX_EPOCHS = 1
N_SAMPLES = 30
N_CELLS = 40
N_PROPOSALS = 100
SEED = 0
""",
    "graph_and_modules": """
SIZE = {"n_perturbations": 12, "cells_per_perturbation": 15, "n_control": 60, "n_genes": 30}
N_MODULES = 3
EPOCHS_GRAPH = 1
MAX_EPOCHS = 2
SEED = 0
""",
    "papalexi": """
from screens import like_papalexi

FOLDER = like_papalexi()
MAX_EPOCHS = 8
N_SAMPLES = 10
SEED = 0
""",
}
"""What takes the place of each notebook's cell of parameters."""


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def is_code(cell):
    return cell.cell_type == "code"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_runs(script, monkeypatch):
    """Every cell runs on a tiny screen."""
    matplotlib.use("Agg")
    monkeypatch.chdir(NOTEBOOKS)
    members = {slot: dict(known) for slot, known in Member.registry.items()}
    monkeypatch.setattr(Member, "registry", members)  # a notebook may write a prior of its own
    names = {}
    code = [cell for cell in jupytext.read(script).cells if is_code(cell)]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    for number, cell in enumerate(code):
        is_parameters = "parameters" in cell.metadata.get("tags", [])
        source = SMALL[script.stem] if is_parameters else cell.source.replace("%matplotlib", "# %matplotlib")
        exec(compile(source, f"{script.name}, code cell {number + 1}", "exec"), names)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_stored_notebook_is_in_step(script):
    """The executed notebook holds the cells of the script, run from top to bottom, without an error."""
    stored = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert cells(stored) == cells(jupytext.read(script))
    code = [cell for cell in stored.cells if is_code(cell)]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
