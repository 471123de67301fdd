"""From simulated sweeps to the critical-batch section: frames, standard errors, the law and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import critical_batch as cb
from analysis.chain.critical_checks import warn_dependence, warn_law, warn_points
from analysis.chain.results import Critical
from analysis.outcome import Warnings
from analysis.tables.runs import Run
from analysis.uncertainty.bootstrap import Samples, band, estimate, reflected

_Z = 1.6449  # of a 90% interval


@dataclass(frozen=True)
class _Group:
    """The trade-off of one model: its cells, the fits of all samples [samples, targets], and per target the variance of
    ln S (at least what the seeds explain)."""

    name: str
    members: list[int]
    fits: cb.Tradeoff
    shape: tuple[int, int]
    variance: np.ndarray

    def sample(self, values: np.ndarray) -> np.ndarray:
        """Values of all problems, shaped [samples, targets, ...]."""
        return values.reshape(*self.shape, *values.shape[1:])


def derive_critical(samples: Samples, sigma: float, warnings: Warnings) -> tuple[Critical, np.ndarray | None]:
    """The section and the law [samples, 2] (intercept, slope of ln B_crit against ln L), None where there is none.

    samples: the runs and their simulated replicates, undecayed, of one recipe. sigma: seed noise of ln(loss). Raises
    InputError where no model has three batch sizes.
    """
    runs = samples.runs
    cells = cb.make_cells(runs)
    targets = cb.choose_targets(runs, cells)
    steps, ln_steps = cb.steps_in(samples, cells, targets)
    groups = [
        _fit_group(name, members, runs, cells, ln_steps, steps.seeds[members], sigma)
        for name, members in cb.by_group(cells)
        if len(members) >= cb.LEAST_BATCHES
    ]
    points = pd.concat([_points(group, cells, targets) for group in groups], ignore_index=True)
    law = _law(groups, targets)
    own = {group.name: _law([group], targets) for group in groups}
    used = points[points["used"]]
    known = bool(np.isfinite(law[0]).all())
    section = Critical(
        crossings=_crossings(runs, cells, targets, steps),
        cells=_cells(runs, cells, targets, steps, groups),
        points=points,
        law=None,
        at_loss=None,
        rises="unknown",
        line=pd.DataFrame(columns=["loss", "B_crit", "low", "high"], dtype=float),
    )
    warn_points(section, warnings, known)
    if not known:
        return section, None
    at = _stated_target(used, targets)
    at_loss = float(targets[at])
    read, shown = np.exp(_read(groups, at)), reflected(law)
    estimates = {**cb.law_estimates(shown), "B_crit": estimate(read)}
    warn_dependence(own, points, warnings)
    warn_law(law[0], used, at_loss, warnings)
    slope = estimates["slope"]
    rises = "unknown"
    if slope.low is not None and slope.high is not None:
        rises = "yes" if slope.high < 0 else "no" if slope.low > 0 else "undecided"
    line = law_line(shown, used["target_loss"].min(), used["target_loss"].max())
    span = {
        "loss": (float(used["target_loss"].min()), float(used["target_loss"].max())),
        "batch_tokens": (min(cell.batch for cell in cells), max(cell.batch for cell in cells)),
    }
    section = Critical(
        section.crossings, section.cells, points, estimates, at_loss, rises, line, _draws(shown, read), span
    )
    return section, law


def _draws(law: np.ndarray, read: np.ndarray) -> dict[str, np.ndarray]:
    """Joint draws of the section's estimates; none without replicates."""
    if len(law) == 1:
        return {}
    with np.errstate(over="ignore", divide="ignore"):
        return {"B_star": np.exp(law[1:, 0]), "alpha_B": -1 / law[1:, 1], "slope": law[1:, 1], "B_crit": read[1:]}


def _stated_target(used: pd.DataFrame, targets: np.ndarray) -> int:
    """The target at which B_crit is stated: of those that the most models measured, the one nearest to the centre of
    all points, weighted by how well they are known."""
    weight = (used["B_crit"] / used["B_crit_se"]) ** 2
    centre = np.average(np.log(used["target_loss"]), weights=weight)
    count = np.array([(used["target_loss"] == t).sum() for t in targets])
    distance = np.where(count == count.max(), np.abs(np.log(targets) - centre), np.inf)
    return int(np.argmin(distance))


