"""The command line: ``sccvae simulate | fit | predict | evaluate | report | demo | priors``.

Every command is a thin call of the façade or of :mod:`sccvae_pyro.workflow`. Their imports wait for the
command: torch takes seconds, and help should not. Exit codes: 0 all is well, 2 the input cannot be used.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from sccvae_pyro.errors import InputError, InputWarning

if TYPE_CHECKING:
    from sccvae_pyro.models.slot import Member
    from sccvae_pyro.verdict import Verdict

screen, margin = Console(), Console(stderr=True)


class _FriendlyGroup(TyperGroup):
    """Commands whose complaints about input are a sentence, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("once", InputWarning)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (InputError, OSError) as error:
                margin.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)
                raise typer.Exit(2) from error


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    title = "Note: " if issubclass(category, InputWarning) else f"{category.__name__}: "
    margin.print(Text.assemble((title, "bold yellow"), str(message)), soft_wrap=True)


app = typer.Typer(
    cls=_FriendlyGroup,
    name="sccvae",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="""Predict what genetic perturbations do to single cells, seen or unseen, and how sure that is.

First time here? See it work on a simulated screen (a few minutes), then open demo/report.html:

    sccvae demo --out demo

On your own screen, raw counts in an h5ad file or zarr store:

    sccvae fit screen.h5ad --perturbation-key perturbation --control control --hold-out 0.2 --out run
    sccvae evaluate run run/held_out.h5ad
    sccvae report run --out report.html
    sccvae predict run --perturbations STAT1,JAK2+IRF1 --out pred.h5ad
""",
)

_COLUMNS = "What else the screen holds"
_FEATURES = "What is known of the target genes"
_HELD_OUT = "Which cells to learn from"
_TRAINING = "Model and training"


