"""Scores in plain words: whether the model beats the baselines, and whether its intervals can be believed.

Everything that is said here is computed from the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from sccvae_pyro.assessment import MODEL
from sccvae_pyro.evaluate.results import CEILING, HELD_OUT, METRICS, TRUTH, Scores
from sccvae_pyro.plots.scores import by_method

METHODS = {
    "control": "no change",
    "perturbed mean": "mean effect",
    "additive": "sum of single effects",
    "bilinear": "bilinear PCA ridge",
    "ridge": "ridge regression",
    "kNN": "nearest neighbours",
    "GP": "Gaussian process",
    CEILING: "noise ceiling",
}
"""Methods in a reader's words."""

FEWEST = 5
"""Perturbations below which no comparison of methods is called a result."""

TRUSTED_COVERAGE = (0.80, 0.97)
"""Share of means in their 90 % interval that passes for calibrated."""

Outcome = Literal["better", "level", "worse", "open"]


@dataclass(frozen=True)
class Measure:
    """A metric in a reader's words.

    Parameters
    ----------
    metric
        Its name in the tables.
    title
        Its name for a reader.
    sentence
        What the model and its closest rival reach, to be formatted with ``model``, ``low``, ``high``,
        ``rival``, ``rival_score``.
    scale
        Factor on the numbers of the sentence.
    """

    metric: str
    title: str
    sentence: str
    scale: float = 1.0


MEASURES = (
    Measure(
        "pearson_delta",
        "pattern of change (Pearson delta)",
        "Predicted and actual changes correlate at {model:.2f} on average (95 % interval {low:.2f} to "
        "{high:.2f}); the best simple baseline, {rival}, reaches {rival_score:.2f}",
    ),
    Measure(
        "mse",
        "squared error of the mean profile",
        "The mean squared error is {model:#.2g} ({low:#.2g} to {high:#.2g}), that of the best baseline, "
        "{rival}, {rival_score:#.2g}",
    ),
    Measure(
        "centroid_accuracy",
        "telling perturbations apart",
        "The right perturbation is nearer to its prediction than {model:.0f} % of the others ({low:.0f} to "
        "{high:.0f}); with {rival}, than {rival_score:.0f} %",
        scale=100,
    ),
)
"""The measures that decide the verdict: the shape of an effect, its size, and which perturbation it is."""

_CLAUSES = {
    "better": "the model is better, beyond chance",
    "level": "the difference is within chance",
    "worse": "the baseline is better, beyond chance",
    "open": "too few perturbations to call it",
}


@dataclass(frozen=True)
class Comparison:
    """The model against the best baseline on one measure.

    Parameters
    ----------
    measure
        What is compared.
    rival
        The baseline with the best mean.
    model, low, high, rival_score
        Mean of the model with its 95 % interval, and of the rival.
    outcome
        By the 95 % interval of the paired difference over perturbations; open where these are few.
    """

    measure: Measure
    rival: str
    model: float
    low: float
    high: float
    rival_score: float
    outcome: Outcome

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        scale = self.measure.scale
        numbers = self.measure.sentence.format(
            model=scale * self.model,
            low=scale * self.low,
            high=scale * self.high,
            rival=_quoted(self.rival),
            rival_score=scale * self.rival_score,
        )
        return f"{numbers}: {_CLAUSES[self.outcome]}."


@dataclass(frozen=True)
class Verdict:
    """What the scores amount to.

    Parameters
    ----------
    headline
        One line.
    tone
        ``"good"``, ``"level"``, ``"bad"``, or ``"open"`` where nothing can be concluded.
    sentences
        The reasons, one after the other.
    comparisons
        What they rest on.
    calibration
        Those of the sentences that are about the intervals.
    """

    headline: str
    tone: Literal["good", "level", "bad", "open"]
    sentences: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    calibration: tuple[str, ...] = ()


UNTESTED = Verdict(
    "Not tested yet",
    "open",
    (
        "No perturbation was held out, so nothing says how good the predictions are. "
        "Hold some out and evaluate.",
    ),
)


