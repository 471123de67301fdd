"""What Kaplan's surface and critical batch imply for efficient training (Kaplan et al. 2020, App. B).

With L(N, S_min) of Eq. 5.6, B_crit(L) of Eq. 5.3 and C_min = 6 N B_crit S_min, the loss is least at a given C_min where
its size term is alpha_S/alpha_N times its step term. From that alone follow the powers of N, B, S, D and L in C_min,
where efficient training stops, and what another model size costs. All functions are pure and take arrays, so joint
draws of the constants pass through them as they are.

    exponents = derived_laws(theta, law)     # against the exponents measured on the frontier
    excess_compute(2.0, 0.076, 0.76)         # a model twice the efficient size
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

QUANTITIES = ("N", "B", "S", "D", "L")
_WIDEST = 60.0  # of ln(N/N_eff) in the search for a given excess


@dataclass(frozen=True)
class DerivedLaw:
    """ln of a quantity against ln C_min (FLOP): intercept + exponent ln C_min, both of the draws' shape."""

    intercept: np.ndarray
    exponent: np.ndarray

    def at(self, flops: npt.ArrayLike) -> np.ndarray:
        """The quantity at C_min = `flops`, which broadcasts against the draws."""
        return np.asarray(np.exp(self.intercept + self.exponent * np.log(np.asarray(flops, dtype=float))))


def alpha_C_min(alpha_N: npt.ArrayLike, alpha_S: npt.ArrayLike, alpha_B: npt.ArrayLike) -> np.ndarray:
    """1/(1/alpha_S + 1/alpha_B + 1/alpha_N), the exponent of the loss against C_min (Eq. 1.7)."""
    n, s, b = (np.asarray(a, dtype=float) for a in (alpha_N, alpha_S, alpha_B))
    with np.errstate(all="ignore"):
        return np.asarray(1 / (1 / s + 1 / b + 1 / n))


def derived_laws(theta: npt.ArrayLike, law: npt.ArrayLike) -> dict[str, DerivedLaw]:
    """N, B = B_crit (tokens), S = S_min (steps), D = 2 B_crit S_min (tokens of a run at the critical batch) and L of
    compute-efficient training against C_min in FLOP (Eqs. 1.7 and 1.8; B.7 and B.8).

    theta: [..., 4], (alpha_N ln N_c, alpha_N, alpha_S ln S_c, alpha_S) as `analysis.kaplan` fits it. law: [..., 2],
    ln B_crit = law[0] + law[1] ln L. Draws that do not allow an optimum (an exponent that is not positive) give nan.
    """
    n, alpha_n, s, alpha_s = np.moveaxis(np.asarray(theta, dtype=float), -1, 0)
    ln_b, slope = np.moveaxis(np.asarray(law, dtype=float), -1, 0)
    with np.errstate(all="ignore"):
        alpha_b = -1 / slope
        alpha = np.where((alpha_n > 0) & (alpha_s > 0), alpha_C_min(alpha_n, alpha_s, alpha_b), np.nan)
        # ln N and ln S of the optimum at ln L = 0.
        ln_n = (n + np.log1p(alpha_n / alpha_s)) / alpha_n
        ln_s = (s + np.log1p(alpha_s / alpha_n)) / alpha_s
        ln_c = np.log(6) + ln_n + ln_b + ln_s
        at_one = {"N": ln_n, "B": ln_b, "S": ln_s, "D": np.log(2) + ln_b + ln_s, "L": 0 * ln_n}
        powers = {"N": 1 / alpha_n, "B": 1 / alpha_b, "S": 1 / alpha_s, "D": 1 / alpha_b + 1 / alpha_s, "L": -1.0}
        return {
            name: DerivedLaw(np.asarray(at_one[name] - alpha * powers[name] * ln_c), np.asarray(alpha * powers[name]))
            for name in QUANTITIES
        }


def stop_ratio(alpha_N: npt.ArrayLike, alpha_S: npt.ArrayLike) -> np.ndarray:
    """Loss at which efficient training stops, over the loss that the same model converges to: 1 + alpha_N/alpha_S
    (Eq. B.5)."""
    return np.asarray(1 + np.asarray(alpha_N, dtype=float) / np.asarray(alpha_S, dtype=float))


def against_convergence(alpha_N: npt.ArrayLike, alpha_S: npt.ArrayLike, excess: float = 0.02) -> dict[str, np.ndarray]:
    """Efficient training over training to within `excess` of convergence, at equal loss: ratios of `params`, `steps`
    and `compute` (Eqs. B.12 to B.14)."""
    efficient = stop_ratio(alpha_N, alpha_S) - 1
    params = ((1 + efficient) / (1 + excess)) ** (1 / np.asarray(alpha_N, dtype=float))
    steps = ((1 + 1 / efficient) / (1 + 1 / excess)) ** (1 / np.asarray(alpha_S, dtype=float))
    return {"params": params, "steps": steps, "compute": params * steps}


def excess_steps(ratio: npt.ArrayLike, alpha_N: npt.ArrayLike, alpha_S: npt.ArrayLike) -> np.ndarray:
    """S_min of a model of `ratio` times the efficient size over that of the efficient one, at equal loss (Eq. B.17);
    infinite where so small a model never reaches the loss."""
    r, n, s = (np.asarray(a, dtype=float) for a in (ratio, alpha_N, alpha_S))
    remains = 1 + s / n * (1 - r**-n)  # the step term over the efficient model's
    with np.errstate(all="ignore"):
        return np.asarray(np.where(remains > 0, np.where(remains > 0, remains, 1.0) ** (-1 / s), np.inf))


def excess_compute(ratio: npt.ArrayLike, alpha_N: npt.ArrayLike, alpha_S: npt.ArrayLike) -> np.ndarray:
    """C_min of a model of `ratio` times the efficient size over that of the efficient one, at equal loss (Eq. B.16).
    The law of steps does not hold early in training, so this is too hopeful for very large sizes."""
    return np.asarray(np.asarray(ratio, dtype=float) * excess_steps(ratio, alpha_N, alpha_S))


def least_ratio(alpha_N: npt.ArrayLike, alpha_S: npt.ArrayLike) -> np.ndarray:
    """N/N_eff below which a model never reaches the loss: (1 + alpha_N/alpha_S)^(-1/alpha_N)."""
    return np.asarray(stop_ratio(alpha_N, alpha_S) ** (-1 / np.asarray(alpha_N, dtype=float)))


def size_range(excess: float, alpha_N: npt.ArrayLike, alpha_S: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(lowest, highest) N/N_eff at which C_min rises by no more than `excess` (0.2 for 20%), by bisection in ln N;
    the curve has its one minimum at N_eff."""
    if not excess > 0:
        raise ValueError(f"the excess must be positive, not {excess}")
    n, s = np.broadcast_arrays(np.asarray(alpha_N, dtype=float), np.asarray(alpha_S, dtype=float))
    ends = []
    for far in (np.log(least_ratio(n, s)), np.full(n.shape, _WIDEST)):
        near = np.zeros(n.shape)
        for _ in range(80):
            middle = (near + far) / 2
            within = excess_compute(np.exp(middle), n, s) <= 1 + excess
            near, far = np.where(within, middle, near), np.where(within, far, middle)
        ends.append(np.exp(near))
    return ends[0], ends[1]
