"""What the points of a fit can support: sizes, spans, and whether the quantities of a law vary apart from each other.

A fit to few sizes over a short range converges and has small residuals all the same; these are the questions that a
careful referee asks of its table first.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.outcome import Warnings
from analysis.tables.runs import UNDECAYED

FEW_SIZES = 8
USUAL_SIZES = "published sweeps have 16 (Porian et al. 2024) to 50 (Hoffmann et al. 2022)"
NARROW = 1.0  # decade of N or of D/N, and of C between the least and the greatest budget of a law of compute
MANY_EPOCHS = 4.0  # beyond about four passes repeated data is worth less (Muennighoff et al. 2023)
COLLINEAR = 0.95  # correlation of ln N and ln D
APART = 4.0  # least ratio of the greatest to the least D/N
UNDERTRAINED = 1.0  # tokens per parameter
FAR = 8.0  # robust standard deviations of a residual
SLIGHT = 1e-3  # of the loss: no point nearer to the law pulls on it
WIDE_GRID = 16.0  # in N across a parabola, +-4 times its centre; wider, its vertex is biased where alpha is not beta

OF_SIZE = ("parametric", "repeated", "isoflop", "frontier", "kaplan-n", "kaplan-nd", "kaplan-ns")
OF_BOTH = ("parametric", "repeated", "kaplan-nd")
OF_COMPUTE = ("isoflop", "frontier", "kaplan-c")


def warn_points(frame: pd.DataFrame, law: str, warnings: Warnings) -> None:
    """What `law` cannot say from these points, and which of them may mislead it.

    frame: one row a point, columns params, tokens, flops, loss, unique_tokens, schedule and residual (ln(loss) -
    ln(fitted)) as far as they are known: the table before the fit, or an outcome's "points" after it.
    """
    if "params" in frame and law in OF_SIZE:
        warn_size_range(frame["params"].to_numpy(dtype=float), law, warnings)
    if {"params", "tokens"} <= set(frame.columns) and law in OF_BOTH:
        warn_pairs(frame, law, warnings)
    if "flops" in frame and law in OF_COMPUTE:
        warn_compute_range(frame["flops"].to_numpy(dtype=float), law, warnings)
    if "schedule" in frame:
        decayed = int((~frame["schedule"].isin(UNDECAYED)).sum())
        if 0 < decayed < len(frame):
            warnings.add(
                law, "mixed_schedules", f"{decayed} points are of decayed runs and {len(frame) - decayed} of undecayed "
                "ones, whose losses are higher at the same tokens; fit them apart (--where, --by)"
            )  # fmt: skip
    if {"tokens", "unique_tokens"} <= set(frame.columns) and law != "repeated":
        warn_epochs((frame["tokens"] / frame["unique_tokens"]).to_numpy(dtype=float), "points", law, warnings)


def warn_pairs(frame: pd.DataFrame, law: str, warnings: Warnings) -> None:
    """Whether the sizes and token counts of the points, columns params, tokens and where it is known residual, tell the
    terms of N and of D apart."""
    _warn_collinear(frame, law, warnings)
    if "residual" in frame:
        _warn_undertrained(frame, law, warnings)


def warn_size_range(params: np.ndarray, law: str, warnings: Warnings) -> None:
    """Few sizes, or all of them alike. params: [n], not unique."""
    sizes = np.unique(params)
    decades = float(np.log10(sizes[-1] / sizes[0]))
    if len(sizes) < FEW_SIZES:
        warnings.add(
            law, "few_sizes", f"{len(sizes)} model sizes over {decades:.1f} decades of N; {USUAL_SIZES}, and a curved "
            "or jumping N(C) does not show on so few"
        )  # fmt: skip
    if decades < NARROW:
        warnings.add(
            law, "narrow_sizes", f"N spans a factor of {sizes[-1] / sizes[0]:.2g}, less than a decade: exponents of N "
            "rest on small differences"
        )  # fmt: skip


def warn_compute_range(flops: np.ndarray, law: str, warnings: Warnings) -> None:
    """Less than a decade of C."""
    ratio = float(flops.max() / flops.min())
    if np.log10(ratio) < NARROW:
        warnings.add(
            law, "narrow_compute", f"C spans a factor of {ratio:.2g}, less than a decade: exponents of C rest on small "
            "differences"
        )  # fmt: skip


def warn_epochs(epochs: np.ndarray, what: str, law: str, warnings: Warnings) -> None:
    """More than four passes over the data. epochs: [n], nan where they are not known."""
    many = int((epochs > MANY_EPOCHS).sum())
    if many:
        warnings.add(
            law, "many_epochs", f"{many} {what} pass over the text more than {MANY_EPOCHS:g} times (up to "
            f"{np.nanmax(epochs):.1f}); the laws assume fresh data"
        )  # fmt: skip


def warn_parabolas(optima: pd.DataFrame, law: str, warnings: Warnings) -> None:
    """Parabolas across too wide a range of sizes. optima: columns fit_low, fit_high (N of the outermost sizes that
    each was fitted to) and used."""
    width = (optima["fit_high"] / optima["fit_low"])[optima["used"].astype(bool)]
    wide = int((width > WIDE_GRID * (1 + 1e-9)).sum())
    if wide:
        of = f"{wide} of {len(width)} parabolas take{'s' * (wide == 1)}"
        warnings.add(
            law, "wide_parabola", f"{of} in sizes up to a factor of {width.max():.2g} "
            f"apart; beyond {WIDE_GRID:g} the loss is no parabola in ln N and its minimum shifts. Add sizes in between"
        )  # fmt: skip


def _warn_collinear(frame: pd.DataFrame, law: str, warnings: Warnings) -> None:
    """Whether N and D change together, so that their terms cannot be told apart."""
    ln_n, ln_d = np.log(frame["params"].to_numpy(dtype=float)), np.log(frame["tokens"].to_numpy(dtype=float))
    if not (np.ptp(ln_n) > 0 and np.ptp(ln_d) > 0):
        return
    correlation = float(np.corrcoef(ln_n, ln_d)[0, 1])
    ratio = float(np.exp(np.ptp(ln_d - ln_n)))
    if abs(correlation) > COLLINEAR or ratio < APART:
        warnings.add(
            law, "collinear", f"N and D vary together (correlation {correlation:+.2f} of their logarithms; tokens per "
            f"parameter span a factor of {ratio:.2g}): their exponents cannot be told apart. Train some sizes longer "
            "or shorter"
        )  # fmt: skip


def _warn_undertrained(frame: pd.DataFrame, law: str, warnings: Warnings) -> None:
    """Points with fewer tokens than parameters that lie far above the law: five of Hoffmann's 245 at D/N < 0.41 move
    beta from 0.37 to 0.45 (Besiroglu et al. 2024)."""
    ratio, r = ((frame["tokens"] / frame["params"]).to_numpy(dtype=float), frame["residual"].to_numpy(dtype=float))
    far = max(FAR * 1.4826 * float(np.median(np.abs(r - np.median(r)))), SLIGHT)
    bad = (ratio < UNDERTRAINED) & (r > far)
    few = int(bad.sum())
    if few:
        warnings.add(
            law, "undertrained", f"{few} point{'s' * (few > 1)} with fewer tokens than parameters (D/N "
            f"{ratio[bad].min():.2g} to {ratio[bad].max():.2g}) lie{'s' * (few == 1)} up to "
            f"{np.expm1(r[bad].max()):.0%} above the law and pull{'s' * (few == 1)} on the exponent of D; fit again "
            "without"
        )  # fmt: skip
