"""The causal algebra: pure functions on tensors, row vectors throughout.

``B[j, k]`` is the effect of node j on node k; nodes are in causal order, so ``B`` is strictly upper
triangular and ``I - B`` is unit upper triangular. Solving that triangular system replaces the
inverse: cheaper, and exact to the last bit for a DAG. A DAG in another order is solved as any linear
system: its determinant is one in every order.

A global tensor sampled outside the ``cells`` plate carries a singleton in the place of that plate
when draws are vectorised (``draws x 1 x nodes x nodes``); :func:`drop_cells_dim` removes it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def drop_cells_dim(matrix: Tensor) -> Tensor:
    """Turn ``... x 1 x rows x columns`` of a vectorised global into ``... x rows x columns``."""
    return matrix.squeeze(-3) if matrix.dim() > 2 else matrix


def propagate(noise_ck: Tensor, B: Tensor) -> Tensor:
    """Solve ``u = u B + z``: let the noise flow along the graph.

    Parameters
    ----------
    noise_ck
        ``... x cells x nodes``, exogenous noise with all shifts added.
    B
        ``... x nodes x nodes``, acyclic: strictly upper triangular once the nodes are put in causal order.

    Returns
    -------
    Causal latent state ``u = z (I - B)^-1``, ``... x cells x nodes``.
    """
    return _solve(noise_ck, drop_cells_dim(B))


def identity(B: Tensor) -> Tensor:
    """The identity of the size, type and device of a matrix."""
    return torch.eye(B.shape[-1], dtype=B.dtype, device=B.device)


def _solve(noise_ck: Tensor, B: Tensor) -> Tensor:
    """Solve ``u (I - B) = z`` for matrices whose leading dimensions are those of the noise."""
    system = identity(B) - B
    # Another order than that of the nodes; looking costs a tenth of the triangular solve. What is compiled
    # once, for one B, must serve all.
    if torch.jit.is_tracing() or B.tril().any():
        return torch.linalg.lu_solve(*torch.linalg.lu_factor(system), noise_ck, left=False)
    return torch.linalg.solve_triangular(system, noise_ck, upper=True, left=False, unitriangular=True)


def respond(noise_ck: Tensor, action_ca: Tensor, B: Tensor) -> Tensor:
    """Let cells answer an intervention: solve ``u = (u B + z) keep + shift``, node by node.

    Where every node keeps all of its own, this is a shift, :func:`propagate` of ``z + shift``: one system for
    all cells. A node that keeps nothing is cut from its parents and set to its shift (Pearl's *do*), one that
    keeps a multiple is scaled; then each cell has a system of its own, of ``nodes x nodes`` numbers.

    Parameters
    ----------
    noise_ck
        ``... x cells x nodes``, exogenous noise.
    action_ca
        ``... x cells x actions``; see :func:`shift_and_keep`.
    B
        ``... x nodes x nodes``, acyclic.

    Returns
    -------
    Causal latent state, ``... x cells x nodes``.
    """
    shift_ck, keep_ck = shift_and_keep(action_ca, B.shape[-1])
    if keep_ck is None:
        return propagate(noise_ck + shift_ck, B)
    driven_c1k = (noise_ck * keep_ck + shift_ck).unsqueeze(-2)
    return _solve(driven_c1k, drop_cells_dim(B).unsqueeze(-3) * keep_ck.unsqueeze(-2)).squeeze(-2)


def answer(action_ca: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Take the answer of cells to an intervention apart: it is affine in the noise.

    Parameters
    ----------
    action_ca, B
        As in :func:`respond`.

    Returns
    -------
    The state without noise, ``... x cells x nodes``, and the effect of a unit of noise of each node on
    every node: one ``nodes x nodes`` for all cells where the action is a shift, else one for each.
    """
    shift_ck, keep_ck = shift_and_keep(action_ca, B.shape[-1])
    if keep_ck is None:
        effect_kk = propagate(identity(B), B)
        return propagate(shift_ck, B), effect_kk.unsqueeze(-3) if effect_kk.dim() > 2 else effect_kk
    intervened = drop_cells_dim(B).unsqueeze(-3) * keep_ck.unsqueeze(-2)
    pushed_ck = _solve(shift_ck.unsqueeze(-2), intervened).squeeze(-2)
    return pushed_ck, _solve(keep_ck.diag_embed(), intervened)


def shift_and_keep(action_ca: Tensor, n_nodes: int) -> tuple[Tensor, Tensor | None]:
    """Read what an action does to each node.

    Parameters
    ----------
    action_ca
        ``... x cells x actions``: a shift of each node; where some nodes are cut or scaled, shift, cut and
        stretch of each, side by side. All are linear in penetrance, and zero in a control cell.
    n_nodes
        Number of nodes.

    Returns
    -------
    What is added to each node, and the factor on what it has of its own, ``(1 - cut) exp(stretch)`` and not
    below zero, each ``... x cells x nodes``; ``None`` where all keep everything.
    """
    if action_ca.shape[-1] == n_nodes:
        return action_ca, None
    shift_ck, cut_ck, stretch_ck = action_ca.split(n_nodes, dim=-1)
    return shift_ck, (1.0 - cut_ck).clamp(min=0.0) * stretch_ck.exp()


def abduct(state_ck: Tensor, B: Tensor) -> Tensor:
    """Read the noise off a state, ``z = u (I - B)``; the inverse of :func:`propagate`.

    Parameters
    ----------
    state_ck
        ``... x cells x nodes``.
    B
        ``... x nodes x nodes``, acyclic.

    Returns
    -------
    Exogenous noise, shifts included, ``... x cells x nodes``.
    """
    return state_ck - state_ck @ drop_cells_dim(B)


def action_of_cells(action_pa: Tensor, targets_cm: Tensor) -> Tensor:
    """Add up the actions of every perturbation that a cell carries.

    Parameters
    ----------
    action_pa
        ``... x perturbations x actions``, of each perturbation.
    targets_cm
        ``cells x most targets in a cell``, codes of the perturbations; the code ``perturbations``
        (one past the last) means none, so that control cells have only that.

    Returns
    -------
    ``... x cells x actions``.
    """
    nothing = action_pa.new_zeros((*action_pa.shape[:-2], 1, action_pa.shape[-1]))
    table = torch.cat([action_pa, nothing], dim=-2)
    return table[..., targets_cm, :].sum(dim=-2)


def share_of_cells(share_p: Tensor, targets_cm: Tensor) -> Tensor:
    """Average the shares of the perturbations that a cell carries.

    Parameters
    ----------
    share_p
        ``... x perturbations``, mean share of its action that a cell shows.
    targets_cm
        As in :func:`action_of_cells`; a control cell has a share of one, of no shift.

    Returns
    -------
    ``... x cells``.
    """
    carried_cm = (targets_cm < share_p.shape[-1]).to(share_p.dtype)
    table = torch.cat([share_p, share_p.new_zeros((*share_p.shape[:-1], 1))], dim=-1)
    total_c, number_c = table[..., targets_cm].sum(dim=-1), carried_cm.sum(dim=-1)
    return torch.where(number_c > 0, total_c / number_c.clamp(min=1.0), 1.0)


def relative_of_cells(relative_g: Tensor, guides_c: Tensor) -> Tensor:
    """Look up the relative strength of each cell's guide.

    Parameters
    ----------
    relative_g
        ``... x guides``, strength relative to that of the perturbation.
    guides_c
        ``cells``, codes of the guides; the code ``guides`` (one past the last) means none, or one that
        training did not see, which is taken as average.

    Returns
    -------
    ``... x cells``.
    """
    table = torch.cat([relative_g, relative_g.new_ones((*relative_g.shape[:-1], 1))], dim=-1)
    return table[..., guides_c]


class GuideMix(NamedTuple):
    """Which guides the cells of each perturbation carry.

    ``target_g``, guides: code of the perturbation that a guide brings about alone; the code
    ``perturbations`` where there is none. ``portion_g``, guides: portion of the cells with that perturbation
    alone that carry it.
    """

    target_g: Tensor
    portion_g: Tensor

    def mean(self, relative_g: Tensor, n_perturbations: int) -> Tensor:
        """Mean relative strength over the cells of each perturbation; cells without a guide have one.

        Parameters
        ----------
        relative_g
            ``... x guides``, as in :func:`relative_of_cells`.
        n_perturbations
            Number of seen perturbations.

        Returns
        -------
        ``... x perturbations``.
        """
        excess_g = self.portion_g * (relative_g - 1.0)
        none = excess_g.new_zeros((*excess_g.shape[:-1], n_perturbations + 1))
        return 1.0 + none.index_add(-1, self.target_g, excess_g)[..., :-1]
