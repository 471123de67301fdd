"""The forms of the published laws; `analysis.published.kaplan`, `.hoffmann` and `.later` hold their constants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Power:
    """y = coefficient · x^exponent."""

    coefficient: float
    exponent: float
    source: str

    def __call__(self, x: npt.ArrayLike) -> Array:
        """The law at `x`."""
        return np.asarray(self.coefficient * np.asarray(x, dtype=float) ** self.exponent)


def scale_law(scale: float, exponent: float, source: str) -> Power:
    """Kaplan's way of writing a falling law: L(x) = (scale/x)^exponent."""
    return Power(scale**exponent, -exponent, source)


@dataclass(frozen=True)
class Surface:
    """L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S (Kaplan et al. 2020, Eq. 5.6)."""

    N_c: float
    alpha_N: float
    S_c: float
    alpha_S: float
    source: str

    def loss(self, params: npt.ArrayLike, steps_min: npt.ArrayLike) -> Array:
        """Loss of `params` parameters after `steps_min` steps at a batch far above the critical one."""
        size = (self.N_c / np.asarray(params, dtype=float)) ** self.alpha_N
        return np.asarray(size + (self.S_c / np.asarray(steps_min, dtype=float)) ** self.alpha_S)

    def steps_min(self, params: npt.ArrayLike, loss: npt.ArrayLike) -> Array:
        """Least steps to `loss`; nan at and below the loss of infinite training."""
        excess = np.asarray(loss, dtype=float) - (self.N_c / np.asarray(params, dtype=float)) ** self.alpha_N
        excess = np.where(excess > 0, excess, np.nan)
        return np.asarray(self.S_c * excess ** (-1 / self.alpha_S))


@dataclass(frozen=True)
class DataSurface:
    """L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D (Kaplan et al. 2020, Eq. 1.5)."""

    N_c: float
    alpha_N: float
    D_c: float
    alpha_D: float
    source: str

    def loss(self, params: npt.ArrayLike, tokens: npt.ArrayLike) -> Array:
        """Early-stopped loss of `params` parameters on `tokens` distinct tokens."""
        size = (self.N_c / np.asarray(params, dtype=float)) ** (self.alpha_N / self.alpha_D)
        return np.asarray((size + self.D_c / np.asarray(tokens, dtype=float)) ** self.alpha_D)


@dataclass(frozen=True)
class Parametric:
    """L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, Eq. 10), with its optimum at C = 6·N·D (Eq. 4)."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    source: str

    @property
    def a(self) -> float:
        """Exponent of N_opt(C)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of D_opt(C)."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def G(self) -> float:
        """(alpha·A / (beta·B))^(1/(alpha + beta))."""
        return float((self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta)))

    def loss(self, params: npt.ArrayLike, tokens: npt.ArrayLike) -> Array:
        """Loss of `params` parameters after `tokens` tokens."""
        size = self.A / np.asarray(params, dtype=float) ** self.alpha
        return np.asarray(self.E + size + self.B / np.asarray(tokens, dtype=float) ** self.beta)

    def contour(self, loss: float, shares: npt.ArrayLike) -> tuple[Array, Array]:
        """(N, D) of equal `loss`, where the size term A/N^alpha makes up the given shares (0 to 1) of L - E."""
        shares = np.asarray(shares, dtype=float)
        params = (self.A / (shares * (loss - self.E))) ** (1 / self.alpha)
        return np.asarray(params), np.asarray((self.B / ((1 - shares) * (loss - self.E))) ** (1 / self.beta))

    def params_opt(self, flops: npt.ArrayLike) -> Array:
        """N_opt = G·(C/6)^a."""
        return np.asarray(self.G * (np.asarray(flops, dtype=float) / 6) ** self.a)

    def tokens_opt(self, flops: npt.ArrayLike) -> Array:
        """D_opt = (C/6)^b / G."""
        return np.asarray((np.asarray(flops, dtype=float) / 6) ** self.b / self.G)


@dataclass(frozen=True)
class Repeated:
    """L = E + A/N'^alpha + B/D'^beta with D' and N' the effective tokens and parameters on data seen several times
    (Muennighoff et al. 2023, Eqs. 5 and 6). `analysis.repeated` evaluates it."""

    base: Parametric
    R_D: float
    R_N: float
    source: str


@dataclass(frozen=True)
class Interval:
    """A published estimate with the interval printed beside it."""

    value: float
    low: float
    high: float
