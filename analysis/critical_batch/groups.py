"""The critical batch from anybody's table: steps to target losses at several batch sizes, for one model or more.

from analysis import critical_batch
found = critical_batch.fit(batch_tokens, steps, target_loss, group=model, bootstrap=1000)
found.estimates["alpha_B"]
[(keys["group"], keys["target_loss"], part.estimates["B_crit"]) for keys, part in found.groups]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.critical_batch import tradeoff as t
from analysis.critical_batch.law import LAW, derive_law
from analysis.critical_batch.samples import (
    Group,
    Noise,
    Samples,
    collect,
    correlation_length,
    noise_of,
    resample,
)
from analysis.outcome import Estimate, Outcome, Warnings, plain
from analysis.uncertainty import redraw
from analysis.uncertainty.labels import label
from sweep.schema import InputError

NAMES = ("S_min", "E_min", "B_crit", "B_20")
TARGET = "fit critical-batch target"  # under which the intervals of one group and target loss are judged
_ENDLESS = 1e9  # times the value: an upper end beyond it is none
_LARGEST = 690.0  # of a logarithm, below which its exponential is finite


@dataclass(frozen=True)
class CriticalOutcome(Outcome):
    """The law over losses (the trade-off itself where there is only one), and every (group, target loss) under
    `groups`: keys group, target_loss, batches, used and the reason why not, with its own outcome."""

    groups: list[tuple[dict[str, Any], Outcome]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As for every law, with `groups`; the draws of these are not written."""
        parts = [
            {
                **keys,
                "estimates": label(
                    "fit critical-batch target", {name: e.to_json() for name, e in part.estimates.items()}
                ),
                "objective": part.objective,
                "points": part.points,
            }
            for keys, part in self.groups
        ]
        return {**super().to_json(), "groups": plain(parts)}


