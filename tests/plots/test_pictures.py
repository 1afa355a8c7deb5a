"""What each picture shows, and that its text can be read."""

from itertools import combinations

import matplotlib
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from sccvae_pyro import InputError, plots
from sccvae_pyro.inference.modules import find_modules
from sccvae_pyro.plots.style import apart


@pytest.fixture
def pictures(
    scores,
    predictions,
    observed,
    history,
    penetrance,
    edges,
    curves,
    believed,
    generated,
    sure_edges,
    interactions,
    modules,
    many_modules,
    swapped,
    split,
):
    """Every plot under its name."""
    table, pair = scores.table(), plots.compare(predictions, observed, "P3")
    return {
        "training": plots.training_curve(history),
        "scores": plots.score_forest(table, "pearson_delta"),
        "scatter": plots.predicted_against_observed(pair, "P3"),
        "genes": plots.top_genes(pair, title="P3"),
        "coverage": plots.coverage(table, methods=["SCCVAE", "GP"]),
        "spread": plots.error_against_spread(scores.per_perturbation),
        "pit": plots.pit_histogram(scores.pit),
        "risk": plots.risk_coverage(scores.risk_coverage(), methods=["SCCVAE", "GP"]),
        "effects": plots.effect_heatmap(predictions),
        "penetrance": plots.penetrance_forest(penetrance),
        "dose": plots.penetrance_curves(curves, "P1"),
        "graph": plots.strongest_edges(edges),
        "whole graph": plots.plot_graph(sure_edges),
        "interaction": plots.interaction(interactions, "P1+P2"),
        "priors": plots.prior_predictive(believed),
        "posterior": plots.posterior_predictive(generated),
        "module map": plots.module_map(modules),
        "module heatmap": plots.module_heatmap(modules),
        "map of many": plots.module_map(many_modules),
        "heatmap of many": plots.module_heatmap(many_modules),
        "sensitivity": plots.sensitivity(*swapped),
        "uncertainty": plots.uncertainty_split(split),
    }


