"""What a reader must be warned of about a table and the agreement of its laws."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from analysis.chain.results import Laws
from analysis.outcome import Warnings
from analysis.tables.coverage import warn_compute_range, warn_epochs, warn_pairs, warn_parabolas, warn_size_range
from analysis.tables.runs import Run, SeedNoise
from analysis.tables.sizes import LEAST_SIZES, Size, size_curve
from analysis.tables.table import Table

FEW_REPEATS = 4  # degrees of freedom: below, the seed noise is known to within 35% at best
LONG_WARMUP = 0.2  # of a run: Porian et al. 2024 keep the best D at five warm-ups or more
ROUGH_LOSS = 0.01  # standard error of a test loss over the loss
PUBLISHED_FLOPS = 3e21  # the largest budget of Hoffmann et al. 2022


def warn_table(
    table: Table, undecayed: Sequence[Run], decayed: Sequence[Run], noise: SeedNoise, warnings: Warnings
) -> None:
    """Unfinished runs, mixed schedules, missing or few repeats, repeated data, long warm-ups, a small test set."""
    left: dict[str, list[str]] = defaultdict(list)
    for run_id, status in table.dropped.items():
        left[status].append(run_id)
    for status, run_ids in left.items():
        warnings.add("table", "not_done", f"{_listed('run', run_ids)} {_are(run_ids)} {status} and not used")
    if undecayed and decayed:
        warnings.add(
            "table", "mixed_schedules", f"{len(undecayed)} undecayed and {len(decayed)} decayed runs: no fit mixes them"
        )
    if not noise.freedom:
        warnings.add(
            "table", "no_seeds", f"no cell was repeated with another seed: intervals assume a standard deviation of "
            f"{noise.sigma:g} of ln(loss) between seeds"
        )  # fmt: skip
    elif noise.freedom < FEW_REPEATS:
        warnings.add(
            "table", "few_seeds", f"the seed noise of {noise.sigma:.2%} comes from few repeats ({noise.freedom:.2g} "
            f"degrees of freedom) and is itself known to ±{1 / math.sqrt(2 * noise.freedom):.0%}; intervals allow for "
            "it. Repeat more cells with other seeds"
        )  # fmt: skip
    warn_epochs(table.runs["epochs"].to_numpy(dtype=float, na_value=np.nan), "runs", "table", warnings)
    _warn_warmup([*undecayed, *decayed], warnings)
    share = (table.runs["test_loss_se"] / table.runs["test_loss"]).to_numpy(dtype=float, na_value=np.nan)
    rough = float(np.nanmedian(share)) if np.isfinite(share).any() else 0.0
    if rough > ROUGH_LOSS:
        warnings.add(
            "table", "small_test_set", f"the test loss is known to {rough:.1%} (standard error over test sequences). "
            "It moves the losses of all runs together: exponents of N and D hardly, E and B_star by as much"
        )  # fmt: skip


def _warn_warmup(runs: Sequence[Run], warnings: Warnings) -> None:
    """Runs of which the warm-up takes a large part: nothing is read inside it, and what follows it closely still
    catches up, most of all at small sizes, which tilts N(C) upwards."""
    share = {run.run_id: run.warmup / run.final_tokens for run in runs}
    inside = [name for name, part in share.items() if part >= 1]
    long = [name for name, part in share.items() if LONG_WARMUP < part < 1]
    if inside:
        warnings.add("table", "inside_warmup", f"{_listed('run', inside)} {_are(inside)} over before the warm-up is")
    if long:
        most = max(share[name] for name in long)
        warnings.add(
            "table", "long_warmup", f"the warm-up takes more than a fifth (up to {most:.0%}) of "
            f"{_listed('run', long)}; small models are held back by it and N(C) grows too steeply (Porian et al. 2024)"
        )  # fmt: skip


def warn_sizes(runs: Sequence[Run], sizes: Sequence[Size], batch: float | None, warnings: Warnings) -> None:
    """Sizes that the frontier leaves out, and a missing common batch."""
    left = sorted({run.group for run in runs} - {size.group for size in sizes})
    one_layer = sorted({run.group for run in runs if run.n_layer == 1} & set(left))
    if one_layer:
        warnings.add("frontier", "one_layer", f"one-layer models are left out of the envelopes: {', '.join(one_layer)}")
    shallow = [size.group for size in sizes if any(runs[i].n_layer == 1 for i in size.members)]
    if shallow:
        warnings.add(
            "frontier", "one_layer", f"one-layer models ({', '.join(shallow)}) are used for want of {LEAST_SIZES} "
            "deeper sizes; their curves follow another law (Kaplan et al. 2020, App. D.7)"
        )  # fmt: skip
    other = [group for group in left if group not in one_layer]
    if other:
        warnings.add("frontier", "other_batch", f"without a run at the common batch of {batch:.0f}: {', '.join(other)}")
    if batch is None and sizes:
        warnings.add(
            "frontier", "mixed_batches", "the sizes share no batch size; the raw frontier compares each at its own"
        )


def warn_coverage(runs: Sequence[Run], sizes: Sequence[Size], warnings: Warnings) -> None:
    """What the sizes that the frontier compares can support: their number and range, the compute that they span and
    how far the papers' is beyond it, and whether the learning rate of each was found or assumed."""
    if len(sizes) < 2:
        return
    warn_size_range(np.array([size.params for size in sizes]), "frontier", warnings)
    ends = np.array([size.flops_per_token * math.exp(size.x[-1]) for size in sizes])
    starts = np.array([size.flops_per_token * math.exp(size.x[0]) for size in sizes])
    warn_compute_range(np.array([starts.min(), ends.max()]), "frontier", warnings)
    if ends.max() < PUBLISHED_FLOPS:
        warnings.add(
            "frontier", "extrapolation", f"the runs span C = {starts.min():.2g} to {ends.max():.2g} FLOP "
            f"({math.log10(ends.max() / starts.min()):.1f} decades); the largest budget of Hoffmann et al. 2022, "
            f"{PUBLISHED_FLOPS:.0e}, lies a factor of {PUBLISHED_FLOPS / ends.max():.1g} beyond: compare exponents, "
            "not sizes"
        )  # fmt: skip
    _warn_rates(runs, sizes, warnings)


