"""The causal algebra: pure functions on tensors, row vectors throughout.

``B[j, k]`` is the effect of node j on node k; nodes are in causal order, so ``B`` is strictly upper
triangular and ``I - B`` is unit upper triangular. Solving that triangular system replaces the
inverse: cheaper, and exact to the last bit for a DAG. A DAG in another order is solved as any linear
system: its determinant is one in every order.

A global tensor sampled outside the ``cells`` plate carries a singleton in the place of that plate
when draws are vectorised (``draws x 1 x nodes x nodes``); :func:`drop_cells_dim` removes it.
"""

from __future__ import annotations

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
    system = torch.eye(B.shape[-1], dtype=B.dtype, device=B.device) - drop_cells_dim(B)
    # Another order than that of the nodes; looking costs a tenth of the triangular solve. What is compiled
    # once, for one B, must serve all.
    if torch.jit.is_tracing() or B.tril().any():
        return torch.linalg.lu_solve(*torch.linalg.lu_factor(system), noise_ck, left=False)
    return torch.linalg.solve_triangular(system, noise_ck, upper=True, left=False, unitriangular=True)


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


def shift_of_cells(shift_pk: Tensor, targets_cm: Tensor) -> Tensor:
    """Add up the shifts of every perturbation that a cell carries.

    Parameters
    ----------
    shift_pk
        ``... x perturbations x nodes``, shift of each perturbation.
    targets_cm
        ``cells x most targets in a cell``, codes of the perturbations; the code ``perturbations``
        (one past the last) means none, so that control cells have only that.

    Returns
    -------
    ``... x cells x nodes``.
    """
    nothing = shift_pk.new_zeros((*shift_pk.shape[:-2], 1, shift_pk.shape[-1]))
    table = torch.cat([shift_pk, nothing], dim=-2)
    return table[..., targets_cm, :].sum(dim=-2)


def share_of_cells(share_p: Tensor, targets_cm: Tensor) -> Tensor:
    """Average the shares of the perturbations that a cell carries.

    Parameters
    ----------
    share_p
        ``... x perturbations``, mean share of its shift that a cell shows.
    targets_cm
        As in :func:`shift_of_cells`; a control cell has a share of one, of no shift.

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
        ``cells``, codes of the guides; the code ``guides`` (one past the last) means none: one.

    Returns
    -------
    ``... x cells``.
    """
    table = torch.cat([relative_g, relative_g.new_ones((*relative_g.shape[:-1], 1))], dim=-1)
    return table[..., guides_c]
