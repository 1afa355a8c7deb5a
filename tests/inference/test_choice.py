"""What to measure next: closed forms of the Gaussian part, its estimates from draws, and the table."""

import numpy as np
import pytest
import torch
from scipy import stats

from sccvae_pyro import InputError
from sccvae_pyro.inference import choice
from sccvae_pyro.inference.choice import Beliefs


def draws_of(covariance, n_draws, n_components=1, exact=False, seed=0):
    """Deviations of candidates from their mean, with this covariance (in the sample itself, where exact)."""
    white = np.random.default_rng(seed).normal(size=(n_draws, len(covariance)))
    white -= white.mean(0)
    if exact:
        white = np.linalg.qr(white)[0] * np.sqrt(n_draws - 1)
    values = white @ np.linalg.cholesky(covariance).T
    return values.reshape(n_draws, -1, n_components).swapaxes(0, 1)


def noise_of(n_candidates, n_components=1, variance=1.0):
    return np.broadcast_to(variance * np.eye(n_components), (n_candidates, n_components, n_components))


def log_det(matrix):
    return np.linalg.slogdet(matrix)[1]


PAIR = np.array([[4.0, 3.0], [3.0, 9.0]])


def test_information_of_one_and_two_by_hand():
    """Variances 4 and 9, covariance 3, noise 2: after A, 11 - 9/6 = 9.5 is left of what B would show."""
    beliefs = Beliefs(draws_of(PAIR, 30, exact=True), noise_of(2, variance=2.0), shrinkage=0.0)
    nothing = beliefs.nothing_measured
    np.testing.assert_allclose(beliefs.information(nothing), 0.5 * np.log([6 / 2, 11 / 2]))
    first = beliefs.measured(nothing, 0)
    np.testing.assert_allclose(beliefs.information(first)[1], 0.5 * np.log(9.5 / 2))
    np.testing.assert_allclose(beliefs.remaining(nothing), [4.0, 9.0])
    np.testing.assert_allclose(beliefs.remaining(first), [4 - 16 / 6, 9 - 9 / 6])
    np.testing.assert_allclose(beliefs.told_of_others(), [9 / 6 / 9, 9 / 11 / 4])


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_gains_add_up_to_the_mutual_information(shrinkage):
    """That of a matrix with the blocks between candidates shrunk, of four candidates with two components."""
    root = np.random.default_rng(1).normal(size=(8, 8))
    covariance, n = root @ root.T, 4
    noise = np.stack([np.diag([1.0 + c, 2.0]) for c in range(n)])
    beliefs = Beliefs(draws_of(covariance, 40, 2, exact=True), noise, shrinkage)
    within = np.kron(np.eye(n), np.ones((2, 2)))
    believed = covariance * (within + (1 - shrinkage) * (1 - within))
    order = [2, 0, 3]
    rows = np.concatenate([[2 * c, 2 * c + 1] for c in order])
    noises = np.zeros((8, 8))
    for c in range(n):
        noises[2 * c : 2 * c + 2, 2 * c : 2 * c + 2] = noise[c]
    block = np.ix_(rows, rows)
    expected = 0.5 * (log_det((believed + noises)[block]) - log_det(noises[block]))
    assert sum(choice.information_in_turn(beliefs, order)) == pytest.approx(expected)
    known = beliefs.nothing_measured
    for c in order:
        known = beliefs.measured(known, c)
    told = believed[:, rows] @ np.linalg.solve((believed + noises)[block], believed[rows])
    assert beliefs.remaining(known)[1] == pytest.approx(np.trace((believed - told)[2:4, 2:4]))


def test_a_batch_is_spread_over_what_is_unlike():
    """Two copies of the most uncertain candidate, and a less uncertain one of its own."""
    covariance = np.array([[4.0, 4.0, 0.0], [4.0, 4.0 + 1e-9, 0.0], [0.0, 0.0, 2.0]])
    beliefs = Beliefs(draws_of(covariance, 30, exact=True), noise_of(3, variance=0.5), shrinkage=0.0)
    chosen = choice.choose(beliefs, 2)
    assert chosen[1] == 2 and chosen[0] in (0, 1)
    assert sorted(choice.choose(beliefs, 9)) == [0, 1, 2]


def test_covariances_of_independent_candidates_are_taken_for_chance():
    independent = draws_of(np.eye(60), 200, 3)
    assert choice.chance_share(independent) > 0.9
    beliefs = Beliefs(independent, noise_of(20, 3, 0.1), choice.chance_share(independent))
    alone = beliefs.information(beliefs.nothing_measured)
    assert sum(choice.information_in_turn(beliefs, range(20))) == pytest.approx(alone.sum(), rel=0.01)
    assert beliefs.told_of_others().max() < 0.01
    credulous = Beliefs(independent, noise_of(20, 3, 0.1), shrinkage=0.0)
    assert credulous.told_of_others().mean() > 0.01, "draws alone would claim that one tells of another"


