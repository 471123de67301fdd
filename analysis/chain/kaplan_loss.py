"""From simulated sweeps to Kaplan's laws of the loss and to the exponents that his surface implies.

L(N) is read at the end of the longest runs, L(C) and L(C_min) along the raw and the adjusted frontier. The surface and
the law of B_crit imply how N, B, S, D and L grow with C_min (Kaplan et al. 2020, Eqs. 1.7 and 1.8); these derived
exponents stand beside the ones measured on the frontier, from the same simulated sweeps. L(D) and L(N, D) need runs on
limited data, the law of repeated data runs that pass over theirs several times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import kaplan_loss
from analysis.chain.readings import warn_misfit
from analysis.chain.results import DERIVED, Frontier, KaplanLaws, Surface, no_exponents
from analysis.efficiency import QUANTITIES, derived_laws
from analysis.outcome import Estimate, Outcome, Warnings
from analysis.tables.sizes import Size
from analysis.uncertainty.bootstrap import Samples, estimate, reflected
from sweep.schema import PF_DAY

LEAST_SIZES = 3
INTERVAL = "percentiles of simulated sweeps"
FALLING = 0.01  # of the loss for a doubling of tokens: above, a run is far from converged
_SAME_END = 0.02  # in ln(tokens)
# The names of the frontier's estimates.
EXPONENTS = {"N": "a", "D": "b", "S": "S_exponent", "B": "B_exponent", "L": "L_exponent"}


def derive_kaplan(
    samples: Samples,
    sizes: Sequence[Size],
    frontier: Frontier | None,
    surface: Surface | None,
    law: np.ndarray | None,
    sigma: float,
    warnings: Warnings,
) -> KaplanLaws:
    """L(N), L(C), L(C_min) and the derived exponents, as far as there are sizes, a frontier, a surface and a law of
    B_crit. samples, sizes: those of the frontier. law: [samples, 2], ln B_crit = law[0] + law[1] ln L.
    sigma: seed noise of ln(loss)."""
    laws: dict[str, Outcome] = {}
    if len(sizes) >= LEAST_SIZES:
        laws["kaplan-n"] = _loss_of_size(samples, sizes, warnings)
        warn_misfit("kaplan-n", laws["kaplan-n"].frames["points"]["residual"].to_numpy(), sigma, warnings)
    for kind, name, suffix in (("raw", "kaplan-c", ""), ("adjusted", "kaplan-c-min", "_min")):
        if frontier is not None and "L" in frontier.fits.get(kind, {}):
            laws[name] = _loss_of_compute(frontier, kind, name, suffix)
    exponents = no_exponents()
    if surface is not None and law is not None:
        laws[DERIVED] = _derived(surface, law)
        measured = frontier.fits.get("adjusted", {}) if frontier is not None else {}
        exponents = _beside({name: fit.exponent for name, fit in measured.items()}, laws[DERIVED], warnings)
    return KaplanLaws(laws, exponents)


def _loss_of_size(samples: Samples, sizes: Sequence[Size], warnings: Warnings) -> Outcome:
    """A line through ln L at the end of each size's longest runs."""
    ends = [_end(samples, size) for size in sizes]
    ln_n, ln_l = np.log([size.params for size in sizes]), np.array([values for values, _, _ in ends]).T
    intercept, slope = np.polynomial.polynomial.polyfit(ln_n, ln_l.T, 1)
    constants = {"N_c": kaplan_loss.scale_of(np.exp(intercept), slope), "alpha_N": -slope}
    points = pd.DataFrame({"group": [s.group for s in sizes], "params": [s.params for s in sizes]})
    points["tokens"], points["loss"] = [tokens for _, tokens, _ in ends], np.exp(ln_l[0])
    points["fitted"] = np.exp(intercept[0] + slope[0] * ln_n)
    points["residual"] = np.log(points["loss"] / points["fitted"])
    points["falling"] = [falling for _, _, falling in ends]
    still = points[points["falling"] > FALLING]
    if len(still):
        warnings.add(
            "kaplan-n", "not_converged", f"{len(still)} of {len(sizes)} sizes still fall by up to "
            f"{still['falling'].max():.1%} a doubling of tokens where their longest runs end: this is L(N) at such "
            "lengths, not of converged models; alpha_N of the surface L(N, S_min) is that of endless training"
        )  # fmt: skip
    return _outcome("kaplan-n", constants, points)


def _end(samples: Samples, size: Size) -> tuple[np.ndarray, float, float]:
    """ln L of the best setting [samples] where the longest runs of a size end, their tokens, and by how much the loss
    falls there for a doubling of tokens (nan for decayed runs, of which only the end counts)."""
    runs = samples.runs
    longest = max(runs[i].ln_tokens[-1] for i in size.members)
    full = [[i for i in setting if runs[i].ln_tokens[-1] >= longest - _SAME_END] for setting in size.settings]
    full = [members for members in full if members]
    ends = {
        i: samples.last(i) if size.decayed else samples.curves(i).ln_loss(np.array([runs[i].curve.end]))[:, 0]
        for members in full
        for i in members
    }
    values = np.array([np.mean([ends[i] for i in members], axis=0) for members in full])  # [settings, samples]
    best = full[int(values[:, 0].argmin())]
    slopes = [float(runs[i].curve.slope(np.array(longest))) for i in best]
    falling = math.nan if size.decayed else -math.log(2) * float(np.mean(slopes))
    return values.min(axis=0), math.exp(longest), falling


