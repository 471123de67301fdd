"""Loss against size at fixed compute (Hoffmann et al. 2022, approach 2).

    from analysis import isoflop
    law = isoflop.fit(params, loss, flops, bootstrap=1000)
    law.estimates["a"], law.frames["optima"]

Points whose compute agrees within 10% make a budget. Per budget, `method` "parabola" fits the loss by a quadratic in ln
N, unweighted, through the five sizes centred on the lowest (all, where there are fewer); "akima" takes the minimum of
the Akima interpolant of ln L in ln N (Porian et al. 2024). A lowest loss at the smallest or largest size is a bound: it
is reported and not used. The laws are lines through the minima in logarithms, unweighted unless weights are given:
N_opt = N_coefficient C^a; D_opt = C/k(N_opt) = D_coefficient C^b, where k is the FLOPs per token, interpolated between
the sizes (6 N, where a + b = 1, unless the tokens say otherwise); L_opt = L_coefficient C^L_exponent; and `curvature`,
the median over the budgets of d in ln L(N) = ln L_opt + d ln^2(N/N_opt). Points of a budget whose sizes agree within 1%
are repeats of one run and averaged.

Five points a factor of two apart reach far enough for the valley's lopsidedness to move the vertex, and the lowest of
noisy points lies low. Intervals allow for both: losses are simulated around a smooth valley
(`analysis.uncertainty.valley`), the whole procedure is repeated on each, and what it finds is set against the valley's
own minimum, which it would find without noise on a dense grid of sizes (`analysis.uncertainty.pivot`). The mean
difference is the bias of an estimate, and `grid_bias` the part of it that is there without noise. In 200 tables each of
six designs (4 to 9 budgets, 5 to 9 sizes 1.3 to 2.5 times apart, 0.05% to 0.5% of noise) nominal 90% intervals held a,
b and their coefficients in 89% to 97%, the loss's in 86% to 99%, the curvature in 88% to 94%.
"""

from analysis.isoflop.budgets import choose_budgets, decayed_budgets
from analysis.isoflop.law import IsoflopOutcome, Method, fit
from analysis.isoflop.vertices import laws

__all__ = ["IsoflopOutcome", "Method", "choose_budgets", "decayed_budgets", "fit", "laws"]
