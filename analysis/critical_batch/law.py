"""B_crit = B_star / L^(1/alpha_B) over the trade-offs of all groups (Kaplan et al. 2020, Eq. 5.3) and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.critical_batch.samples import Group, Noise, Samples
from analysis.critical_batch.tradeoff import fit_law, law_estimates
from analysis.outcome import Estimate, Warnings

LAW = "critical-batch"
_MISFIT = 2.0  # standard errors of the points: residuals beyond this are the law's, not the noise's
_EXACT = 0.01  # residuals of ln B_crit below this are no misfit, however small the errors


def derive_law(
    groups: Sequence[Group], noises: Sequence[Noise], samples: Sequence[Samples], count: int, warnings: Warnings
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """Estimates and draws of the law over losses; none where fewer than three targets are used."""
    law = fit_laws(groups, samples)
    if not np.isfinite(law[0]).all():
        used = sum(int(s.bracketed[0].sum()) for s in samples)
        warnings.add(
            LAW, "no_law", f"B_crit(L) needs three different target losses with B_crit among the batches; {used} are"
        )
        return {}, {}
    _warn_misfit(law[0], groups, samples, noises, warnings)
    lost = int((~np.isfinite(law[1:, 0])).sum())
    if lost:
        warnings.add(
            LAW, "replicates_without_law", f"{lost} of {count} replicates have B_crit among the batches at fewer than "
            "three targets; they are left out of the law's interval"
        )  # fmt: skip
    if not count:
        estimates = law_estimates(law)
        with np.errstate(invalid="ignore"):
            errors = np.sqrt(np.diag(law_covariance(groups, noises, samples)))
        value = {name: e.value for name, e in estimates.items()}
        se = {"B_star": value["B_star"] * errors[0], "slope": errors[1], "alpha_B": errors[1] / value["slope"] ** 2}
        return {name: Estimate(value[name], float(se[name])) for name in estimates}, {}
    # Targets are left out where B_crit seems to lie outside the batches, which bends the law towards their middle. The
    # replicates show by how much, and the draws allow for it (basic bootstrap).
    again = law[1:][np.isfinite(law[1:, 0])]
    drawn = 2 * law[0] - again
    estimates = law_estimates(np.concatenate([law[:1], drawn]))
    off = (again - law[0]).mean(axis=0)
    value = {name: e.value for name, e in estimates.items()}
    bias = {"B_star": value["B_star"] * np.expm1(off[0]), "slope": off[1], "alpha_B": off[1] / value["slope"] ** 2}
    estimates = {name: replace(e, bias=float(bias[name])) for name, e in estimates.items()}
    with np.errstate(over="ignore", divide="ignore"):
        return estimates, {"B_star": np.exp(drawn[:, 0]), "alpha_B": -1 / drawn[:, 1], "slope": drawn[:, 1]}


def _warn_misfit(
    law: np.ndarray, groups: Sequence[Group], samples: Sequence[Samples], noises: Sequence[Noise], warnings: Warnings
) -> None:
    """The interval holds noise, not the error of a power law where B_crit follows none."""
    residual, error = [], []
    for g, sample, noise in zip(groups, samples, noises, strict=True):
        used = sample.bracketed[0]
        residual += list(sample.ln_b[0, used] - law[0] - law[1] * g.targets[used])
        error += list(np.sqrt(g.fits.ln_b_inverse[used] * noise.variance))
    r, e = np.array(residual), np.array(error)
    rms = float(np.sqrt(np.mean(r**2)))
    expected = float(np.sqrt(np.mean(e**2)))
    if rms > _EXACT and rms > _MISFIT * expected:
        times = f"{rms / expected:.1f}" if rms < 1000 * expected else "over 1,000"
        warnings.add(
            LAW, "misfit", f"the law misses B_crit by {rms:.0%} on average, {times} times the points' "
            "standard errors; its intervals do not hold that error"
        )  # fmt: skip


def fit_laws(groups: Sequence[Group], samples: Sequence[Samples]) -> np.ndarray:
    """(intercept, slope) of ln B_crit against ln L [1 + replicates, 2]: in every sample the weighted line through the
    targets at which it has B_crit among the batches; nan where these are fewer than three."""
    ln_l = np.concatenate([g.targets for g in groups])
    ln_b, good, variance = (
        np.concatenate([getattr(s, name) for s in samples], axis=1) for name in ("ln_b", "bracketed", "law_variance")
    )
    good = good & (variance > 0) & np.isfinite(variance)
    weights = np.where(good, 1 / np.where(good, variance, 1.0), 0.0)
    return np.array([fit_law(ln_l, b, w) for b, w in zip(ln_b, weights, strict=True)])


def law_covariance(groups: Sequence[Group], noises: Sequence[Noise], samples: Sequence[Samples]) -> np.ndarray:
    """Covariance [2, 2] of the law's (intercept, slope), least squares with the noise's correlation between targets."""
    design, weighted, middle = [], [], np.zeros((2, 2))
    for g, noise, sample in zip(groups, noises, samples, strict=True):
        used = sample.bracketed[0]
        x = np.column_stack([np.ones(used.sum()), g.targets[used]])
        w = 1 / sample.law_variance[0, used]
        error = np.sqrt(g.fits.ln_b_inverse[used] * noise.variance)
        spread = error[:, None] * noise.correlation[np.ix_(used, used)] * error
        middle += (x.T * w) @ spread @ (w[:, None] * x)
        design.append(x)
        weighted.append(w[:, None] * x)
    inverse = np.linalg.inv(np.concatenate(design).T @ np.concatenate(weighted))
    return inverse @ middle @ inverse
