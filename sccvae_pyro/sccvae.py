"""The façade: one object from a screen to its answers. It delegates and computes nothing."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import networkx as nx
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from sccvae_pyro import storage
from sccvae_pyro.data.checks import check_counts, check_seed, check_seeds, check_unseen
from sccvae_pyro.data.labels import as_labels
from sccvae_pyro.data.loading import Coding, Covariate, Screen
from sccvae_pyro.data.schema import Schema, canonical_label, cell_labels, parse_targets
from sccvae_pyro.data.wording import folded, listing, nearest, question
from sccvae_pyro.errors import InputError, InputWarning
from sccvae_pyro.files import as_path, write_graphml
from sccvae_pyro.inference import (
    arviz_groups,
    choice,
    curves,
    export,
    interactions,
    mcmc,
    paths,
    posterior,
    posterior_predictive,
    predictive,
    psis,
    replicates,
    results,
    sbc,
    svi,
    uncertainty,
)
from sccvae_pyro.inference.checkpoint import checkpoint_folder
from sccvae_pyro.inference.describe import describe
from sccvae_pyro.inference.discrepancy import Discrepancy, fit_discrepancy
from sccvae_pyro.inference.modules import Modules, find_modules
from sccvae_pyro.inference.spec import InferenceSpec, NUTSSpec
from sccvae_pyro.models import build
from sccvae_pyro.models.graph_edges import node_names
from sccvae_pyro.models.library import Observed
from sccvae_pyro.models.program import Program
from sccvae_pyro.models.responders import AllCells
from sccvae_pyro.models.slot import Described, Member, Sizes, Targets, own_nodes
from sccvae_pyro.models.spec import ModelSpec

logger = logging.getLogger(__name__)

MOST_PENETRANCE = 1e6
"""A million times the shift of the screen: beyond it the decoder's layers overflow."""

Perturbation = str | Sequence[str]
Choice = Member | str | Mapping[str, Any] | None


