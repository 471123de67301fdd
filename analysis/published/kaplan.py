"""Kaplan et al. 2020: fitted laws, the optimum they imply, and where the paper's numbers disagree.

N without embeddings; compute in PF-days. Tables 2, 3 and 5 are separate fits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.published.forms import Array, DataSurface, Power, Surface, scale_law
from sweep.schema import PF_DAY

KAPLAN = "Kaplan et al. 2020 (arXiv 2001.08361)"
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

SURFACE = Surface(6.5e13, 0.077, 2.1e3, 0.76, f"{KAPLAN}, Eq. 5.6 and Table 3")
DATA_SURFACE = DataSurface(6.4e13, 0.076, 1.8e13, 0.103, f"{KAPLAN}, Eq. 1.5 and Table 2")
OVERFIT_TOKENS = Power(5e3, 0.74, f"{KAPLAN}, Eq. 4.4: tokens at which overfitting stays below seed noise, against N")

# What the paper derives from its exponents; `KAPLAN_NOTES` says how the printed values differ.
ALPHA_C_MIN_DERIVED = 0.052  # Eq. B.7
ALPHA_C_MIN_SECTION_6 = 0.054  # Eq. 6.4
N_OPT_EXPONENT_SECTION_6 = 0.71  # Eq. 6.5
D_OPT_SECTION_6 = Power(4e10, 0.26, f"{KAPLAN}, Eq. 6.7; C_min in PF-days")
BEYOND = {"pf_days": 1e4, "params": 1e12, "tokens": 1e12, "loss": 1.7}  # Eq. 6.8, uncertain by a factor of ten

# App. B.3 and B.4: compute-efficient training against training to within 2% of the converged loss.
EFFICIENT_STOP = 1.10  # loss at the stop over the converged loss, Eq. B.5
EFFICIENT_SIZE_FACTOR, EFFICIENT_STEPS_DIVISOR, EFFICIENT_COMPUTE_SAVED = 2.7, 7.7, 0.65  # Eqs. B.12 to B.14
SIZE_RANGE_AT_20_PERCENT = (0.6, 2.2)  # N/N_eff within which compute rises by at most about 20%, Fig. 12


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


KAPLAN_NOTES = {
    "L(C) scale": "Table 5 prints C_c = 1.6e7 PF-days, the legend of Fig. 13 prints 2.0e7.",
    "L(C_min) scale": "Table 5 prints C_c = 3.1e8 PF-days, the legends of Figs. 1 and 13 print "
    "2.3e8 (Eq. B.8 with Table 5 gives 2.2e8, with Table 3 1.6e8).",
    "L(C) and L(C_min)": "The rounded laws cross at 0.010 (Table 5) or 0.53 PF-days (legends); beyond, "
    "L(C) < L(C_min), which cannot be: never combine them.",
    "alpha_C_min": "Fitted 0.050 (Table 6); derived from Table 5 0.0520 (Eq. B.7: 0.052), printed as 0.054 in Eq. 6.4, "
    "whence the N ~ C^0.71 of Eq. 6.5; Table 6 fits 0.73.",
    "B_crit exponent": "1/alpha_B = 4.76; the legend of Fig. 10 rounds it to 4.8.",
    "B_star": "The text prints 2e8 tokens, Table 5 2.1e8.",
    "D(C)": "Eq. 6.7 (4e10 C^0.26) is not consistent with Table 6 (2e10 C^0.27): 2 C_min/(6 N) is 2.2e10 at 1 PF-day.",
    "20% excess": "Eq. B.16 gives 1.16 at N/N_eff = 0.6 and 1.20 at 2.2; an excess of 20% is reached at 0.58 and 2.2.",
}