def _loss_of_compute(frontier: Frontier, kind: str, name: str, suffix: str) -> Outcome:
    """The frontier's line of the loss in Kaplan's terms: (C_c/C)^alpha_C, C_c in PF-days."""
    line, drawn = frontier.fits[kind]["L"], frontier.draws.get(kind, {})
    alpha, scale = f"alpha_C{suffix}", f"C_c{suffix}"
    e = line.exponent
    value = float(kaplan_loss.scale_of(line.coefficient.value, e.value)) / PF_DAY
    estimates = {scale: Estimate(value), alpha: Estimate(-e.value, e.se, _minus(e.high), _minus(e.low), _minus(e.bias))}
    draws = {}
    if "L_exponent" in drawn:
        scales = kaplan_loss.scale_of(drawn["L_coefficient"], drawn["L_exponent"]) / PF_DAY
        draws = {scale: scales, alpha: -drawn["L_exponent"]}
        estimates[scale] = estimate(np.append(value, scales))
    optima = frontier.optima[(frontier.optima["kind"] == kind) & frontier.optima["used"]]
    points = optima[["flops", "params", "loss"]].reset_index(drop=True)
    points["fitted"] = line.at(points["flops"].to_numpy())
    points["residual"] = np.log(points["loss"] / points["fitted"])
    return _assemble(name, estimates, draws, points)


def _derived(surface: Surface, law: np.ndarray) -> Outcome:
    """Exponents and coefficients against C_min (FLOP), by the frontier's names."""
    values = {name: np.append(e.value, surface.draws.get(name, [])) for name, e in surface.estimates.items()}
    n_c, alpha_n, s_c, alpha_s = (values[name] for name in ("N_c", "alpha_N", "S_c", "alpha_S"))
    with np.errstate(all="ignore"):
        theta = np.stack([alpha_n * np.log(n_c), alpha_n, alpha_s * np.log(s_c), alpha_s], axis=1)
        found = derived_laws(theta, reflected(law)[: len(theta)])  # as the surface's draws are
        constants = {EXPONENTS[q]: found[q].exponent for q in QUANTITIES}
        constants |= {f"{q}_coefficient": np.exp(found[q].intercept) for q in QUANTITIES}
    span = {name: ends for name, ends in surface.span.items() if name in ("params", "flops", "loss")}
    return _outcome(DERIVED, constants, surface.points[["params", "steps_min", "loss", "fitted"]], span)


def _beside(measured: dict[str, Estimate], derived: Outcome, warnings: Warnings) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for name in QUANTITIES:
        one, other = measured.get(name, Estimate(math.nan)), derived.estimates[EXPONENTS[name]]
        row: dict[str, Any] = {"quantity": name}
        for label, e in (("measured", one), ("derived", other)):
            row |= {label: e.value, f"{label}_low": e.low, f"{label}_high": e.high}
        known = None not in (one.low, one.high, other.low, other.high)
        row["apart"] = bool(known and (one.low > other.high or other.low > one.high))  # type: ignore[operator]
        rows.append(row)
    frame = pd.DataFrame(rows, columns=list(no_exponents().columns))
    apart = frame[frame["apart"]]
    if len(apart):
        texts = [f"{r.quantity} {r.measured:.3f} and {r.derived:.3f}" for r in apart.itertuples()]
        warnings.add(
            DERIVED, "disagreement", "exponents against C_min as measured on the frontier and as derived from "
            f"L(N, S_min) and B_crit(L) have intervals apart: {'; '.join(texts)}"
        )  # fmt: skip
    return frame


def _outcome(
    law: str,
    constants: dict[str, np.ndarray],
    points: pd.DataFrame,
    span: dict[str, tuple[float, float]] | None = None,
) -> Outcome:
    """From constants [1 + replicates], the first of which is of the runs themselves."""
    draws = {name: values[1:] for name, values in constants.items() if len(values) > 1}
    return _assemble(law, {name: estimate(values) for name, values in constants.items()}, draws, points, span)


def _assemble(
    law: str,
    estimates: dict[str, Estimate],
    draws: dict[str, np.ndarray],
    points: pd.DataFrame,
    span: dict[str, tuple[float, float]] | None = None,
) -> Outcome:
    quantities = [name for name in ("params", "tokens", "flops", "loss") if name in points]
    number = len(next(iter(draws.values()))) if draws else 0
    return Outcome(
        law,
        estimates,
        len(points),
        draws=draws,
        bootstrap=number,
        interval=INTERVAL if number else "none",
        span=span or {name: (float(points[name].min()), float(points[name].max())) for name in quantities},
        frames={"points": points},
    )


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