def _warn_rates(runs: Sequence[Run], sizes: Sequence[Size], warnings: Warnings) -> None:
    """Sizes whose best learning rate is an end of its axis, and sizes with no axis at all."""
    tried = [{runs[i].lr for i in size.members} for size in sizes]
    single = [size.group for size, rates in zip(sizes, tried, strict=True) if len(rates) == 1]
    if single:
        what = "every size" if len(single) == len(sizes) else _listed("size", single)
        warnings.add(
            "frontier", "one_rate", f"{what} was run at one learning rate: nothing here shows that it is the best "
            "one, and a rule that suits some sizes better than others tilts N(C) (Porian et al. 2024)"
        )  # fmt: skip
    edge = []
    for size, rates in zip(sizes, tried, strict=True):
        if len(rates) > 1:
            y, index = size_curve(runs, size)
            known = np.flatnonzero(np.isfinite(y))
            if len(known) and runs[index[known[-1]]].lr in (min(rates), max(rates)):
                edge.append(size.group)
    if edge:
        warnings.add(
            "frontier", "lr_at_edge", f"at {_listed('size', edge)} the best learning rate is an end of its axis: a "
            "better one may lie beyond"
        )  # fmt: skip


def warn_laws(laws: Laws, warnings: Warnings) -> None:
    """What the points of the other laws can support, and whether the approaches agree."""
    if laws.parametric is not None:
        warn_pairs(laws.parametric.points, "parametric", warnings)
    if laws.isoflop is not None:
        warn_parabolas(laws.isoflop.optima, "isoflop", warnings)
        budgets = laws.isoflop.optima["budget"][laws.isoflop.optima["used"]]
        if len(budgets) > 1:
            warn_compute_range(budgets.to_numpy(dtype=float), "isoflop", warnings)
    warn_disagreement(laws, warnings)


def warn_disagreement(laws: Laws, warnings: Warnings) -> None:
    """Approaches 1, 2 and 3 estimate one exponent of N against raw compute; their intervals should meet."""
    found = {}
    if laws.frontier is not None and "raw" in laws.frontier.fits:
        found["frontier"] = laws.frontier.fits["raw"]["N"].exponent
    if laws.isoflop is not None and laws.isoflop.fit is not None:
        found["isoflop"] = laws.isoflop.fit["a"]
    if laws.parametric is not None:
        found["parametric"] = laws.parametric.estimates["a"]
    known = {name: e for name, e in found.items() if e.low is not None and e.high is not None}
    names = list(known)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = known[one], known[other]
            if a.high < b.low or b.high < a.low:  # type: ignore[operator]
                texts = [f"{name} {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for name, e in ((one, a), (other, b))]
                warnings.add("frontier", "disagreement", f"exponents of N against C disagree: {' and '.join(texts)}")


def _listed(what: str, names: Sequence[str], most: int = 5) -> str:
    """`run a`, `runs a, b`, `12 runs (a, b, c, ...)`."""
    if len(names) <= most:
        return f"{what}{'s' * (len(names) > 1)} {', '.join(names)}"
    return f"{len(names)} {what}s ({', '.join(names[:most])}, ...)"


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"
