"""The causal algebra against graphs small enough for a sheet of paper."""

import numpy as np
import pytest
import torch

from sccvae_pyro.models import scm

# Node 0 drives 1 by 2, 1 drives 2 by -3, and 0 drives 2 directly by 5.
TRIANGLE = torch.tensor([[0.0, 2.0, 5.0], [0.0, 0.0, -3.0], [0.0, 0.0, 0.0]])
CHAIN = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -3.0], [0.0, 0.0, 0.0]])
FORK = torch.tensor([[0.0, 2.0, 5.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
COLLIDER = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, -3.0], [0.0, 0.0, 0.0]])


def random_graph(*batch, n_nodes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, n_nodes, n_nodes, generator=generator, dtype=torch.double).triu(1)


@pytest.mark.parametrize(
    ("B", "state"),
    [
        (CHAIN, [1.0, 12.0, 64.0]),
        (FORK, [1.0, 12.0, 105.0]),
        (COLLIDER, [1.0, 10.0, 75.0]),
        (TRIANGLE, [1.0, 12.0, 69.0]),
    ],
    ids=["chain", "fork", "collider", "triangle"],
)
def test_propagation_by_hand(B, state):
    """Noise (1, 10, 100): u0 = 1, u1 = 10 + B01 u0, u2 = 100 + B02 u0 + B12 u1."""
    noise = torch.tensor([[1.0, 10.0, 100.0]])
    torch.testing.assert_close(scm.propagate(noise, B), torch.tensor([state]))
    torch.testing.assert_close(scm.abduct(torch.tensor([state]), B), noise)


def test_total_effect_is_the_sum_over_paths():
    """Pushing node 0 moves 2 along 0 -> 2 (5) and 0 -> 1 -> 2 (2 x -3): -1 in all, and nothing moves 0."""
    total = scm.propagate(torch.eye(3), TRIANGLE)
    torch.testing.assert_close(total, torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, -3.0], [0.0, 0.0, 1.0]]))


def test_total_effect_of_a_long_graph():
    """Paths of length n have effect B^n; the longest has one edge less than there are nodes."""
    B = random_graph(n_nodes=7)
    paths = sum(torch.linalg.matrix_power(B, n) for n in range(7))
    torch.testing.assert_close(scm.propagate(torch.eye(7).double(), B), paths)


def test_shift_of_a_node_leaves_its_ancestors_alone():
    B, noise = random_graph(), torch.randn(4, 6, dtype=torch.double)
    shift = torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, 0.0]).double()
    change = scm.propagate(noise + shift, B) - scm.propagate(noise, B)
    torch.testing.assert_close(change[:, :3], torch.zeros(4, 3).double())
    torch.testing.assert_close(change[:, 3:], (2 * torch.linalg.inv(torch.eye(6) - B)[3, 3:]).expand(4, 3))


@pytest.mark.parametrize("batch", [(), (5,), (5, 1), (1,), (1, 1), (2, 5, 1)])
def test_abduction_inverts_propagation(batch):
    """Globals of vectorised draws carry a singleton where the plate of cells is."""
    B = random_graph(*batch)
    draws = batch[:-1] if batch[-1:] == (1,) else batch
    noise = torch.randn(*draws, 4, 6, dtype=torch.double)
    state = scm.propagate(noise, B)
    assert state.shape == (*draws, 4, 6)
    torch.testing.assert_close(scm.abduct(state, B), noise)
    torch.testing.assert_close(scm.propagate(scm.abduct(noise, B), B), noise)


@pytest.mark.parametrize("batch", [(5,), (5, 1)])
def test_draws_are_independent_systems(batch):
    """One call over draws is the same as one call for each."""
    B, noise = random_graph(*batch), torch.randn(5, 4, 6, dtype=torch.double)
    one_by_one = [scm.propagate(noise[s], B[s].reshape(6, 6)) for s in range(5)]
    torch.testing.assert_close(scm.propagate(noise, B), torch.stack(one_by_one))


def test_shared_noise_meets_every_draw():
    """Cells without a dimension of draws, as the encoder proposes them, meet each drawn graph."""
    B, state = random_graph(5, 1), torch.randn(4, 6, dtype=torch.double)
    expected = torch.stack([state - state @ B[s, 0] for s in range(5)])
    torch.testing.assert_close(scm.abduct(state, B), expected)


def test_no_edges_no_change():
    noise = torch.randn(4, 6)
    torch.testing.assert_close(scm.propagate(noise, torch.zeros(6, 6)), noise)


# Shifts


def test_shifts_of_a_combination_add_up():
    shift = torch.tensor([[1.0, 0.0], [0.0, 10.0], [100.0, 100.0]])
    targets = torch.tensor([[0, 3], [1, 3], [0, 1], [1, 2], [3, 3]])
    found = scm.action_of_cells(shift, targets)
    expected = [[1.0, 0.0], [0.0, 10.0], [1.0, 10.0], [100.0, 110.0], [0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_padding_does_not_matter():
    shift, targets = torch.randn(3, 2), torch.tensor([[0], [3], [2]])
    padded = torch.nn.functional.pad(targets, (2, 1), value=3)
    torch.testing.assert_close(scm.action_of_cells(shift, padded), scm.action_of_cells(shift, targets))


def test_shifts_of_draws():
    shift, targets = torch.randn(5, 3, 2), torch.tensor([[0, 1], [3, 3]])
    found = scm.action_of_cells(shift, targets)
    torch.testing.assert_close(found[:, 0], shift[:, 0] + shift[:, 1])
    torch.testing.assert_close(found[:, 1], torch.zeros(5, 2))


def test_control_cells_give_no_gradient():
    """The padding is not a perturbation: nothing is learned from control cells about any shift."""
    shift = torch.randn(3, 2, requires_grad=True)
    scm.action_of_cells(shift, torch.tensor([[0, 3], [3, 3], [0, 3]])).sum().backward()
    np.testing.assert_array_equal(shift.grad, [[2, 2], [0, 0], [0, 0]])
