"""What `analysis.chain.derive.derive` returns: tidy frames and estimates, one section a law, and their JSON.

A section also has `draws`, the joint draws [k] of its estimates, and `span`, (lowest, highest) of each quantity it was
fitted on: what a prediction needs. A simulated sweep has the same place in the draws of all sections.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.chain.adjusted import Adjusted
from analysis.outcome import Estimate, Outcome, Warnings, plain, thin
from analysis.power_law import PowerLaw
from analysis.uncertainty.diagnostics import Diagnosis
from analysis.uncertainty.labels import label

Draws = dict[str, np.ndarray]
Span = dict[str, tuple[float, float]]

DERIVED = "kaplan-derived"
POINT = "critical-batch point"  # under which the intervals of one target loss are judged


def exponent_name(quantity: str) -> str:
    """Of an exponent against compute: Hoffmann's a for N and b for D."""
    return {"N": "a", "D": "b"}.get(quantity, f"{quantity}_exponent")


@dataclass(frozen=True)
class Critical:
    """S(B, L), its fits and the law of B_crit.

    crossings: one row a run and target. cells: one row a model, batch and target, over the best rate and the seeds.
    points: one row a model and target, the fitted S_min, E_min, B_crit. law: B_star, alpha_B, slope = -1/alpha_B, and
    B_crit as measured at the target `at_loss` (not the law's value there); None where fewer than three points are used.
    rises: whether B_crit rises as the loss falls, "yes", "no" or "undecided" by the interval of the slope, "unknown"
    where there is none. line: the law with its band over the measured losses.
    """

    crossings: pd.DataFrame
    cells: pd.DataFrame
    points: pd.DataFrame
    law: dict[str, Estimate] | None
    at_loss: float | None
    rises: str
    line: pd.DataFrame
    draws: Draws = field(default_factory=dict)
    span: Span = field(default_factory=dict)

    @property
    def measured(self) -> tuple[float, float]:
        """Losses (lowest, highest) at which the law may be used: the used targets and 3% beyond, which is a fifth in
        B_crit. Nothing is adjusted outside."""
        used = self.points[self.points["used"]]["target_loss"]
        return 0.97 * float(used.min()), 1.03 * float(used.max())

    def to_json(self) -> dict[str, Any]:
        """Fits per model and target under `groups`, the law under `estimates`."""
        groups = []
        for row in self.points.to_dict("records"):
            estimates = {
                name: Estimate(row[name], row[f"{name}_se"], row[f"{name}_low"], row[f"{name}_high"])
                for name in ("S_min", "E_min", "B_crit")
            }
            keys = ("group", "params", "target_loss", "batches", "used", "reason")
            groups.append({**{key: row[key] for key in keys}, "estimates": _estimates(POINT, estimates)})
        law = None if self.law is None else _estimates("critical-batch", self.law)
        used = self.points[self.points["used"]]["target_loss"]
        return {
            "estimates": law,
            "at_loss": self.at_loss,
            "rises": self.rises,
            "loss_low": used.min() if len(used) else None,
            "loss_high": used.max() if len(used) else None,
            "points": len(used),
            **_known(self.draws, self.span),
            "groups": groups,
        }


