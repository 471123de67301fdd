"""What is counted in N and C: one table under each of the published conventions, from the components it stores.

The exponent of N_opt(C) depends on it more than on anything else at small sizes (Porian et al. 2024: 0.835 becomes
0.706 when the head is counted; Pearce & Song 2024), while the losses and tokens do not. With k the training FLOPs per
token (forward and backward), C = k D:

    kaplan      N = attention + MLP matrices, k = 6 N (Kaplan et al. 2020, Eq. 2.1)
    with_head   N = those and the head matrix, k = 6 N (Porian et al. 2024); a head tied to the embedding counts, for
                its FLOPs are spent all the same
    total       N = all parameters, embeddings, norms and biases among them, k = 6 N
    chinchilla  N = all parameters, k by Hoffmann et al. 2022, App. F: matrices, the full square of the attention
                (stored is its causal half), softmax, head, and the embedding as a matrix product

App. F is taken as it is printed, with both terms of the vocabulary; the ratios of the paper's Table A4 come out only
without them (`sweep.accounting.hoffmann_flops`), but then nothing would tell its C from kaplan's at small sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.tables.table import Table
from sweep.schema import InputError

CONVENTIONS = ("kaplan", "with_head", "total", "chinchilla")
DEFINITIONS = {
    "kaplan": "N = attention + MLP matrices, C = 6ND",
    "with_head": "N = attention, MLP and head matrices, C = 6ND",
    "total": "N = all parameters, C = 6ND",
    "chinchilla": "N = all parameters, C of Hoffmann et al. 2022, App. F",
}
# For axes: what N counts, and how C follows.
SHORT = {
    "kaplan": ("matrices", "6ND"),
    "with_head": ("matrices, head", "6ND"),
    "total": ("all", "6ND"),
    "chinchilla": ("all", "App. F"),
}
_MATRICES = ("params_attention", "params_mlp")
_NEEDED = {
    "kaplan": (),
    "with_head": (*_MATRICES, "flops_per_token_head"),
    "total": ("params_total",),
    "chinchilla": (
        *_MATRICES, "params_total", "params_embedding", "flops_per_token_context", "flops_per_token_head",
        "n_layer", "n_head", "n_ctx",
    ),
}  # fmt: skip


def apply(table: Table, convention: str) -> Table:
    """The same runs with their `params`, `flops_per_token` and `flops` counted as `convention` says. All else is shared
    with `table`, and the components stay, so that conventions can follow on each other in any order.

    Under kaplan a run without stored components keeps its `params`. Raises InputError for an unknown convention and
    where the table lacks a component that the convention needs.
    """
    params, per_token = count(table.runs, convention, table.source)
    runs = table.runs.assign(params=np.round(params), flops_per_token=per_token)
    runs["flops"] = runs["flops_per_token"] * runs["tokens"]
    runs = runs.astype({name: table.runs[name].dtype for name in ("params", "flops_per_token", "flops")})
    return replace(table, runs=runs)


def count(runs: pd.DataFrame, convention: str, source: str = "table") -> tuple[np.ndarray, np.ndarray]:
    """N and training FLOPs per token [runs] of a run table. Raises InputError as `apply` does."""
    if convention not in CONVENTIONS:
        raise InputError(f"convention {convention!r} is not known; use one of {', '.join(CONVENTIONS)}")
    needed = _NEEDED[convention]
    missing = [name for name in needed if name not in runs.columns or runs[name].isna().any()]
    if missing:
        raise InputError(
            f"{source}: convention {convention} needs {_listed(missing)} of every run; add "
            f"{'them' if len(missing) > 1 else 'it'} to the run table, or use the convention kaplan"
        )
    part = {name: runs[name].to_numpy(dtype=float) for name in needed}
    if convention == "kaplan":
        params = runs["params"].to_numpy(dtype=float)
        if set(_MATRICES) <= set(runs.columns):
            stored = sum(runs[name].to_numpy(dtype=float, na_value=np.nan) for name in _MATRICES)
            params = np.where(np.isfinite(stored), stored, params)
        return params, 6 * params
    if convention == "with_head":
        params = part["params_attention"] + part["params_mlp"] + part["flops_per_token_head"] / 6
        return params, 6 * params
    params = part["params_total"]
    if convention == "total":
        return params, 6 * params
    matrices = 6 * (part["params_attention"] + part["params_mlp"] + part["params_embedding"])
    softmax = 3 * 3 * part["n_layer"] * part["n_head"] * part["n_ctx"]
    return params, matrices + 2 * part["flops_per_token_context"] + softmax + part["flops_per_token_head"]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
