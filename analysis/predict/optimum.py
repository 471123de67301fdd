"""The compute-optimal model of each law: its size, tokens, batch and loss, and what a wrong size costs.

A law's constants are arrays [1 + k], the estimate first and its joint draws after it, so that whatever is computed from
them carries the draws. Losses are nats per token, batches tokens, compute FLOP: C = 6 N D as the fitted runs spent it,
or for laws of C_min the least compute 6 N B_crit S_min (Kaplan et al. 2020, section 5.1). A loss that no compute
reaches takes infinite compute; constants that make no sense (an exponent of the wrong sign) give nan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from analysis.efficiency import derived_laws, excess_compute

Array = npt.NDArray[np.float64]

SYMBOLS = ("N_c", "alpha_N", "S_c", "alpha_S", "B_star", "slope")  # of a `Surface`
_BISECTIONS = 100
_LN_EXCESS = (-60.0, 20.0)  # of L - (N_c/N)^alpha_N: where a loss is looked for


@dataclass(frozen=True)
class Optimum:
    """The best model at `flops`, [1 + k] each. tokens: what its training takes, for laws of C_min at B_crit. loss,
    batch_tokens: None where the law does not say."""

    flops: Array
    params: Array
    tokens: Array
    loss: Array | None
    batch_tokens: Array | None = None


class Law(Protocol):
    """What every law of compute-optimal training answers."""

    @property
    def least(self) -> bool:
        """Whether its compute is C_min."""

    def flops_for_loss(self, loss: float) -> Array:
        """The compute whose best model reaches `loss`."""

    def flops_for_params(self, params: float) -> Array:
        """The compute whose best model has `params` parameters."""

    def at(self, flops: Array) -> Optimum:
        """The best model for each compute."""

    def loss_of_wrong_size(self, best: Optimum, factor: float) -> Array | None:
        """Loss of a model `factor` times the best size at the same compute; None where the law does not say."""

    def flops_of_wrong_size(self, best: Optimum, factor: float) -> Array | None:
        """Compute to the same loss with a model `factor` times the best size, over that of the best; inf where that
        model cannot reach it, None where the law does not say."""


@dataclass(frozen=True)
class Parametric:
    """L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, Eq. 10), its optimum at C = 6 N D by Eq. 4."""

    A: Array
    B: Array
    E: Array
    alpha: Array
    beta: Array
    least: ClassVar[bool] = False

    def flops_for_loss(self, loss: float) -> Array:
        """At the optimum the two terms share L - E as beta to alpha."""
        excess = np.maximum(loss - self.E, 0.0)
        total = self.alpha + self.beta
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            params = (self.A * total / (self.beta * excess)) ** (1 / self.alpha)
            tokens = (self.B * total / (self.alpha * excess)) ** (1 / self.beta)
            return self._sane(6 * params * tokens)

    def flops_for_params(self, params: float) -> Array:
        """C = 6 (N/G)^(1/a)."""
        with np.errstate(all="ignore"):
            return self._sane(6 * (params / self._g()) ** ((self.alpha + self.beta) / self.beta))

    def at(self, flops: Array) -> Optimum:
        """N_opt = G (C/6)^a and D_opt = C/(6 N_opt)."""
        with np.errstate(all="ignore"):
            params = self._sane(self._g() * (flops / 6) ** (self.beta / (self.alpha + self.beta)))
            tokens = flops / (6 * params)
        return Optimum(flops, params, tokens, self._loss(params, tokens))

    def loss_of_wrong_size(self, best: Optimum, factor: float) -> Array:
        """Fewer tokens are left for a larger model."""
        return self._loss(factor * best.params, best.tokens / factor)

    def flops_of_wrong_size(self, best: Optimum, factor: float) -> Array:
        """The tokens that the wrong size needs; infinite where its size alone costs more than the loss allows."""
        with np.errstate(all="ignore"):
            rest = self._loss(best.params, best.tokens) - self.E - self.A * (factor * best.params) ** -self.alpha
            tokens = np.where(rest > 0, (self.B / np.maximum(rest, 0.0)) ** (1 / self.beta), np.inf)
            return np.where(np.isfinite(rest), factor * tokens / best.tokens, np.nan)

    def _loss(self, params: Array, tokens: Array) -> Array:
        with np.errstate(all="ignore"):
            return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def _g(self) -> Array:
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    def _sane(self, values: Array) -> Array:
        return np.where((self.alpha > 0) & (self.beta > 0) & (self.A > 0) & (self.B > 0), values, np.nan)


@dataclass(frozen=True)
class Line:
    """y = coefficient x^exponent."""

    coefficient: Array
    exponent: Array

    def __call__(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return self.coefficient * x**self.exponent

    def inverse(self, y: float) -> Array:
        """The x at which the line is `y`."""
        with np.errstate(all="ignore"):
            return (y / self.coefficient) ** (1 / self.exponent)


@dataclass(frozen=True)
class Lines:
    """Power laws of compute through measured optima: approaches 1 and 2 of Hoffmann et al. 2022, and Kaplan's envelope
    of C_min (`least`, whose tokens are those of a run at B_crit, 2 B_crit S_min).

    curvature: at fixed compute ln L = ln L_opt + curvature ln^2(N/N_opt).
    """

    params: Line
    tokens: Line
    loss: Line | None
    batch_tokens: Line | None
    curvature: Array | None
    least: bool

    def flops_for_loss(self, loss: float) -> Array:
        """nan where the law has no line of the loss, or one that does not fall."""
        if self.loss is None:
            return np.full_like(self.params.exponent, np.nan)
        return np.where(self.loss.exponent < 0, self.loss.inverse(loss), np.nan)

    def flops_for_params(self, params: float) -> Array:
        """nan where the best size does not grow with compute."""
        return np.where(self.params.exponent > 0, self.params.inverse(params), np.nan)

    def at(self, flops: Array) -> Optimum:
        """Every quantity on its line."""
        loss, batch = (None if line is None else line(flops) for line in (self.loss, self.batch_tokens))
        return Optimum(flops, self.params(flops), self.tokens(flops), loss, batch)

    def loss_of_wrong_size(self, best: Optimum, factor: float) -> Array | None:
        """Up the parabola at the same compute."""
        if self.curvature is None or best.loss is None:
            return None
        with np.errstate(over="ignore"):
            return best.loss * np.exp(self.curvature * math.log(factor) ** 2)

    def flops_of_wrong_size(self, best: Optimum, factor: float) -> Array | None:
        """With x = ln(C'/C) the loss falls by its line and the best size grows by its own:
        L_exponent x + curvature (ln(factor) - a x)^2 = 0, the smaller root; infinite where there is none."""
        if self.curvature is None or self.loss is None:
            return None
        k, a, off = self.curvature, self.params.exponent, math.log(factor)
        square, linear, constant = k * a**2, self.loss.exponent - 2 * k * a * off, k * off**2
        root = linear**2 - 4 * square * constant
        with np.errstate(all="ignore"):
            x = 2 * constant / (-linear + np.sqrt(np.maximum(root, 0.0)))
            ratio = np.where((root >= 0) & (linear < 0), np.exp(x), np.inf)
        return np.where((k > 0) & (self.loss.exponent < 0), ratio, np.nan)


@dataclass(frozen=True)
class Surface:
    """L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S (Kaplan et al. 2020, Eq. 5.6) with B_crit = B_star L^slope
    (Eq. 5.3): the best N at C_min = 6 N B_crit(L) S_min is a power of C_min, and so are the others (App. B)."""

    N_c: Array
    alpha_N: Array
    S_c: Array
    alpha_S: Array
    B_star: Array
    slope: Array
    least: ClassVar[bool] = True

    def flops_for_loss(self, loss: float) -> Array:
        """C_min."""
        return self._lines.flops_for_loss(loss)

    def flops_for_params(self, params: float) -> Array:
        """C_min at which training `params` parameters to (1 + alpha_N/alpha_S) of their converged loss is best."""
        return self._lines.flops_for_params(params)

    def at(self, flops: Array) -> Optimum:
        """tokens: 2 B_crit S_min."""
        return self._lines.at(flops)

    def loss_of_wrong_size(self, best: Optimum, factor: float) -> Array:
        """Solved for the excess over the loss of infinite training, by bisection in its logarithm."""
        with np.errstate(all="ignore"):
            params = factor * best.params
            floor = (self.N_c / params) ** self.alpha_N
            low, high = (np.full_like(floor, end) for end in _LN_EXCESS)
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                ln_batch = np.log(self.B_star) + self.slope * np.log(floor + np.exp(middle))
                ln_flops = np.log(6 * params) + ln_batch + np.log(self.S_c) - middle / self.alpha_S
                dear = ln_flops > np.log(best.flops)
                low, high = np.where(dear, middle, low), np.where(dear, high, middle)
            return np.where(np.isfinite(params), floor + np.exp(middle), np.nan)

    def flops_of_wrong_size(self, best: Optimum, factor: float) -> Array:
        """Eq. B.16."""
        return np.where(np.isfinite(best.params), excess_compute(factor, self.alpha_N, self.alpha_S), np.nan)

    @cached_property
    def _lines(self) -> Lines:
        with np.errstate(all="ignore"):
            theta = [self.alpha_N * np.log(self.N_c), self.alpha_N, self.alpha_S * np.log(self.S_c), self.alpha_S]
            laws = derived_laws(np.stack(theta, axis=-1), np.stack([np.log(self.B_star), self.slope], axis=-1))
        lines = {name: Line(np.exp(law.intercept), law.exponent) for name, law in laws.items()}
        return Lines(lines["N"], lines["D"], lines["L"], lines["B"], None, True)