@dataclass(frozen=True)
class Frontier:
    """Optimal size, batch, steps and loss against compute.

    kinds "raw" (C at a fixed batch) and "adjusted" (C_min). optima: one row a compute value. curves: the smoothed
    curve of each size. fits[kind][quantity] for N, D, S, B and L. lines: those fits with bands. shares: exponents and
    growth of N, B and S, which make up the growth of C_min. curvature[kind]: at fixed compute, of ln L in
    ln(N/N_opt) squared. draws and span by kind; the compute of "adjusted" is C_min.
    envelope: by kind a, b and the coefficients of lines straight through the best of the sizes, for comparison.
    """

    batch_tokens: int | None
    optima: pd.DataFrame
    curves: pd.DataFrame
    fits: dict[str, dict[str, PowerLaw]]
    lines: pd.DataFrame
    shares: pd.DataFrame
    curvature: dict[str, Estimate] = field(default_factory=dict)
    draws: dict[str, Draws] = field(default_factory=dict)
    span: dict[str, Span] = field(default_factory=dict)
    envelope: dict[str, dict[str, Estimate]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """By kind `estimates`: a (exponent of N), b (of D), the exponents of S, B and L, all coefficients and the
        curvature; the laws again under `fits`."""
        out: dict[str, Any] = {"batch_tokens": self.batch_tokens, "kinds": {}}
        for kind, fits in self.fits.items():
            names: dict[str, Estimate] = {}
            for quantity, law in fits.items():
                names |= {exponent_name(quantity): law.exponent, f"{quantity}_coefficient": law.coefficient}
            if kind in self.curvature:
                names["curvature"] = self.curvature[kind]
            optima = self.optima[self.optima["kind"] == kind].drop(columns="kind")
            out["kinds"][kind] = {
                "estimates": _estimates(f"frontier {kind}", names),
                "fits": {name: law.to_json() for name, law in fits.items()},
                "envelope": _estimates(f"envelope {kind}", self.envelope.get(kind, {})),
                **_known(self.draws.get(kind, {}), self.span.get(kind, {})),
                "optima": optima.to_dict("records"),
            }
        out["shares"] = self.shares.to_dict("records")
        return out


@dataclass(frozen=True)
class Isoflop:
    """Loss against size per budget. fit: a, b, N_coefficient, D_coefficient, the loss's L_exponent and L_coefficient
    through the minima, and the curvature of ln L in ln(N/N_opt) squared; None for fewer than two interior optima."""

    points: pd.DataFrame
    optima: pd.DataFrame
    fit: dict[str, Estimate] | None
    line: pd.DataFrame
    kind: str
    draws: Draws = field(default_factory=dict)
    span: Span = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Estimates and the optima per budget."""
        estimates = None if self.fit is None else _estimates("isoflop", self.fit)
        return {
            "estimates": estimates,
            "kind": self.kind,
            **_known(self.draws, self.span),
            "optima": self.optima.to_dict("records"),
        }


@dataclass(frozen=True)
class Parametric:
    """L = E + A/N^alpha + B/D^beta: A, B, E, alpha, beta, a, b, G. line: its efficient frontier."""

    points: pd.DataFrame
    estimates: dict[str, Estimate]
    objective: float
    starts: int
    kind: str
    line: pd.DataFrame
    draws: Draws = field(default_factory=dict)
    span: Span = field(default_factory=dict)
    interval: str = "none"

    @property
    def judged_as(self) -> str:
        """What the table of coverages calls it: it judges the law of decayed runs, which are resampled."""
        return "parametric" if self.kind == "decayed" else "parametric undecayed"

    def to_json(self) -> dict[str, Any]:
        """Estimates and how they were obtained."""
        return {
            "estimates": _estimates(self.judged_as, self.estimates),
            "objective": self.objective,
            "points": len(self.points),
            "starts": self.starts,
            "interval": self.interval,
            "kind": self.kind,
            **_known(self.draws, self.span),
        }


@dataclass(frozen=True)
class Surface:
    """Kaplan's L(N, S_min): N_c, alpha_N, S_c, alpha_S, and the exponent alpha_C_min they imply with alpha_B (Eq.
    1.7). The compute in `span` is C_min."""

    points: pd.DataFrame
    estimates: dict[str, Estimate]
    objective: float
    draws: Draws = field(default_factory=dict)
    span: Span = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Estimates and the sum of squared residuals of ln L."""
        return {
            "estimates": _estimates("kaplan-ns", self.estimates),
            "objective": self.objective,
            "points": len(self.points),
            **_known(self.draws, self.span),
        }


def no_exponents() -> pd.DataFrame:
    """The empty table of exponents."""
    ends = ("", "_low", "_high")
    names = ["quantity", *(f"{one}{end}" for one in ("measured", "derived") for end in ends), "apart"]
    return pd.DataFrame(columns=names)


@dataclass(frozen=True)
class KaplanLaws:
    """laws: "kaplan-n", "kaplan-c" (raw), "kaplan-c-min" (adjusted) and "kaplan-derived", and where the table allows
    "kaplan-d", "kaplan-nd" and "repeated". exponents: one row a quantity, its exponent against C_min as measured on the
    frontier and as derived from the surface and the law of B_crit (`measured`, `derived`, each with `_low` and
    `_high`), and whether the intervals lie `apart`."""

    laws: dict[str, Outcome] = field(default_factory=dict)
    exponents: pd.DataFrame = field(default_factory=no_exponents)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """One item a law; the table of exponents under that of "kaplan-derived"."""
        out = {name: replace(law, judged_as=name).to_json() for name, law in self.laws.items()}
        if DERIVED in out:
            out[DERIVED]["exponents"] = self.exponents.to_dict("records")
        return out


