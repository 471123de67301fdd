"""The laws of a JSON file of fits, with their joint draws: what a prediction starts from.

Read are the fits.json of `isoloss analyze` and the JSON of one `isoloss fit`; files without draws or spans have laws
without intervals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.outcome import LEVEL
from analysis.predict import optimum as opt
from analysis.predict.optimum import Array
from sweep.schema import InputError

CRITICAL = "critical-batch"
SURFACE = "kaplan-ns"
ADJUSTED = "frontier adjusted"
PREDICTING = ("frontier", "isoflop", "parametric", "repeated", SURFACE)
_MARGIN = 0.03  # of the loss, beyond the losses at which B_crit was measured: a fifth in B_crit
_BEARING = ("misfit", "no_offset")  # warnings of a fit that concern its predictions


@dataclass(frozen=True)
class Approach:
    """One law that can predict. span: (lowest, highest) of each quantity it was fitted on. convention: how its N and C
    are counted, where the file says. warnings: of its fit, those that concern predictions."""

    name: str
    law: opt.Law
    span: dict[str, tuple[float, float]]
    level: float
    convention: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class CriticalBatch:
    """B_crit = B_star L^slope [1 + k], in tokens, and the losses (lowest, highest) at which it may be used."""

    B_star: Array
    slope: Array
    measured: tuple[float, float]

    def at(self, loss: Array) -> Array:
        """B_crit of as many draws as both have."""
        number = min(len(loss), len(self.slope))
        with np.errstate(all="ignore"):
            return self.B_star[:number] * loss[:number] ** self.slope[:number]


@dataclass(frozen=True)
class Fits:
    """critical: None where B_crit(L) is not in the file. without: why laws of the file that could predict do not, one
    line each."""

    approaches: tuple[Approach, ...]
    critical: CriticalBatch | None
    without: tuple[str, ...]


def read(path: Path) -> Fits:
    """Raises InputError for a file that is missing or holds no fits."""
    if path.is_dir():
        raise InputError(f"{path}: a folder; give its fits.json, for a sweep analysis/fits.json in it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `isoloss analyze DIR` writes DIR/analysis/fits.json") from None
    except ValueError:  # of the encoding or of JSON
        raise InputError(f"{path}: not JSON; give the fits.json of `isoloss analyze`") from None
    try:
        return parse(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{path}: its fits are not as isoloss writes them; write the file again") from None


def parse(content: Any) -> Fits:
    """The laws of a file's content, {"laws": {name: fit}} or one fit. Raises InputError for anything else."""
    sections = content.get("laws") if isinstance(content, dict) else None
    if isinstance(content, dict) and isinstance(content.get("law"), str):
        sections = {content["law"]: content}
    if not isinstance(sections, dict) or not all(isinstance(s, dict) for s in sections.values()) or not sections:
        raise InputError("holds no fits; give the fits.json of `isoloss analyze` or the JSON of `isoloss fit`")
    critical = _critical(sections.get(CRITICAL, {}))
    found, without = [], []
    for name in PREDICTING:
        for label, part in _parts(name, sections.get(name, {})):
            try:
                law = _law(name, part, label.startswith(ADJUSTED), critical)
            except InputError as error:
                without.append(f"{label}: {error}")
                continue
            level = float(part.get("level") or LEVEL)
            found.append(Approach(label, law, _span(part), level, part.get("convention"), _bearing(part)))
    if not found and not without:
        without.append(f"{', '.join(sections)}: no best size follows from it; it does from {', '.join(PREDICTING)}")
    return Fits(tuple(found), critical, tuple(without))


def _parts(name: str, section: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, fit) of one law: by kind of frontier, group and convention; what a part does not say, the section
    does."""
    common = {key: section[key] for key in ("level", "convention", "warnings") if key in section}
    named = {f"{name} {kind}": part for kind, part in (section.get("kinds") or {}).items()}
    named |= {f"{name} ({group.get('group')})": group for group in section.get("groups") or ()}
    for convention, fit in (section.get("conventions") or {}).items():
        named |= {f"{label} {convention}": part for label, part in _parts(name, fit)}
    if section and not named:
        named = {name: section}
    for label, part in named.items():
        yield label, common | part


def _bearing(part: Mapping[str, Any]) -> tuple[str, ...]:
    """What a fit says of itself that concerns its predictions."""
    said = [w["message"] for w in part.get("warnings") or () if w.get("code") in _BEARING]
    poor = [name for name, e in (part.get("estimates") or {}).items() if e.get("calibrated") is False]
    if poor:
        said.append(f"intervals of {', '.join(poor)} hold the truth too rarely or too often on synthetic sweeps")
    return tuple(said)


def _law(name: str, part: Mapping[str, Any], least: bool, critical: CriticalBatch | None) -> opt.Law:
    """Raises InputError where the fit lacks what a prediction needs."""
    if name in ("parametric", "repeated"):
        c = _constants(part, ("A", "B", "alpha", "beta"), ("E",))
        offset = c.get("E", np.zeros_like(c["A"]))
        return opt.Parametric(c["A"], c["B"], offset, c["alpha"], c["beta"])
    if name == SURFACE:
        if critical is None:
            raise InputError(f"its compute needs B_crit(L), and there is no {CRITICAL} law in this file")
        c = _constants(part, opt.SYMBOLS[:4])
        k = min(len(c["N_c"]), len(critical.slope))
        c |= {"B_star": critical.B_star, "slope": critical.slope}
        return opt.Surface(*(c[symbol][:k] for symbol in opt.SYMBOLS))
    pairs = {q: (f"{q}_coefficient", f"{q}_exponent") for q in ("B", "L")}
    c = _constants(part, ("a", "b", "N_coefficient", "D_coefficient"), ("curvature", *pairs["B"], *pairs["L"]))
    lines = {q: opt.Line(c[k], c[e]) if k in c and e in c else None for q, (k, e) in pairs.items()}
    size, data = opt.Line(c["N_coefficient"], c["a"]), opt.Line(c["D_coefficient"], c["b"])
    return opt.Lines(size, data, lines["L"], lines["B"], c.get("curvature"), least)


def _constants(part: Mapping[str, Any], needed: Sequence[str], wanted: Sequence[str] = ()) -> dict[str, Array]:
    """Estimates and their draws [1 + k], nan where one constant has none of them. Raises InputError where a needed one
    is missing."""
    estimates = part.get("estimates") or {}
    values = {name: (estimates.get(name) or {}).get("value") for name in (*needed, *wanted)}
    missing = [name for name in needed if values[name] is None]
    if missing:
        raise InputError(f"has no value of {', '.join(missing)}")
    draws = part.get("draws") or {}
    number = len(draws.get(needed[0], ()))
    unknown = [math.nan] * number
    return {
        name: np.array([value, *draws.get(name, unknown)], dtype=float)
        for name, value in values.items()
        if value is not None
    }


def _critical(section: Mapping[str, Any]) -> CriticalBatch | None:
    try:
        c = _constants(section, ("B_star", "alpha_B"))
    except InputError:
        return None
    low, high = _span(section).get("loss") or (section.get("loss_low"), section.get("loss_high"))
    ends = (0.0, math.inf) if low is None or high is None else (low * (1 - _MARGIN), high * (1 + _MARGIN))
    return CriticalBatch(c["B_star"], -1 / c["alpha_B"], ends)


def _span(part: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {k: (float(v[0]), float(v[1])) for k, v in (part.get("span") or {}).items() if None not in v}
