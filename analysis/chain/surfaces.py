"""From simulated sweeps to the parametric law, Kaplan's surface and the slices of loss against size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis import engine, kaplan, parametric
from analysis.chain.results import Isoflop, Parametric, Surface
from analysis.minima import per_token_at
from analysis.outcome import Warnings
from analysis.tables.runs import Run
from analysis.tables.sizes import Size, size_curve
from analysis.uncertainty import resample
from analysis.uncertainty.bootstrap import Samples, band, estimate

_MISFIT = 3.0  # times the seed noise: residuals beyond this are the law's, not the noise's
_STEP_SLICES, _STEP_SPAN = 5, 30.0  # readings at fixed steps, and the factor that they span


def derive_parametric(
    samples: Samples, sizes: Sequence[Size], sigma: float, warnings: Warnings, device: str
) -> Parametric:
    """Best of the paper's 4,500 starts, then every replicate from the best distinct optima. Raises InputError for fewer
    than three sizes or nine points."""
    runs = samples.runs
    where = parametric.readings(runs, sizes)
    params, tokens = _coordinates(runs, where)
    loss = _losses(samples, where)
    best = parametric.fit_parametric(params, tokens, loss[0], device=device)
    theta = best.parameters
    if len(samples) > 1:
        begin = resample.distinct(best.optima[0], best.optima_objective[0])

        def refit(rows: np.ndarray, starts: np.ndarray | None) -> engine.Fit:
            return parametric.fit_parametric(params, tokens, loss[1:][rows], from_starts=starts, device=device)

        theta = np.concatenate([theta, _settled("parametric", refit, begin, len(samples) - 1, warnings)])
    constants = parametric.constants(theta)
    fitted = parametric.predict(theta[0], params, tokens)
    points = _points(runs, where)
    points["loss"], points["fitted"] = loss[0], fitted
    points["residual"] = np.log(loss[0] / fitted)
    warn_misfit("parametric", points["residual"].to_numpy(), sigma, warnings)
    a, g = constants["a"], constants["G"]
    flops = np.exp(np.linspace(np.log(6 * params * tokens).min(), np.log(6 * params * tokens).max(), 30))
    with np.errstate(all="ignore"):
        size = g[:, None] * (flops / 6) ** a[:, None]
    low, high = band(size)
    line = pd.DataFrame({"flops": flops, "params": size[0], "tokens": flops / (6 * size[0])})
    line["loss"] = parametric.predict(theta[0], size[0], flops / (6 * size[0]))
    line["low"], line["high"] = low, high
    if not best.converged[0] or constants["E"][0] < 1e-3 * loss[0].min():
        warnings.add(
            "parametric", "no_offset", f"the offset E is not determined by these losses (E = {constants['E'][0]:.2g}); "
            "do not extrapolate the law"
        )  # fmt: skip
    estimates = {name: estimate(values) for name, values in constants.items()}
    kind = "decayed" if sizes[0].decayed else "undecayed"
    span = _span(params=params, tokens=tokens, flops=6 * params * tokens, loss=loss[0])
    number = len(parametric.starts())
    return Parametric(points, estimates, float(best.objective[0]), number, kind, line, _draws(constants), span)


def derive_surface(
    samples: Samples,
    sizes: Sequence[Size],
    law: np.ndarray,
    measured: tuple[float, float],
    sigma: float,
    warnings: Warnings,
) -> tuple[Surface, np.ndarray]:
    """The section and theta of every sample [samples, 4]. law: [samples, 2], used for the losses `measured` (lowest,
    highest) only. sigma: seed noise of ln(loss). Raises
    InputError for fewer than three sizes or nine points."""
    runs = samples.runs
    where = [
        (i, x)
        for i, x in kaplan.readings(runs, sizes)
        if measured[0] <= np.exp(np.interp(x, runs[i].curve.x, runs[i].curve.y)) <= measured[1]
    ]
    params, tokens = _coordinates(runs, where)
    batch = np.array([runs[i].batch for i, _ in where])
    loss = _losses(samples, where)
    # Replicates without a law of their own are left out by giving them the first sample's and no result.
    known = np.isfinite(law).all(axis=1)
    usable = np.where(known[:, None], law, law[0])
    ln_b = usable[:, :1] + usable[:, 1:] * np.log(loss)
    ln_steps_min = np.log(tokens / batch) - np.logaddexp(0.0, ln_b - np.log(batch))
    best = kaplan.fit_surface(params, np.exp(ln_steps_min[0]), loss[0])
    theta = best.parameters
    if len(samples) > 1:

        def refit(rows: np.ndarray, starts: np.ndarray | None) -> engine.Fit:
            return kaplan.fit_surface(params, np.exp(ln_steps_min[1:][rows]), loss[1:][rows], from_starts=starts)

        again = _settled("kaplan-ns", refit, theta, len(samples) - 1, warnings)
        theta = np.concatenate([theta, np.where(known[1:, None], again, np.nan)])
    points = _points(runs, where).drop(columns="tokens")
    points["batch_tokens"], points["steps"], points["steps_min"] = batch, tokens / batch, np.exp(ln_steps_min[0])
    points["loss"] = loss[0]
    n, alpha_n, s, alpha_s = theta[0]
    points["fitted"] = np.exp(n - alpha_n * np.log(params)) + np.exp(s - alpha_s * ln_steps_min[0])
    warn_misfit("kaplan-ns", np.log(loss[0] / points["fitted"].to_numpy()), sigma, warnings)
    constants = kaplan.constants(theta)
    with np.errstate(all="ignore"):
        constants["alpha_C_min"] = 1 / (1 / theta[:, 3] - law[:, 1] + 1 / theta[:, 1])
    estimates = {name: estimate(values) for name, values in constants.items()}
    steps_min = np.exp(ln_steps_min[0])
    least = 6 * params * np.exp(ln_b[0]) * steps_min  # C_min
    span = _span(params=params, steps=steps_min, flops=least, batch_tokens=batch, loss=loss[0])
    return Surface(points, estimates, float(best.objective[0]), _draws(constants), span), theta


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


def warn_misfit(law: str, residual: np.ndarray, sigma: float, warnings: Warnings) -> None:
    """The intervals hold noise, not the error of a form that does not fit."""
    rms = float(np.sqrt(np.mean(residual**2)))
    if rms > _MISFIT * sigma:
        warnings.add(
            law, "misfit", f"the law misses the measured ln(loss) by {rms:.1%} on average, {rms / sigma:.0f} times "
            "the seed noise; its intervals do not hold that error"
        )  # fmt: skip


def _draws(constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What comes after the first sample, the runs themselves; none without replicates."""
    return {name: values[1:] for name, values in constants.items() if len(values) > 1}


