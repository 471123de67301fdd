"""Why counting without embeddings raises the exponent of N_opt(C) at small scale (Pearce & Song 2024).

Let the loss be L = E + A/N_T^alpha + B/D^beta in all parameters N_T, and N_T = N + omega N^(1/3) with N counted without
embeddings. Minimising L at fixed C = 6 N D, both counted without embeddings, gives a curve N_opt(C) whose local
exponent is beta/(alpha/3 + beta) at small N, rises to nearly 1 where the embeddings cease to be most of the model, and
falls to beta/(alpha + beta) at large N; a line fitted over Kaplan's range comes out near Kaplan's 0.73.
In totals, C = 6 N_T D, the same loss gives beta/(alpha + beta) throughout.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from analysis import published as pub

Counted = Literal["without_embeddings", "total"]


def total_params(params: npt.ArrayLike, omega: float = pub.OMEGA) -> np.ndarray:
    """N_T = N + omega N^(1/3) of `params` N counted without embeddings."""
    n = np.asarray(params, dtype=float)
    return np.asarray(n + omega * np.cbrt(n))


def optimal_tokens(
    params: npt.ArrayLike,
    counted: Counted = "without_embeddings",
    *,
    law: pub.Parametric = pub.REFIT,
    omega: float = pub.OMEGA,
) -> np.ndarray:
    """Tokens D at which `params` (without embeddings) is the best size for its compute, 6 N D or 6 N_T D as `counted`.

    dL = 0 along ln D = ln C - ln N gives beta B D^-beta = alpha A N_T^-alpha · d ln N_T / d ln N; in totals the last
    factor is 1.
    """
    total = total_params(params, omega)
    gain = law.alpha * law.A * total**-law.alpha
    if counted == "without_embeddings":
        gain = gain * _growth(params, omega)
    return np.asarray((gain / (law.beta * law.B)) ** (-1 / law.beta))


def optimal_compute(
    params: npt.ArrayLike,
    counted: Counted = "without_embeddings",
    *,
    law: pub.Parametric = pub.REFIT,
    omega: float = pub.OMEGA,
) -> np.ndarray:
    """FLOP, as `counted`, at which `params` (without embeddings) is the best size."""
    size = total_params(params, omega) if counted == "total" else np.asarray(params, dtype=float)
    return np.asarray(6 * size * optimal_tokens(params, counted, law=law, omega=omega))


def local_exponent(params: npt.ArrayLike, *, law: pub.Parametric = pub.REFIT, omega: float = pub.OMEGA) -> np.ndarray:
    """d ln N_opt / d ln C at `params`, both counted without embeddings."""
    n = np.asarray(params, dtype=float)
    embedding = omega * np.cbrt(n)
    growth = _growth(n, omega)
    bend = (n + embedding / 9) / (n + embedding / 3) - growth  # d ln growth / d ln N
    return np.asarray(law.beta / (law.beta + law.alpha * growth - bend))


def fitted_exponent(
    counted: Counted = "without_embeddings",
    *,
    law: pub.Parametric = pub.REFIT,
    omega: float = pub.OMEGA,
    low: float = pub.KAPLAN_RANGE[0],
    high: float = pub.KAPLAN_RANGE[1],
    points: int = 400,
) -> float:
    """Slope of the least-squares line of ln N_opt (N_T in totals) against ln C over sizes of `low` to `high`
    parameters without embeddings, at log-spaced sizes."""
    params = np.geomspace(low, high, points)
    size = total_params(params, omega) if counted == "total" else params
    ln_c = np.log(optimal_compute(params, counted, law=law, omega=omega))
    return float(np.polyfit(ln_c, np.log(size), 1)[0])


def _growth(params: npt.ArrayLike, omega: float) -> np.ndarray:
    """d ln N_T / d ln N: 1/3 where embeddings are all, 1 where they are nothing."""
    n = np.asarray(params, dtype=float)
    embedding = omega * np.cbrt(n)
    return np.asarray((n + embedding / 3) / (n + embedding))
