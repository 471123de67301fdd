"""What a fit gives: estimates with intervals, the joint draws behind them, and what a reader must know of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.uncertainty.labels import label

LEVEL = 0.9


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and interval; None where they are not known. bias: of the estimator, as the
    simulations found it (the interval allows for it, the value does not; an interval that would leave the value out is
    widened to hold it)."""

    value: float
    se: float | None = None
    low: float | None = None
    high: float | None = None
    bias: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain data; numbers that are not finite become None."""
        pairs = {"value": self.value, "se": self.se, "low": self.low, "high": self.high}
        if self.bias is not None:
            pairs["bias"] = self.bias
        return {name: v if v is not None and math.isfinite(v) else None for name, v in pairs.items()}


def holding(value: float, low: float, high: float) -> tuple[float, float]:
    """The interval, widened to hold the value."""
    return float(min(low, value)), float(max(high, value))


class Warnings(list[dict[str, str]]):
    """What a reader must know before using a law: items {"law", "code", "message"}."""

    def add(self, law: str, code: str, message: str) -> None:
        """Append one, once."""
        item = {"law": law, "code": code, "message": message}
        if item not in self:
            self.append(item)


@dataclass(frozen=True)
class Outcome:
    """One law fitted to one table, or to one group of it.

    estimates: by the names of the field. draws: joint draws [k] of every estimate, the same replicate at the same
    place in each (empty without intervals). objective: the unscaled sum of losses. interval: how the intervals came
    about, in words ("none" without). span: (lowest, highest) of each quantity the law was fitted on, for judging
    extrapolation. frames: what was fitted, as tables ("points" with fitted values and residuals, "optima", ...).
    judged_as: what the table of coverages calls the law (None: "fit LAW").
    """

    law: str
    estimates: dict[str, Estimate]
    points: int
    objective: float | None = None
    starts: int = 1
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    bootstrap: int = 0
    interval: str = "none"
    level: float = LEVEL
    device: str = "cpu"
    seconds: float = 0.0
    span: dict[str, tuple[float, float]] = field(default_factory=dict)
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    warnings: Warnings = field(default_factory=Warnings)
    judged_as: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON of a fit, without numbers that JSON cannot hold."""
        estimates = {name: e.to_json() for name, e in self.estimates.items()}
        out: dict[str, Any] = {
            "law": self.law,
            "estimates": label(self.judged_as or f"fit {self.law}", estimates),
            "level": self.level,
            "interval": self.interval,
            "objective": self.objective,
            "points": self.points,
            "starts": self.starts,
            "bootstrap": self.bootstrap,
            "seconds": self.seconds,
            "device": self.device,
            "span": {name: list(ends) for name, ends in self.span.items()},
            "warnings": list(self.warnings),
        }
        if "optima" in self.frames:
            out["optima"] = self.frames["optima"].to_dict("records")
        if self.draws:
            out["draws"] = {name: values.tolist() for name, values in thin(self.draws).items()}
        return plain(out)


KEPT_DRAWS = 1000


def thin(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """At most `KEPT_DRAWS` of the draws, evenly spread, the same ones of every estimate."""
    return {name: v[:: max(1, -(-len(v) // KEPT_DRAWS))] for name, v in draws.items()}


def plain(value: Any) -> Any:
    """Python's own types only, with None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
