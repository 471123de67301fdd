"""From simulated sweeps to Kaplan's surface and the slices of loss against size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import engine, kaplan
from analysis.chain.readings import coordinates, draws_of, losses, points_of, settled, span_of, warn_misfit
from analysis.chain.results import Isoflop, Surface
from analysis.minima import per_token_at
from analysis.outcome import Warnings
from analysis.tables.runs import Run
from analysis.tables.sizes import Size, size_curve
from analysis.uncertainty.bootstrap import Samples, estimate, reflected

_STEP_SLICES, _STEP_SPAN = 5, 30.0  # readings at fixed steps, and the factor that they span


def derive_surface(
    samples: Samples,
    sizes: Sequence[Size],
    law: np.ndarray,
    measured: tuple[float, float],
    sigma: float,
    warnings: Warnings,
    device: str = "cpu",
) -> tuple[Surface, np.ndarray]:
    """The section and theta of every sample [samples, 4]. law: [samples, 2], used for the losses `measured` (lowest,
    highest) only. sigma: seed noise of ln(loss). Raises InputError for fewer than three sizes or nine points."""
    runs = samples.runs
    where = [
        (i, x)
        for i, x in kaplan.readings(runs, sizes)
        if measured[0] <= np.exp(np.interp(x, runs[i].curve.x, runs[i].curve.y)) <= measured[1]
    ]
    params, tokens = coordinates(runs, where)
    batch = np.array([runs[i].batch for i, _ in where])
    loss = losses(samples, where)
    # Replicates without a law of their own are left out by giving them the first sample's and no result.
    known = np.isfinite(law).all(axis=1)
    usable = np.where(known[:, None], law, law[0])
    ln_b = usable[:, :1] + usable[:, 1:] * np.log(loss)
    ln_steps_min = np.log(tokens / batch) - np.logaddexp(0.0, ln_b - np.log(batch))
    best = kaplan.fit_surface(params, np.exp(ln_steps_min[0]), loss[0], device=device)
    theta = best.parameters
    if len(samples) > 1:

        def refit(rows: np.ndarray, starts: np.ndarray | None) -> engine.Fit:
            steps = np.exp(ln_steps_min[1:][rows])
            return kaplan.fit_surface(params, steps, loss[1:][rows], from_starts=starts, device=device)

        again = settled("kaplan-ns", refit, theta, len(samples) - 1, warnings)
        theta = np.concatenate([theta, np.where(known[1:, None], again, np.nan)])
    points = points_of(runs, where).drop(columns="tokens")
    points["batch_tokens"], points["steps"], points["steps_min"] = batch, tokens / batch, np.exp(ln_steps_min[0])
    points["loss"] = loss[0]
    n, alpha_n, s, alpha_s = theta[0]
    points["fitted"] = np.exp(n - alpha_n * np.log(params)) + np.exp(s - alpha_s * ln_steps_min[0])
    warn_misfit("kaplan-ns", np.log(loss[0] / points["fitted"].to_numpy()), sigma, warnings)
    # Over simulated sweeps N_c lies above and S_c below the truth on average.
    shown = reflected(theta)
    constants = kaplan.constants(shown)
    with np.errstate(all="ignore"):
        constants["alpha_C_min"] = 1 / (1 / shown[:, 3] - reflected(law)[:, 1] + 1 / shown[:, 1])
    estimates = {name: estimate(values) for name, values in constants.items()}
    steps_min = np.exp(ln_steps_min[0])
    least = 6 * params * np.exp(ln_b[0]) * steps_min  # C_min
    span = span_of(params=params, steps=steps_min, flops=least, batch_tokens=batch, loss=loss[0])
    return Surface(points, estimates, float(best.objective[0]), draws_of(constants), span), theta


def derive_slices(
    runs: Sequence[Run], sizes: Sequence[Size], isoflop: Isoflop | None, batch: float | None
) -> pd.DataFrame:
    """Loss against N: the isoflop points of undecayed runs, and readings at steps, the most of which four
    sizes reach."""
    columns = ["axis", "at", "group", "params", "loss", "run_id"]
    parts = []
    if isoflop is not None and isoflop.kind == "undecayed":
        parts.append(isoflop.points.rename(columns={"budget": "at"}).assign(axis="flops")[columns])
    if batch is not None and len(sizes) >= 3 and not sizes[0].decayed:
        pairs = [size_curve(runs, size) for size in sizes]
        end = sorted(size.x[-1] for size in sizes)[-min(4, len(sizes))]
        ln_tokens = np.linspace(end - math.log(_STEP_SPAN), end, _STEP_SLICES)
        rows = []
        for size, (y, index) in zip(sizes, pairs, strict=True):
            good = np.isfinite(y)
            if not good.any():  # all of it lies in the warm-up
                continue
            values = np.interp(ln_tokens, size.x[good], y[good], np.nan, np.nan)
            position = np.minimum(np.searchsorted(size.x, ln_tokens), len(index) - 1)
            rows += [
                ("steps", float(np.exp(x)) / batch, size.group, size.params, float(np.exp(v)), runs[index[p]].run_id)
                for x, v, p in zip(ln_tokens, values, position, strict=True)
                if np.isfinite(v)
            ]
        parts.append(pd.DataFrame(rows, columns=columns))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def lines_of_slices(
    slices: pd.DataFrame, sizes: Sequence[Size], theta: np.ndarray, law: np.ndarray, batch: float
) -> pd.DataFrame:
    """Eq. 5.6 at the slices' compute and steps, at the frontier's batch."""
    frames = []
    own = float(law[0]), float(law[1])
    ln_n, ln_k = np.log([(size.params, size.flops_per_token) for size in sizes]).T
    for (axis, value), mine in slices.groupby(["axis", "at"], sort=False):
        at = float(value)  # type: ignore[arg-type]
        low, high = np.log(mine["params"].min()) - 0.3, np.log(mine["params"].max()) + 0.3
        params = np.exp(np.linspace(low, high, 40))
        steps = at / (np.exp(per_token_at(ln_n, ln_k, np.log(params))) * batch) if axis == "flops" else np.full(40, at)
        loss = kaplan.loss_at(theta, own, batch, params, steps)
        frames.append(pd.DataFrame({"axis": axis, "at": at, "params": params, "loss": loss}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["axis", "at", "params", "loss"])
