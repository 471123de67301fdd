"""Wrong units, suspected: what a table's own numbers say against its being in parameters, tokens, FLOP and nats.

Nothing here is refused. A warning says what was found, what it would mean, and how to mend it; who knows the table
decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis import published as pub
from analysis.outcome import Warnings
from sweep.schema import PF_DAY

LAW = "table"
_BITS = re.compile(r"(^|[^a-z])(bits?|bpb|bpc|bpt|bits_per_\w+|ppl|perplexity)($|[^a-z])", re.IGNORECASE)
_LARGEST_VOCABULARY = 300_000  # of published tokenizers, about
_YARDSTICK = (1e7, 1e8)  # parameters, tokens from which Hoffmann's law says something of any text
_LIKE_BITS = (1.32, 1.57)  # of losses over that law: 1/ln 2 = 1.44 and the differences between texts
_LEAST_PARAMS, _LEAST_TOKENS = 1e3, 1e5  # below, no language model and no training of one
_MOST_RATIO, _LEAST_RATIO = 1e5, 1e-3  # tokens per parameter that anybody trains at
_EXCHANGED = 0.3  # tokens per parameter below which, for most rows, N and D seem to have changed places
AGREES = 0.2  # of flops with 6ND
_FACTORS = {
    1 / 3: "2ND, the forward pass alone",
    1 / 2: "3ND, multiply-adds counted as one",
    4 / 3: "8ND, with activations computed twice",
    3.0: "18ND, multiplied by three once too often",
}


def suspect(frame: pd.DataFrame, sources: Mapping[str, str], used: str, warnings: Warnings) -> None:
    """Warn of columns that look to be in other units.

    frame: columns params, tokens, flops, loss and vocab_size as far as the table has them. sources: what the table
    itself calls these. used: which of params, tokens and flops the law reads, for the message where they disagree.
    """
    values = {
        name: frame[name].to_numpy(dtype=float) for name in ("params", "tokens", "flops", "loss") if name in frame
    }
    if "loss" in values:
        _loss(frame, values, sources.get("loss", "loss"), warnings)
    _sizes(values, warnings)
    if {"params", "tokens", "flops"} <= set(values):
        _compute(values, used, warnings)


def _loss(frame: pd.DataFrame, values: Mapping[str, np.ndarray], source: str, warnings: Warnings) -> None:
    loss = values["loss"]
    mend = "laws take nats per token: bits times 0.693, or the logarithm of a perplexity"
    if _BITS.search(source):
        warnings.add(LAW, "loss_units", f"the loss is read from a column called {source}; {mend}")
        return
    vocabulary = np.full(len(loss), float(_LARGEST_VOCABULARY))
    if "vocab_size" in frame:
        stated = pd.to_numeric(frame["vocab_size"], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        vocabulary = np.where(stated > 1, stated, vocabulary)
    above = int((loss > np.log(vocabulary)).sum())
    if above:
        what = "ln(vocab_size)" if "vocab_size" in frame else f"{np.log(_LARGEST_VOCABULARY):.1f}"
        warnings.add(
            LAW, "loss_units", f"{above} losses are above {what}, the nats that guessing costs: suspected to be bits, "
            f"perplexities or of diverged runs; {mend}"
        )  # fmt: skip
        return
    if not {"params", "tokens"} <= set(values):
        return
    large = (values["params"] >= _YARDSTICK[0]) & (values["tokens"] >= _YARDSTICK[1])
    if large.sum() < max(3, len(loss) / 2):
        return
    ratio = loss[large] / pub.REFIT.loss(values["params"][large], values["tokens"][large])
    low, middle, high = np.quantile(ratio, [0.1, 0.5, 0.9])
    if _LIKE_BITS[0] < middle < _LIKE_BITS[1] and high < 1.2 * low:
        warnings.add(
            LAW, "loss_units", f"the losses are {middle:.2f} times those of Hoffmann's runs at the same sizes and "
            f"tokens: suspected to be in bits (1/ln 2 = 1.44); {mend}"
        )  # fmt: skip


def _sizes(values: Mapping[str, np.ndarray], warnings: Warnings) -> None:
    """params and tokens that are too small, alone or for each other."""
    for name, least in (("params", _LEAST_PARAMS), ("tokens", _LEAST_TOKENS)):
        if name in values and values[name].max() < least:
            warnings.add(
                LAW, f"{name}_units", f"{name} is at most {values[name].max():g}: suspected to be in millions or "
                "billions; write the full numbers, as 70e9"
            )  # fmt: skip
            return
    if not {"params", "tokens"} <= set(values):
        return
    ratio = float(np.median(values["tokens"] / values["params"]))
    if ratio > _MOST_RATIO:
        warnings.add(
            LAW, "params_units", f"there are {ratio:.2g} tokens per parameter: params suspected to be in millions "
            f"(at most {values['params'].max():g})"
        )  # fmt: skip
    elif ratio < _LEAST_RATIO:
        warnings.add(
            LAW, "tokens_units", f"there are {ratio:.2g} tokens per parameter: tokens suspected to be in millions or "
            f"billions (at most {values['tokens'].max():g})"
        )  # fmt: skip
    elif ratio < _EXCHANGED:
        warnings.add(
            LAW, "exchanged", f"there are {ratio:.2g} tokens per parameter: params and tokens suspected to be exchanged"
        )  # fmt: skip


def _compute(values: Mapping[str, np.ndarray], used: str, warnings: Warnings) -> None:
    """flops that are not 6ND."""
    ratio = values["flops"] / (6 * values["params"] * values["tokens"])
    low, middle, high = (float(v) for v in np.quantile(ratio, [0.0, 0.5, 1.0]))
    if low >= 1 - AGREES and high <= 1 + AGREES:
        return
    what = f"flops is {middle:.3g} times 6ND (from {low:.3g} to {high:.3g})"
    guess = _guess(middle) if high < 3 * low else None
    text = f"{what}; suspected: {guess}" if guess else what
    warnings.add(LAW, "flops_6nd", f"{text}. The law reads {used}")


def _guess(ratio: float) -> str | None:
    """What a factor between flops and 6ND suggests."""
    distance = {text: abs(float(np.log(ratio / factor))) for factor, text in _FACTORS.items()}
    nearest = min(distance, key=lambda text: distance[text])
    if distance[nearest] < np.log(1.1):
        return nearest
    for unit, name in ((1.0, ""), (1 / PF_DAY, "flops in PF-days (8.64e19 FLOP)")):
        power = float(np.log10(ratio / unit))
        whole = 3 * round(power / 3)
        if abs(power - whole) > np.log10(1 + AGREES):
            continue
        if whole == 0 and name:
            return name
        if whole > 0:
            return f"{name}{' and ' * bool(name)}params or tokens in other units, a factor of 1e{whole} together"
        if whole < 0 and not name:
            return f"flops in units of 1e{-whole} FLOP"
    return None
