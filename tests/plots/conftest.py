"""Made-up results, small and legible."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sccvae_pyro.evaluate import Scores
from sccvae_pyro.evaluate.calibration import LEVELS
from sccvae_pyro.inference.modules import find_modules
from sccvae_pyro.inference.uncertainty import Split

METHODS = {"SCCVAE": 0.6, "control": 0.0, "perturbed mean": 0.2, "GP": 0.5}
PERTURBATIONS = [f"P{i}" for i in range(12)]
GENES = [f"GENE{i}" for i in range(40)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def scores(rng):
    """Scores in which SCCVAE is best, and only SCCVAE and GP state uncertainty."""
    rows = []
    for method, level in METHODS.items():
        for perturbation in PERTURBATIONS:
            noise = 0.05 * rng.normal()
            values = {
                "mse": 0.02 - 0.01 * level + 0.01 * abs(noise),
                "rmse": 0.14 - 0.05 * level + noise**2,
                "pearson_delta": level + noise,
                "pearson_systema": level + noise,
                "centroid_accuracy": 0.5 + level / 2,
            }
            if method in ("SCCVAE", "GP"):
                values |= {f"coverage_{round(100 * p)}": min(1.0, p + 0.03 + noise / 10) for p in LEVELS}
                values["spread"] = 0.1 + noise
            rows += [("held-out", method, perturbation, metric, value) for metric, value in values.items()]
    tidy = pd.DataFrame(rows, columns=["target", "method", "perturbation", "metric", "value"]).assign(n=50)
    ceiling = pd.DataFrame(
        [(p, "pearson_delta", 0.8 + 0.01 * rng.normal()) for p in PERTURBATIONS],
        columns=["perturbation", "metric", "value"],
    )
    low, share = np.linspace(0, 0.95, 20), rng.dirichlet(np.full(20, 50.0))
    pit = pd.DataFrame({"low": low, "high": low + 0.05, "share": share})
    pit = pit.assign(target="held-out", method="SCCVAE", of="means")
    return Scores(tidy, ceiling, pit, n_bootstrap=100)


@pytest.fixture
def predictions(rng):
    """Effects of alternating sign on few genes, each known to 0.1."""
    delta = 0.02 * rng.normal(size=(len(PERTURBATIONS), len(GENES)))
    for row in range(len(PERTURBATIONS)):
        delta[row, 3 * row % 40] = 1.0 + 0.1 * row
        delta[row, (3 * row + 1) % 40] = -0.5
    layers = {"delta": delta, "delta_q05": delta - 0.1, "delta_q95": delta + 0.1}
    obs = pd.DataFrame({"status": "unseen"}, index=PERTURBATIONS)
    return AnnData(delta.copy(), obs, pd.DataFrame(index=GENES), layers=layers)


@pytest.fixture
def observed(predictions, rng):
    """What was predicted, a little off, with its standard error."""
    delta = predictions.layers["delta"] + 0.05 * rng.normal(size=predictions.shape)
    layers = {"delta": delta, "se": np.full(delta.shape, 0.05)}
    obs = pd.DataFrame({"n": 50}, index=predictions.obs_names)
    return AnnData(delta.copy(), obs, predictions.var[[]].copy(), layers=layers)


@pytest.fixture
def history(rng):
    epoch = pd.Index(range(30), name="epoch")
    loss = 500 + 4000 * np.exp(-np.arange(30.0)) - np.arange(30)
    return pd.DataFrame({"train_loss": loss, "validation_loss": loss + 10}, index=epoch)


@pytest.fixture
def penetrance(rng):
    median = pd.Series(np.exp(rng.normal(0, 0.4, 60)), index=[f"P{i}" for i in range(60)])
    return pd.DataFrame({"median": median, "q05": 0.7 * median, "q95": 1.4 * median})


@pytest.fixture
def edges(rng):
    rows, columns = np.triu_indices(30, k=1)
    mean = rng.normal(0, 0.05, len(rows)) * (1 + 5 * (rng.uniform(size=len(rows)) < 0.05))
    names = np.array([f"node_{k}" for k in range(30)])
    return pd.DataFrame({"source": names[rows], "target": names[columns], "mean": mean})


@pytest.fixture
def draw_edges():
    """Edge tables of any size, as a model gives them: all edges in order, few of them sure."""

    def draw(n_nodes: int) -> pd.DataFrame:
        rng = np.random.default_rng(n_nodes)
        rows, columns = np.triu_indices(n_nodes, k=1)
        is_real = rng.uniform(size=len(rows)) < 2 / n_nodes
        mean = np.where(is_real, rng.normal(0, 0.4, len(rows)), rng.normal(0, 0.02, len(rows)))
        positive = 1 / (1 + np.exp(-mean / 0.02))
        names = np.array([f"node_{k}" for k in range(n_nodes)])
        known = {"source": names[rows], "target": names[columns], "mean": mean}
        return pd.DataFrame({**known, "present": 1.0, "probability_positive": positive})

    return draw


@pytest.fixture
def sure_edges(draw_edges):
    return draw_edges(30)


@pytest.fixture
def interactions(rng):
    """A pair that buffers a fifth of its genes, and raises one that its parts leave alone."""
    additive = rng.normal(0, 0.3, len(GENES))
    deviation = np.where(np.arange(len(GENES)) % 5 == 0, -0.3 * additive, 0.0)
    additive[1], deviation[1] = 0.001, 0.3
    layers = {"additive": additive, "delta": additive + deviation, "interaction": deviation}
    layers |= {"interaction_q05": deviation - 0.004, "interaction_q95": deviation + 0.004}
    layers = {name: layer[None] for name, layer in layers.items()}
    obs, var = pd.DataFrame(index=["P1+P2"]), pd.DataFrame(index=GENES)
    return AnnData(deviation[None], obs, var, layers=layers)


@pytest.fixture
def curves():
    dose = np.linspace(0, 1.5, 7)
    slopes = {"GENE1": -0.8, "GENE2": 0.30, "GENE3": 0.301, "GENE4": 0.302}
    parts = [
        pd.DataFrame(
            {
                "gene": g,
                "penetrance": dose,
                "delta": b * dose,
                "low": (b - 0.1) * dose,
                "high": (b + 0.1) * dose,
            }
        )
        for g, b in slopes.items()
    ]
    return pd.concat(parts)


@pytest.fixture
def generated(rng):
    """Items of a check of counts; the data of every tenth lie outside, and of one label all."""
    pairs = [(a, b) for i, a in enumerate(GENES[:10]) for b in GENES[:i]]
    keys = {
        "variance": [("control", gene, "") for gene in GENES],
        "zero_fraction": [("control", gene, "") for gene in GENES],
        "correlation": [("control", *pair) for pair in pairs],
        "mean_profile": [(label, gene, "") for label in ["control", *PERTURBATIONS, "P"] for gene in GENES],
    }
    rows = [(quantity, *key) for quantity, of in keys.items() for key in of]
    table = pd.DataFrame(rows, columns=["quantity", "label", "gene", "other"])
    table["expression"] = table["gene"].map(dict(zip(GENES, np.linspace(0.5, 6, len(GENES)), strict=True)))
    middle = rng.uniform(0.1, 0.9, len(table))
    table["inside"] = (np.arange(len(table)) % 10 > 0) & (table["label"] != "P")
    return table.assign(
        q05=middle - 0.05,
        median=middle,
        q95=middle + 0.05,
        data=middle + np.where(table["inside"], 0.0, 0.08),
    )


@pytest.fixture
def believed():
    """A prior of counts that expects smaller effects than the data show."""
    rows = {
        "edges": (0.0, 1.0, 4.0, np.nan, pd.NA, "number with |B| > 0.1"),
        "effect_median": (0.01, 0.05, 0.1, 0.06, True, "RMS over genes of the change of mean log1p(CP10K)"),
        "effect_q90": (0.02, 0.1, 0.2, 0.5, False, "RMS over genes of the change of mean log1p(CP10K)"),
        "responding_cells": (1.0, 1.0, 1.0, np.nan, pd.NA, "mean share of the shift"),
        "variance_to_mean": (2.0, 5.0, 9.0, 3.0, True, "molecules, median of genes in control cells"),
        "zero_fraction": (0.2, 0.35, 0.5, 0.4, True, "share of counts of control cells"),
    }
    columns = ["q05", "median", "q95", "data", "inside", "unit"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).astype({"inside": "boolean"})


@pytest.fixture
def swapped(rng):
    """Predictions and density under two other beliefs and a restart; of the second no density is known."""
    change = {"default": 0.0, "sparse graph": 0.9, "molecules generated": 0.1, "restart": 0.3}
    rows = [(s, p, level * np.exp(0.4 * rng.normal())) for s, level in change.items() for p in PERTURBATIONS]
    density = pd.DataFrame(
        {"spec": list(change), "difference": [0.0, -0.5, np.nan, 0.1], "se": [0.0, 0.1, np.nan, 0.1]}
    )
    predictions = pd.DataFrame(rows, columns=["spec", "perturbation", "in_sds"])
    return predictions.assign(rms=0.1 * predictions["in_sds"]), density


def modules_of(n):
    """Modules of n perturbations along seven directions, a few of them alone and a few without an effect."""
    rng = np.random.default_rng(0)
    effects = 0.05 * rng.normal(size=(30, n, 20))
    which = np.minimum(np.arange(n) // 8, 6) if n > 40 else np.arange(n) // 5
    effects += rng.uniform(0.3, 1.5, size=(n, 1)) * np.eye(20)[which]
    effects[:, :2] -= effects[:, :2].mean(axis=0)
    effects[:, 2] = effects[:, 2, ::-1]
    return find_modules(effects, [f"TARGET{i}" for i in range(n)])


@pytest.fixture
def modules():
    return modules_of(30)


@pytest.fixture
def many_modules():
    return modules_of(300)


@pytest.fixture
def split():
    """Two seen and two unseen perturbations; nothing is uncertain of the last."""
    names = ["graph", "penetrance", "direction", "likelihood", "discrepancy"]
    share = np.array([[0.01, 0.0, 0.29, 0.0, 0.7], [0.02, 0.0, 0.18, 0.0, 0.8], [0.05, 0.1, 0.6, 0.05, 0.2]])
    share = np.vstack([share, np.full(5, np.nan)])
    labels = pd.Index(["P1", "P2+P3", "P4", "P5"], name="perturbation")
    status = ["seen", "seen", "unseen", "unseen"]
    spread = {"sd": [0.05, 0.06, 0.2, 0.0], "cell_sd": [0.7, 0.68, 0.72, 0.7]}
    rows = pd.MultiIndex.from_product([labels, names], names=["perturbation", "source"])
    sources = pd.DataFrame({"share": share.ravel(), "share_se": 0.01}, index=rows).reset_index()
    genes = AnnData(np.ones((4, 1)), uns={"units": "mean log1p(CP10K)"})
    return Split(sources, pd.DataFrame({"status": status, **spread}, index=labels), genes)
