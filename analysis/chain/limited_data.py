"""From runs on limited data to the laws of the data: Kaplan's L(D) and L(N, D), and the law of repeated data.

The loss of a run on limited data is read where it is least, as if training had stopped there (Kaplan et al. 2020,
sections 3.3 and 4.2). The smoothed curves never rise and cannot show that, so the minimum is that of running means of
three evaluations. The law of repeated data, which never rises either, takes the smoothed curves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis import kaplan_loss, repeated
from analysis.outcome import Outcome, Warnings
from analysis.tables.runs import RECIPE, Run
from sweep.schema import InputError

LEAST_DATA = 3  # distinct numbers of unique tokens
_MOST_REPLICATES = 100  # of the law of repeated data, which is slow to fit where it does not suit the runs
_POINTS_A_RUN, _SPAN = 6, 16.0  # readings of an undecayed curve, and the factor in tokens that they span


def derive_data_laws(
    runs: Sequence[Run], warnings: Warnings, *, replicates: int = 0, seed: int = 0, device: str = "cpu"
) -> dict[str, Outcome]:
    """ "kaplan-d", "kaplan-nd" and "repeated", those that the runs support. What is missing for the first two, and for
    the third where runs repeat their data at all, becomes a warning. `replicates`: of each law's own bootstrap."""
    found: dict[str, Outcome] = {}

    def attempt(law: str, derive_it: Callable[[], Outcome]) -> None:
        try:
            found[law] = derive_it()
        except InputError as error:
            warnings.add(law, "skipped", str(error).removeprefix(f"{law}: "))
            return
        for item in found[law].warnings:
            warnings.add(**item)

    stopped = early_stopped(runs)
    if stopped["unique_tokens"].nunique() > 1:  # otherwise the sweep was not made for them
        attempt("kaplan-d", lambda: _loss_of_data(stopped, warnings, replicates, seed, device))
    if "kaplan-d" in found:
        n, u, y = (stopped[name].to_numpy() for name in ("params", "unique_tokens", "loss"))
        attempt(
            "kaplan-nd", lambda: kaplan_loss.fit_params_tokens(n, u, y, bootstrap=replicates, seed=seed, device=device)
        )
    points = passes(runs)
    if (points["tokens"] > points["unique_tokens"]).any():
        n, d, u, y = (points[name].to_numpy() for name in ("params", "tokens", "unique_tokens", "loss"))
        run, number = points["run_id"].to_numpy(), min(replicates, _MOST_REPLICATES)
        attempt("repeated", lambda: repeated.fit(n, d, u, y, run=run, bootstrap=number, seed=seed, device=device))
    return found


def early_stopped(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a model size and number of unique tokens: the least loss of the best setting, the mean of its seeds, and
    whether it still fell where the runs end. Runs of the recipe with the most numbers of unique tokens."""
    cells: dict[tuple[str, float, float], dict[tuple[object, ...], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in _comparable(runs):
        cells[run.group, run.params, run.unique_tokens][(run.batch, *run.setting)].append(run)
    rows = []
    for (group, params, unique), settings in cells.items():
        stops = [np.mean([_least(run) for run in seeds], axis=0) for seeds in settings.values()]
        best = min(range(len(stops)), key=lambda k: stops[k][0])
        rows.append((group, params, unique, math.exp(stops[best][0]), bool(stops[best][1] > 0.5)))
    frame = pd.DataFrame(rows, columns=["group", "params", "unique_tokens", "loss", "falling"])
    return frame.sort_values(["params", "unique_tokens"], ignore_index=True)


def passes(runs: Sequence[Run]) -> pd.DataFrame:
    """Points of the law of repeated data: the ends of decayed runs, and six of every undecayed curve; of runs that
    differ in what is tuned, those that end lowest."""
    rows = []
    for run in _best_tuned(_comparable(runs)):
        end = float(run.ln_tokens[-1])
        if run.decayed:
            at, ln_loss = np.array([end]), run.ln_loss[-1:]
        else:
            start = max(end - math.log(_SPAN), run.curve.start + math.log(2), float(run.ln_tokens[0]))
            at = np.linspace(start, end, _POINTS_A_RUN) if start < end else np.array([])
            ln_loss = run.curve.ln_loss(at)
        rows += [
            (run.run_id, run.params, math.exp(x), run.unique_tokens, math.exp(y))
            for x, y in zip(at, ln_loss, strict=True)
        ]
    return pd.DataFrame(rows, columns=["run_id", "params", "tokens", "unique_tokens", "loss"])


def _loss_of_data(stopped: pd.DataFrame, warnings: Warnings, bootstrap: int, seed: int, device: str) -> Outcome:
    """L(D) of the largest size that was trained on enough numbers of unique tokens."""
    counts = stopped.groupby("params")["unique_tokens"].nunique()
    most = int(counts.max()) if len(counts) else 0
    if most < LEAST_DATA:
        raise InputError(
            f"kaplan-d: L(D) and L(N, D) need a size trained on {LEAST_DATA} or more amounts of data (unique_tokens), "
            f"each run until its test loss stops falling; here the most is {most}"
        )
    mine = stopped[stopped["params"] == counts[counts >= LEAST_DATA].index.max()]
    falling = int(stopped["falling"].sum())
    if falling:
        warnings.add(
            "kaplan-d", "still_falling", f"{falling} of {len(stopped)} sizes and amounts of data still fell where "
            "their runs end: they lack training as well as data, and lie too high for L(D) and L(N, D)"
        )  # fmt: skip
    return kaplan_loss.fit_tokens(
        mine["unique_tokens"].to_numpy(), mine["loss"].to_numpy(), bootstrap=bootstrap, seed=seed, device=device
    )


def _comparable(runs: Sequence[Run]) -> list[Run]:
    """Runs with known unique tokens that outlast their warm-up, of one recipe (whatever their data) and all decayed or
    all undecayed: those with the most numbers of unique tokens, then the most runs."""
    kinds: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if math.isfinite(run.unique_tokens) and run.ln_tokens[-1] >= run.curve.start:
            kinds[(run.decayed, *run.recipe[: len(RECIPE)])].append(run)
    return max(kinds.values(), key=lambda k: (len({r.unique_tokens for r in k}), len(k)), default=[])


def _best_tuned(runs: Sequence[Run]) -> list[Run]:
    """Of each size, batch and amount of data (and of each horizon of decayed runs), the seeds of the setting that ends
    lowest."""
    cells: dict[tuple[object, ...], dict[tuple[float, ...], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        length = round(run.final_tokens / run.batch) if run.decayed else 0
        cells[run.group, run.params, run.unique_tokens, run.batch, length][run.setting].append(run)

    def end(seeds: list[Run]) -> float:
        return float(np.mean([run.ln_loss[-1] if run.decayed else run.curve.y[-1] for run in seeds]))

    return [run for settings in cells.values() for run in min(settings.values(), key=end)]


def _least(run: Run) -> tuple[float, float]:
    """Least ln(loss) past the warm-up, and 1 where it is at the end, 0 where not."""
    ln_loss = run.ln_loss[run.ln_tokens >= run.curve.start]
    if len(ln_loss) < 3:
        return float(ln_loss.min()), 1.0
    means = np.convolve(ln_loss, np.full(3, 1 / 3), "valid")
    return float(means.min()), float(means.argmin() == len(means) - 1)