def _span(**quantities: np.ndarray) -> dict[str, tuple[float, float]]:
    return {name: (float(np.min(values)), float(np.max(values))) for name, values in quantities.items()}


def _coordinates(runs: Sequence[Run], where: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([runs[i].params for i, _ in where]), np.exp([x for _, x in where])


def _losses(samples: Samples, where: Sequence[tuple[int, float]]) -> np.ndarray:
    """Smoothed loss [samples, points]; a decayed run's is its last evaluation."""
    out = np.empty((len(samples), len(where)))
    members: dict[int, list[int]] = {}
    for k, (i, _) in enumerate(where):
        members.setdefault(i, []).append(k)
    x = np.array([value for _, value in where])
    for i, rows in members.items():
        if samples.runs[i].decayed:
            out[:, rows] = samples.ln_loss(i)[:, -1:]
        else:
            out[:, rows] = samples.curves(i).ln_loss(x[rows])
    return np.exp(out)


def _points(runs: Sequence[Run], where: Sequence[tuple[int, float]]) -> pd.DataFrame:
    rows = [(runs[i].run_id, runs[i].group, runs[i].params, math.exp(x)) for i, x in where]
    return pd.DataFrame(rows, columns=["run_id", "group", "params", "tokens"])


def _settled(
    law: str,
    refit: Callable[[np.ndarray, np.ndarray | None], engine.Fit],
    begin: np.ndarray,
    count: int,
    warnings: Warnings,
) -> np.ndarray:
    """theta of every replicate [count, p]. Those that do not converge from `begin` are tried from all starts (None);
    what then fails is nan and counted in a warning."""
    found = refit(np.arange(count), begin)
    theta, failed = found.parameters.copy(), np.flatnonzero(~found.converged)
    if len(failed):
        second = refit(failed, None)
        theta[failed] = np.where(second.converged[:, None], second.parameters, np.nan)
        number = int((~second.converged).sum())
        if number:
            warnings.add(
                law, "replicates_not_converged", f"{number} of {count} replicates did not converge; they are left out "
                "of the intervals"
            )  # fmt: skip
    return theta
