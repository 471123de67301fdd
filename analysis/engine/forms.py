"""The forms of ln y as a function of theta that the engine fits, with their exact derivatives.

A form is bound to the problems of its rows (a row is one start of one problem). Bound, it predicts, and from three
coefficients a point it gives the gradient and the Hessian of an objective:

    gradient = sum_i psi_i J_i        Hessian = sum_i inner_i J_i J_i' + sum_i curved_i H_i

with J_i and H_i the gradient and the Hessian of ln y_i.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch


class Bound(Protocol):
    """A form on M rows."""

    def predict(self, theta: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """ln y [M, n] at theta [M, p], and what `derivatives` needs of the way there."""

    def derivatives(
        self, theta: torch.Tensor, kept: Any, psi: torch.Tensor, inner: torch.Tensor, curved: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradient [M, p] and Hessian [M, p, p] from coefficients [M, n]; curved None: all of them are 0."""


class Form(Protocol):
    """A law on every problem. numbers: how many a row holds in its largest tensor."""

    numbers: int

    def bind(self, problem: torch.Tensor) -> Bound:
        """On rows of these problems [M]."""


def tensor(values: np.ndarray, device: str) -> torch.Tensor:
    """A float64 copy on `device`."""
    return torch.tensor(np.ascontiguousarray(values), dtype=torch.float64, device=device)


class LogSumExp:
    """ln y_i = ln sum_t exp(offset[t, i] + sum_p design[t, i, p] theta_p).

    With s_t the terms' shares of y, J_i = sum_t s_t x_t and H_i = sum_t s_t x_t x_t' - J_i J_i', so gradient and
    Hessian are sums over terms, and pairs of terms, of products of shares times products of columns: small matrix
    products that never form the Jacobian. Columns that are zero throughout take no part, so that terms with parameters
    of their own cost no more than they must.
    """

    def __init__(self, design: np.ndarray, offset: np.ndarray, device: str) -> None:
        """design: [T, n, p] shared by all problems or [P, T, n, p]. offset: [T, n]."""
        terms, points, p = design.shape[-3:]
        self.own = design.ndim == 4
        filled = (design != 0).any(axis=(0, 2) if self.own else 1)
        names = [np.flatnonzero(row) for row in filled]
        self.numbers = terms * points * (max(1, int(filled.sum())) if self.own else 1)
        self.names = [torch.tensor(k, device=device) for k in names]
        self.columns = [tensor(np.take(design[..., t, :, :], k, axis=-1), device) for t, k in enumerate(names)]
        self.offset = tensor(offset, device) if offset.any() else None
        self.pairs = [(t, u) for t in range(terms) for u in range(t, terms)]
        to_gradient = np.zeros((sum(map(len, names)), p))
        to_gradient[np.arange(len(to_gradient)), np.concatenate(names)] = 1
        self.to_gradient = tensor(to_gradient, device)
        self.to_hessian = tensor(
            np.concatenate([_places(names[t], names[u], p, t != u) for t, u in self.pairs]), device
        )
        self.shared = None if self.own else _BoundLogSumExp(self, self.columns)

    def bind(self, problem: torch.Tensor) -> Bound:
        """Gathers the columns of these problems, where they have their own."""
        return self.shared or _BoundLogSumExp(self, [c[problem] for c in self.columns])


def _places(left: np.ndarray, right: np.ndarray, p: int, both: bool) -> np.ndarray:
    """[len(left) len(right), p p]: where in the Hessian the product of each two columns belongs."""
    places = np.zeros((len(left), len(right), p, p))
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            places[i, j, a, b] += 1
            places[i, j, b, a] += both
    return places.reshape(-1, p * p)


