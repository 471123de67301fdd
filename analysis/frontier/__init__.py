"""The lower envelope of training curves (Hoffmann et al. 2022, approach 1; Kaplan et al. 2020, section 6).

    from analysis import frontier
    law = frontier.fit(params, tokens, loss, run=run_ids, bootstrap=200)
    law.estimates["a"], law.frames["optima"]

Each run is one training curve. Evaluations inside the warm-up are left out and counted; curves of 50 or more are
smoothed by a Gaussian over ten of them, as in the paper, others by decreasing regression (`analysis.tables.curves`),
and read as ln L along ln C, C = k D with k the FLOPs per token (6 N unless `flops` says otherwise). Where a size has
several runs, the lowest counts at each C. The laws are lines in logarithms: N_opt = N_coefficient C^a, D_opt =
C/k(N_opt) = D_coefficient C^b, L_opt = L_coefficient C^L_exponent, and S_opt where all runs share one batch; and
`curvature` d of ln L(N) = ln L_opt + d ln^2(N/N_opt).

Two methods: "surface" fits one valley of ln L over (ln C, ln N) around its own minimum, "envelope" draws lines through
the best size at each of 1,500 log-spaced C, as the paper does. The best of a few sizes jumps, and of many noisy ones
it is the luckiest; on planted laws (L = E + A/N^alpha + B/D^beta, 0.3% of noise) the exponent was off by, mean and
standard deviation:

    sizes       5               7               10              20              50              100
    surface     -0.002, 0.048   -0.001, 0.021   0.000, 0.015    0.000, 0.011    0.000, 0.007    0.001, 0.005
    envelope    0.001, 0.036    -0.021, 0.033   -0.014, 0.023   -0.019, 0.018   -0.034, 0.013   -0.044, 0.012

(without noise at most 0.001 and 0.012), so the surface is the default, and the other method's numbers are given beside
it. The best size at the smallest or largest is a bound: it is reported and not used.

With a law of B_crit there is a second kind, "adjusted": the same against C_min = C/(1 + B/B_crit(L)) (Kaplan et al.
2020, Eq. 5.5), where B = B_crit(L_opt), S = S_min and D = 2 B_crit S_min. The law of B_crit is taken as exact.

Intervals: the curves are simulated around the smooth valley with the noise of the residuals, which is correlated along
each curve (`analysis.frontier.noise`), and the procedure repeated on each (`analysis.uncertainty.pivot`). In 200 tables
each of 6 to 20 sizes, nominal 90% intervals of the surface held a, b and N_coefficient in 86% to 95%, the loss's
exponent in 87% to 94%.
"""

from analysis.frontier.law import FrontierOutcome, Method, fit

__all__ = ["FrontierOutcome", "Method", "fit"]
