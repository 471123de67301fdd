"""What a reader must be warned of about the critical batch of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from analysis.chain.results import Critical
from analysis.outcome import LEVEL, Warnings
from analysis.uncertainty.bootstrap import estimate

LAW = "critical-batch"
_MISFIT = 2.0  # standard errors of the points: residuals beyond this are the law's, not the noise's


def warn_dependence(own: dict[str, np.ndarray], points: pd.DataFrame, warnings: Warnings) -> None:
    """Kaplan's law makes B_crit a function of the loss alone. Each model's own law is compared with the others' at the
    lowest loss that both measured; of all pairs that differ (allowing for how many were compared, Bonferroni) the one
    that differs most surely is named."""
    names = [name for name, law in own.items() if np.isfinite(law[0]).all()]
    lowest = points[points["used"]].groupby("group")["target_loss"].min()
    at = np.log([lowest[name] for name in names])
    laws = np.array([own[name] for name in names])  # [models, samples, 2]
    sure, count = [], len(names) * (len(names) - 1) // 2
    least = norm.isf((1 - LEVEL) / 2 / max(1, count))
    for i in range(len(names) - 1):
        difference, ln_loss = laws[i] - laws[i + 1 :], np.maximum(at[i], at[i + 1 :])
        ln_ratio = difference[..., 0] + difference[..., 1] * ln_loss[:, None]
        known = np.isfinite(ln_ratio[:, 1:]).sum(axis=1) >= max(2, (laws.shape[1] - 1) / 2)
        spread = np.full(len(known), np.inf)
        spread[known] = np.nanstd(ln_ratio[known, 1:], axis=1)
        errors = np.abs(ln_ratio[:, 0]) / spread
        sure += [(errors[k], i, i + 1 + k, ln_ratio[k]) for k in np.flatnonzero(errors > least)]
    if sure:
        _, one, other, ln_ratio = max(sure, key=lambda pair: pair[0])
        ratio = estimate(np.exp(ln_ratio))
        more = f" ({len(sure)} of {count} pairs of models differ)" if count > 1 else ""
        warnings.add(
            LAW, "depends_on_size", f"at loss {np.exp(max(at[one], at[other])):.4g} B_crit of {names[one]} is "
            f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times that of {names[other]}: it does not depend "
            f"on the loss alone{more}"
        )  # fmt: skip


def warn_law(law: np.ndarray, used: pd.DataFrame, at_loss: float, warnings: Warnings) -> None:
    """The intervals hold noise, not the error of a power law where B_crit follows none."""
    residual = np.log(used["B_crit"]) - law[0] - law[1] * np.log(used["target_loss"])
    rms, errors = (float(np.sqrt(np.mean(r**2))) for r in (residual, residual * used["B_crit"] / used["B_crit_se"]))
    if errors > _MISFIT:
        distance = np.abs(np.log(used["target_loss"] / at_loss))
        near = used[distance == distance.min()]
        read = ", ".join(f"{row.B_crit:,.0f} ({row.group})" for row in near.itertuples())
        warnings.add(
            LAW, "misfit", f"the law misses the measured B_crit by {rms:.0%} on average, {errors:.1f} times their "
            f"standard errors; its intervals do not hold that error. At loss {near['target_loss'].iloc[0]:g} it gives "
            f"{np.exp(law[0] + law[1] * np.log(near['target_loss'].iloc[0])):,.0f} tokens where {read} were measured"
        )  # fmt: skip


def warn_points(section: Critical, warnings: Warnings, known: bool) -> None:
    """Models whose B_crit lies outside their batches, rates at the edge of their axis, and no law (not `known`)."""
    points, cells = section.points, section.cells
    used = points.groupby("group", sort=False)["used"].any()
    outside = used.index[~used].astype(str).tolist()
    if outside:
        warnings.add(
            LAW, "not_bracketed", f"{_some(outside)}: no target loss has three batches with B_crit among them"
        )  # fmt: skip
    edge = cells[cells["lr_at_edge"] & cells["used"]]
    counts = edge.groupby(["group", "batch_tokens"], sort=False).size()
    if len(counts):
        where = [f"{name} at batch {batch:.0f}" for name, batch in counts.index]
        warnings.add(
            LAW, "lr_at_edge", f"{_some(where)}: the best learning rate is at the edge of its axis for "
            f"{counts.sum()} targets; the steps there are an upper bound"
        )  # fmt: skip
    if not known:
        warnings.add(
            LAW,
            "no_law",
            f"B_crit(L) needs three used target losses, not {int(points['used'].sum())}; nothing is adjusted",
        )


def _some(names: Sequence[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