def _read(groups: Sequence[_Group], at: int) -> np.ndarray:
    """ln B_crit [samples] as measured at one target: the weighted mean over the models that bracket it there. Unlike
    the law's value, it holds no error of the law's form."""
    ln_b = np.array([g.sample(g.fits.ln_b)[:, at] for g in groups])
    good = np.array([g.sample(g.fits.bracketed)[:, at] for g in groups])
    weight = np.array([1 / (g.fits.ln_b_inverse[at] * g.variance[at]) for g in groups])[:, None] * good
    total = weight.sum(axis=0)
    mean = np.where(good, weight * np.where(good, ln_b, 0.0), 0.0).sum(axis=0) / np.where(total > 0, total, 1.0)
    return np.where(total > 0, mean, np.nan)


def law_line(law: np.ndarray, low: float, high: float) -> pd.DataFrame:
    """The law and its band between two losses."""
    loss = np.exp(np.linspace(np.log(low), np.log(high), 50))
    values = np.exp(law[:, :1] + law[:, 1:] * np.log(loss))
    below, above = band(values)
    return pd.DataFrame({"loss": loss, "B_crit": values[0], "low": below, "high": above})


def _fit_group(
    name: str,
    members: list[int],
    runs: Sequence[Run],
    cells: Sequence[cb.Cell],
    ln_steps: np.ndarray,
    counts: np.ndarray,
    sigma: float,
) -> _Group:
    """Fits of all samples. ln_steps: [samples, cells, targets]. counts: seeds averaged [members, targets]."""
    batches = np.array([cells[m].batch for m in members])
    mine = ln_steps[:, members].transpose(0, 2, 1)  # [samples, targets, batches]
    first = cb.fit_tradeoffs(batches, mine[0])
    seeds = cb.seed_variance(runs, [cells[m] for m in members], mine[0], counts, sigma)
    freedom = np.where(first.bracketed, first.batches - 2, 0)
    pooled = float((np.nan_to_num(first.variance) * freedom).sum() / max(1, freedom.sum()))
    fits = cb.fit_tradeoffs(batches, mine.reshape(-1, len(batches)))
    # One target leaves few degrees of freedom: its own residual variance is averaged with that of all of them.
    variance = np.maximum((np.nan_to_num(first.variance) + pooled) / 2, np.nan_to_num(seeds))
    return _Group(name, members, fits, mine.shape[:2], variance)


