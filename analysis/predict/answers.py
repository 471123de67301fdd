"""The compute-optimal model by every law of a file of fits: N, D, B, S and loss with intervals, and their doubts.

Every law answers with its optimum (`analysis.predict.optimum`). Intervals are percentiles of the prediction over
the joint draws of the law's constants, so they hold the noise that the draws hold and not the error of extrapolating a
law; without draws there are none. Laws of C_min answer for training at B_crit, which takes twice the least compute and
the least steps: a budget C is C_min = C/2 (Kaplan et al. 2020, section 5.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from analysis.outcome import Estimate, holding, plain
from analysis.predict import optimum as opt
from analysis.predict.fitted import CRITICAL, Approach, CriticalBatch, Fits
from analysis.predict.optimum import Array
from sweep.schema import InputError

FAR = 10.0  # times the compute that a law was fitted on: beyond, a warning
WRONG_SIZES = {"double": 2.0, "half": 0.5}
_COMPARED = {"flops": ("params", "loss"), "loss": ("params", "flops"), "params": ("flops", "loss")}


@dataclass(frozen=True)
class Answer:
    """What one approach predicts.

    at_critical: for training at B_crit, where flops is 2 C_min and steps is 2 S_min; otherwise for training as the
    fitted runs did. values: flops, params, tokens, batch_tokens, steps, loss, and flops_min and steps_min at B_crit;
    None where the law does not say. batch_from: "fit" where batch_tokens is the fit's own, "critical-batch" where it is
    B_crit at the predicted loss, with steps = tokens/batch_tokens. extrapolation: compute over the largest that the law
    was fitted on (parameters, where the file does not say that compute). wrong_size: for a model "double" or "half" the
    best size, "loss" is the nats per token it loses at the same compute and "flops" the compute to the same loss over
    that of the best size, infinite where such a model cannot reach it.
    """

    approach: str
    at_critical: bool
    convention: str | None
    values: dict[str, Estimate | None]
    batch_from: str | None
    extrapolation: float | None
    wrong_size: dict[str, dict[str, Estimate | None]]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is infinite or not known is None."""
        return {
            "approach": self.approach,
            "at_critical_batch": self.at_critical,
            "convention": self.convention,
            **{name: _ends(e) for name, e in self.values.items()},
            "batch_from": self.batch_from,
            "extrapolation": self.extrapolation,
            "wrong_size": {side: {k: _ends(e) for k, e in cost.items()} for side, cost in self.wrong_size.items()},
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Prediction:
    """All answers to one question. asked: its quantity and value. convention: how N and C are counted, None where the
    answers differ or the file does not say. warnings: where answers disagree, and laws that have none."""

    asked: tuple[str, float]
    convention: str | None
    level: float
    answers: tuple[Answer, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON of `isoloss predict`."""
        return plain(
            {
                "asked": dict([self.asked]),
                "convention": self.convention,
                "level": self.level,
                "approaches": [answer.to_json() for answer in self.answers],
                "warnings": self.warnings,
            }
        )


def predict(
    fits: Fits, *, flops: float | None = None, loss: float | None = None, params: float | None = None
) -> Prediction:
    """The answer of every approach in `fits` to exactly one question.

    flops: compute to spend, FLOP. loss: target, nats per token. params: model size, counted as the fits count N,
    answered with the compute for which it is the best. Raises InputError for a number that is not positive, for more or
    fewer than one of them, and where no law can answer.
    """
    questions = {name: v for name, v in (("flops", flops), ("loss", loss), ("params", params)) if v is not None}
    if len(questions) != 1:
        raise InputError("predict: ask for exactly one of flops, loss and params")
    [asked] = questions.items()
    if not (math.isfinite(asked[1]) and asked[1] > 0):
        raise InputError(f"predict: {asked[0]} is {asked[1]:g}; give a positive number")
    answers, without = [], list(fits.without)
    for approach in fits.approaches:
        try:
            answers.append(_answer(approach, asked, fits.critical))
        except InputError as error:
            without.append(f"{approach.name}: {error}")
    if not answers:
        raise InputError(f"predict: no law answers for {asked[0]} {asked[1]:g}: {'; '.join(without)}")
    conventions = {answer.convention for answer in answers}
    return Prediction(
        asked,
        conventions.pop() if len(conventions) == 1 else None,
        fits.approaches[0].level,
        tuple(answers),
        (*without, *_disagreements(asked[0], answers)),
    )


def _answer(approach: Approach, asked: tuple[str, float], critical: CriticalBatch | None) -> Answer:
    """Raises InputError where the law cannot say."""
    law, level = approach.law, approach.level
    own = _compute(law, *asked)
    best = law.at(own)
    spent = 2 * own if law.least else own
    batch, source = best.batch_tokens, "fit"
    if batch is None and critical is not None and best.loss is not None:
        batch, source = critical.at(best.loss), CRITICAL
    steps = None if batch is None else best.tokens[: len(batch)] / batch
    arrays: dict[str, Array | None] = {
        "flops": spent, "params": best.params, "tokens": best.tokens, "batch_tokens": batch, "steps": steps,
        "loss": best.loss,
    }  # fmt: skip
    if law.least:
        arrays |= {"flops_min": own, "steps_min": None if steps is None else steps / 2}
    values = {name: _estimate(samples, level) for name, samples in arrays.items()}
    values[asked[0]] = Estimate(asked[1])
    wrong = {}
    for side, factor in WRONG_SIZES.items():
        higher = law.loss_of_wrong_size(best, factor)
        lost = None if higher is None or best.loss is None else higher - best.loss
        ratio = law.flops_of_wrong_size(best, factor)
        wrong[side] = {"loss": _estimate(lost, level), "flops": _estimate(ratio, level)}
    beyond, far = _extrapolation(approach, float(own[0]), float(best.params[0]))
    by_critical = batch is not None and (law.least or source == CRITICAL)
    warnings = [*approach.warnings, *far, *_doubts(approach, best, wrong, critical if by_critical else None)]
    named = None if batch is None else source
    return Answer(approach.name, law.least, approach.convention, values, named, beyond, wrong, tuple(warnings))


def _compute(law: opt.Law, quantity: str, value: float) -> Array:
    """The law's own compute [1 + k], or [1] where it is what was asked."""
    if quantity == "flops":
        return np.array([value / 2 if law.least else value])
    flops = law.flops_for_loss(value) if quantity == "loss" else law.flops_for_params(value)
    if np.isposinf(flops[0]) and isinstance(law, opt.Parametric):
        raise InputError(f"no compute reaches this loss; its irreducible loss is {law.E[0]:.4g}")
    if quantity == "loss" and isinstance(law, opt.Lines) and law.loss is None:
        raise InputError("the file has no line of its loss; ask for a budget or a size")
    if not (np.isfinite(flops[0]) and flops[0] > 0):
        raise InputError(f"its constants do not say at which compute the {quantity} is {value:g}")
    return flops


def _estimate(samples: Array | None, level: float) -> Estimate | None:
    """The first of the samples, with percentiles of the others, of which nan are left out; infinite draws count.
    As those of fits, the interval is widened to hold the value."""
    if samples is None or np.isnan(samples[0]):
        return None
    value, draws = float(samples[0]), samples[1:]
    good = draws[~np.isnan(draws)]
    if len(good) < 2 or len(good) < len(draws) / 2:
        return Estimate(value)
    method = "linear" if np.isfinite(good).all() else "inverted_cdf"  # infinities have no middle
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2], method=method)  # type: ignore[call-overload]
    return Estimate(value, None, *holding(value, float(low), float(high)))