def texts_that_overlap(figure):
    """Pairs of texts of a figure whose boxes intersect, by their content."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    shown = []
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            inside = figure.bbox.overlaps(box)
            if inside and box.width > 0:
                shown.append((text.get_text(), box.shrunk(0.98, 0.9)))
    return [(a, b) for (a, one), (b, other) in combinations(shown, 2) if one.overlaps(other)]


def test_no_text_overlaps_another(pictures):
    for name, plot in pictures.items():
        assert texts_that_overlap(plot.ax.figure) == [], name


def test_every_picture_has_data_and_labelled_axes(pictures):
    for name, plot in pictures.items():
        assert isinstance(plot.data, pd.DataFrame) and len(plot.data), name
        assert plot.ax.get_title(loc="left"), name
        if "graph" not in name:
            assert plot.ax.get_xlabel(), name


def test_given_axes_are_drawn_on_and_pyplot_is_left_alone(history, scores):
    ax = Figure().add_subplot()
    assert plots.training_curve(history, ax=ax).ax is ax
    assert plots.coverage(scores.table(), ax=ax).ax is ax
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


def test_names_are_written_as_they_are_spelt(penetrance):
    odd = penetrance[:2].set_axis(["A$B$", "x_1"])
    plot = plots.penetrance_forest(odd)
    FigureCanvasAgg(plot.ax.figure).draw()
    assert {label.get_text() for label in plot.ax.get_yticklabels()} == {"A$B$", "x_1"}


# What they show


def test_training_looks_past_the_first_epochs(history):
    plot = plots.training_curve(history)
    low, high = plot.ax.get_ylim()
    assert low < history["train_loss"].min() and high < history["train_loss"].iloc[0]


def test_training_marks_the_best_epoch_counted_from_one(history):
    _, _, dot = plots.training_curve(history).ax.lines
    best = history["validation_loss"].idxmin()
    assert dot.get_xdata() == [best + 1] and dot.get_ydata() == [history.loc[best, "validation_loss"]]


def test_training_without_validation_cells(history):
    train, validation = plots.training_curve(history.assign(validation_loss=np.nan)).ax.lines
    assert len(train.get_xdata()) == len(history) and len(validation.get_xdata()) == 0


def test_units_stand_on_the_axes(predictions, observed, curves):
    predictions.uns["units"] = "mean value"
    pair = plots.compare(predictions, observed, "P3")
    assert plots.predicted_against_observed(pair, units="mean value").ax.get_xlabel() == (
        "observed change of mean value"
    )
    assert plots.top_genes(pair, units="mean value").ax.get_xlabel() == "change of mean value"
    assert plots.penetrance_curves(curves, units="mean value").ax.get_ylabel() == "change of mean value"
    heatmap = plots.effect_heatmap(predictions).ax.figure
    assert "change of mean value" in [ax.get_ylabel() for ax in heatmap.axes]


def test_scores_stand_in_order(scores):
    table = scores.table()
    higher = plots.score_forest(table, "pearson_delta").data
    assert list(higher.index) == ["SCCVAE", "GP", "perturbed mean", "control", "noise ceiling"]
    lower = plots.score_forest(table, "mse").data
    assert lower.index[0] == "SCCVAE"
    np.testing.assert_allclose(lower["mean"], table.loc[("held-out", "mse")].xs("mean", level=1)[lower.index])


def test_compare_aligns_genes(predictions, observed):
    shuffled = observed[:, ::-1].copy()
    pd.testing.assert_frame_equal(
        plots.compare(predictions, observed, "P2"), plots.compare(predictions, shuffled, "P2")
    )
    pair = plots.compare(predictions, observed, "P2")
    np.testing.assert_allclose(pair["predicted"], predictions["P2"].layers["delta"][0])
    assert (pair["low"] < pair["predicted"]).all()


def test_top_genes_are_those_that_were_observed_to_change(predictions, observed):
    pair = plots.compare(predictions, observed, "P2")
    shown = plots.top_genes(pair, n=2).data
    assert list(shown.index) == ["GENE6", "GENE7"]


def test_coverage_shows_the_scores(scores):
    table = scores.table()
    data = plots.coverage(table, methods=["SCCVAE"]).data
    assert list(data["nominal"]) == [50, 80, 90, 95]
    expected = 100 * table.loc[("held-out", "coverage_90"), ("SCCVAE", "mean")]
    assert data["actual"].iloc[2] == pytest.approx(expected)


def test_error_against_spread_has_a_point_per_perturbation(scores):
    data = plots.error_against_spread(scores.per_perturbation).data
    assert data.shape == (12, 2)


def test_pit_histogram_shows_all_observations_once(scores):
    plot = plots.pit_histogram(scores.pit)
    assert plot.data["share"].sum() == pytest.approx(1)
    assert [bar.get_height() for bar in plot.ax.patches] == pytest.approx(100 * plot.data["share"])
    with pytest.raises(InputError, match="no histogram of means for 'ridge'"):
        plots.pit_histogram(scores.pit, method="ridge")


def test_risk_coverage_ends_at_the_error_of_all(scores):
    data = plots.risk_coverage(scores.risk_coverage()).data
    assert data["coverage"].iloc[-1] == 1
    error = scores.table().loc[("held-out", "rmse"), ("SCCVAE", "mean")]
    assert data["risk"].iloc[-1] == pytest.approx(error)
    with pytest.raises(InputError, match="'control' states no uncertainty"):
        plots.risk_coverage(scores.risk_coverage(), methods=["control"])


def test_heatmap_shows_the_strongest(predictions):
    shown = plots.effect_heatmap(predictions, n_genes=5, n_perturbations=4).data
    assert shown.shape == (5, 4)
    assert set(shown.columns) == {"P8", "P9", "P10", "P11"}
    alone = plots.effect_heatmap(predictions[:1].copy(), n_genes=3).data
    assert alone.shape == (3, 1)


def test_heatmap_pales_what_is_unsure(predictions):
    plot = plots.effect_heatmap(predictions)
    opacity = plot.ax.images[0].get_alpha()
    sure = plot.data.abs().to_numpy() > 0.1
    assert (opacity[sure] == 1).all() and (opacity[~sure] < 1).all()


def test_forest_shows_both_ends(penetrance):
    plot = plots.penetrance_forest(penetrance, n=3)
    ordered = penetrance["median"].sort_values(ascending=False)
    assert list(plot.data.index) == [*ordered.index[:3], *ordered.index[-3:]]
    assert "(54 more)" in [label.get_text() for label in plot.ax.get_yticklabels()]
    assert len(plots.penetrance_forest(penetrance[:5], n=3).data) == 5


def test_graph_runs_from_left_to_right(edges):
    plot = plots.strongest_edges(edges, n=20)
    assert len(plot.data) == 20
    assert plot.data["mean"].abs().min() >= edges["mean"].abs().nlargest(20).min()
    place = {text.get_text(): text.get_position() for text in plot.ax.texts}
    assert nx.is_directed_acyclic_graph(
        nx.DiGraph(list(zip(plot.data["source"], plot.data["target"], strict=True)))
    )
    assert all(place[e.source][0] < place[e.target][0] for e in plot.data.itertuples())
    assert len(set(place.values())) == len(place)
    assert len(arrows(plot)) == 20


def test_edges_run_between_boxes_and_past_the_others():
    names = {"source": ["a", "b", "a", "c"], "target": ["b", "c", "c", "d"]}
    plot = plots.strongest_edges(pd.DataFrame({**names, "mean": [1.0, 0.5, -0.4, 0.3]}))
    boxes = {
        text.get_text(): box.get_path().transformed(box.get_patch_transform()).get_extents()
        for text, box in zip(plot.ax.texts, plot.ax.findobj(FancyBboxPatch), strict=True)
    }
    for arrow, edge in zip(arrows(plot), plot.data.itertuples(), strict=True):
        (curve,) = arrow._path_original.to_polygons(closed_only=False)
        assert curve[0, 0] == pytest.approx(boxes[edge.source].x1)
        assert curve[-1, 0] == pytest.approx(boxes[edge.target].x0)
        others = [box for name, box in boxes.items() if name not in (edge.source, edge.target)]
        assert not any(box.contains(x, y) for box in others for x, y in curve)


def arrows(plot):
    return [patch for patch in plot.ax.patches if isinstance(patch, FancyArrowPatch)]


def test_long_names_of_nodes_keep_apart(edges):
    named = edges.replace({"source": {"node_1": "ENSG00000123456"}, "target": {"node_1": "ENSG00000123456"}})
    assert texts_that_overlap(plots.strongest_edges(named).ax.figure) == []


@pytest.mark.parametrize("n_nodes", [20, 200])
def test_a_whole_graph_can_be_read_and_says_what_it_leaves_out(draw_edges, n_nodes):
    edges = draw_edges(n_nodes)
    plot = plots.plot_graph(edges)
    assert texts_that_overlap(plot.ax.figure) == []
    shown = len({*plot.data["source"], *plot.data["target"]})
    title = f"40 strongest of {len(edges):,} edges, among {shown} of {n_nodes} nodes"
    assert plot.ax.get_title(loc="left") == title
    assert sum(text.get_text().startswith("node_") for text in plot.ax.texts) == shown
    few = plots.plot_graph(edges[:3])
    assert few.ax.get_title(loc="left").startswith("All 3 edges among")


def test_a_chain_of_causes_makes_the_graph_wider():
    names = [f"ENSG0000000{k:04d}" for k in range(14)]
    ends = {"source": names[:-1], "target": names[1:]}
    chain = pd.DataFrame({**ends, "mean": 1.0, "present": 1.0, "probability_positive": 1.0})
    assert texts_that_overlap(plots.plot_graph(chain).ax.figure) == []


def test_opacity_says_how_sure_an_edge_is():
    names = {"source": ["a", "b", "c"], "target": ["b", "c", "d"], "mean": [1.0, -0.5, 0.2]}
    signs = pd.DataFrame({**names, "present": [1.0, 0.5, 1.0], "probability_positive": [1.0, 0.0, 0.5]})
    opacity = [arrow.get_alpha() for arrow in arrows(plots.plot_graph(signs))]
    assert opacity[0] == 1.0 > opacity[1] > 0.5 and 0 < opacity[2] < 0.3
    included = plots.plot_graph(signs.assign(inclusion=[0.1, 0.6, 1.0]))
    assert list(np.argsort([arrow.get_alpha() for arrow in arrows(included)])) == [0, 1, 2]
    widths = [arrow.get_linewidth() for arrow in arrows(included)]
    assert widths == sorted(widths, reverse=True)


def test_genes_that_surely_interact_are_named_most_of_them_first(interactions):
    plot = plots.interaction(interactions, "P1+P2", n_names=3)
    sure = (plot.data["interaction_q05"] > 0) | (plot.data["interaction_q95"] < 0)
    largest = plot.data["interaction"].abs()[sure].nlargest(3).index
    assert {text.get_text() for text in plot.ax.texts} == set(largest)
    counts = {line.get_label(): len(line.get_xdata()) for line in plot.ax.lines[3:6]}
    kinds = ["additive, or unsure", "more than additive", "less than additive"]
    assert counts == dict(zip(kinds, [(~sure).sum(), 1, sure.sum() - 1], strict=True))


def test_priors_stand_beside_the_data_in_their_units(believed):
    plot = plots.prior_predictive(believed)
    pd.testing.assert_frame_equal(plot.data, believed)
    rows = dict(zip(believed.index, plot.ax.child_axes, strict=True))
    assert rows["zero_fraction"].get_title(loc="left") == "zero fraction: share of counts of control cells"
    interval, median, data = rows["effect_median"].lines
    assert list(interval.get_xdata()) == [0.01, 0.1] and median.get_xdata() == [0.05]
    assert data.get_xdata() == [0.06]
    assert len(rows["edges"].lines) == 2, "of the graph there are no data"


def test_data_outside_the_prior_differ_by_shape_and_colour(believed):
    rows = dict(zip(believed.index, plots.prior_predictive(believed).ax.child_axes, strict=True))
    inside, outside = rows["effect_median"].lines[-1], rows["effect_q90"].lines[-1]
    assert inside.get_marker() != outside.get_marker() and inside.get_color() != outside.get_color()
    low, high = rows["effect_q90"].get_xlim()
    assert low < 0 and high > 0.5


def test_generated_cells_stand_beside_the_data(generated):
    panels = plots.posterior_predictive(generated).ax.child_axes
    titles = [panel.get_title(loc="left") for panel in panels]
    assert titles == ["Mean and variance", "Zeros", "Pairs of genes in control cells", "Mean profiles"]
    inside, outside = panels[1].lines
    assert (len(inside.get_xdata()), len(outside.get_xdata())) == (36, 4)
    assert inside.get_marker() != outside.get_marker() and inside.get_color() != outside.get_color()
    worst = panels[3].get_yticklabels()[0].get_text()
    _, fine, low = panels[3].lines
    assert worst == "P" and list(low.get_xdata()) == [0.0] and (fine.get_xdata() == 90).all()
    assert [text.get_text() for text in panels[3].texts] == ["and 2 more, better"]


def test_values_have_no_panel_of_zeros(generated):
    values = generated[generated["quantity"] != "zero_fraction"]
    assert len(plots.posterior_predictive(values).ax.child_axes) == 3


def test_map_shows_modules_and_names_the_strongest(modules):
    plot = plots.module_map(modules)
    assert list(plot.data["module"]) == list(modules.table["module"])
    np.testing.assert_array_equal(plot.data[["PC1", "PC2"]], modules.coordinates)
    named = {text.get_text() for text in plot.ax.texts}
    assert modules.table["effect"].idxmax() in named
    assert named.isdisjoint(modules.members("none"))
    entries = [text.get_text() for text in plot.ax.get_legend().get_texts()]
    assert entries[:2] == ["none (2)", "alone (1)"]
    assert entries[2:] == [f"{m} ({n})" for m, n in modules.summary["n"].items()]
    assert "% of squared effects" in plot.ax.get_xlabel()


def test_map_takes_other_coordinates(modules):
    other = pd.DataFrame(1.0, modules.table.index[::-1], ["UMAP1", "UMAP2"])
    other["UMAP1"] = np.arange(len(other))
    plot = plots.module_map(modules, other)
    assert plot.ax.get_xlabel() == "UMAP1"
    np.testing.assert_array_equal(plot.data["UMAP1"], np.arange(len(other))[::-1])


def test_modules_differ_by_colour_or_shape(many_modules):
    drawn = plots.module_map(many_modules).ax.collections
    looks = {(tuple(dots.get_facecolor().ravel()), dots.get_paths()[0].vertices.tobytes()) for dots in drawn}
    assert len(looks) == len(drawn) > 5


def test_heatmap_keeps_modules_together(modules):
    plot = plots.module_heatmap(modules)
    acting = modules.table.index[~modules.table["is_null"]]
    assert sorted(plot.data.index) == sorted(acting) and list(plot.data.index) == list(plot.data.columns)
    np.testing.assert_array_equal(plot.data, modules.co_assignment.loc[plot.data.index, plot.data.index])
    order = modules.table.loc[plot.data.index, "module"]
    assert (order != order.shift()).sum() == len(modules.summary) + (order == "alone").sum()
    assert len(plot.ax.patches) == len(modules.summary)
    assert [label.get_text() for label in plot.ax.get_yticklabels()] == list(plot.data.index)


def test_heatmap_of_many_names_modules_only(many_modules):
    ax = plots.module_heatmap(many_modules).ax
    assert len(ax.get_yticklabels()) == 0
    shown = {label.get_text() for label in ax.get_xticklabels()}
    assert "M1" in shown and shown <= set(many_modules.summary.index)


def test_heatmap_without_an_effect_is_refused():
    nothing = find_modules(np.zeros((4, 3, 2)), ["A", "B", "C"])
    with pytest.raises(InputError, match="nothing to draw"):
        plots.module_heatmap(nothing)
    assert len(plots.module_map(nothing).data) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: None, "must be a table, not NoneType"),
        (lambda c: c[:0], "no rows"),
        (lambda c: c.drop(columns="low"), "no column 'low'"),
        (lambda c: c.drop(columns="gene"), "no column 'gene'"),
        (
            lambda c: pd.concat([c.assign(perturbation=label) for label in ("P1", "P2")]),
            r"one perturbation. Choose it: curves\[curves\['perturbation'\] == 'P1'\]",
        ),
        (lambda c: pd.concat([c, c[:7]]), "hold 'GENE1' more than once"),
        (lambda c: pd.concat([c, c.assign(gene=c["gene"] + "B")]), "follow 8 genes, of which 5 at most"),
    ],
)
def test_curves_that_make_no_picture_are_refused(curves, change, message):
    with pytest.raises(InputError, match=message):
        plots.penetrance_curves(change(curves))


def test_a_single_penetrance_is_a_point_with_its_interval(curves):
    plot = plots.penetrance_curves(curves[curves["penetrance"] == 1.0], "P1")
    points = [bar.lines for bar in plot.ax.containers]
    assert [point.get_ydata().item() for point, _, _ in points] == [-0.8, 0.30, 0.301, 0.302]
    ((_, low), (_, high)) = points[0][2][0].get_segments()[0]
    assert (low, high) == pytest.approx((-0.9, -0.7))


def test_shares_are_stacked_and_cells_stand_beside(split):
    plot = plots.uncertainty_split(split)
    share = split.sources.pivot(index="perturbation", columns="source", values="share")
    assert list(plot.data.index) == list(split.labels.index)
    pd.testing.assert_frame_equal(plot.data[share.columns], share, check_names=False)
    bars = {bars.get_label(): bars for bars in plot.ax.containers}
    widths = {name: [bar.get_width() for bar in bars[name]] for name in bars}
    assert widths["direction"] == pytest.approx([0.29, 0.18, 0.6, 0.0])
    starts = [bar.get_x() for bar in bars["discrepancy"]]
    assert starts == pytest.approx([0.3, 0.2, 0.8, 0.0])
    assert len({bars[name][0].get_facecolor() for name in bars}) == len(bars) == 5
    written = {text.get_text() for text in plot.ax.texts if text.get_text()}
    assert written == {"29%", "70%", "18%", "80%", "10%", "60%", "20%"}
    mean, cells = plot.ax.child_axes[0].lines
    np.testing.assert_array_equal(mean.get_xdata(), split.labels["sd"])
    np.testing.assert_array_equal(cells.get_xdata(), split.labels["cell_sd"])


# Labels that keep apart


def test_other_beliefs_stand_beside_a_restart(swapped):
    predictions, density = swapped
    plot = plots.sensitivity(predictions, density)
    assert list(plot.data.index) == ["sparse graph", "molecules generated", "restart"]
    median = predictions.groupby("spec")["in_sds"].median()
    np.testing.assert_allclose(plot.data["in_sds"], median[plot.data.index])
    assert plot.data.loc["sparse graph", "high"] == pytest.approx(-0.5 + 1.96 * 0.1)
    _, right = plot.ax.child_axes
    assert [text.get_text() for text in right.texts] == ["not comparable"]
    assert right.get_xscale() == "linear"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, d: (d, p), "predictions has no column 'perturbation'"),
        (lambda p, d: (p.drop(columns="rms"), d), "predictions has no column 'rms'"),  # as of strengths
        (lambda p, d: (p, p), "density has no column 'difference'"),
        (lambda p, d: (None, d), "predictions must be a table, not NoneType"),
        (lambda p, d: (p[:0], d), "predictions has no rows"),
        (lambda p, d: (p, d[:0]), "density has no rows"),
        (lambda p, d: (p, d[1:]), "Pass both tables of one"),
        (lambda p, d: (p[p["spec"] == "default"], d[:1]), "'default' alone"),
    ],
)
def test_tables_of_no_sensitivity_are_refused(swapped, change, message):
    with pytest.raises(InputError, match=message):
        plots.sensitivity(*change(*swapped))


@pytest.mark.parametrize("part", [lambda split: None, lambda split: split.sources], ids=["none", "table"])
def test_what_is_no_split_is_refused(split, part):
    with pytest.raises(InputError, match="Pass all of it"):
        plots.uncertainty_split(part(split))


def test_densities_far_apart_share_an_axis(swapped):
    predictions, density = swapped
    far = density.assign(difference=density["difference"] * 1000)
    assert plots.sensitivity(predictions, far).ax.child_axes[1].get_xscale() == "symlog"


def test_apart_moves_only_crowded_positions():
    np.testing.assert_allclose(apart([0.0, 5.0], 1.0), [0.0, 5.0])
    np.testing.assert_allclose(apart([1.0, 1.0, 9.0], 1.0), [0.5, 1.5, 9.0])


def test_apart_keeps_the_order_and_the_gap():
    positions = np.random.default_rng(1).uniform(size=20)
    moved = apart(positions, 0.1)
    assert (np.argsort(moved) == np.argsort(positions)).all()
    assert np.diff(np.sort(moved)).min() > 0.1 - 1e-9