def _import(modules: list[str] | None) -> list[str] | None:
    """Import modules of one's own, those of the current folder among them: their priors then have names."""
    for module in modules or ():
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
            raise InputError(
                f"--import {module!r} is no name of a module. Give one that is installed or in this folder, "
                "without .py."
            )
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module of the user's own may raise
            raise InputError(
                f"Cannot import {module!r}: {type(error).__name__}: {error}. Name a module that is installed "
                "or in this folder, and that runs."
            ) from error
    return modules


Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import", callback=_import, help="Module with priors of your own, imported first. May be repeated."
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="Folder that `sccvae fit` wrote.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Samples = Annotated[int, typer.Option("--n-samples", help="Draws from the posterior.", min=2)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")]


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="File to write, .h5ad or .zarr.")] = Path("screen.h5ad"),
    perturbations: Annotated[int, typer.Option(help="Perturbed genes.", min=3)] = 200,
    cells: Annotated[int, typer.Option(help="Cells of each perturbation.", min=2)] = 100,
    controls: Annotated[int, typer.Option(help="Control cells.", min=10)] = 2000,
    genes: Annotated[int, typer.Option(help="Measured genes, the perturbed ones included.", min=4)] = 600,
    combinations: Annotated[int, typer.Option(help="Pairs that are perturbed together.", min=0)] = 0,
    seed: Seed = 0,
) -> None:
    r"""Simulate a Perturb-seq screen whose truth is known.

    The cells carry raw counts; the graph, the penetrance of each perturbation and the noiseless means are in
    uns["truth"], features of the perturbed genes in uns["features"].

        sccvae simulate --out screen.h5ad
        sccvae fit screen.h5ad --perturbation-key perturbation --control control \
            --library-key total_umi --feature-key features --hold-out 0.2 --out run
    """
    from sccvae_pyro.data.simulate import simulate as draw
    from sccvae_pyro.files import check_anndata_path, write_anndata

    check_anndata_path(out)
    adata = draw(perturbations, cells, controls, genes, n_combinations=combinations, seed=seed)
    _say_where(f"{adata.n_obs:,} cells x {adata.n_vars:,} genes", write_anndata(adata, out))


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="Screen: .h5ad file or .zarr store.", show_default=False)],
    perturbation_key: Annotated[
        str, typer.Option(help="Column of obs with each cell's perturbation; A+B is a combination.")
    ],
    control: Annotated[str, typer.Option(help="Label of unperturbed cells in that column.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("run"),
    layer: Annotated[
        str | None, typer.Option(rich_help_panel=_COLUMNS, help="Layer with the counts; X if not given.")
    ] = None,
    library_key: Annotated[
        str | None, typer.Option(rich_help_panel=_COLUMNS, help="Column with the molecules of each cell.")
    ] = None,
    guide_key: Annotated[
        str | None, typer.Option(rich_help_panel=_COLUMNS, help="Column with the guide of each cell.")
    ] = None,
    covariate_key: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_COLUMNS, help="Column to correct for, such as a batch. May be repeated."
        ),
    ] = None,
    feature_key: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_FEATURES,
            help="Features of the perturbed genes: a table in uns, or a key of varm.",
        ),
    ] = None,
    gmt: Annotated[
        Path | None, typer.Option(rich_help_panel=_FEATURES, help="Features from gene sets (GMT file).")
    ] = None,
    regulons: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_FEATURES, help="Features from regulons (CollecTRI, TRRUST)."),
    ] = None,
    features_csv: Annotated[
        Path | None, typer.Option(rich_help_panel=_FEATURES, help="Features from a CSV; first column: genes.")
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_HELD_OUT, help="Targets to keep out of training, A,B,C, or a share such as 0.2."
        ),
    ] = None,
    leave_out: Annotated[
        str | None, typer.Option(rich_help_panel=_HELD_OUT, help="Targets whose cells to drop, A,B,C.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(rich_help_panel=_TRAINING, help="Model spec (TOML); see `sccvae priors`.")
    ] = None,
    imports: Imports = None,
    inference: Annotated[
        Path | None, typer.Option(rich_help_panel=_TRAINING, help="Inference spec (TOML).")
    ] = None,
    max_epochs: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_TRAINING, help="Most passes over the cells.", min=1, show_default=False
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(rich_help_panel=_TRAINING, help="Cells of a step.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(rich_help_panel=_TRAINING, help="Seed of the split and of training.", show_default="0"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=_TRAINING, help="Go on where a killed run stopped.")
    ] = False,
    keep_cells: Annotated[
        bool,
        typer.Option(
            rich_help_panel=_HELD_OUT, help="Keep the training cells in the run, for `sccvae evaluate`."
        ),
    ] = True,
    quiet: Quiet = False,
) -> None:
    r"""Learn from a screen and keep the model in a folder.

    Unseen perturbations are predicted from features of their target genes: your own table, gene sets,
    regulons, or several of them. Without any, the expression of the targets in control cells serves.

        sccvae fit screen.h5ad --perturbation-key perturbation --control control --out run

    A gene panel with its library sizes, guides, batches and prior knowledge, two targets held out:

        sccvae fit thp1.h5ad --perturbation-key perturbation --control control \
            --library-key total_umi --guide-key guide --covariate-key replicate \
            --gmt go.gmt --regulons collectri.csv --hold-out JAK2,STAT1 --out run
    """
    _log(quiet)
    from sccvae_pyro import workflow
    from sccvae_pyro.data import datasets
    from sccvae_pyro.data.schema import setup_anndata
    from sccvae_pyro.files import check_folder
    from sccvae_pyro.sccvae import SCCVAE

    check_folder(out)
    adata = datasets.read(data)
    setup_anndata(
        adata, perturbation_key, control, layer, library_key, guide_key, covariate_keys=covariate_key or ()
    )
    sources = workflow.Sources(gmt, regulons, features_csv, feature_key)
    left_out = workflow.names(leave_out) if leave_out else []
    train, held_out = workflow.prepare(adata, sources, hold_out, left_out, seed or 0)
    fitted = SCCVAE(train) if model is None else SCCVAE.from_spec(train, model)
    fitted.fit(
        inference,
        checkpoint_dir=out / workflow.CHECKPOINTS,
        resume=resume,
        progress=not quiet and margin.is_terminal,
        max_epochs=max_epochs,
        batch_size=batch_size,
        seed=seed,
    )
    fitted.save(out)
    workflow.keep(out, train, held_out, keep_cells)
    if not quiet:
        _say_where(f"{len(fitted.history)} epochs", out)
        if held_out is not None:
            _say(f"Next: sccvae evaluate {out} {out / workflow.HELD_OUT}")