@dataclass(frozen=True)
class Conventions:
    """The exponents of one sweep under every way to count N and C.

    rows: one a law ("frontier", raw, and "isoflop") and convention, with its definition; a, b, N_coefficient and
    D_coefficient, each with _low and _high, nan where there is none, and then a note says why. published: one row a
    printed exponent a, with the convention it was counted in, its source and its interval.
    """

    rows: pd.DataFrame
    published: pd.DataFrame

    def to_json(self) -> dict[str, Any]:
        """Both tables as lists of items."""
        return {"rows": self.rows.to_dict("records"), "published": self.published.to_dict("records")}


@dataclass(frozen=True)
class Laws:
    """All laws of one table. A section is None where the table cannot support it; `warnings` says why.

    runs: size and compute at the end of every run that was used. adjusted: every logged point of the undecayed runs
    with B_crit at its loss, S_min, E_min and C_min. slices, slice_lines: loss against N at fixed compute and at fixed
    steps, read and fitted (Kaplan fig. 11). diagnostics: of laws, and of the frontier by kind. kaplan: the laws of the
    loss, and what the surface implies. conventions: frontier and isoflop once more under every way to count.
    """

    meta: dict[str, Any]
    runs: pd.DataFrame
    critical: Critical | None
    adjusted: Adjusted
    frontier: Frontier | None
    isoflop: Isoflop | None
    parametric: Parametric | None
    surface: Surface | None
    slices: pd.DataFrame
    slice_lines: pd.DataFrame
    warnings: Warnings = field(default_factory=Warnings)
    level: float = 0.9
    diagnostics: dict[str, Diagnosis] = field(default_factory=dict)
    kaplan: KaplanLaws = field(default_factory=KaplanLaws)
    conventions: Conventions | None = None

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """All estimates by law and name, as the table of coverages calls them."""
        found: dict[str, dict[str, Estimate]] = {}
        if self.critical is not None and self.critical.law is not None:
            found["critical-batch"] = self.critical.law
        for kind, fits in (self.frontier.fits if self.frontier is not None else {}).items():
            found[f"frontier {kind}"] = {
                name: e
                for quantity, fit in fits.items()
                if (kind, quantity) != ("raw", "B")  # fixed, not found
                for name, e in ((exponent_name(quantity), fit.exponent), (f"{quantity}_coefficient", fit.coefficient))
            }
        for law, section in (("parametric", self.parametric), ("kaplan-ns", self.surface)):
            if section is not None:
                found[law] = section.estimates
        if self.isoflop is not None and self.isoflop.fit is not None:
            found["isoflop"] = self.isoflop.fit
        return found | {name: law.estimates for name, law in self.kaplan.laws.items()}

    def to_json(self) -> dict[str, Any]:
        """The content of fits.json; numbers that are not finite become None."""
        sections = {
            "critical-batch": self.critical,
            "frontier": self.frontier,
            "isoflop": self.isoflop,
            "parametric": self.parametric,
            "kaplan-ns": self.surface,
        }
        common = {"level": self.level, "convention": self.meta.get("convention")}
        found = {name: section.to_json() for name, section in sections.items() if section is not None}
        laws = {}
        for name, content in {**found, **self.kaplan.to_json()}.items():
            own = [w for w in self.warnings if w["law"] == name]
            laws[name] = {"law": name, **content, **common, "warnings": own}
        for name, diagnosis in self.diagnostics.items():
            (laws[name] if name in laws else laws["frontier"]["kinds"][name])["diagnosis"] = diagnosis.to_json()
        if self.conventions is not None:
            laws["conventions"] = {"law": "conventions", **self.conventions.to_json(), "level": self.level}
        return plain({"meta": self.meta, "level": self.level, "laws": laws, "warnings": list(self.warnings)})


def _estimates(law: str, estimates: dict[str, Estimate]) -> dict[str, dict[str, float | bool | None]]:
    return label(law, {name: e.to_json() for name, e in estimates.items()})


def _known(draws: Draws, span: Span) -> dict[str, Any]:
    """Where there are any."""
    out: dict[str, Any] = {"span": {name: list(ends) for name, ends in span.items()}} if span else {}
    if draws:
        out["draws"] = {name: values.tolist() for name, values in thin(draws).items()}
    return out
