"""The command line, end to end on a tiny screen, and what it says to bad input."""

import json
import shutil
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from sccvae_pyro import files, workflow
from sccvae_pyro.cli import app
from sccvae_pyro.data.schema import UNS_KEY, setup_anndata
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.slot import Member

COLUMNS = ["--perturbation-key", "perturbation", "--control", "control"]
SIZE = ["--perturbations", "12", "--cells", "20", "--controls", "60", "--genes", "60"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refuse(*arguments):
    """What a command says to input that cannot be used."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folder with a simulated screen, and a run that held two of its targets out."""
    folder = tmp_path_factory.mktemp("cli")
    succeed("simulate", "--out", folder / "screen.h5ad", *SIZE)
    succeed(
        "fit", folder / "screen.h5ad", *COLUMNS, "--library-key", "total_umi", "--guide-key", "guide",
        "--covariate-key", "batch", "--feature-key", "features", "--hold-out", "G0003,G0007",
        "--max-epochs", "2", "--batch-size", "64", "--seed", "1", "--out", folder / "run",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def screen(home):
    return ad.read_h5ad(home / "screen.h5ad")


# Help


@pytest.mark.parametrize("command", ["simulate", "fit", "predict", "evaluate", "report", "demo", "priors"])
def test_help_teaches_by_example(command):
    assert f"sccvae {command}" in succeed(command, "--help")


def test_help_lists_the_commands():
    text = succeed("--help")
    for command in ("simulate", "fit", "predict", "evaluate", "report", "demo", "priors"):
        assert command in text


def test_priors_are_listed_with_their_settings():
    text = succeed("priors")
    for word in ("graph", "Laplace", "scale", "penetrance", "likelihood", "NegativeBinomial"):
        assert word in text


def test_priors_of_one_slot():
    text = succeed("priors", "graph")
    assert "SpikeSlab" in text
    assert "NegativeBinomial" not in text
    assert "Did you mean 'graph'?" in refuse("priors", "grapf")


def test_priors_of_ones_own_are_imported(monkeypatch, tmp_path):
    """A module in the folder that the command is run in; what it brings is a name like ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # and off again at the end
    members = {slot: dict(known) for slot, known in Member.registry.items()}
    monkeypatch.setattr(Member, "registry", members)
    (tmp_path / "beliefs_of_ones_own.py").write_text(
        "from dataclasses import dataclass\n"
        "from sccvae_pyro import priors\n"
        "@dataclass(frozen=True)\n"
        "class WideLaplace(priors.graph.Laplace):\n"
        '    """Edges of any size."""\n'
        "    scale: float = 0.7\n"
    )
    assert "WideLaplace" not in succeed("priors", "graph")
    assert "scale = 0.7" in succeed("priors", "graph", "--import", "beliefs_of_ones_own")
    assert "Cannot import 'no_such_beliefs'" in refuse("priors", "--import", "no_such_beliefs")
    (tmp_path / "broken_beliefs.py").write_text("1 / 0\n")
    assert "ZeroDivisionError" in refuse("priors", "--import", "broken_beliefs")
    for name in ("./beliefs_of_ones_own", "beliefs_of_ones_own.py", ""):
        assert "no name of a module" in refuse("priors", "--import", name)
    for command in ("fit", "predict", "evaluate", "report"):
        assert "--import" in succeed(command, "--help")


def test_the_package_is_the_command():
    run = subprocess.run([sys.executable, "-m", "sccvae_pyro", "--help"], capture_output=True, check=True)
    assert b"sccvae demo" in run.stdout


# From a screen to answers


def test_simulate_writes_a_screen_with_its_truth(screen):
    assert screen.shape == (300, 60)
    assert "truth" in screen.uns and "features" in screen.uns


def test_run_keeps_what_evaluation_needs(home):
    kept = {path.name for path in (home / "run").iterdir()}
    assert {"model.json", "history.csv", "train.h5ad", "held_out.h5ad", "training_profiles.h5ad"} <= kept
    assert not [name for name in kept if "unfinished" in name]
    train, held_out = (ad.read_h5ad(home / "run" / f"{name}.h5ad") for name in ("train", "held_out"))
    assert set(held_out.obs["perturbation"]) == {"control", "G0003", "G0007"}
    assert not {"G0003", "G0007"} & set(train.obs["perturbation"])
    assert train.n_obs + held_out.n_obs == 300
    profiles = ad.read_h5ad(home / "run" / "training_profiles.h5ad")
    assert profiles.obs["n"].sum() == train.n_obs and "control" in profiles.obs_names


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_predict(home, tmp_path, suffix):
    out = tmp_path / f"pred.{suffix}"
    asked = "G0003,G0001+G0000"
    text = succeed("predict", home / "run", "--perturbations", asked, "--n-samples", 10, "--out", out)
    prediction = ad.read_zarr(out) if suffix == "zarr" else ad.read_h5ad(out)
    assert list(prediction.obs_names) == ["G0003", "G0000+G0001"]
    assert list(prediction.obs["status"]) == ["unseen", "unseen"]
    assert {"mean", "sd", "q05", "q95", "delta", "delta_q05", "delta_q95"} <= set(prediction.layers)
    assert "G0003" in text and "unseen" in text
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_predict_at_no_penetrance_changes_nothing(home, tmp_path):
    out = tmp_path / "pred.h5ad"
    succeed(
        "predict", home / "run", "--perturbations", "G0001", "--penetrance", 0, "--n-samples", 4, "--out", out
    )
    np.testing.assert_allclose(ad.read_h5ad(out).layers["delta"], 0, atol=1e-6)


def test_evaluate_then_report(home, tmp_path):
    text = succeed(
        "evaluate",
        home / "run",
        home / "run" / "held_out.h5ad",
        "--n-samples",
        10,
        "--out",
        tmp_path / "scores",
    )
    assert "Only 2 perturbations" in text and "ridge regression" in text
    table = pd.read_csv(tmp_path / "scores" / "table.csv")
    assert {"SCCVAE", "control", "perturbed mean", "bilinear", "ridge", "kNN", "GP"} <= set(table["method"])
    assert set(table["target"]) == {"held-out", "truth"}
    succeed(
        "report", home / "run", "--scores", tmp_path / "scores", "--perturbations", "G0003+G0001",
        "--n-samples", 10, "--out", tmp_path / "report.html",
    )  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert "Only 2 perturbations" in page and "G0001+G0003" in page


def test_report_without_scores(home, tmp_path):
    text = succeed("report", home / "run", "--n-samples", 10, "--out", tmp_path / "report.html")
    assert "Not tested yet" in text
    assert "Not tested yet" in (tmp_path / "report.html").read_text()


def test_evaluate_sets_up_cells_that_come_from_elsewhere(home, tmp_path):
    held_out = ad.read_h5ad(home / "run" / "held_out.h5ad")
    del held_out.uns[UNS_KEY], held_out.uns["truth"]
    held_out.write_h5ad(tmp_path / "cells.h5ad")
    succeed(
        "evaluate", home / "run", tmp_path / "cells.h5ad", "--n-samples", 10, "--out", tmp_path / "scores"
    )
    assert set(pd.read_csv(tmp_path / "scores" / "table.csv")["target"]) == {"held-out"}


def test_a_run_without_cells_asks_for_them(home, screen, tmp_path):
    succeed(
        "fit", home / "screen.h5ad", *COLUMNS, "--hold-out", "0.2", "--max-epochs", 1, "--no-keep-cells",
        "--quiet", "--out", tmp_path,
    )  # fmt: skip
    assert not (tmp_path / "train.h5ad").exists()
    held_out = tmp_path / "held_out.h5ad"
    assert "--train" in refuse("evaluate", tmp_path, held_out)
    other_library = home / "run" / "train.h5ad"
    assert "library_key" in refuse("evaluate", tmp_path, held_out, "--train", other_library, "--n-samples", 5)
    train = screen[~screen.obs_names.isin(ad.read_h5ad(held_out).obs_names)].copy()
    setup_anndata(train, perturbation_key="perturbation", control="control")
    train.write_h5ad(tmp_path / "cells.h5ad")
    succeed("evaluate", tmp_path, held_out, "--train", tmp_path / "cells.h5ad", "--n-samples", 5)
    assert (tmp_path / "scores" / "table.csv").exists()


def test_a_new_fit_removes_the_scores_of_the_old_one(home, set_up, tmp_path):
    (tmp_path / "scores").mkdir()
    workflow.keep(tmp_path, set_up, None)
    assert {path.name for path in tmp_path.iterdir()} == {"train.h5ad", "training_profiles.h5ad"}


def test_fit_reads_specs(home, tmp_path):
    (tmp_path / "model.toml").write_text('n_nodes = 8\nhidden = [16]\ngraph = { name = "NoGraph" }\n')
    (tmp_path / "inference.toml").write_text("max_epochs = 1\nbatch_size = 32\n")
    succeed(
        "fit", home / "screen.h5ad", *COLUMNS, "--model", tmp_path / "model.toml",
        "--inference", tmp_path / "inference.toml", "--quiet", "--out", tmp_path / "run",
    )  # fmt: skip
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert len(history) == 1
    assert not (tmp_path / "run" / "held_out.h5ad").exists()


def test_demo(tmp_path):
    text = succeed("demo", "--out", tmp_path, *SIZE, "--max-epochs", 1)
    assert "report.html" in text
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"model", "predictions.h5ad", "report.html", "scores"}
    assert "noiseless truth" in (tmp_path / "report.html").read_text()
    assert len(ad.read_h5ad(tmp_path / "predictions.h5ad")) == 2


# Features from files


GMT = """path1	na	G0000	G0001	G0002
path2	na	G0003	G0004	G0005	G0006
path3	na	G0000	G0005	UNMEASURED
"""
REGULONS = (
    "source,target,weight\nG0000,G0007,1\nG0008,G0001,-1\nG0009,G0010,1\nG0003,G0011,1\nG0002,G0051,1\n"
)


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "sets.gmt").write_text(GMT)
    (tmp_path / "regulons.csv").write_text(REGULONS)
    return workflow.Sources(gmt=tmp_path / "sets.gmt", regulons=tmp_path / "regulons.csv")


@pytest.fixture
def set_up(screen):
    adata = screen.copy()
    setup_anndata(adata, "perturbation", "control")
    return adata


def test_sources_are_combined(set_up, sources):
    train, held_out = workflow.prepare(set_up, sources, held_out="G0005, G0011")
    table = train.uns[workflow.FEATURES]
    assert set(table.columns.str.split(":").str[0]) == {"gene_set_kernel", "regulon_kernel"}
    assert {f"G{i:04d}" for i in range(12)} | {"UNMEASURED", "G0051"} == set(table.index)
    assert "gene_set_kernel:G0005" not in table, "columns are seen perturbations"
    assert set(held_out.obs["perturbation"]) == {"control", "G0005", "G0011"}


def test_a_gene_that_no_source_knows_is_named_with_the_way_out(home, set_up, tmp_path):
    (tmp_path / "sets.gmt").write_text(GMT)
    text = refuse(
        "fit", home / "screen.h5ad", *COLUMNS, "--gmt", tmp_path / "sets.gmt", "--out", tmp_path / "run"
    )
    assert "--leave-out G0007,G0008,G0009,G0010,G0011" in text
    left_out = [f"G{i:04d}" for i in (7, 8, 9, 10, 11)]
    train, _ = workflow.prepare(set_up, workflow.Sources(gmt=tmp_path / "sets.gmt"), leave_out=left_out)
    assert not set(left_out) & set(train.obs["perturbation"])
    assert not (tmp_path / "run").exists()


def test_features_from_a_csv_join_those_of_the_screen(set_up, tmp_path):
    path = tmp_path / "embedding.csv"
    pd.DataFrame(np.eye(12), index=[f"G{i:04d}" for i in range(12)]).to_csv(path)
    train, _ = workflow.prepare(set_up, workflow.Sources(csv=path, key="features"))
    assert set(train.uns[workflow.FEATURES].columns.str.split(":").str[0]) == {"embedding", "features"}


# Bad input


def test_bad_input_is_a_sentence_and_exit_code_2(home, tmp_path):
    data = home / "screen.h5ad"
    assert "no file" in refuse("fit", tmp_path / "no.h5ad", *COLUMNS)
    assert "'treatment'" in refuse("fit", data, "--perturbation-key", "treatment", "--control", "control")
    assert "'ctrl'" in refuse("fit", data, "--perturbation-key", "perturbation", "--control", "ctrl")
    assert "'FOO'" in refuse("fit", data, *COLUMNS, "--hold-out", "FOO", "--out", tmp_path / "run")
    assert "'FOO'" in refuse("fit", data, *COLUMNS, "--leave-out", "FOO", "--out", tmp_path / "run")
    assert "none.gmt" in refuse("fit", data, *COLUMNS, "--gmt", tmp_path / "none.gmt")
    assert "none.csv" in refuse("fit", data, *COLUMNS, "--features-csv", tmp_path / "none.csv")
    assert "FOO" in refuse("predict", home / "run", "--perturbations", "FOO", "--out", tmp_path / "p.h5ad")
    assert "empty" in refuse("predict", home / "run", "--perturbations", ",", "--out", tmp_path / "p.h5ad")
    assert ".h5ad or .zarr" in refuse("predict", home / "run", "--perturbations", "G0001", "--out", "p.csv")
    assert "no model" in refuse("report", tmp_path)
    assert "no file" in refuse("evaluate", home / "run", tmp_path / "no.h5ad")
    assert "per_perturbation.csv" in refuse("report", home / "run", "--scores", tmp_path)
    assert "n_genes" in refuse("simulate", "--genes", 10, "--perturbations", 12, "--out", tmp_path / "s.h5ad")
    assert run("predict", home / "run").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_a_comma_is_not_cut(home, tmp_path):
    assert workflow.names("A, B", ["A", "B", "B,A", "XA,B"]) == ["A", "B"]
    for text in ("A,B", "C, A , B", "C,A,B,D"):
        with pytest.raises(InputError, match=r"'A, B' holds a comma.*in Python.*rename"):
            workflow.names(text, ["C", "A, B"])
    written = (home / "run" / "model.json").read_text()
    last = json.loads(written)["coding"]["perturbations"][-1]
    shutil.copytree(home / "run", tmp_path / "run")
    (tmp_path / "run" / "model.json").write_text(written.replace(last, "G0001,G0002"))
    for command in ("predict", "report"):
        said = refuse(command, tmp_path / "run", "--perturbations", "G0000,G0001,G0002")
        assert "'G0001,G0002' holds a comma" in said


def test_a_place_that_cannot_be_written_to_is_found_out_first(home, tmp_path, monkeypatch):
    """Before anything is read: none of the inputs exists."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    none, file, folder = tmp_path / "none.h5ad", tmp_path / "file", tmp_path / "folder"
    for within in (file, file / "deeper"):
        assert "file is a file" in refuse("fit", none, *COLUMNS, "--out", within)
        assert "file is a file" in refuse("evaluate", none, none, "--out", within)
        assert "file is a file" in refuse("demo", "--out", within)
        asked = ("predict", none, "--perturbations", "A", "--out", within / "p.h5ad")
        assert "file is a file" in refuse(*asked)
        assert "file is a file" in refuse("report", none, "--out", within / "r.html")
        assert "file is a file" in refuse("simulate", "--out", within / "s.h5ad")
    assert "folder is a folder" in refuse("report", none, "--out", folder)
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    assert "no permission to write into" in refuse("fit", none, *COLUMNS, "--out", folder / "run")
    assert file.read_text() == "mine" and not list(folder.iterdir())


def test_warnings_about_input_are_notes(home, screen, tmp_path):
    rows = np.flatnonzero(screen.obs["perturbation"] == "G0004")
    lone = screen[np.setdiff1d(np.arange(screen.n_obs), rows[1:])].copy()
    lone.write_h5ad(tmp_path / "lone.h5ad")
    result = run(
        "fit", tmp_path / "lone.h5ad", *COLUMNS, "--max-epochs", 1, "--quiet", "--out", tmp_path / "run"
    )
    assert result.exit_code == 0
    assert "Note: Labels" in result.stderr and "G0004" in result.stderr


# Files


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = files.write_text("old", tmp_path / "page.html")

    def fail(unfinished):
        unfinished.write_text("half")
        raise OSError("disk full")

    with pytest.raises(InputError, match=r"Cannot write .*page\.html: disk full"):
        files.write_whole(path, fail)
    assert path.read_text() == "old"
    assert [kept.name for kept in tmp_path.iterdir()] == ["page.html"]


def test_folders_are_replaced(tmp_path, screen):
    small = ad.AnnData(np.ones((2, 2)))
    files.write_anndata(screen[:5].copy(), tmp_path / "a.zarr")
    files.write_anndata(small, tmp_path / "a.zarr")
    assert ad.read_zarr(tmp_path / "a.zarr").shape == (2, 2)
    with pytest.raises(InputError, match="suffix"):
        files.write_anndata(small, tmp_path / "a.csv")