@app.command()
def predict(
    run: RunFolder,
    perturbations: Annotated[str, typer.Option(help="A,B,C+D: single ones, combinations joined by +.")],
    out: Annotated[Path, typer.Option(help="File to write, .h5ad or .zarr.")] = Path("pred.h5ad"),
    penetrance: Annotated[
        float, typer.Option(help="0: control, 1: as in the screen, 0.5: half.", min=0)
    ] = 1.0,
    n_samples: Samples = 200,
    draws: Annotated[bool, typer.Option("--draws", help="Keep the posterior draws in obsm.")] = False,
    seed: Seed = 0,
    imports: Imports = None,
) -> None:
    """Predict mean profiles of perturbations, seen or unseen, with 90 % intervals.

    The file has a row per perturbation; layers mean, sd, q05, q95 (mean log1p(CP10K) over cells) and delta,
    delta_q05, delta_q95 (difference to control cells); obs["status"] says seen or unseen.

        sccvae predict run --perturbations STAT1,JAK2+IRF1 --out pred.h5ad
        sccvae predict run --perturbations STAT1 --penetrance 0.5 --out half.h5ad
    """
    from sccvae_pyro.files import check_anndata_path, write_anndata
    from sccvae_pyro.report import describe
    from sccvae_pyro.sccvae import SCCVAE
    from sccvae_pyro.workflow import names

    check_anndata_path(out)
    model = SCCVAE.load(run)
    asked = names(perturbations, model.coding.labels)
    prediction = model.predict(asked, penetrance, n_samples=n_samples, return_draws=draws, seed=seed)
    rows = [
        (
            row["name"],
            prediction.obs.loc[row["name"], "status"],
            row["n_changed"],
            row["raised"] or "-",
            row["lowered"] or "-",
        )
        for row in describe(prediction)[:20]
    ]
    _table(("perturbation", "status", "genes changed", "raises most", "lowers most"), rows)
    _say_where(f"{prediction.n_obs:,} predictions", write_anndata(prediction, out))


@app.command()
def evaluate(
    run: RunFolder,
    held_out: Annotated[Path, typer.Argument(help="Cells that training has not seen.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the scores.", show_default="scores within the run")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Training cells.", show_default="those that the run kept")
    ] = None,
    n_samples: Samples = 200,
    seed: Seed = 0,
    quiet: Quiet = False,
    imports: Imports = None,
) -> None:
    """Score predictions of held-out perturbations beside simple baselines and the noise ceiling.

    Writes CSV tables of every metric with 95 % intervals, the predictions and the observed means. The cells
    must be laid out like the training screen, with control cells among them.

        sccvae evaluate run run/held_out.h5ad --out scores
    """
    _log(quiet)
    from sccvae_pyro import workflow
    from sccvae_pyro.files import check_folder

    folder = check_folder(out or run / workflow.SCORES)
    assessment = workflow.assess(run, held_out, train, n_samples, seed)
    assessment.save(folder)
    from sccvae_pyro.report import score_table
    from sccvae_pyro.verdict import deciding_target, judge

    table = score_table(assessment.scores.table(), deciding_target(assessment.scores))
    rows = [
        (row["name"], *(f"{cell['mean']}{' *' if cell['best'] else ''}" for cell in row["cells"]))
        for row in table["rows"]
    ]
    arrows = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}
    metrics = (f"{metric.replace('_', ' ')} {arrows[better]}" for metric, _, better in table["columns"])
    _table(("method", *metrics), rows)
    _say("* best, \N{UPWARDS ARROW} higher is better, \N{DOWNWARDS ARROW} lower is better")
    unseen = bool((assessment.predictions.obs["status"] == "unseen").all())
    _say_verdict(judge(assessment.scores, unseen))
    _say_where("Scores", folder)


