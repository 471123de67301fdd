"""Hoffmann et al. 2022 (Chinchilla): its three approaches, predicted optima and the models of its figure 1.

N with embeddings; compute in FLOP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis.published.forms import Interval, Parametric, Power
from analysis.published.kaplan import KAPLAN, N_OPT
from sweep.schema import PF_DAY

HOFFMANN = "Hoffmann et al. 2022 (arXiv 2203.15556)"

APPROACH_3 = Parametric(
    math.exp(6.0073404),
    math.exp(6.0179186),
    math.exp(0.5267228),
    0.33917,
    0.28491,
    f"{HOFFMANN}, unrounded (TeX source)",
)
APPROACH_3_ROUNDED = Parametric(406.4, 410.7, 1.69, 0.34, 0.28, f"{HOFFMANN}, Eq. 10 as printed")

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


@dataclass(frozen=True)
class Exponents:
    """N_opt ~ C^a, D_opt ~ C^b with their intervals."""

    a: Interval
    b: Interval


# Table 2: 10th to 90th percentiles of 100 bootstraps of 80% of the data.
EXPONENTS = {
    1: Exponents(Interval(0.50, 0.488, 0.502), Interval(0.50, 0.501, 0.512)),
    2: Exponents(Interval(0.49, 0.462, 0.534), Interval(0.51, 0.483, 0.529)),
    3: Exponents(Interval(0.46, 0.454, 0.455), Interval(0.54, 0.542, 0.543)),
}
ISOFLOP_EXPONENT_ELSEWHERE = {"C4": 0.50, "GitHub": 0.53}  # a by approach 2, Table A2

HOFFMANN_NOTES = {
    "approach 3": "The printed constants give 32B at Gopher's budget, the unrounded ones 40B as the paper states.",
    "Table 2": "Approach 1's b = 0.50 lies outside its own interval (0.501, 0.512); approach 3's intervals, 0.001 "
    "wide, would need some 6e5 runs (Besiroglu et al. 2024).",
    "Table A3, 175B": "Approach 3 prints 1.26e24 FLOP; 6ND and the neighbours need 1.26e25.",
    "section 3.4": "The text (175B: 4.41e24 FLOP, 4.2T tokens; 280B: 6.8T) disagrees with Table 3; the table holds.",
    "Table A4": "Its ratios to 6ND come out only without both the embedding and the final-logits terms of App. F.",
    "Gopher's budget": "5.76e23 FLOP in its own accounting, 6.3e23 in App. F's, 5.04e23 by 6ND.",
    "Kaplan's line": "Hoffmann's figure takes C = 2 C_min; without the factor the line would stand 1.66 times higher.",
}
