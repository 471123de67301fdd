"""`isoloss predict`: from a file of fits to the best model for a budget, a loss or a size, as a table and as JSON.

Heavy imports wait until the verb runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli.parser import Parser

if TYPE_CHECKING:
    from analysis.outcome import Estimate
    from analysis.predict import Answer, Prediction

HELP = """\
Predict the best model size N, tokens D, batch B, steps S and loss for a compute budget (or the compute for a target
loss, or for a model size), by every approach in a file of fits, each with its interval, how far it extrapolates, and
what a model of twice or half the best size would cost.

example: isoloss predict sweeps/quick/analysis/fits.json --flops 1e14
         isoloss predict sweeps/quick/analysis/fits.json --loss 1.9 --json prediction.json
         isoloss predict parametric.json --params 70e9      (from isoloss fit parametric ... --json parametric.json)"""

COLUMNS = {"params": "N", "tokens": "D", "batch_tokens": "B", "steps": "S", "loss": "loss", "flops": "C"}
UNITS = {"flops": "FLOP", "loss": "nats per token", "params": "parameters"}
UNKNOWN = "-"


def run(argv: list[str]) -> int:
    """Print the prediction and return the exit code. Raises InputError where the input is unusable."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    from analysis.predict import predict, read

    prediction = predict(read(arguments.fits), flops=arguments.flops, loss=arguments.loss, params=arguments.params)
    print(render(prediction))
    if arguments.json is not None:
        text = json.dumps(prediction.to_json(), indent=1, allow_nan=False)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")
        print(f"json    {arguments.json}")
    return 0


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("isoloss predict", description=HELP, formatter_class=formatter, allow_abbrev=False)
    text = "fits.json of `isoloss analyze`, or the JSON of one `isoloss fit`"
    parser.add_argument("fits", metavar="FITS.json", type=Path, help=text)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--flops", type=float, metavar="C", help="compute to spend, in FLOP")
    asked.add_argument("--loss", type=float, metavar="L", help="loss to reach, in nats per token")
    asked.add_argument("--params", type=float, metavar="N", help="model size, counted as the fits count N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    return parser


def render(prediction: Prediction) -> str:
    """The table with its heading, two lines an approach, and what to know of it."""
    from analysis.tables.conventions import DEFINITIONS

    quantity, value = prediction.asked
    known = {answer.convention for answer in prediction.answers if answer.convention is not None}
    counted = "; ".join(f"{name}: {DEFINITIONS.get(name, name)}" for name in sorted(known)) or "N as the fits count it"
    with_interval = any(e is not None and e.low is not None for a in prediction.answers for e in a.values.values())
    lines = [
        f"{number(value)} {UNITS[quantity]}; {counted}",
        f"below each value its {prediction.level:.0%} interval, over the joint draws of the law's constants"
        if with_interval
        else "no intervals: the file has no draws",
        "",
        *_table(prediction),
        "",
        "B in tokens; beyond: compute over the largest fitted; 2N, N/2: nats lost at the same compute by a model of",
        "twice or half the size, and the compute that it needs for the same loss over that of the best size",
    ]
    critical = [answer for answer in prediction.answers if answer.at_critical]
    if critical:
        spent = critical[0].values["flops"]
        assert spent is not None
        what = f": {number(spent.value)} FLOP are C_min = {number(spent.value / 2)}" if quantity == "flops" else ""
        lines.append(
            f"{', '.join(a.approach for a in critical)}: trained at B_crit, which takes C = 2 C_min and S = 2 S_min"
            f"{what}; far larger batches need S/2 steps for the same loss, and more compute"
        )
    borrowed = [answer.approach for answer in prediction.answers if answer.batch_from == "critical-batch"]
    if borrowed:
        lines.append(
            f"{', '.join(borrowed)}: B is B_crit at the predicted loss and S is D/B; D is that of the batch that was "
            "fitted, and up to twice as much is needed where that was far below B_crit"
        )
    for answer in prediction.answers:
        lines += [f"warning: {answer.approach}: {text}" for text in answer.warnings]
    return "\n".join([*lines, *(f"warning: {text}" for text in prediction.warnings)])


def _table(prediction: Prediction) -> list[str]:
    shown = {name: head for name, head in COLUMNS.items() if name != prediction.asked[0]}
    rows = [("approach", *shown.values(), "beyond", "2N", "N/2")]
    for answer in prediction.answers:
        values, ranges = zip(*(_cell(answer.values[name]) for name in shown), strict=True)
        costs = [_cost(answer, side) for side in ("double", "half")]
        beyond = UNKNOWN if answer.extrapolation is None else f"{number(answer.extrapolation)}x"
        rows.append((answer.approach, *values, beyond, *(loss for loss, _ in costs)))
        rows.append(("", *ranges, "", *(flops for _, flops in costs)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return UNKNOWN, ""
    if estimate.low is None or estimate.low == estimate.high:
        return number(estimate.value), ""
    high = "" if estimate.high is None or math.isinf(estimate.high) else number(estimate.high)
    return number(estimate.value), f"{number(estimate.low)}..{high}"


def _cost(answer: Answer, side: str) -> tuple[str, str]:
    loss, flops = answer.wrong_size[side]["loss"], answer.wrong_size[side]["flops"]
    more = UNKNOWN if loss is None else f"+{loss.value:.2g} nats"
    if flops is None:
        return more, ""
    return more, "no compute" if math.isinf(flops.value) else f"{flops.value:.3g} C"


def number(value: float) -> str:
    """Three digits or four, with exponents as short as can be: 59.31, 14,994, 4.04e10."""
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"
