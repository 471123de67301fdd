"""The JSON of a fit as text for a terminal: estimates with errors and intervals, what was left out, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.cli.predict import number

Result = Mapping[str, Any]
UNKNOWN = "-"
_MOST_OPTIMA = 20  # rows; an envelope of 1,500 is for the file
_OPTIMA = ("budget", "flops", "params", "low", "high", "tokens", "loss", "used")
_IN_TEXT = ("residuals", "influence")  # warnings that the lines of the diagnosis say too
_CRITICAL = ("S_min", "E_min", "B_crit", "B_20")


def lines(result: Result) -> list[str]:
    """Everything a reader of the terminal needs."""
    if "conventions" in result:
        return _conventions(result)
    out = [_head(result)]
    out += [f"left out  {item['count']} {item['reason']}" for item in result.get("exclusions", ())]
    if "kinds" in result:
        for kind, part in result["kinds"].items():
            out += ["", kind, *_estimates(part, result["level"])]
    elif result["law"] == "critical-batch":
        out += ["", *_critical(result["groups"])]
        if result.get("estimates") and "B_star" in result["estimates"]:
            out += ["", "B_crit = B_star / L^(1/alpha_B), tokens", *_estimates(result, result["level"])]
    elif "groups" in result:
        for part in result["groups"]:
            out += ["", f"{result['by']} {part['group']}: {_facts(part)}", *_body(part, result["level"])]
    else:
        out += ["", *_body(result, result["level"])]
    if not result.get("bootstrap"):
        out.append("no intervals: --bootstrap 1000 gives them")
    elif result.get("interval", "none") != "none":
        out.append(f"intervals: {result['interval']}")
    return out + [f"warning: {w['law']}: {w['message']}" for w in result["warnings"] if w["code"] not in _IN_TEXT]


def _head(result: Result) -> str:
    convention = f", convention {result['convention']}" if result.get("convention") else ""
    weights = f", weighted by {result['weights']}" if result.get("weights") else ""
    return f"{result['law']} of {result['table']}{convention}{weights}: {_facts(result)}"


def _facts(result: Result) -> str:
    """Points, objective, time; what a result has of them."""
    out = [f"{result['runs']} runs" if "runs" in result else f"{result['points']:,} points"]
    if result.get("objective") is not None:
        kind = f" ({result['loss_function']})" if "loss_function" in result else ""
        out.append(f"objective {result['objective']:.8g}{kind}")
    if result.get("starts", 1) > 1:
        out.append(f"{result['starts']:,} starts")
    if "seconds" in result:
        out.append(f"{result['seconds']:.1f} s on {result['device']}" if "device" in result else "")
    return ", ".join(text for text in out if text)


def _body(result: Result, level: float) -> list[str]:
    optima = result.get("optima") or []
    shown = [name for name in _OPTIMA if optima and name in optima[0]]
    out = _estimates(result, level)
    if shown and len(optima) <= _MOST_OPTIMA:
        out += ["", *_aligned([shown, *([_cell(row[name]) for name in shown] for row in optima)])]
    elif shown:
        out.append(f"{len(optima)} optima: --json FILE has them")
    return out + list(result.get("diagnosis", {}).get("text", ()))


def _estimates(result: Result, level: float) -> list[str]:
    estimates = result.get("estimates") or {}
    with_bias = any("bias" in e for e in estimates.values())
    head = ["", "value", "standard error", f"{level:.0%} interval", *(["bias"] if with_bias else [])]
    rows = [
        [name, _cell(e["value"]), _cell(e["se"]), _interval(e), *([_cell(e.get("bias"))] if with_bias else [])]
        for name, e in estimates.items()
    ]
    return _aligned([head, *rows]) if rows else ["no estimates; the warnings say why"]


def _critical(groups: Sequence[Result]) -> list[str]:
    """One line a group and target loss."""
    named = [name for name in ("group", "target_loss") if any(g.get(name) is not None for g in groups)]
    shown = [name for name in _CRITICAL if name in groups[0]["estimates"]]
    rows = [[*named, "batches", *shown, ""]]
    for g in groups:
        cells = [f"{_cell(g['estimates'][name]['value'])} {_interval(g['estimates'][name])}" for name in shown]
        rows.append([*(_cell(g[name]) for name in named), str(g["batches"]), *cells, g["reason"]])
    return _aligned(rows)


def _conventions(result: Result) -> list[str]:
    """One line a convention: how much of an exponent is what is counted."""
    parts = {
        f"{name} {kind}".strip(): part
        for name, found in result["conventions"].items()
        for kind, part in (found.get("kinds") or {"": found}).items()
    }
    shown = [
        n for n in ("a", "b", "N_coefficient", "D_coefficient") if any(n in p["estimates"] for p in parts.values())
    ]
    rows = [["convention", *shown]]
    for name, part in parts.items():
        found = part["estimates"]
        cells = [f"{_cell(found[n]['value'])} {_interval(found[n])}" if n in found else UNKNOWN for n in shown]
        rows.append([name, *cells])
    out = [f"{result['law']} of {result['table']}, the same runs counted differently"]
    out += [f"left out  {item['count']} {item['reason']}" for item in result["exclusions"]]
    out += ["", *_aligned(rows)]
    said = {f"warning: {name}: {w['message']}" for name, p in result["conventions"].items() for w in p["warnings"]}
    return out + sorted(said)


def _interval(estimate: Result) -> str:
    low, high = estimate["low"], estimate["high"]
    if low is None and high is None:
        return ""
    return f"[{_cell(low)}, {'' if high is None else number(high)}]"


def _cell(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