def fit(
    batch_tokens: np.ndarray,
    steps: np.ndarray,
    target_loss: np.ndarray | None = None,
    *,
    group: np.ndarray | None = None,
    optimal_batch: float | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> CriticalOutcome:
    """S_min (steps), E_min, B_crit and B_20 (tokens) of every group at every target loss, and over all of them the law
    B_crit = B_star / L^(1/alpha_B) (Kaplan et al. 2020, Eq. 5.3), whose exponent -1/alpha_B is `slope`.

    batch_tokens: [n] tokens. steps: [n] optimiser steps to `target_loss` [n], nats per token (None: one target). group:
    [n] labels, of models for instance. Several rows at one batch are repeats, in one order at all targets. B_20 is the
    batch at which steps exceed linear scaling from `optimal_batch` (default: the group's smallest) by 20%
    (`overhead_batch`). A B_crit outside the batches is a bound and no part of the law, which needs three that are
    not. bootstrap: replicates behind the intervals; 0 for none, with standard errors of least squares. device: as of
    every law; these fits are of one dimension and run on the CPU.

    Raises InputError for arrays that differ in length, values that are not positive, or no target with three batches.
    """
    began = time.perf_counter()
    batch, s, ln_l, labels = _checked(batch_tokens, steps, target_loss, group)
    warnings = Warnings()
    groups = [collect(batch, s, ln_l, np.flatnonzero(labels == name), name) for name in pd.unique(labels)]
    if not any(g.fitted.any() for g in groups):
        raise InputError(
            f"{LAW}: {len(np.unique(batch))} batch sizes do not determine S_min, E_min and their error; "
            f"give at least {t.LEAST_BATCHES} at one target loss"
        )
    length = correlation_length(groups)
    noises = [noise_of(g, length) for g in groups]
    rng = np.random.default_rng(seed)
    samples = [resample(g, noise, bootstrap, rng) for g, noise in zip(groups, noises, strict=True)]
    parts = []
    for g, noise, sample in zip(groups, noises, samples, strict=True):
        for i in np.flatnonzero(g.fitted):
            keys = _keys(g, int(i), group is not None, target_loss is not None)
            parts.append((keys, _part(g, int(i), noise, sample, optimal_batch, bootstrap)))
    _warn(groups, samples, warnings)
    estimates, draws = parts[0][1].estimates, parts[0][1].draws
    if len(parts) > 1:
        estimates, draws = derive_law(groups, noises, samples, bootstrap, warnings)
    spans = {"batch_tokens": batch, "steps": s} | ({} if target_loss is None else {"loss": np.exp(ln_l)})
    return CriticalOutcome(
        LAW,
        estimates,
        len(batch),
        starts=t.STARTS,
        draws=draws,
        bootstrap=bootstrap,
        interval=_words(noises) if bootstrap else "none",
        device="cpu",
        seconds=time.perf_counter() - began,
        span={name: (float(values.min()), float(values.max())) for name, values in spans.items()},
        frames={"points": _points(groups, batch, s, ln_l, labels)},
        warnings=warnings,
        groups=parts,
    )


def _checked(
    batch_tokens: np.ndarray, steps: np.ndarray, target_loss: np.ndarray | None, group: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Batches, steps, ln target losses (0 without) and labels ("" without), all [n]."""
    batch, s = np.asarray(batch_tokens, dtype=float), np.asarray(steps, dtype=float)
    loss = np.ones_like(batch) if target_loss is None else np.asarray(target_loss, dtype=float)
    labels = np.full(batch.shape, "") if group is None else np.asarray(group)
    if batch.ndim != 1 or not batch.shape == s.shape == loss.shape == labels.shape:
        raise InputError(f"{LAW}: batch_tokens, steps, target_loss and group must be of one length")
    for name, values in (("batch_tokens", batch), ("steps", s), ("target_loss", loss)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise InputError(f"{LAW}: {name} must be positive numbers; remove the other rows")
    return batch, s, np.log(loss), labels


def _points(
    groups: Sequence[Group], batch: np.ndarray, steps: np.ndarray, ln_l: np.ndarray, labels: np.ndarray
) -> pd.DataFrame:
    fitted, residual = np.full(len(batch), np.nan), np.full(len(batch), np.nan)
    for g in groups:
        there = g.rows >= 0
        fitted[g.rows[there]] = np.exp(g.fits.fitted[there])
        residual[g.rows[there]] = g.residuals[there]
    columns = {"group": labels, "target_loss": np.exp(ln_l), "batch_tokens": batch, "steps": steps}
    return pd.DataFrame(columns | {"fitted": fitted, "residual": residual})


def _keys(g: Group, target: int, with_group: bool, with_target: bool) -> dict[str, Any]:
    batches = g.batches[g.rows[target] >= 0]
    reason = ""
    if not g.fits.bracketed[target]:
        side = "below" if g.fits.ln_b[target] < np.log(batches.min()) else "above"
        reason = f"B_crit lies {side} the batches: a bound"
    return {
        "group": plain(g.name) if with_group else None,
        "target_loss": float(f"{np.exp(g.targets[target]):.12g}") if with_target else None,
        "batches": len(np.unique(batches)),
        "used": not reason,
        "reason": reason,
    }


def _part(g: Group, target: int, noise: Noise, sample: Samples, optimal: float | None, count: int) -> Outcome:
    """The trade-off of one target."""
    optimal = float(g.batches.min()) if optimal is None else optimal
    logs = {"S_min": sample.ln_s, "E_min": sample.ln_e, "B_crit": sample.ln_b}
    values = {name: np.exp(np.minimum(v[:, target], _LARGEST)) for name, v in logs.items()}
    values["B_20"] = np.asarray(t.overhead_batch(values["B_crit"], optimal))
    ok = sample.converged[1:, target]
    draws = {name: np.where(ok, v[1:], np.nan) for name, v in values.items()} if count else {}
    if count:
        estimates = {
            name: _open(redraw.interval(float(v[0]), draws[name], sample.scale, logarithm=True))
            for name, v in values.items()
        }
    else:
        unit = g.fits.inverse[target, 0, 0], g.fits.inverse[target, 1, 1], g.fits.ln_b_inverse[target]
        se = {n: float(values[n][0] * np.sqrt(u * noise.variance)) for n, u in zip(NAMES[:3], unit, strict=True)}
        se["B_20"] = t.OVERHEAD * se["B_crit"]
        estimates = {name: Estimate(float(values[name][0]), se[name]) for name in NAMES}
    residuals = g.residuals[target][np.isfinite(g.residuals[target])]
    return Outcome(LAW, estimates, len(residuals), float((residuals**2).sum()), t.STARTS, draws, count)


def _open(estimate: Estimate) -> Estimate:
    """Without the upper end where there is none: S_min may be zero, and B_crit anything above."""
    endless = estimate.high is not None and estimate.high > _ENDLESS * estimate.value
    return replace(estimate, high=None) if endless else estimate


def _warn(groups: Sequence[Group], samples: Sequence[Samples], warnings: Warnings) -> None:
    """What was left out, what is a bound, and what did not converge."""
    few = sum(int((~g.fitted).sum()) for g in groups)
    if few:
        warnings.add(
            LAW, "few_batches", f"{few} (group, target loss) have fewer than {t.LEAST_BATCHES} batch sizes and no fit"
        )
    for g in groups:
        bounds = int((g.fitted & ~g.fits.bracketed).sum())
        if bounds:
            at = f"{g.name}: " if g.name != "" else ""
            warnings.add(
                LAW, "not_bracketed", f"{at}at {bounds} of {g.fitted.sum()} target losses B_crit lies outside the "
                "batches; these are bounds, and no part of the law"
            )  # fmt: skip
    failed = sum(int((~s.converged[0] & g.fitted).sum()) for g, s in zip(groups, samples, strict=True))
    if failed:
        warnings.add(LAW, "not_converged", f"{failed} fits did not converge; their constants are not a minimum")
    again = sum(int((~s.converged[1:] & g.fitted).sum()) for g, s in zip(groups, samples, strict=True))
    if again:
        number = sum(s.converged[1:].size for s in samples)
        warnings.add(
            LAW, "replicates_not_converged", f"{again} of {number} refits did not converge; they are left out of the "
            "intervals"
        )  # fmt: skip


def _words(noises: Sequence[Noise]) -> str:
    freedom = [n.freedom for n in noises if np.isfinite(n.freedom)]
    few = f"{min(freedom):.1f}" if max(freedom) - min(freedom) < 0.1 else f"{min(freedom):.1f} to {max(freedom):.1f}"
    return f"percentiles of refits to noise redrawn with its variance ({few} degrees of freedom)"