def _extrapolation(approach: Approach, flops: float, params: float) -> tuple[float | None, list[str]]:
    """The factor, and a warning where it is large or the prediction lies far below the fitted range."""
    for name, value in (("flops", flops), ("params", params)):
        if name in approach.span:
            low, high = approach.span[name]
            what = f"{'C_min' if approach.law.least else 'compute'}" if name == "flops" else "size"
            if value > FAR * high:
                return value / high, [
                    f"extrapolates {_times(value / high)} times beyond the largest {what} it was fitted on"
                ]
            if value < low / FAR:
                return value / high, [
                    f"extrapolates {_times(low / value)} times below the least {what} it was fitted on"
                ]
            return value / high, []
    return None, []


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if 1e3 <= ratio < 1e6 else f"{ratio:.3g}"


def _doubts(
    approach: Approach,
    best: opt.Optimum,
    wrong: dict[str, dict[str, Estimate | None]],
    critical: CriticalBatch | None,
) -> list[str]:
    """What else a reader must know of an answer. critical: the law of its batch, if that is B_crit."""
    found = []
    failed = int(np.isnan(best.params[1:]).sum())
    if failed:
        found.append(f"{failed} of {len(best.params) - 1} draws have no optimum and are left out of the intervals")
    if critical is not None and best.loss is not None:
        low, high = critical.measured
        if not low <= best.loss[0] <= high:
            found.append(f"B_crit is known at losses {low:.3g} to {high:.3g}, not at {best.loss[0]:.3g}")
    for side, cost in wrong.items():
        if cost["flops"] is not None and math.isinf(cost["flops"].value):
            found.append(f"a model of {side} the size does not reach this loss")
    if approach.convention == "chinchilla" and not isinstance(approach.law, opt.Lines):
        found.append("counts C as 6 N D, which is less than its convention counts")
    return found


def _disagreements(asked: str, answers: Sequence[Answer]) -> list[str]:
    """One line for each quantity whose intervals do not all meet; under different conventions they need not."""
    lines = []
    for name in _COMPARED[asked]:
        pairs = [(a, b) for a, b in combinations(answers, 2) if a.convention == b.convention and _apart(a, b, name)]
        texts = []
        for one in dict.fromkeys(a.approach for a, _ in pairs):
            others = [b.approach for a, b in pairs if a.approach == one]
            texts.append(f"{one} and {', '.join(others)}")
        mixed = any(a.at_critical != b.at_critical for a, b in pairs)
        if texts:
            reason = " (training at B_crit and at the batch of the runs need not agree)" if mixed else ""
            lines.append(f"approaches disagree on {name}{reason}; these intervals do not meet: {'; '.join(texts)}")
    return lines


def _apart(one: Answer, other: Answer, name: str) -> bool:
    """Whether both have an interval of the quantity, and these do not meet."""
    a, b = one.values[name], other.values[name]
    if a is None or b is None or a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.high < b.low or b.high < a.low


def _ends(estimate: Estimate | None) -> dict[str, float | None] | None:
    if estimate is None or math.isinf(estimate.value):
        return None
    return {name: v for name, v in estimate.to_json().items() if name in ("value", "low", "high")}
