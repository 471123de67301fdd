"""From the runs to the parametric law (Hoffmann et al. 2022, approach 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import engine, parametric
from analysis.chain.readings import coordinates, draws_of, losses, points_of, settled, span_of, warn_misfit
from analysis.chain.results import Parametric
from analysis.outcome import Warnings
from analysis.tables.sizes import Size
from analysis.uncertainty import resample
from analysis.uncertainty.bootstrap import Samples, band, estimate

_RUNS = 24  # decayed runs that may be resampled


def derive_parametric(
    samples: Samples, sizes: Sequence[Size], sigma: float, warnings: Warnings, device: str, seed: int = 0
) -> Parametric:
    """Best of the paper's 4,500 starts. Intervals: of decayed runs, one point each, from resampled runs; points of a
    few undecayed curves cannot be resampled, for whole sizes would go missing, and are simulated. Raises InputError for
    fewer than three sizes or nine points."""
    runs = samples.runs
    where = parametric.readings(runs, sizes)
    params, tokens = coordinates(runs, where)
    loss = losses(samples, where)
    best = parametric.fit_parametric(params, tokens, loss[0], device=device)
    theta = best.parameters[0]
    constants = {name: values[None] for name, values in parametric.constants(theta).items()}
    count, interval = len(samples) - 1, "none"
    if count and sizes[0].decayed and len(where) >= _RUNS:
        draws = parametric.fit(params, tokens, loss[0], bootstrap=count, seed=seed, device=device).draws
        constants = {name: np.append(values, draws[name]) for name, values in constants.items()}
        interval = f"{count} bootstraps over {len(where)} runs"
    elif count:
        constants = parametric.constants(_replicates(params, tokens, loss, best, warnings, device))
        interval = f"{count} simulated sweeps"
    fitted = parametric.predict(theta, params, tokens)
    points = points_of(runs, where)
    points["loss"], points["fitted"] = loss[0], fitted
    points["residual"] = np.log(loss[0] / fitted)
    warn_misfit("parametric", points["residual"].to_numpy(), sigma, warnings)
    a, g = constants["a"], constants["G"]
    flops = np.exp(np.linspace(np.log(6 * params * tokens).min(), np.log(6 * params * tokens).max(), 30))
    with np.errstate(all="ignore"):
        size = g[:, None] * (flops / 6) ** a[:, None]
    low, high = band(size)
    line = pd.DataFrame({"flops": flops, "params": size[0], "tokens": flops / (6 * size[0])})
    line["loss"] = parametric.predict(theta, size[0], flops / (6 * size[0]))
    line["low"], line["high"] = low, high
    if not best.converged[0] or constants["E"][0] < 1e-3 * loss[0].min():
        warnings.add(
            "parametric", "no_offset", f"the offset E is not determined by these losses (E = {constants['E'][0]:.2g}); "
            "do not extrapolate the law"
        )  # fmt: skip
    estimates = {name: estimate(values) for name, values in constants.items()}
    kind = "decayed" if sizes[0].decayed else "undecayed"
    span = span_of(params=params, tokens=tokens, flops=6 * params * tokens, loss=loss[0])
    number = len(parametric.starts())
    return Parametric(
        points, estimates, float(best.objective[0]), number, kind, line, draws_of(constants), span, interval
    )


def _replicates(
    params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, best: engine.Fit, warnings: Warnings, device: str
) -> np.ndarray:
    """theta [samples, 5] of the runs and every simulated sweep; loss: [samples, points]."""
    begin = resample.distinct(best.optima[0], best.optima_objective[0])

    def refit(rows: np.ndarray, starts: np.ndarray | None) -> engine.Fit:
        return parametric.fit_parametric(params, tokens, loss[1:][rows], from_starts=starts, device=device)

    return np.concatenate([best.parameters, settled("parametric", refit, begin, len(loss) - 1, warnings)])