def judge(scores: Scores, unseen: bool = True, model: str = MODEL) -> Verdict:
    """Put scores in words.

    Simulated screens are judged on the noiseless truth, others on held-out cells.

    Parameters
    ----------
    scores
        Scores of the model and of at least one baseline.
    unseen
        Whether the scored perturbations were unseen in training, rather than only their cells.
    model
        Name of the model among the methods.
    """
    target = deciding_target(scores)
    table = scores.table(reference=model)
    n = scores.per_perturbation["perturbation"].nunique()
    comparisons = tuple(_compare(scores, table, measure, target, model, n) for measure in MEASURES)
    headline, tone = _headline(comparisons, n, "unseen" if unseen else "known")
    what = "the noiseless truth" if target == TRUTH else "held-out cells"
    kind = "that training never saw" if unseen else "on cells that training never saw"
    opening = f"Judged on {counted(n, 'perturbation')} {kind}, against {what}."
    reasons = [opening, *(comparison.sentence for comparison in comparisons)]
    if target == HELD_OUT:
        reasons += _on_ceiling(table)
    calibration = _on_coverage(table, target, model, n)
    return Verdict(headline, tone, (*reasons, *calibration), comparisons, calibration)


def deciding_target(scores: Scores) -> str:
    """Choose the truth where it is known, else the held-out cells."""
    return TRUTH if (scores.per_perturbation["target"] == TRUTH).any() else HELD_OUT


def _compare(
    scores: Scores, table: pd.DataFrame, measure: Measure, target: str, model: str, n: int
) -> Comparison:
    row = by_method(table, target, measure.metric)
    baselines = row["mean"].drop(index=[model, CEILING], errors="ignore").dropna()
    higher = METRICS[measure.metric].better == "higher"
    rival = str(baselines.idxmax() if higher else baselines.idxmin())
    paired = scores.paired(rival)
    low, high = (
        sign * float(paired.at[(target, measure.metric), (model, end)]) for sign, end in _ends(higher)
    )
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "level"
    if n < FEWEST:
        outcome = "open"
    mine = row.loc[model]
    return Comparison(measure, rival, mine["mean"], mine["low"], mine["high"], baselines[rival], outcome)


def _ends(higher: bool) -> tuple[tuple[int, str], tuple[int, str]]:
    """Sign and name of the ends of a difference, such that positive is in favour of the model."""
    return ((1, "low"), (1, "high")) if higher else ((-1, "high"), (-1, "low"))


def _headline(
    comparisons: tuple[Comparison, ...], n: int, kind: str
) -> tuple[str, Literal["good", "level", "bad", "open"]]:
    outcomes = [comparison.outcome for comparison in comparisons]
    won, lost, every = outcomes.count("better"), outcomes.count("worse"), len(outcomes)
    rivals = dict.fromkeys(_quoted(c.rival) for c in comparisons if c.outcome == "worse")
    winners = " and ".join(rivals)
    if n < FEWEST:
        return f"Only {counted(n, 'perturbation')} to judge by: read the numbers as examples", "open"
    if won and lost:
        return (
            f"A mixed result on {kind} perturbations: the model is ahead in {won} of {every} measures, "
            f"behind {winners} in {lost}"
        ), "level"
    if lost == every:
        return f"Simple baselines predict {kind} perturbations better than the model: {winners}", "bad"
    if lost:
        return f"On {kind} perturbations the model is behind {winners} in {lost} of {every} measures", "bad"
    if won == every:
        return f"The model beats the best simple baseline on {kind} perturbations in every measure", "good"
    if won:
        return (
            f"On {kind} perturbations the model beats the best simple baseline in {won} of {every} measures, "
            "and is level in the rest"
        ), "good"
    return f"On {kind} perturbations the model is level with the best simple baseline", "level"


def _quoted(method: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{METHODS.get(method, method)}\N{RIGHT DOUBLE QUOTATION MARK}"


def counted(n: int, noun: str) -> str:
    """Number and noun, in the plural where it is due."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _on_ceiling(table: pd.DataFrame) -> list[str]:
    ceiling = float(by_method(table, HELD_OUT, "pearson_delta").at[CEILING, "mean"])
    if not np.isfinite(ceiling):
        return []
    return [f"On these noisy cells the true profiles themselves would correlate at about {ceiling:.2f}."]


def _on_coverage(table: pd.DataFrame, target: str, model: str, n: int) -> tuple[str, ...]:
    if (target, "coverage_90") not in table.index:
        return ()
    share = float(by_method(table, target, "coverage_90").at[model, "mean"])
    if not np.isfinite(share):
        return ()
    low, high = TRUSTED_COVERAGE
    words = "they can be taken at their word"
    if share < low:
        words = "they are too narrow, so the model is surer than it should be"
    elif share > high:
        words = "they are wider than they need to be"
    if n < FEWEST:
        words = _CLAUSES["open"]
    return (f"The model's 90 % intervals hold {100 * share:.0f} % of the actual means: {words}.",)