def _law(groups: Sequence[_Group], targets: np.ndarray) -> np.ndarray:
    """(intercept, slope) of every sample, from the points of all models that bracket their B_crit in that sample."""
    ln_loss = np.tile(np.log(targets), len(groups))
    ln_b = np.concatenate([g.sample(g.fits.ln_b) for g in groups], axis=1)
    good = np.concatenate([g.sample(g.fits.bracketed) for g in groups], axis=1)
    scatter = np.concatenate([g.sample(g.fits.ln_b_inverse) * g.variance for g in groups], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(good & (scatter > 0), 1 / scatter, 0.0)
    weights = np.nan_to_num(weights)
    return np.array([cb.fit_law(ln_loss, b, w) for b, w in zip(ln_b, weights, strict=True)])


def _points(group: _Group, cells: Sequence[cb.Cell], targets: np.ndarray) -> pd.DataFrame:
    fits = group.fits
    number = len(targets)
    inverse = fits.inverse[:number]
    parts = {
        "S_min": (fits.ln_s, inverse[:, 0, 0]),
        "E_min": (fits.ln_e, inverse[:, 1, 1]),
        "B_crit": (fits.ln_b, fits.ln_b_inverse[:number]),
    }
    frame = pd.DataFrame({"group": group.name, "params": cells[group.members[0]].params, "target_loss": targets})
    for name, (ln, unit) in parts.items():
        frame = frame.assign(**_with_interval(name, group.sample(ln), np.sqrt(unit * group.variance)))
    frame["batches"] = fits.batches[:number].astype(int)
    frame["used"] = fits.bracketed[:number]
    known = np.where(np.isfinite(frame["B_crit"]), frame["B_crit"], 0.0)
    least = min(cells[m].batch for m in group.members)
    frame["reason"] = np.select(
        [frame["used"], frame["batches"] < cb.LEAST_BATCHES, known < least],
        ["", f"fewer than {cb.LEAST_BATCHES} batches reach it", "B_crit lies below the batches that reach it"],
        "B_crit lies above the batches that reach it",
    )
    return frame


def _with_interval(name: str, ln: np.ndarray, fitted_se: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a quantity at each target from its logarithm in every sample [samples, targets]: standard error and
    interval of the simulated sweeps, or the fit's own where there are none."""
    value = np.exp(ln[0])
    low, high = band(ln)
    simulated = np.isfinite(low)
    spread = np.full(len(value), np.nan)
    if simulated.any():
        spread[simulated] = np.nanstd(ln[1:, simulated], axis=0, ddof=1)
    se = np.where(simulated, spread, fitted_se)
    with np.errstate(over="ignore"):  # an undetermined B_crit has no upper end
        low = np.where(simulated, np.exp(low), np.exp(ln[0] - _Z * fitted_se))
        high = np.where(simulated, np.exp(high), np.exp(ln[0] + _Z * fitted_se))
    return {name: value, f"{name}_se": value * se, f"{name}_low": low, f"{name}_high": high}


def _crossings(runs: Sequence[Run], cells: Sequence[cb.Cell], targets: np.ndarray, steps: cb.Steps) -> pd.DataFrame:
    ln_targets, number = np.log(targets), len(targets)
    members = [(c, i, lr) for c, cell in enumerate(cells) for lr, rows in cell.settings for i in rows]
    crossed = np.array([runs[i].curve.ln_tokens(ln_targets) for _, i, _ in members]).reshape(-1, number)
    end, start, first = np.array(
        [(runs[i].curve.end, runs[i].curve.start, runs[i].ln_tokens[0]) for _, i, _ in members]
    ).reshape(-1, 3, 1).swapaxes(0, 1)  # fmt: skip
    censored = np.isnan(crossed)
    # Already below the target at the first evaluation: that is a bound from above.
    tokens = np.exp(np.where(censored, end, np.maximum(crossed, first)))
    columns = {
        "run_id": [runs[i].run_id for _, i, _ in members],
        "group": [cells[c].group for c, _, _ in members],
        "params": [cells[c].params for c, _, _ in members],
        "lr": [lr for _, _, lr in members],
        "batch_tokens": [cells[c].batch for c, _, _ in members],
        "seed": [runs[i].seed for _, i, _ in members],
    }
    frame = pd.DataFrame(columns).loc[np.repeat(np.arange(len(members)), number)].reset_index(drop=True)
    frame["target_loss"] = np.tile(targets, len(members))
    frame["steps"], frame["tokens"] = tokens.ravel() / frame["batch_tokens"], tokens.ravel()
    frame["censored"], frame["warmup"] = censored.ravel(), (~censored & (crossed < start)).ravel()
    frame["lr_at_edge"] = steps.at_edge[[c for c, _, _ in members]].ravel()
    return frame


def _cells(
    runs: Sequence[Run], cells: Sequence[cb.Cell], targets: np.ndarray, steps: cb.Steps, groups: Sequence[_Group]
) -> pd.DataFrame:
    shape = (len(cells), len(targets))
    fitted, used = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    for g in groups:
        fitted[g.members] = g.fits.fitted[: len(targets)].T
        used[g.members] = g.fits.bracketed[: len(targets)]
    end = np.array([max(runs[i].curve.end for _, members in cell.settings for i in members) for cell in cells])
    batch = np.array([cell.batch for cell in cells])
    known = np.isfinite(steps.ln_steps)
    ln_steps = np.where(known, steps.ln_steps, (end - np.log(batch))[:, None])
    columns = {
        "group": np.repeat(np.array([cell.group for cell in cells], dtype=object), len(targets)),
        "params": np.repeat([cell.params for cell in cells], len(targets)),
        "batch_tokens": np.repeat(batch, len(targets)),
        "target_loss": np.tile(targets, len(cells)),
        "steps": np.exp(ln_steps).ravel(),
        "tokens": (np.exp(ln_steps) * batch[:, None]).ravel(),
        "lr": steps.lr.ravel(),
        "seeds": steps.seeds.ravel(),
        "censored": (~known & ~steps.warmup).ravel(),
        "lr_at_edge": steps.at_edge.ravel(),
        "fitted": np.exp(fitted).ravel(),
        "used": (used & known).ravel(),
    }
    return pd.DataFrame(columns)[~steps.warmup.ravel()].reset_index(drop=True)