class _BoundLogSumExp:
    def __init__(self, form: LogSumExp, columns: Sequence[torch.Tensor]) -> None:
        self.form, self.columns = form, columns
        self.across = [c.transpose(-1, -2) for c in columns]
        if form.offset is not None:  # as one more column, whose parameter is 1
            rows = [o.expand(*a.shape[:-2], 1, -1) for o, a in zip(form.offset, self.across, strict=True)]
            self.across = [torch.cat([a, o], dim=-2) for a, o in zip(self.across, rows, strict=True)]
        self.products = [(columns[t][..., :, None] * columns[u][..., None, :]).flatten(-2) for t, u in form.pairs]

    def predict(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps the shares [T, M, n]."""
        z = theta.new_empty(len(self.columns), len(theta), self.columns[0].shape[-2])
        for t, (names, across) in enumerate(zip(self.form.names, self.across, strict=True)):
            own = theta.index_select(1, names)
            if self.form.offset is not None:
                own = torch.cat([own, own.new_ones(len(own), 1)], dim=1)
            z[t] = _times(own, across)
        if len(z) == 1:
            return z[0], torch.ones_like(z)
        top = functools.reduce(torch.maximum, z)
        z.sub_(top).exp_()
        total = functools.reduce(torch.add, z)
        return top.add_(total.log()), z.mul_(total.reciprocal())

    def derivatives(
        self,
        theta: torch.Tensor,
        kept: torch.Tensor,
        psi: torch.Tensor,
        inner: torch.Tensor,
        curved: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Products of shares and columns, summed over the points and set in their places."""
        form, share, p = self.form, kept, theta.shape[1]
        first = [_times(psi * s, c) for s, c in zip(share, self.columns, strict=True)]
        outer = inner if curved is None else inner - curved
        second = []
        for (t, u), product in zip(form.pairs, self.products, strict=True):
            if t == u:
                weighted = outer * share[t]
                own = weighted if curved is None else weighted + curved
                second.append(_times(own * share[t], product))
            else:
                second.append(_times(weighted * share[u], product))
        hessian = torch.cat(second, dim=1) @ form.to_hessian
        return torch.cat(first, dim=1) @ form.to_gradient, hessian.reshape(-1, p, p)


def _times(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """rows [M, k] times a matrix [k, c] shared by all rows, or each row's own [M, k, c]."""
    return rows @ matrix if matrix.ndim == 2 else torch.bmm(rows[:, None], matrix)[:, 0]


class Curve:
    """ln y = curve(theta, *data of the problem), differentiated by torch.func."""

    def __init__(self, curve: Callable[..., torch.Tensor], data: Sequence[np.ndarray], p: int, device: str) -> None:
        """data: each [n] shared by all problems, or [P, n]."""
        self.curve, self.data = curve, [tensor(np.atleast_2d(d), device) for d in data]
        self.numbers = p * self.data[0].shape[-1]

    def bind(self, problem: torch.Tensor) -> Bound:
        """Gathers the data of these problems."""
        return _BoundCurve(self.curve, [d[problem] if len(d) > 1 else d[0] for d in self.data])


class _BoundCurve:
    def __init__(self, curve: Callable[..., torch.Tensor], data: Sequence[torch.Tensor]) -> None:
        self.curve, self.data = curve, data
        self.axes = tuple(0 if d.ndim == 2 else None for d in data)

    def predict(self, theta: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Keeps nothing."""
        return torch.func.vmap(self.curve, in_dims=(0, *self.axes))(theta, *self.data), None

    def derivatives(
        self, theta: torch.Tensor, kept: None, psi: torch.Tensor, inner: torch.Tensor, curved: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The Jacobian in forward mode, the weighted Hessians forward over reverse."""
        jacobian = torch.func.vmap(torch.func.jacfwd(self.curve), in_dims=(0, *self.axes))(theta, *self.data)
        gradient = torch.bmm(psi[:, None], jacobian)[:, 0]
        hessian = jacobian.transpose(1, 2) @ (inner[..., None] * jacobian)
        if curved is not None:
            second = torch.func.vmap(torch.func.hessian(self._weighted), in_dims=(0, 0, *self.axes))
            hessian = hessian + second(theta, curved, *self.data)
        return gradient, hessian

    def _weighted(self, theta: torch.Tensor, coefficient: torch.Tensor, *data: torch.Tensor) -> torch.Tensor:
        return (coefficient * self.curve(theta, *data)).sum()