def test_covariances_of_alike_candidates_are_kept():
    shared = draws_of(0.05 * np.eye(30) + 0.95, 200)
    assert choice.chance_share(shared) < 0.02


def test_a_lone_candidate_has_no_covariances_to_shrink():
    assert choice.chance_share(draws_of(np.eye(3), 50, 3)) == 1.0


def test_greedy_choice_leaves_less_uncertainty_than_chance():
    """Forty candidates of eight groups of unequal size; judged by the true covariance, not by the draws."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), [12, 8, 6, 5, 4, 2, 2, 1])
    scale = rng.uniform(0.5, 2.0, 40)
    truth = np.outer(scale, scale) * (0.8 * (groups[:, None] == groups) + 0.2 * np.eye(40))
    noise = noise_of(40, variance=0.3)
    deviation = draws_of(truth, 300, seed=1)
    greedy = choice.choose(Beliefs(deviation, noise, choice.chance_share(deviation)), 8)

    def left(batch):
        told = truth[:, batch] @ np.linalg.solve(truth[np.ix_(batch, batch)] + 0.3 * np.eye(8), truth[batch])
        return np.trace(truth - told)

    by_chance = [left(rng.choice(40, 8, replace=False)) for _ in range(500)]
    assert left(greedy) < np.quantile(by_chance, 0.02)


# The table


def test_layout(fitted, screen):
    pair = next(label for label in screen.obs["perturbation"].cat.categories if "+" in label)
    found = fitted.suggest(["G0001", "G0004+G0006", pair, "G0003"], n=3, n_samples=60)
    assert list(found["rank"]) == [1, 2, 3] and found.index.is_unique
    assert (found["information"] <= found["alone"] + 1e-9).all() and (found["information"] >= 0).all()
    assert found["information"].iloc[0] == found["alone"].max()
    assert found["others"].between(0, 1).all()
    assert all("nats alone" in reason for reason in found["reason"])
    again = fitted.suggest(["G0001", "G0004+G0006", pair, "G0003"], n=3, n_samples=60)
    assert found.equals(again)


def test_more_cells_tell_more(fitted):
    few, many = (
        fitted.suggest(["G0001", "G0002"], n_cells=n, n_samples=40)["alone"].sum() for n in (10, 1000)
    )
    assert many > few > 0


def test_a_goal_ranks_by_its_probability(fitted):
    labels = [f"G000{k}" for k in range(6)]
    genes = ["G0010", "G0011"]
    draws = fitted.predict(labels, n_samples=200)[:, genes]
    mean = draws.layers["delta"].mean(1)
    threshold = float(np.median(mean))
    found = fitted.suggest(labels, genes=genes, threshold=threshold, n_samples=200)
    assert found["probability"].is_monotonic_decreasing
    np.testing.assert_allclose(found["effect"].loc[labels], mean, atol=1e-5)
    beyond = (found["effect"] - threshold) * (1 if threshold >= 0 else -1) / found["sd"]
    np.testing.assert_allclose(found["probability"], stats.norm.cdf(beyond), atol=0.15)
    assert found["reason"].str.contains("asked for").all()


def test_raising_and_lowering_are_opposite_goals(fitted):
    labels = ["G0001", "G0002", "G0003"]
    up, down = (
        fitted.suggest(labels, genes=["G0010"], threshold=t, n_samples=50)["probability"].loc[labels]
        for t in (1e-12, -1e-12)
    )
    np.testing.assert_allclose(up + down, 1.0)


def test_what_cannot_be_ranked_is_refused(fitted):
    with pytest.raises(InputError, match="Name at least one"):
        fitted.suggest([])
    with pytest.raises(InputError, match="names the control"):
        fitted.suggest(["control", "G0001"])
    with pytest.raises(InputError, match="Name them with genes="):
        fitted.suggest(["G0001"], threshold=0.1)
    with pytest.raises(InputError, match="threshold must be a finite number"):
        fitted.suggest(["G0001"], genes=["G0010"], threshold=float("nan"))
    with pytest.raises(InputError, match="n_cells must be a whole number"):
        fitted.suggest(["G0001"], n_cells=0)
    with pytest.raises(InputError, match="'FOO' are not among"):
        fitted.suggest(["G0001"], genes=["FOO"])


def test_ranking_leaves_the_random_state_alone(fitted):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fitted.suggest(["G0001", "G0002"], n_samples=5)
    torch.testing.assert_close(torch.rand(2), expected)
