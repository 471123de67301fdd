"""What a reader must be warned of about the critical batch of a sweep."""

from __future__ import annotations

from itertools import combinations

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
    pairs = list(combinations(names, 2))
    found = []
    for one, other in pairs:
        loss = max(lowest[one], lowest[other])
        difference = own[one] - own[other]
        ln_ratio = difference[:, 0] + difference[:, 1] * np.log(loss)
        ratio = estimate(np.exp(ln_ratio))
        if ratio.low is not None and ratio.high is not None:
            found.append((abs(ln_ratio[0]) / np.nanstd(ln_ratio[1:]), loss, one, other, ratio))
    least = norm.isf((1 - LEVEL) / 2 / max(1, len(pairs)))
    sure = sorted((pair for pair in found if pair[0] > least), key=lambda pair: -pair[0])
    if sure:
        _, loss, one, other, ratio = sure[0]
        more = f" ({len(sure)} of {len(pairs)} pairs of models differ)" if len(pairs) > 1 else ""
        warnings.add(
            LAW, "depends_on_size", f"at loss {loss:g} B_crit of {one} is {ratio.value:.2f} [{ratio.low:.2f}, "
            f"{ratio.high:.2f}] times that of {other}: it does not depend on the loss alone{more}"
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
    points, cells = section.points, section.cells
    for group, mine in points.groupby("group", sort=False):
        if not mine["used"].any():
            warnings.add(LAW, "not_bracketed", f"{group}: no target loss has three batches with B_crit among them")
    edge = cells[cells["lr_at_edge"] & cells["used"]]
    for (name, batch), mine in edge.groupby(["group", "batch_tokens"], sort=False):
        warnings.add(
            LAW,
            "lr_at_edge",
            f"{name} at batch {batch:.0f}: the best learning rate is at the edge of its axis for {len(mine)} targets; "
            "its steps are an upper bound",
        )
    if not known:
        warnings.add(
            LAW,
            "no_law",
            f"B_crit(L) needs three used target losses, not {int(points['used'].sum())}; nothing is adjusted",
        )
