"""Published constants, each with its source, and the laws they make.

Units: losses in nats per token of the paper's own tokenizer, parameters N as that paper counts them (Kaplan without
embeddings, Hoffmann with), compute in PF-days where a name says so and in FLOP elsewhere, batches and data in tokens.
Constants of different tables are separate fits: never mix rows. `NOTES` lists where the printed numbers disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sweep.schema import PF_DAY

Array = npt.NDArray[np.float64]

KAPLAN = "Kaplan et al. 2020 (arXiv 2001.08361)"
HOFFMANN = "Hoffmann et al. 2022 (arXiv 2203.15556)"
BESIROGLU = "Besiroglu et al. 2024 (arXiv 2404.10102)"


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


# --- Kaplan et al. 2020 ------------------------------------------------------------------------------------------

KAPLAN_BATCH = 2**19  # tokens; 512 sequences of 1024 (section 2.2)

# Table 5, loss against one resource at a time.
L_OF_N = scale_law(8.8e13, 0.076, f"{KAPLAN}, Eq. 1.1 and Table 5")
L_OF_D = scale_law(5.4e13, 0.095, f"{KAPLAN}, Eq. 1.2 and Table 5; tokens")
L_OF_C = scale_law(1.6e7, 0.057, f"{KAPLAN}, Table 5; PF-days at fixed batch")
L_OF_C_MIN = scale_law(3.1e8, 0.050, f"{KAPLAN}, Eq. 1.3 and Table 5; PF-days")
# The legends of figures 1 and 13 print other scales than Table 5.
L_OF_C_LEGEND = scale_law(2.0e7, 0.057, f"{KAPLAN}, legend of Fig. 13; PF-days at fixed batch")
L_OF_C_MIN_LEGEND = scale_law(2.3e8, 0.050, f"{KAPLAN}, legends of Figs. 1 and 13; PF-days")

# Critical batch in tokens against loss.
B_CRIT = Power(2.1e8, -1 / 0.21, f"{KAPLAN}, Eq. 5.3 and Table 5: B_* = 2.1e8, alpha_B = 0.21")
ALPHA_B = -1 / B_CRIT.exponent
B_CRIT_LEGEND = Power(2.1e8, -4.8, f"{KAPLAN}, legend of Fig. 10")

# Table 6, compute-efficient training against C_min in PF-days; fixed batch against the raw C.
N_OPT = Power(1.3e9, 0.73, f"{KAPLAN}, Table 6; C_min in PF-days")
B_OPT = Power(2.0e6, 0.24, f"{KAPLAN}, Table 6; C_min in PF-days")
S_OPT = Power(5.4e3, 0.03, f"{KAPLAN}, Table 6 (a lower bound); C_min in PF-days")
D_OPT = Power(2e10, 0.27, f"{KAPLAN}, Table 6; C_min in PF-days")
N_FIXED_BATCH = Power(1.6e9, 0.88, f"{KAPLAN}, legend of Fig. 14; raw C in PF-days at B = 2^19")


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


SURFACE = Surface(6.5e13, 0.077, 2.1e3, 0.76, f"{KAPLAN}, Eq. 5.6 and Table 3")


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


DATA_SURFACE = DataSurface(6.4e13, 0.076, 1.8e13, 0.103, f"{KAPLAN}, Eq. 1.5 and Table 2")


def loss_at_steps(params: npt.ArrayLike, steps: npt.ArrayLike, batch: float = KAPLAN_BATCH) -> Array:
    """Loss after `steps` updates of `batch` tokens: Eq. 5.6 at S_min = S/(1 + B_crit(L)/B) (Eq. 5.4).

    The law is implicit in L. Its right side falls as L rises (B_crit falls, so S_min rises), so bisection in ln L finds
    the one root. `params` and `steps` broadcast.
    """
    params, steps = np.broadcast_arrays(np.asarray(params, dtype=float), np.asarray(steps, dtype=float))
    low, high = np.full(params.shape, -2.0), np.full(params.shape, 30.0)
    for _ in range(60):
        middle = (low + high) / 2
        loss = np.exp(middle)
        above = SURFACE.loss(params, steps / (1 + B_CRIT(loss) / batch)) > loss
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(np.exp((low + high) / 2))


def loss_at_compute(params: npt.ArrayLike, pf_days: npt.ArrayLike, batch: float = KAPLAN_BATCH) -> Array:
    """Loss after `pf_days` of raw compute C = 6·N·B·S at `batch` tokens; as `loss_at_steps`."""
    params = np.asarray(params, dtype=float)
    return loss_at_steps(params, np.asarray(pf_days, dtype=float) * PF_DAY / (6 * params * batch), batch)


# --- Hoffmann et al. 2022 ----------------------------------------------------------------------------------------


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


APPROACH_3 = Parametric(
    math.exp(6.0073404),
    math.exp(6.0179186),
    math.exp(0.5267228),
    0.33917,
    0.28491,
    f"{HOFFMANN}, unrounded (TeX source)",
)
APPROACH_3_ROUNDED = Parametric(406.4, 410.7, 1.69, 0.34, 0.28, f"{HOFFMANN}, Eq. 10 as printed")
REFIT = Parametric(482.01, 2085.43, 1.8172, 0.3478, 0.3658, BESIROGLU)

# Lines of figure 1, fitted to the printed optima of Tables 3 and A3 (they leave at most 1.2% and 3.2%).
APPROACH_1 = Power(0.0992, 0.498, f"{HOFFMANN}, line through Table 3")
APPROACH_2 = Power(0.145, 0.490, f"{HOFFMANN}, line through Table A3")
# Kaplan's line there: C = 2·C_min at B_crit. It gives 4.683e9 at 1e21 FLOP, where section D.4 prints 4.68B.
KAPLAN_LINE = Power(
    N_OPT.coefficient / (2 * PF_DAY) ** N_OPT.exponent, N_OPT.exponent, f"{KAPLAN}, Table 6 with C_min = C/2; C in FLOP"
)

ISOFLOP_BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)  # FLOP, legend of Fig. 3
GOPHER_FLOPS = 5.76e23  # the paper's own figure for Gopher's budget, and Chinchilla's by design
APPROACH_2_AT_GOPHER = (63e9, 1.4e12)  # N and D, Fig. 3 and Table 2
APPROACH_3_AT_GOPHER = 40e9  # N, Fig. 4

# N, FLOP of Table 3 (approach 1) and Table A3 (approaches 2 and 3). Printed for 175B, approach 3: 1.26e24, a misprint.
OPTIMA: tuple[tuple[float, float, float, float], ...] = (
    (400e6, 1.92e19, 1.84e19, 2.21e19),
    (1e9, 1.21e20, 1.20e20, 1.62e20),
    (10e9, 1.23e22, 1.32e22, 2.46e22),
    (67e9, 5.76e23, 6.88e23, 1.71e24),
    (175e9, 3.85e24, 4.54e24, 1.26e25),
    (280e9, 9.90e24, 1.18e25, 3.52e25),
    (520e9, 3.43e25, 4.19e25, 1.36e26),
    (1e12, 1.27e26, 1.59e26, 5.65e26),
    (10e12, 1.30e28, 1.75e28, 8.55e28),
)


@dataclass(frozen=True)
class Star:
    """A large model of figure 1."""

    name: str
    params: float
    tokens: float
    flops: float
    source: str


STARS = (
    Star("Chinchilla", 70e9, 1.4e12, GOPHER_FLOPS, "Gopher's budget by design"),
    Star("Gopher", 280e9, 300e9, GOPHER_FLOPS, "the paper's own count; 6ND is 5.04e23"),
    Star("GPT-3", 175e9, 300e9, 6 * 175e9 * 300e9, "6ND"),
    Star("MT-NLG", 530e9, 270e9, 6 * 530e9 * 270e9, "6ND"),
)

NOTES: dict[str, str] = {
    "L(C) scale": "Table 5 prints C_c = 1.6e7 PF-days, the legend of Fig. 13 prints 2.0e7.",
    "L(C_min) scale": "Table 5 prints C_c = 3.1e8 PF-days, the legends of Figs. 1 and 13 print "
    "2.3e8 (Eq. B.8 gives 2.2e8).",
    "L(C) and L(C_min)": "The rounded laws cross at 0.010 (Table 5) or 0.53 PF-days (legends); beyond, "
    "L(C) < L(C_min), which cannot be: never combine them.",
    "B_crit exponent": "1/alpha_B = 4.76; the legend of Fig. 10 rounds it to 4.8.",
    "D(C)": "Eq. 6.7 (4e10 C^0.26) is not consistent with Table 6 (2e10 C^0.27).",
    "approach 3": "The printed constants give 32B at Gopher's budget, the unrounded ones 40B as the paper states.",
    "Table A3, 175B": "Approach 3 prints 1.26e24 FLOP; 6ND and the neighbours need 1.26e25.",
    "Kaplan's line": "Hoffmann's figure takes C = 2 C_min; without the factor the line would stand 1.66 times higher.",
}


def contribution_factors(growth: float) -> dict[str, float]:
    """Growth of model size, batch and serial steps that make up a `growth`-fold C_min (Kaplan et al. 2020, Fig. 3)."""
    return {
        "N": growth**N_OPT.exponent,
        "B": growth**B_OPT.exponent,
        "S": growth**S_OPT.exponent,
    }


def fixed_batch_steps(pf_days: npt.ArrayLike) -> Array:
    """Steps C/(6·N·B) that the fixed-batch size of Fig. 14 implies at B = 2^19."""
    flops: Any = np.asarray(pf_days, dtype=float) * PF_DAY
    return np.asarray(flops / (6 * N_FIXED_BATCH(pf_days) * KAPLAN_BATCH))