class SCCVAE:
    """The single-cell causal variational autoencoder of a Perturb-seq screen.

    Parameters
    ----------
    adata
        Screen that :func:`~sccvae_pyro.setup_anndata` has been run on; cells x genes.
    n_nodes
        Latent causal nodes; ``None`` takes the default of :class:`~sccvae_pyro.models.spec.ModelSpec`.
    hidden
        Widths of the hidden layers.
    nodes
        What the nodes are, instead of ``n_nodes`` free ones: a member of :mod:`sccvae_pyro.priors`, its name,
        or a table with name and settings.
    graph, penetrance, direction, intervention, responders, noise, library
        Priors: an object of :mod:`sccvae_pyro.priors`, its name, or a table with name and settings.
    likelihood
        The same; ``"auto"`` takes the negative binomial for counts, the normal for other values.
    posterior
        The same, for how the globals are proposed.

    Raises
    ------
    InputError
        If the screen has not been set up, or a prior or setting is unknown.

    Examples
    --------
    >>> model = SCCVAE(adata, graph=Laplace(scale=0.02)).fit()  # doctest: +SKIP
    >>> model.predict(["STAT1", "JAK2+IRF1"])  # doctest: +SKIP
    """

    def __init__(
        self,
        adata: AnnData,
        n_nodes: int | None = None,
        hidden: Sequence[int] | None = None,
        graph: Choice = None,
        penetrance: Choice = None,
        direction: Choice = None,
        responders: Choice = None,
        noise: Choice = None,
        nodes: Choice = None,
        intervention: Choice = None,
        library: Choice = None,
        likelihood: Choice = "auto",
        posterior: Choice = None,
    ) -> None:
        spec = ModelSpec.read(
            None,
            n_nodes=n_nodes,
            hidden=hidden,
            graph=graph,
            penetrance=penetrance,
            direction=direction,
            responders=responders,
            noise=noise,
            nodes=nodes,
            intervention=intervention,
            library=library,
            likelihood=likelihood,
            posterior=posterior,
        )
        self._set_up(adata, spec)

    @classmethod
    def from_spec(
        cls, adata: AnnData, spec: str | Path | Mapping[str, Any] | ModelSpec, **overrides: Any
    ) -> SCCVAE:
        """Build the model that a spec describes.

        Parameters
        ----------
        adata
            Screen that has been set up.
        spec
            Path of a TOML file, or the same as a mapping; or a folder that :meth:`save` wrote, for a new
            model with the beliefs of the saved one.
        overrides
            Settings that replace those of the spec.

        Returns
        -------
        SCCVAE

        Raises
        ------
        InputError
            If the spec cannot be read or names unknown things.
        """
        model = cls.__new__(cls)
        source = spec.model_dump() if isinstance(spec, ModelSpec) else spec
        if isinstance(source, str | Path) and Path(source).is_dir():
            source = storage.read_description(source)["spec"]
        model._set_up(adata, ModelSpec.read(source, **overrides))
        return model

    def _set_up(self, adata: AnnData, spec: ModelSpec) -> None:
        self.coding = Coding.of(adata)
        self.spec = spec.settled(self.coding.schema.kind)
        self._screen: Screen | None = self.coding.screen(adata)
        if not self._screen.is_control.any():
            raise InputError(
                f"There are no control cells ({self.coding.schema.control!r}); the model starts from them."
            )
        if not self.coding.perturbations:
            raise InputError("Every cell is a control, so there is no perturbation to learn from.")
        self.priors = self.spec.priors(self.coding.schema.kind)
        self.features = build.features_of(adata, self.coding) if self._reads_features else None
        logger.info("likelihood: %s, for %s", type(self.priors.likelihood).__name__, self.coding.schema.kind)
        self.program = build.program_of(self.spec, self.priors, self._screen, self.features, seed=0)
        self.controls: posterior.Controls | None = None
        self.discrepancy = Discrepancy.none(len(self.coding.genes))
        self._drawn: tuple[tuple[int, int], posterior.Draws] | None = None
        self.history = pd.DataFrame()

    def __repr__(self) -> str:
        sizes = self.program.sizes
        state = f"fitted, {len(self.history)} epochs" if self.is_fitted else "not fitted"
        priors = ", ".join(f"{slot}={member}" for slot, member in self.priors._asdict().items())
        return (
            f"SCCVAE ({state}): {sizes.genes} genes, {sizes.perturbations} perturbations, "
            f"{sizes.features} features, {sizes.nodes} nodes\n  {priors}"
        )

    @property
    def _reads_features(self) -> bool:
        return self.priors.direction.reads_features or self.priors.penetrance.reads_features

    @property
    def is_fitted(self) -> bool:
        """Whether :meth:`fit` has run."""
        return self.controls is not None

    def fit(
        self,
        inference: InferenceSpec | Mapping[str, Any] | str | Path | None = None,
        *,
        checkpoint_dir: str | Path | None = None,
        resume: bool = False,
        progress: bool = True,
        **overrides: Any,
    ) -> SCCVAE:
        """Fit by stochastic variational inference.

        Parameters
        ----------
        inference
            Path of a TOML file, a mapping or an :class:`InferenceSpec`; ``None`` takes the defaults.
        checkpoint_dir
            Where a checkpoint is written after every epoch.
        resume
            Go on from the checkpoint in ``checkpoint_dir`` where there is one.
        progress
            Show a progress bar.
        overrides
            Settings of :class:`InferenceSpec` that replace those of ``inference``, such as
            ``max_epochs``, ``batch_size``, ``seed``, ``precision``, ``devices``.

        Returns
        -------
        The model itself.

        Raises
        ------
        InputError
            If the model was loaded without data, a setting is unknown, or the checkpoint to go on from is
            damaged or of another run.
        """
        screen = self._require_screen("fit")
        spec = InferenceSpec.read(inference, **overrides)
        folder = checkpoint_folder(checkpoint_dir, resume)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)  # said when the model was built
            self.program = build.program_of(self.spec, self.priors, screen, self.features, seed=spec.seed)
        self._drawn, self.controls = None, None
        self._fitted_rows, _ = svi.split_rows(screen, spec)
        self.history = svi.fit(self.program, screen, spec, folder, resume, progress)
        self.controls = results.remember_controls(self.program, screen, spec.seed)
        self.discrepancy = self._fit_discrepancy(screen, self.controls, spec.seed)
        return self

    def predict(
        self,
        perturbations: Sequence[Perturbation] | str,
        penetrance: float = 1.0,
        n_samples: int = 200,
        controls: AnnData | None = None,
        return_draws: bool = False,
        seed: int = 0,
    ) -> AnnData:
        """Predict the mean profile of perturbations, seen or unseen, single or combined.

        Parameters
        ----------
        perturbations
            Labels (``"STAT1"``, ``"JAK2+IRF1"``) or sequences of targets.
        penetrance
            Factor on the shift: 0 is a control cell, 1 the perturbation as in the screen.
        n_samples
            Posterior draws.
        controls
            Control cells to start from; ``None`` takes those of the training screen.
        return_draws
            Keep the draws of the mean in ``obsm["draws"]``, perturbations x draws x genes.
        seed
            Seed of the draws.

        Returns
        -------
        AnnData
            One row per perturbation. ``X`` and layer ``mean``: mean over cells of ``log1p(CP10K)`` (of
            the values, where they are not counts); layers ``sd``, ``q05``, ``q95``: posterior of that
            population mean; ``delta``, ``delta_sd``, ``delta_q05``, ``delta_q95``: its difference to
            control, what nodes leave unexplained included; ``var["control_mean"]``: the observed mean of the
            control cells;
            ``obs["status"]``: ``control``, ``seen`` or ``unseen``.

        Raises
        ------
        InputError
            If the model is not fitted, or a perturbation has no features; see :meth:`predictable`.

        Warns
        -----
        InputWarning
            If the model has no features at all, so that an unseen perturbation is predicted as any other.
        """
        start = self._controls(controls)
        penetrance = _check_penetrance(penetrance)
        check_counts(2, n_samples=n_samples)
        labels = self._labels(perturbations)
        draws = self._draws(n_samples, seed)
        push = self._push(draws, labels, seed).at(penetrance)
        deltas = results.population_deltas(self.program, draws, start, push, seed)
        self.discrepancy.add_to(deltas, penetrance, labels, self._n_targets(labels), seed)
        status = [self._status(label) for label in labels]
        settings = {"penetrance": penetrance, "n_samples": int(n_samples), "seed": int(seed)}
        return results.prediction(deltas, labels, status, self.coding, start.mean_g, settings, return_draws)

    def penetrance_curves(
        self,
        perturbations: Sequence[Perturbation] | str,
        genes: Sequence[str] | None = None,
        penetrances: Sequence[float] = curves.PENETRANCES,
        n_samples: int = 200,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Predict perturbations from none of them to beyond their strength in the screen.

        The same draws, cells and noise serve every penetrance, so that a curve is smooth.

        Parameters
        ----------
        perturbations
            Labels or targets, seen or unseen.
        genes
            Genes to follow; ``None`` takes the three that each perturbation changes most at penetrance 1.
        penetrances
            Factors on the shift: 0 is a control cell, 1 the perturbation as in the screen.
        n_samples, seed
            Posterior draws, and their seed.

        Returns
        -------
        DataFrame, tidy, for :func:`sccvae_pyro.plots.penetrance_curves`: ``perturbation``, ``gene``,
        ``penetrance``; ``delta``, ``low``, ``high``: mean change of the profile and its 90 % interval, as
        :meth:`predict` gives them.

        Raises
        ------
        InputError
            As in :meth:`predict`, or if a gene is not measured, or no penetrance is named.
        """
        labels, steps = self._labels(perturbations), _check_penetrances(penetrances)
        chosen = None if genes is None else self._positions(genes)

        def band_at(penetrance: float) -> curves.Band:
            found = self.predict(labels, penetrance, n_samples, seed=seed).layers
            return {"delta": found["delta"], "low": found["delta_q05"], "high": found["delta_q95"]}

        return curves.follow(band_at, steps, labels, self.coding.genes, chosen, "gene")

    def state_curves(
        self,
        perturbations: Sequence[Perturbation] | str,
        nodes: Sequence[str] | None = None,
        penetrances: Sequence[float] = curves.PENETRANCES,
        n_samples: int = 200,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Follow the latent state of cells from no perturbation to beyond its strength in the screen.

        Parameters
        ----------
        perturbations, penetrances, n_samples, seed
            As in :meth:`penetrance_curves`.
        nodes
            Nodes to follow; ``None`` takes the three that each perturbation moves most at penetrance 1.

        Returns
        -------
        DataFrame, as of :meth:`penetrance_curves`, with ``node`` for ``gene``: change of the mean state of
        the control cells, in standard deviations of the nodes' noise. What nodes leave unexplained is no part
        of a state.

        Raises
        ------
        InputError
            As in :meth:`predict`, or if there is no such node, or no penetrance is named.
        """
        start = self._require_fit()
        check_counts(2, n_samples=n_samples)
        labels, steps = self._labels(perturbations), _check_penetrances(penetrances)
        chosen = None if nodes is None else _named(nodes, self.nodes, "nodes")
        draws = self._draws(n_samples, seed)
        push = self._push(draws, labels, seed)

        def band_at(penetrance: float) -> curves.Band:
            at = push.at(penetrance)
            changes = curves.state_changes(self.program, draws, start, at, results.CELLS_PER_DRAW, seed)
            return curves.band(changes)

        return curves.follow(band_at, steps, labels, self.nodes, chosen, "node")

    def sample_cells(
        self,
        perturbation: Perturbation,
        n: int = 500,
        penetrance: float = 1.0,
        controls: AnnData | None = None,
        seed: int = 0,
    ) -> AnnData:
        """Simulate cells of a perturbation, each from its own draw of the program.

        What the program leaves unexplained of a population mean, which :meth:`predict` adds, is not in them.

        Parameters
        ----------
        perturbation
            Label or targets.
        n
            Number of cells.
        penetrance
            Factor on the shift.
        controls
            Control cells to start from; ``None`` takes those of the training screen.
        seed
            Seed.

        Returns
        -------
        AnnData
            ``X``: counts (or values), n x genes; ``obs``: ``perturbation`` and ``library``.

        Raises
        ------
        InputError
            As in :meth:`predict`.
        """
        start = self._controls(controls)
        penetrance = _check_penetrance(penetrance)
        check_counts(n=n)
        label = self._labels([perturbation])[0]
        draws = self._draws(min(n, 200), seed)
        push = self._push(draws, [label], seed).at(penetrance)
        values, library, _ = posterior.sample_cells(self.program, draws, start, push, n, seed)
        return results.sampled_cells(values, library, label, self.coding)

    def counterfactual(
        self,
        cells: AnnData,
        perturbation: Perturbation,
        penetrance: float = 1.0,
        n_samples: int = 50,
        seed: int = 0,
    ) -> AnnData:
        """Ask what given cells would have been under another perturbation: abduct, act, predict.

        The noise of each cell is read off its expression, its own perturbation is taken back, and the
        new one is applied to the same noise.

        Parameters
        ----------
        cells
            Cells that have been set up like the training screen.
        perturbation
            Label or targets; the control label takes every perturbation back.
        penetrance
            Factor on the new shift.
        n_samples
            Posterior draws.
        seed
            Seed.

        Returns
        -------
        AnnData
            Cells x genes. ``X`` and layer ``counterfactual``: expected ``log1p(CP10K)`` under the new
            perturbation, at the library sizes of the control cells; ``factual``: as the cell was; ``effect``,
            ``effect_q05``, ``effect_q95``: their difference.

        Raises
        ------
        InputError
            As in :meth:`predict`, or if the cells do not fit the model.
        """
        start = self._require_fit()
        penetrance = _check_penetrance(penetrance)
        check_counts(2, n_samples=n_samples)
        screen = self.coding.screen(cells)
        label = self._labels([perturbation])[0]
        draws = self._draws(n_samples, seed)
        new = self._push(draws, [label], seed).at(penetrance)
        library = start.library_c.numpy()
        return results.counterfactual(self.program, draws, screen, library, new, label, cells.obs, seed)

    def get_latent(
        self, adata: AnnData, kind: Literal["u", "z"] = "u", n_samples: int = 20, seed: int = 0
    ) -> pd.DataFrame:
        """Posterior mean of the latent state of cells.

        Parameters
        ----------
        adata
            Cells that have been set up like the training screen.
        kind
            ``"u"``: the causal state, after regulation; ``"z"``: the exogenous noise, before it.
        n_samples
            Posterior draws of the globals to average over.
        seed
            Seed.

        Returns
        -------
        DataFrame, cells x nodes.

        Raises
        ------
        InputError
            If ``kind`` is unknown, the model is not fitted, or the cells do not fit it.
        """
        if kind not in ("u", "z"):
            raise InputError(
                f"kind={kind!r} is unknown. Ask for 'u' (causal state) or 'z' (exogenous noise)."
            )
        self._require_fit()
        screen = self.coding.screen(adata)
        draws = self._draws(n_samples, seed)
        latent = results.latent(self.program, draws, screen, kind)
        return pd.DataFrame(latent, index=adata.obs_names, columns=pd.Index(self.nodes))

    def log_density(self, adata: AnnData, n_samples: int = 20, seed: int = 0) -> pd.Series:
        """Log density of cells given their perturbation, seen or not, by importance sampling.

        Parameters
        ----------
        adata
            Cells that have been set up like the training screen.
        n_samples
            Draws of the globals, each with one draw of every cell's noise.
        seed
            Seed.

        Returns
        -------
        Series of nats, one a cell. A lower bound in expectation that tightens with ``n_samples``.

        Raises
        ------
        InputError
            As in :meth:`predict`.
        """
        self._require_fit()
        screen, labels = self._labelled(adata)
        draws = self._draws(n_samples, seed)
        values = results.log_density(self.program, draws, screen, self._push(draws, labels, seed), seed)
        return pd.Series(values, index=adata.obs_names, name="log_density")

    def predictable(self, genes: Sequence[Perturbation] | str) -> pd.DataFrame:
        """Say which genes' perturbation can be predicted, and why not.

        Parameters
        ----------
        genes
            Genes, or labels as of :meth:`predict`: a combination can be predicted where all its targets can.

        Returns
        -------
        DataFrame with columns ``gene``, ``predictable`` and ``reason``, in the order they are asked for.

        Raises
        ------
        InputError
            If a label is none; see :meth:`predict`.
        """
        control = self.coding.schema.control
        parsed = [parse_targets(label, control) for label in as_labels(genes)]
        answers = self._predictable(sorted({target for targets in parsed for target in targets}))
        rows = [(canonical_label(targets, control), *_answer(answers, targets)) for targets in parsed]
        return pd.DataFrame(rows, columns=list(answers)).astype({"predictable": bool})

    def _predictable(self, genes: Sequence[str]) -> pd.DataFrame:
        """The same of single genes."""
        if self.features is not None:
            table = self.features.predictable(genes)
        else:
            reason = "no features: the population's mean effect"
            table = pd.DataFrame({"gene": genes, "predictable": True, "reason": reason})
        if not self.priors.direction.reads_features:
            table.loc[table["predictable"], "reason"] = "acts on its own node"
        for row, gene in table.loc[table["predictable"], "gene"].items():
            if refusal := self._refusal(gene):
                table.loc[row, ["predictable", "reason"]] = [False, refusal]
        if self.features is None and self.priors.direction.reads_features:
            return table
        seen = table["gene"].isin(self.coding.perturbations)
        table.loc[seen, "predictable"] = True
        table.loc[seen, "reason"] = "seen in training"
        return table

    def penetrance(self, n_samples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Strength of each seen perturbation, with intervals.

        Returns
        -------
        DataFrame indexed by perturbation; columns ``mean``, ``sd``, ``q05``, ``median``, ``q95``.
        """
        self._require_fit()
        check_counts(2, n_samples=n_samples)
        return results.penetrance_table(self._draws(n_samples, seed), self.coding.perturbations)

    def guides(self, n_samples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Strength of each guide, relative to that of its perturbation and in total, with intervals.

        Relative strengths have a mean of one in the prior, over all guides; those of one perturbation need
        not. Compare guides of one perturbation by them, see :meth:`guide_order`, and guides of several by
        the total, the strength of the perturbation times that of the guide.

        Returns
        -------
        DataFrame indexed by guide; columns ``perturbation``, ``n_cells``; ``mean``, ``sd``, ``q05``,
        ``median``, ``q95`` of the relative strength; ``total``, ``total_q05``, ``total_q95``, missing for
        guides of several targets. A model loaded without its screen knows the relative strengths only.

        Raises
        ------
        InputError
            If the prior does not tell guides apart.
        """
        return results.guide_table(self._guide_draws(n_samples, seed), self.coding.guides, self._screen)

    def guide_order(self, n_samples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Say which of two guides of one perturbation is the stronger, and how probably.

        Returns
        -------
        DataFrame with columns ``perturbation``, ``stronger``, ``weaker`` and ``probability``, at least 0.5; a
        row for each pair, the surest of a perturbation first.

        Raises
        ------
        InputError
            If the prior does not tell guides apart, or the model was loaded without data.
        """
        draws = self._guide_draws(n_samples, seed)
        return results.guide_pairs(draws, self.coding.guides, self._require_screen("compare guides"))

    def _guide_draws(self, n_samples: int, seed: int) -> posterior.Draws:
        """Draws of globals among which are the strengths of guides."""
        self._require_fit()
        check_counts(2, n_samples=n_samples)
        draws = self._draws(n_samples, seed)
        if "guide_strength" not in draws.values:
            raise InputError(
                "Guides of a perturbation are taken as equally strong. Build the model with "
                'penetrance="Guides" on a screen with guide_key.'
            )
        return draws

    def responders(self, adata: AnnData, n_samples: int = 50, seed: int = 0) -> pd.DataFrame:
        """Share of its shift that each cell shows: with ``Beta``, the probability that it responded.

        Parameters
        ----------
        adata
            Cells that have been set up like the training screen.
        n_samples
            Posterior draws of the globals.
        seed
            Seed.

        Returns
        -------
        DataFrame indexed by cell; columns ``perturbation``, ``mean``, ``sd``, ``q05``, ``q95``; control cells
        are left out. With ``Beta`` these are of the probability, over what is open of the globals; with
        ``Dose`` of the share itself, over what is open of the cell, too.

        Raises
        ------
        InputError
            If the prior gives all cells the whole shift, the model is not fitted, or the cells do not fit it.
        """
        self._require_fit()
        check_counts(2, n_samples=n_samples)
        if isinstance(self.priors.responders, AllCells):
            raise InputError(
                "With responders=AllCells every cell shows the whole shift. Build the model with "
                'responders="Beta" (some cells escape) or "Dose" (by degrees).'
            )
        screen = self.coding.screen(adata)
        table = results.responders(self.program, self._draws(n_samples, seed), screen, seed)
        table.index = adata.obs_names
        table.insert(0, "perturbation", screen.labels.to_numpy())
        return table[~screen.is_control]

    def modules(self, n_samples: int = 100, similarity: float = 0.5, seed: int = 0) -> Modules:
        """Group the seen perturbations that push cells the same way.

        Draw by draw, perturbations are clustered by the cosine of their effects on the population means of
        all genes (without the discrepancy that :meth:`predict` adds: it is the same for all); the probability
        of belonging together is the share of draws that say so. A perturbation whose posterior does not
        exclude an effect of zero belongs to no module. See :mod:`sccvae_pyro.inference.modules`.

        Parameters
        ----------
        n_samples
            Posterior draws.
        similarity
            Mean cosine from which the effects of two groups are alike, above 0 and below 1; higher for
            more and tighter modules.
        seed
            Seed of the draws.

        Returns
        -------
        Modules
            ``table`` with the module of each perturbation, ``summary``, ``co_assignment``, ``n_modules``,
            ``coordinates``, and :meth:`~sccvae_pyro.inference.modules.Modules.enrichment` in gene sets.

        Raises
        ------
        InputError
            If the model is not fitted or has seen fewer than three perturbations, or a setting is out of
            its range.
        """
        start = self._require_fit()
        check_counts(2, n_samples=n_samples)
        names = self.coding.perturbations
        draws = self._draws(n_samples, seed)
        push = self._push(draws, names, seed)
        deltas = results.population_deltas(self.program, draws, start, push, seed)
        return find_modules(deltas, names, similarity)

    def edges(self, n_samples: int = 500, seed: int = 0) -> pd.DataFrame:
        """Edges between nodes, the strongest first.

        Returns
        -------
        DataFrame with columns ``source``, ``target``, ``mean``, ``sd``, ``q05``, ``q95``, ``present`` and
        ``probability_positive``; one row for each edge that any draw has. ``present`` is the share of draws
        that have the edge, one where order and edges are given, and ``probability_positive`` speaks of those.
        Priors that tell edges from none add ``inclusion``, the probability that the edge is in the graph.
        """
        self._require_fit()
        check_counts(2, n_samples=n_samples)
        return results.edge_table(self.program, self._draws(n_samples, seed), self.nodes)

    def to_networkx(self, n_samples: int = 500, seed: int = 0) -> nx.DiGraph:
        """The graph of :meth:`edges` for networkx.

        Returns
        -------
        Directed graph of all nodes and of every edge that any draw has: with a learned order it may hold both
        directions of a pair. Edges have the columns of :meth:`edges` as attributes; nodes have ``position``
        (in the order of the model), ``is_gene`` and ``perturbed`` (by a perturbation of that name).

        Raises
        ------
        InputError
            If the model is not fitted.
        """
        return export.to_networkx(self.edges(n_samples, seed), self.program.sizes)

    def write_graphml(self, path: str | Path, n_samples: int = 500, seed: int = 0) -> Path:
        """Write the graph of :meth:`to_networkx` as GraphML, for Cytoscape, Gephi or igraph.

        Returns
        -------
        The path. The file appears whole or not at all.

        Raises
        ------
        InputError
            If the model is not fitted, or the file cannot be written.
        """
        return write_graphml(self.to_networkx(n_samples, seed), path)

    def paths(
        self,
        perturbation: Perturbation,
        gene: str,
        n_paths: int = 10,
        penetrance: float = 1.0,
        n_samples: int = 200,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Take the effect of a perturbation on a gene apart by the paths through the graph that it takes.

        A path runs from a node that the perturbation acts on along edges to the gene. What goes along it is
        the push on its first node, times the weights of its edges, times what the gene shows of its last
        node: of the node itself where the gene has one, else by the decoder, taken as linear around the
        control cells. A node that is cut or scaled (:class:`~sccvae_pyro.priors.intervention.Do`) is pushed
        by what it loses at the mean control state.

        Parameters
        ----------
        perturbation
            Label or targets.
        gene
            A measured gene.
        n_paths
            Paths to name: those of the largest mean size over draws.
        penetrance
            Factor on the shift.
        n_samples
            Posterior draws.
        seed
            Seed of the draws.

        Returns
        -------
        DataFrame indexed by ``path``, the names of its nodes and the gene. Columns ``mean``, ``sd``, ``q05``,
        ``q95`` and ``probability_positive``: what goes along it, in units of a profile; ``share``: its mean
        over that of all paths, which sums to one and may lie beyond 0 and 1 where paths oppose each other;
        ``n_edges`` of the graph. After the paths come the row ``all other paths``, and the sum ``all paths``;
        then what leads from it to the prediction: ``beyond the paths``, what the curvature of decoder and
        counts adds to the linear effect, and, of a gene with a node, the molecules that it shares with other
        genes; ``beyond the nodes``, what :meth:`predict` adds for what nodes leave unexplained, and
        ``predicted``, the sum of these three, equal to the layer ``delta`` of :meth:`predict`.

        Raises
        ------
        InputError
            As in :meth:`predict`, or if the gene is not measured, or the perturbation is control.
        """
        start = self._require_fit()
        penetrance = _check_penetrance(penetrance)
        check_counts(2, n_samples=n_samples)
        check_counts(n_paths=n_paths)
        position, labels = int(self._positions([gene])[0]), self._labels([perturbation])
        if labels[0] == self.coding.schema.control:
            raise InputError(f"{labels[0]!r} is the control: it acts on no node. Name a perturbation.")
        draws = self._draws(n_samples, seed)
        push = self._push(draws, labels, seed).at(penetrance)
        flow = paths.flow(self.program, draws, start, push, position, results.CELLS_PER_DRAW, seed)
        deltas = results.population_deltas(self.program, draws, start, push, seed)
        predicted = deltas.copy()
        self.discrepancy.add_to(predicted, penetrance, labels, self._n_targets(labels), seed)
        ends = deltas[:, 0, position], predicted[:, 0, position]
        return paths.path_table(flow, n_paths, self.nodes, gene, *ends)

    def interactions(
        self,
        combinations: Sequence[Perturbation] | str,
        penetrance: float = 1.0,
        n_samples: int = 200,
        seed: int = 0,
    ) -> AnnData:
        """Compare combinations with the sum of their parts, draw by draw.

        Shifts of a combination add up, so that what is not additive comes from the decoder and the counts;
        from nodes that are cut or scaled; and from parts that different fractions of cells respond to. What
        nodes leave unexplained, which :meth:`predict` adds, is left out: it is known of no combination.

        Parameters
        ----------
        combinations
            Labels (``"JAK2+IRF1"``) or sequences of two targets or more, seen or unseen.
        penetrance
            Factor on all shifts.
        n_samples
            Posterior draws.
        seed
            Seed of the draws.

        Returns
        -------
        AnnData
            Combinations x genes. Layers ``delta``: predicted effect; ``additive``: sum of the effects of the
            parts; ``interaction``, also ``X``: their difference, with ``interaction_sd``,
            ``interaction_q05``, ``interaction_q95``. Columns of ``obs``, the first two with ``_q05`` and
            ``_q95``: ``score``, norm over genes of the interaction over that of the additive effect, at least
            0; ``projection``, the part along the additive effect: above 0 the combination goes farther than
            its parts (synergistic), below less far (buffering); ``probability_synergistic``, that it lies
            above 0; ``status`` as in :meth:`predict`.

        Raises
        ------
        InputError
            As in :meth:`predict`, or if a label has fewer than two targets.
        """
        start = self._require_fit()
        penetrance = _check_penetrance(penetrance)
        check_counts(2, n_samples=n_samples)
        labels = self._labels(combinations)
        parsed = [parse_targets(label, self.coding.schema.control) for label in labels]
        if alone := [label for label, targets in zip(labels, parsed, strict=True) if len(targets) < 2]:
            raise InputError(f"{listing(alone)} has no second target to interact with. Name pairs, as 'A+B'.")
        draws = self._draws(n_samples, seed)
        push = self._push(draws, [*labels, *interactions.parts(parsed)], seed).at(penetrance)
        deltas = results.population_deltas(self.program, draws, start, push, seed)
        status = [self._status(label) for label in labels]
        settings = {"penetrance": float(penetrance), "n_samples": n_samples, "seed": seed}
        return interactions.table(deltas, parsed, labels, status, self.coding, settings)

    def suggest(
        self,
        candidates: Sequence[Perturbation],
        genes: Sequence[str] | None = None,
        threshold: float | None = None,
        n: int = 10,
        n_cells: int = 100,
        n_samples: int = 500,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Rank perturbations by what measuring them would tell, or by how likely they do what is wanted.

        Without a threshold the batch is chosen one by one, each candidate for the information that its
        measurement adds on the effects of all candidates: the mutual information under a joint normal
        view of the posterior draws along the principal components of their uncertainty.

        Parameters
        ----------
        candidates
            Labels or targets, single or combined, that could be measured.
        genes
            Genes whose effects matter; ``None`` takes all.
        threshold
            Wanted mean effect over ``genes``, in units of a profile: at least as high where positive,
            at least as low where negative. Candidates are then ranked by the probability of it.
        n
            Candidates to name.
        n_cells
            Cells that would be measured of each.
        n_samples
            Posterior draws.
        seed
            Seed of the draws.

        Returns
        -------
        DataFrame indexed by perturbation, the best first. Columns ``rank``; ``status`` as in :meth:`predict`;
        ``information``: what its measurement would tell of the effects of all candidates beside those ranked
        above it, nats; ``alone``: the same if nothing else were measured; ``others``: share of the variance
        of all other candidates that it would take away alone; ``sd`` of its mean effect over ``genes``; with
        a threshold ``probability``, ``effect``, ``effect_q05`` and ``effect_q95`` of that mean; and
        ``reason``, in words.

        Raises
        ------
        InputError
            As in :meth:`predict`, or if there are no candidates, a gene is not measured, or a
            threshold comes without genes.
        """
        start = self._require_fit()
        check_counts(2, n_samples=n_samples)
        check_counts(n=n, n_cells=n_cells)
        if threshold is not None:
            _check_threshold(threshold, genes)
        positions = self._positions(self.coding.genes if genes is None else genes)
        labels = self._labels(candidates)
        if self.coding.schema.control in labels:
            raise InputError("candidates names the control, which is no perturbation. Leave it out.")
        draws = self._draws(n_samples, seed)
        push = self._push(draws, labels, seed)
        outlook = choice.outlook(
            self.program,
            draws,
            start,
            push,
            self.discrepancy,
            labels,
            self._n_targets(labels),
            positions,
            n_cells,
            results.CELLS_PER_DRAW,
            seed,
        )
        return choice.table(outlook, labels, [self._status(label) for label in labels], n, threshold)

    def uncertainty_split(
        self,
        perturbations: Sequence[Perturbation] | str,
        genes: Sequence[str] | None = None,
        penetrance: float = 1.0,
        n_samples: int = 64,
        seed: int = 0,
    ) -> uncertainty.Split:
        """Say where the uncertainty of predicted means comes from.

        The variance of the mean change that :meth:`predict` gives, split by Shapley effects among ``graph``;
        ``penetrance``: strengths and, where cells escape, responding fractions; ``direction``: what is left
        of it once graph and strengths are known; ``likelihood``: its gene-level variables; ``discrepancy``:
        what nodes leave unexplained. With a joint ``posterior`` all that it draws is one source, ``globals``,
        and ``penetrance`` and ``direction`` are what an unseen perturbation has of its own. Networks are
        point estimates, whose doubt is in no source. The spread of single cells is no part of this variance.
        See :mod:`sccvae_pyro.inference.uncertainty`.

        Parameters
        ----------
        perturbations
            Labels or targets, seen or unseen.
        genes
            Genes whose variances are summed; ``None`` takes all.
        penetrance
            Factor on the shift.
        n_samples
            Pairs of posterior draws; each takes up to 16 predictions.
        seed
            Seed of the draws.

        Returns
        -------
        :class:`~sccvae_pyro.inference.uncertainty.Split`: ``sources``, a row for each perturbation and source
        with its ``variance``, ``share`` and ``share_se``; ``labels``, with ``sd`` of the mean and ``cell_sd``
        of single cells; ``genes``, the same shares gene by gene.

        Raises
        ------
        InputError
            As in :meth:`predict`, or if a gene is not measured, or a perturbation is control.
        """
        start = self._require_fit()
        penetrance = _check_penetrance(penetrance)
        check_counts(2, n_samples=n_samples)
        check_seed(seed)
        positions = self._positions(self.coding.genes if genes is None else genes)
        labels = self._labels(perturbations)
        if self.coding.schema.control in labels:
            raise InputError(
                "The control is no perturbation: nothing of its change is uncertain. Leave it out."
            )
        unexplained = self.discrepancy.variance(penetrance, self._n_targets(labels))[:, positions]

        def push_of(draws: posterior.Draws) -> posterior.Push:
            return self._push(draws, labels, seed).at(penetrance)

        sources = uncertainty.Sources.of(self.program)
        effects = uncertainty.effects_of(
            self.program, start, sources, push_of, unexplained, positions, n_samples, seed
        )
        of_cells = uncertainty.cell_variance(self.program, start, push_of, positions, seed)
        status = [self._status(label) for label in labels]
        settings = {"penetrance": penetrance, "n_samples": int(n_samples), "seed": int(seed)}
        return uncertainty.table(sources, effects, of_cells, labels, status, positions, self.coding, settings)

    def prior_predictive(self, n_samples: int = 200, seed: int = 0) -> pd.DataFrame:
        """Say what the priors believe in the units of the data, and where the data disagree.

        Globals are drawn from their priors, cells from the noise prior, and both pass through the decoder as
        it is. A decoder that has not been fitted knows nothing of the genes: ask a fitted model, or
        compare beliefs under the same decoder. The number of edges and the share of responding cells do not
        depend on it. Known as the prior predictive check (Gabry et al. 2019, J R Stat Soc A 182:389).

        Parameters
        ----------
        n_samples
            Draws from the prior.
        seed
            Seed of the draws, and of which control cells and labels are looked at where there are many.

        Returns
        -------
        DataFrame, one row for each quantity:

        ``edges``
            Edges between nodes of a weight above 0.1 in size.
        ``effect_median``, ``effect_q90``
            Size of an effect, the root mean square over genes of the change of mean ``log1p(CP10K)`` (of
            the mean value): median and 90 % quantile over the labels of the screen. That of the data has its
            sampling noise taken out.
        ``responding_cells``
            Mean over perturbations of the share of its shift that a cell shows.
        ``variance_to_mean``, ``zero_fraction``
            Of the counts of control cells: the median over expressed genes, and the share of all counts.
        ``standard_deviation``
            In place of these two where values are not counts: the median over genes, in control cells.

        Columns ``q05``, ``median``, ``q95``: the prior; ``data``: the same of the screen, NaN where it is
        not seen; ``inside``: whether that lies between the quantiles, missing where there is none; ``unit``.

        Raises
        ------
        InputError
            If the model was loaded without data, or the priors are so wide that states overflow.

        Warns
        -----
        InputWarning
            If the data lie outside the prior's 90 % interval; the message names the quantities.
        """
        screen = self._require_screen("ask what its priors say")
        check_counts(2, n_samples=n_samples)
        check_seed(seed)
        scope = predictive.Scope.of(screen, seed)
        draws = posterior.draw_prior(self.program, n_samples, seed)
        push = self._push(draws, scope.labels, seed)
        simulated = predictive.simulate(self.program, draws, push, screen[scope.rows], seed)
        table = predictive.compare(simulated, predictive.observe(screen, scope), results.units(self.coding))
        predictive.warn_outside(table)
        return table

    def posterior_predictive(
        self, adata: AnnData | None = None, n_samples: int = 200, seed: int = 0
    ) -> posterior_predictive.Check:
        """Say what the fitted model would generate in place of measured cells, and where they differ.

        Globals are drawn from the posterior, cells from the noise prior, with the perturbations, guides,
        covariates and library sizes of at most 256 control cells and 64 cells of each of at most 32 other
        labels. What the program leaves unexplained of a population mean, which :meth:`predict` adds, is not
        in them. Known as the posterior predictive check (Gelman, Meng & Stern 1996, Stat Sin 6:733).

        Parameters
        ----------
        adata
            Cells that have been set up like the training screen, control cells among them; ``None`` takes the
            training screen.
        n_samples
            Posterior draws.
        seed
            Seed of the draws, and of which cells are looked at where there are many.

        Returns
        -------
        :class:`~sccvae_pyro.inference.posterior_predictive.Check`, whose ``summary`` has one row for each
        quantity:

        ``variance_to_mean``, ``zero_fraction``, or ``standard_deviation``
            As in :meth:`prior_predictive`.
        ``correlation``
            Root mean square of the correlations between the 40 genes that control cells express most.
        ``effect_median``, ``effect_q90``
            Size of an effect over labels; generated and measured cells have the same sampling noise.
        ``molecules_median``, ``molecules_spread``
            Only where library sizes are generated: molecules of the measured genes of a control cell.
        ``profile_distance``
            How far the mean profile of a label is from what is expected, in sds of the generated ones.

        Its columns are those of :meth:`prior_predictive`. Genes, pairs and labels behind it are in ``items``.

        Raises
        ------
        InputError
            If the model is not fitted or has no data and none are given, or the cells do not fit it.

        Warns
        -----
        InputWarning
            If the data lie outside the 90 % interval; the message names the quantities.
        """
        self._require_fit()
        check_counts(2, n_samples=n_samples)
        screen, _ = self._labelled(adata, "check what it generates")
        draws = self._draws(n_samples, seed)
        part = replicates.Part.of(screen, seed)
        measured = replicates.measured(screen, part)
        generates = not isinstance(self.priors.library, Observed)
        looked = posterior_predictive.Looked.at(measured, part, screen, generates)
        push = self._push(draws, part.labels, seed)
        cells = replicates.replicate(self.program, draws, push, screen, part, seed)
        found = posterior_predictive.check(
            measured, cells, looked, self.coding.genes, results.units(self.coding)
        )
        predictive.warn_outside(found.summary, "fitted model", posterior_predictive.ADVICE)
        return found

    def psis(self, adata: AnnData | None = None, n_samples: int = 1000, seed: int = 0) -> psis.PSIS:
        """Say how well the guide covers the posterior, cell by cell, and as a whole.

        Pareto-smoothed importance sampling (Yao et al. 2018, ICML): the shape k of the largest ratios of
        model to guide. Below 0.7 the guide covers the posterior well enough for importance sampling, and so
        for :meth:`log_density`; above, it misses a part.

        Parameters
        ----------
        adata
            Cells that have been set up like the training screen; the globals are then left out. ``None``
            takes the training screen, and judges the globals by the cells that the guide was fitted to.
        n_samples
            Proposals of each cell, each at a draw of the globals of its own.
        seed
            Seed.

        Returns
        -------
        :class:`~sccvae_pyro.inference.psis.PSIS`: k of ``cells``, by ``perturbations``, and ``globals_k``.

        Raises
        ------
        InputError
            If the model is not fitted or has no data and none are given, or the cells do not fit it.

        Warns
        -----
        InputWarning
            If k is above 0.7 for any cell or for the globals.
        """
        self._require_fit()
        check_counts(psis.FEWEST, n_samples=n_samples)
        screen, labels = self._labelled(adata, "judge the guide")
        draws = self._draws(n_samples, seed)
        shapes = psis.of_cells(self.program, draws, screen, self._push(draws, labels, seed), seed)
        found = psis.tabulate(
            shapes, screen.labels, self._globals_k(screen, seed) if adata is None else math.nan
        )
        psis.warn_high(found)
        return found

    def to_arviz(
        self,
        n_samples: int = 500,
        seed: int = 0,
        adata: AnnData | None = None,
        groups: str | Sequence[str] = "posterior",
        n_particles: int = 16,
    ) -> Any:
        """Give what the model says as ArviZ data with named coordinates.

        Cells times genes times draws are never held: the log likelihood is per cell, and what is predicted
        are mean profiles of at most 32 labels and the control cells.

        Parameters
        ----------
        n_samples
            Draws of the globals, the same in every group.
        seed
            Seed of the draws, and of which cells are looked at where there are many.
        adata
            Cells that have been set up like the training screen; ``None`` takes the training screen.
        groups
            Names of groups, or ``"all"``:

            ``posterior``, ``prior``
                Draws of all globals, from the guide and from the priors; neither needs cells.
            ``log_likelihood``
                ``x`` (cell): log density of each cell given the globals, with what a cell has of its own
                integrated out by importance sampling; what ``arviz.loo`` and ``arviz.compare`` take. Decoder
                and encoder are as they were fitted: leaving a cell out does not take back what they learned
                of it.
            ``posterior_predictive``, ``prior_predictive``, ``observed_data``
                ``mean_profile`` (label, gene): mean of ``log1p(CP10K)`` (of the values) over the cells of a
                label, of cells generated anew with globals from the posterior or the prior, and of the
                measured cells whose place they take; at most 256 control cells, and 64 cells of each of 32
                other labels.
        n_particles
            Proposals of each cell for each draw, for ``log_likelihood``, which takes cells times draws times
            this decodings.

        Returns
        -------
        ``arviz.InferenceData``, since ArviZ 1.0 ``xarray.DataTree``; draws are of one chain.

        Raises
        ------
        InputError
            If the model is not fitted, a group is unknown or needs cells where the model was loaded without
            data, or the cells do not fit it.
        """
        self._require_fit()
        asked = arviz_groups.named(groups)
        check_counts(n_particles=n_particles)
        draws = self._draws(n_samples, seed)
        coords = export.coordinates(self.nodes, self.coding, self.features, draws)
        needed = arviz_groups.of_cells(asked)
        screen = self._labelled(adata, f"fill {needed}")[0] if needed else None
        push_of = partial(self._push, seed=seed)
        return arviz_groups.Groups(self.program, draws, coords, screen, push_of, n_particles, seed).gather(
            asked
        )

    def nuts(
        self,
        cells: AnnData,
        inference: NUTSSpec | Mapping[str, Any] | str | Path | None = None,
        *,
        progress: bool = True,
        **overrides: Any,
    ) -> Any:
        """Draw the globals of a small screen by Hamiltonian Monte Carlo, to check the fitted posterior.

        The networks are held as they were fitted. The model itself does not change: its predictions stay
        those of :meth:`fit`.

        Parameters
        ----------
        cells
            All cells to learn from, set up like the training screen; at most 2,000 divided by the nodes.
        inference
            Path of a TOML file such as ``inference/nuts.toml``, a mapping or a :class:`NUTSSpec`; ``None``
            takes the defaults.
        progress
            Show a progress bar of each chain, with its step size and the share of proposals accepted.
        overrides
            Settings of :class:`NUTSSpec` that replace those of ``inference``: ``n_samples``, ``warmup``,
            ``chains``, ``seed``.

        Returns
        -------
        ArviZ data, named as by :meth:`to_arviz`; ``arviz.summary`` of it has ``r_hat`` and effective sizes.

        Raises
        ------
        InputError
            If the model is not fitted, its responders are discrete, the cells do not fit it or are too
            many, or a setting is unknown.
        """
        self._require_fit()
        spec = NUTSSpec.read(inference, **overrides)
        screen = self.coding.screen(cells)
        found = mcmc.sample_screen(
            self.program, screen, spec.n_samples, spec.warmup, spec.chains, spec.seed, progress
        )
        coords = export.coordinates(self.nodes, self.coding, self.features, found.draws)
        return export.to_arviz(
            {
                "posterior": export.sites(found.draws, coords, spec.chains),
                "sample_stats": {"diverging": found.diverging.numpy()},
            },
            coords,
        )

    def sbc(
        self,
        inference: InferenceSpec | Mapping[str, Any] | str | Path | None = None,
        *,
        seeds: Iterable[int] = range(100),
        unseen: Sequence[str] = (),
        n_samples: int = 199,
        **overrides: Any,
    ) -> pd.DataFrame:
        """Simulation-based calibration: fit what the model itself generates, and rank the truth among draws.

        For every seed globals are drawn from their priors, and from the program cells with the labels,
        library sizes and covariates of the training screen; guide and encoder are fitted anew, with decoder,
        origin and shape of the noise known; and one quantity of every family, picked at random, is ranked.
        Ranks are uniform if the posterior is right: see :func:`sccvae_pyro.evaluate.uniformity` and
        :func:`sccvae_pyro.plots.rank_ecdf`. The model itself does not change. Every seed costs a fit.

        Parameters
        ----------
        inference, overrides
            How to fit, as in :meth:`fit`; the seed is that of the replicate.
        seeds
            One for each replicate.
        unseen
            Genes without cells whose predicted perturbations are ranked, too.
        n_samples
            Posterior draws; with 1 added, a number with many divisors.

        Returns
        -------
        DataFrame
            One row for each ``replicate`` (its seed) and ``family``: the sites of the globals, the
            ``change of state`` by a perturbation, and its ``change of mean`` profile, ``seen`` or ``unseen``.
            Columns ``entry``, position of the quantity in its family; ``truth``; ``mean`` and ``sd`` of the
            draws; ``rank``, draws below the truth; ``draws``, their number.

        Raises
        ------
        InputError
            If the model is not fitted or has no screen, generates library sizes, ``seeds`` names none,
            ``unseen`` names the control, combinations or what cannot be predicted, or a setting is unknown.
        """
        self._require_fit()
        screen = self._require_screen("simulate it again")
        if not isinstance(self.priors.library, Observed):
            raise InputError(
                "sbc takes the library sizes of the measured cells, and library=Latent() draws others. "
                "Calibrate the same model with library=Observed()."
            )
        check_counts(least=2, n_samples=n_samples)
        own = check_seeds(seeds)
        genes = check_unseen(unseen, self.coding.schema.control)
        described = self._describe(self._labels(genes)) if genes else None
        world = sbc.World(self.program, self.spec, self.features, screen, described)
        return sbc.replicates(world, InferenceSpec.read(inference, **overrides), own, n_samples)

    def describe(self) -> str:
        """Write the program as equations, with the chosen priors; print it."""
        return describe(self.program, export.example(self.program, self._screen))

    def render(self, filename: str | Path | None = None) -> Any:
        """Draw the program as a graph with plates (needs the graphviz program)."""
        return export.render(self.program, self._screen, filename)

    @property
    def nodes(self) -> list[str]:
        """Names of the latent nodes."""
        return list(node_names(self.program.sizes))

    def save(self, folder: str | Path) -> None:
        """Write the model: weights as tensors beside a JSON description; see :meth:`load`.

        Raises
        ------
        InputError
            If the model is not fitted, or the folder cannot be written to.
        """
        controls = self._require_fit()
        description = {
            "versions": export.versions(),
            "spec": self.spec.model_dump(mode="json"),
            "sizes": asdict(self.program.sizes),
            "coding": asdict(self.coding),
            "features": None if self.features is None else build.describe_features(self.features),
        }
        tensors = {f"program.{name}": value for name, value in self.program.state_dict().items()}
        for part, values in (("controls", controls), ("discrepancy", self.discrepancy)):
            tensors |= {f"{part}.{name}": torch.as_tensor(value) for name, value in values._asdict().items()}
        if self.features is not None:
            tensors |= build.feature_tensors(self.features)
        storage.save(as_path(folder), description, tensors, self.history)

    @classmethod
    def load(cls, folder: str | Path) -> SCCVAE:
        """Read a model that :meth:`save` wrote; it predicts without the data.

        Raises
        ------
        InputError
            If the folder holds no model, a damaged one, or one whose parts do not fit together.
        """
        description, tensors, history = storage.load(folder)
        model = cls.__new__(cls)
        model._screen, model._drawn = None, None
        model.history = history
        try:
            model.spec = ModelSpec.read(description["spec"])
            model.coding = _coding(description["coding"])
            sizes = Sizes(**description["sizes"])
            _check_sizes(sizes, model.coding)
            model.features = build.features_from(description["features"], tensors)
            model.priors = model.spec.priors(model.coding.schema.kind)
            model.program = build.empty_program(model.spec, model.priors, sizes)
            model.program.load_state_dict(_part(tensors, "program."))
            model.controls = results.controls_from(_part(tensors, "controls."))
            stored = _part(tensors, "discrepancy.")
            model.discrepancy = Discrepancy(**{name: value.numpy() for name, value in stored.items()})
            _check_values(model.program, model.controls, model.discrepancy)
        except Exception as error:  # parts that do not fit are found in as many ways
            raise InputError(f"The parts of the model in {folder} do not fit together: {error}") from None
        model.program.eval()
        return model

    def _require_screen(self, purpose: str) -> Screen:
        if self._screen is None:
            raise InputError(
                "This model was loaded from disk, without its screen. "
                f"Build a new SCCVAE(adata) to {purpose}."
            )
        return self._screen

    def _require_fit(self) -> posterior.Controls:
        if self.controls is None:
            raise InputError("The model is not fitted. Call fit() first.")
        return self.controls

    def _draws(self, n: int, seed: int) -> posterior.Draws:
        """Draw the globals; the last draws are kept, as one question after another asks for the same."""
        self._require_fit()
        check_seed(seed)
        check_counts(n_samples=n)
        if self._drawn is None or self._drawn[0] != (n, seed):
            self._drawn = (n, seed), posterior.draw(self.program, n, seed)
        return self._drawn[1]

    def _labelled(self, adata: AnnData | None, purpose: str = "") -> tuple[Screen, list[str]]:
        """Code cells, of the training screen where none are given, that may carry unseen perturbations.

        Gives their labels, too, in the order of their codes.
        """
        if adata is None:
            if self._screen is None:
                raise InputError(
                    "This model was loaded from disk, without its screen. "
                    f"Pass cells, adata=..., to {purpose}."
                )
            return self._screen, [str(label) for label in self._screen.labels.cat.categories]
        schema = Schema.of(adata)
        labels = self._labels([str(label) for label in cell_labels(adata, schema).cat.categories])
        targets = {target for label in labels for target in parse_targets(label, schema.control)}
        unseen = sorted(targets - set(self.coding.perturbations))
        return self.coding.with_unseen(unseen).screen(adata), labels

    def _globals_k(self, screen: Screen, seed: int) -> float:
        """Pareto shape of the globals, by the cells that the guide was fitted to."""
        draws, ratio_s = posterior.draw_weighed(self.program, psis.GLOBAL_DRAWS, seed)
        push = self._push(draws, [str(label) for label in screen.labels.cat.categories], seed)
        return psis.of_globals(self.program, draws, ratio_s, screen, self._fitted_rows, push, seed)

    def _controls(self, cells: AnnData | None) -> posterior.Controls:
        known = self._require_fit()
        if cells is None:
            return known
        screen = self.coding.screen(cells)
        if not screen.is_control.all():
            raise InputError("controls= holds perturbed cells. Pass control cells only.")
        return results.controls_of(self.program, screen, np.arange(len(screen)))

    def _fit_discrepancy(self, screen: Screen, controls: posterior.Controls, seed: int) -> Discrepancy:
        control = self.coding.schema.control
        observed = screen.profiles().with_variance_of(control).without(control)
        n_targets = np.array([len(parse_targets(label, control)) for label in observed.n.index])
        draws = posterior.draw(self.program, results.DISCREPANCY_DRAWS, seed).with_guides_of(self.program)
        push = self._push(draws, list(observed.n.index), seed)
        return fit_discrepancy(
            self.program, draws, controls, push, observed, n_targets, results.DISCREPANCY_CELLS, seed
        )

    def _labels(self, perturbations: Sequence[Perturbation] | str) -> list[str]:
        """Canonical labels; each target seen or predictable."""
        control = self.coding.schema.control
        parsed = [parse_targets(label, control) for label in as_labels(perturbations)]
        if not parsed:
            raise InputError("No perturbation is asked for. Name at least one.")
        known = self.coding.perturbations
        unknown = sorted({target for targets in parsed for target in targets}.difference(known))
        _check_spelling(unknown, [control, *known])
        self.program.check(self._targets(unknown))
        if unknown and self.features is None and self.priors.direction.reads_features:
            _warn_of_population(unknown, known)
        table = self._predictable(unknown)
        if not table["predictable"].all():
            refused = table[~table["predictable"]]
            reason = f"{refused['gene'].iloc[0]} has {refused['reason'].iloc[0]}"
            raise InputError(
                f"Cannot predict {listing(refused['gene'])}: {reason}. "
                "Give features for it (feature_key), or ask predictable() which genes have them."
            )
        labels = [canonical_label(targets, control) for targets in parsed]
        if len(set(labels)) < len(labels):
            twice = pd.Series(labels)[pd.Series(labels).duplicated()].unique()
            raise InputError(f"Perturbations {listing(twice)} are asked for twice. Name each once.")
        return labels

    def _refusal(self, gene: str) -> str:
        """Why a prior cannot speak of a perturbation of this gene; nothing where all can."""
        try:
            self.program.check(self._targets([gene]))
        except InputError as error:
            return str(error)
        return ""

    def _targets(self, names: Sequence[str]) -> Targets:
        """What is measured of perturbed genes."""
        expression = build.expression_of(names, self.coding, self.program.baseline)
        return Targets(tuple(names), own_nodes(names, self.program.sizes), expression)

    def _positions(self, genes: Sequence[str]) -> np.ndarray:
        """Positions of measured genes."""
        return _named(genes, self.coding.genes, "measured genes")

    def _n_targets(self, labels: Sequence[str]) -> np.ndarray:
        return np.array([len(parse_targets(label, self.coding.schema.control)) for label in labels])

    def _status(self, label: str) -> str:
        if label == self.coding.schema.control:
            return "control"
        return "seen" if label in self.coding.labels else "unseen"

    def _push(self, draws: posterior.Draws, labels: Sequence[str], seed: int) -> posterior.Push:
        """What each label does, at penetrance 1."""
        control, known = self.coding.schema.control, self.coding.perturbations
        parsed = [parse_targets(label, control) for label in labels]
        unseen = sorted({target for targets in parsed for target in targets if target not in set(known)})
        return results.label_push(self.program, draws, parsed, known, unseen, self._describe, seed)

    def _describe(self, unseen: Sequence[str]) -> Described:
        """What the priors know of perturbations without cells."""
        rows = np.zeros((len(unseen), 0)) if self.features is None else self.features.rows(unseen)
        return self.program.describe(torch.as_tensor(rows, dtype=torch.float32), self._targets(unseen))


def _answer(answers: pd.DataFrame, targets: Sequence[str]) -> tuple[bool, str]:
    """Whether a label can be predicted, and the reason: the first of its targets that cannot decides."""
    if not targets:
        return True, "control cells"
    found = answers.set_index("gene").loc[list(targets)].sort_values("predictable", kind="stable")
    predictable, reason = found.iloc[0]
    return predictable, reason if predictable or len(targets) == 1 else f"{found.index[0]}: {reason}"


def _check_sizes(sizes: Sizes, coding: Coding) -> None:
    found = (len(coding.genes), len(coding.perturbations), coding.n_covariates)
    expected = (sizes.genes, sizes.perturbations, sizes.covariates)
    for name, n, m in zip(("genes", "perturbations", "covariates"), expected, found, strict=True):
        if n != m:
            raise ValueError(f"the weights are of {n} {name}, the description names {m}")
    if sizes.perturbation_names != coding.perturbations:
        raise ValueError("the weights are of other perturbations than the description names")
    parsed = [parse_targets(label, coding.schema.control) for label in coding.labels]
    if () not in parsed or {target for targets in parsed for target in targets} != set(coding.perturbations):
        raise ValueError("the labels are not those of the control and the perturbations")
    for name, names in (("genes", coding.genes), ("perturbations", coding.perturbations)):
        if len(set(names)) < len(names):
            raise ValueError(f"{name} are named twice")
    if len(sizes.node_names) not in (0, sizes.nodes):
        raise ValueError(f"{sizes.nodes} nodes have {len(sizes.node_names)} names")
    check_counts(cells=sizes.cells)


def _check_values(program: Program, controls: posterior.Controls, discrepancy: Discrepancy) -> None:
    sizes, n = program.sizes, len(controls.library_c)
    expected = {
        "state_ck": (n, sizes.nodes),
        "covariates_cv": (n, sizes.covariates),
        "mean_g": (sizes.genes,),
    }
    found = {name: tuple(getattr(controls, name).shape) for name in expected}
    shapes = [(sizes.genes,) if name.endswith("_g") else () for name in discrepancy._fields]
    if found != expected or [part.shape for part in discrepancy] != shapes:
        raise ValueError("the control cells or the discrepancy are of other shapes than the model")
    values = [*program.parameters(), *map(torch.as_tensor, (*controls, *discrepancy))]
    if not all(value.isfinite().all() for value in values):
        raise ValueError("weights or control cells are not finite")


def _check_spelling(unknown: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that differs only by case or blanks from a known one, as setting up does."""
    by_folded = {folded(name): name for name in known}
    for name in unknown:
        if meant := by_folded.get(folded(name)):
            raise InputError(f"{name!r} differs only by case or blanks from {meant!r}. Write {meant!r}.")


def _warn_of_population(unknown: Sequence[str], known: Sequence[str]) -> None:
    near = nearest(unknown[0], known, n=1)
    message = (
        f"The training screen does not perturb {listing(unknown)}, and the model has no features that tell "
        "genes apart: the prediction is that of the population of seen perturbations. "
        f"{question(near)}Give features (feature_key) to predict unseen genes."
    )
    warnings.warn(message, InputWarning, stacklevel=4)


def _check_penetrance(penetrance: float) -> float:
    """Penetrance as a number of Python; refuse what is none, or so large that states overflow."""
    is_number = isinstance(penetrance, Real) and not isinstance(penetrance, bool)
    if not (is_number and 0 <= float(penetrance) <= MOST_PENETRANCE):
        raise InputError(f"penetrance must be a number from 0 to {MOST_PENETRANCE:g}, not {penetrance!r}")
    return float(penetrance)


def _check_penetrances(penetrances: Sequence[float]) -> list[float]:
    steps = [_check_penetrance(step) for step in _listed(penetrances, "penetrances", "numbers")]
    if not steps:
        raise InputError("penetrances names none. Leave it out to take 0 to 1.5.")
    return steps


def _named(names: Sequence[str], known: Sequence[str], what: str) -> np.ndarray:
    """Positions of names among known ones."""
    asked = [names] if isinstance(names, str) else _listed(names, what, "names")
    positions = pd.Index(known).get_indexer(asked)
    if unknown := [name for name, position in zip(asked, positions, strict=True) if position < 0]:
        near = question(nearest(unknown[0], known, n=1))
        raise InputError(f"{listing(unknown)} are not among the {what}. {near}Name others.")
    if not asked:
        raise InputError(f"None of the {what} is named. Leave the argument out to take those that matter.")
    if len(set(asked)) < len(asked):
        twice = pd.Series(asked)[pd.Series(asked).duplicated()].unique()
        raise InputError(f"{listing(twice)} of the {what} are asked for twice. Name each once.")
    return positions


def _listed(values: Any, what: str, of: str) -> list[Any]:
    if not isinstance(values, Iterable):
        raise InputError(f"{what} must be a list of {of}, not {values!r}.")
    return list(values)


def _check_threshold(threshold: float, genes: Sequence[str] | None) -> None:
    if not (isinstance(threshold, Real) and math.isfinite(threshold)):
        raise InputError(f"threshold must be a finite number, not {threshold!r}.")
    if genes is None:
        raise InputError(f"threshold={threshold!r} says nothing of which genes. Name them with genes=[...].")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _coding(stored: Mapping[str, Any]) -> Coding:
    schema = Schema.from_uns({key: value for key, value in stored["schema"].items() if value})
    covariates = tuple(Covariate(**{**c, "levels": tuple(c["levels"])}) for c in stored["covariates"])
    genes, perturbations, labels = (tuple(stored[key]) for key in ("genes", "perturbations", "labels"))
    return Coding(schema, genes, perturbations, labels, covariates, tuple(stored["guides"]))