@app.command()
def report(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    scores: Annotated[
        Path | None, typer.Option(help="Folder of `sccvae evaluate`.", show_default="scores within the run")
    ] = None,
    perturbations: Annotated[
        str | None, typer.Option(help="Further perturbations to predict, A,B,C+D.", show_default=False)
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "What the perturbations do",
    n_samples: Samples = 100,
    seed: Seed = 0,
    imports: Imports = None,
) -> None:
    """Write a page that answers in plain words, with the pictures behind them.

    What does each perturbation do, what would unseen ones do, how sure is the model, does it beat the simple
    baselines. One file; it needs no network and can be mailed.

        sccvae report run --out report.html
        sccvae report run --perturbations JAK3,TYK2 --out report.html
    """
    from sccvae_pyro import workflow
    from sccvae_pyro.files import check_file, write_text
    from sccvae_pyro.report import render

    check_file(out)
    evidence = workflow.tell(run, scores, perturbations, n_samples, seed)
    path = write_text(render(evidence, title), out)
    _say_verdict(evidence.verdict)
    _say_where("Report", path)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo"),
    perturbations: Annotated[int, typer.Option(help="Perturbed genes.", min=5)] = 200,
    cells: Annotated[int, typer.Option(help="Cells of each perturbation.", min=8)] = 100,
    controls: Annotated[int, typer.Option(help="Control cells.", min=50)] = 2000,
    genes: Annotated[int, typer.Option(help="Measured genes.", min=10)] = 600,
    max_epochs: Annotated[
        int | None, typer.Option(help="Most passes over the cells.", min=1, show_default=False)
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """See it all work on a simulated screen: a few minutes to a report.

    Simulates a screen, hides a fifth of its perturbations, learns from the others, predicts the hidden ones,
    scores them against the truth beside simple baselines, and writes report.html, scores, predictions.h5ad
    and model.

        sccvae demo --out demo
        sccvae predict demo/model --perturbations G0003+G0007 --out pred.h5ad
    """
    _log(quiet)
    from sccvae_pyro import workflow
    from sccvae_pyro.files import check_folder

    check_folder(out)
    size = {
        "n_perturbations": perturbations,
        "cells_per_perturbation": cells,
        "n_control": controls,
        "n_genes": genes,
    }
    evidence = workflow.demo(
        out, seed, progress=not quiet and margin.is_terminal, size=size, max_epochs=max_epochs
    )
    if not quiet:
        _say_verdict(evidence.verdict)
    _say_where("Report", out / "report.html")


@app.command()
def priors(
    slot: Annotated[
        str | None, typer.Argument(help="One slot, such as graph.", show_default="all of them")
    ] = None,
    imports: Imports = None,
) -> None:
    """List the priors and likelihoods that a model spec can name, with their settings.

        sccvae fit screen.h5ad ... --model my_model.toml

    where my_model.toml holds, for instance:

        n_nodes = 64
        graph = { name = "Laplace", scale = 0.05 }
    """
    from sccvae_pyro.data.wording import suggestion
    from sccvae_pyro.models.slot import Member
    from sccvae_pyro.models.spec import SLOTS

    if slot is not None and slot not in SLOTS:
        raise InputError(f"There is no slot {slot!r}. {suggestion(slot, SLOTS, 'slots')}")
    for each in [slot] if slot else SLOTS:
        rows = [
            (name, (inspect.getdoc(member) or "").split("\n\n")[0].replace("\n", " "), _settings(member))
            for name, member in sorted(Member.registry[each].items())
        ]
        _table((each, "what it says", "settings and defaults"), rows)


def _settings(member: type[Member]) -> str:
    from sccvae_pyro.models.slot import settings_of

    return "\n".join(
        field.name if (default := _default(field)) is dataclasses.MISSING else f"{field.name} = {default}"
        for field in settings_of(member)
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


# How it speaks


def _log(quiet: bool) -> None:
    """Let the library's log reach the terminal."""
    logger = logging.getLogger("sccvae_pyro")
    logger.handlers = [RichHandler(console=margin, show_time=False, show_path=False, show_level=False)]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    # Its builders tell of every measured gene; the workflow tells of the perturbed ones.
    logging.getLogger("sccvae_pyro.data.features").setLevel(logging.WARNING)


def _say(text: str) -> None:
    screen.print(Text(text), soft_wrap=True)


def _say_where(what: str, path: Path) -> None:
    _say(f"{what}: {path}")


def _say_verdict(verdict: Verdict) -> None:
    color = {"good": "green", "level": "blue", "bad": "red", "open": "yellow"}[verdict.tone]
    body = Text.assemble((verdict.headline, "bold"), "\n\n", "\n".join(verdict.sentences))
    screen.print(Panel(body, border_style=color, padding=(1, 2)))


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    screen.print(table)
    screen.print()
