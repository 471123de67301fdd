"""What a reader must be warned of about a table and the agreement of its laws."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.chain.results import Laws
from analysis.outcome import Warnings
from analysis.tables.runs import Run, SeedNoise
from analysis.tables.sizes import LEAST_SIZES, Size
from analysis.tables.table import Table

MANY_EPOCHS = 4.0  # beyond about four passes repeated data is worth less (Muennighoff et al. 2023)


def warn_table(
    table: Table, undecayed: Sequence[Run], decayed: Sequence[Run], noise: SeedNoise, warnings: Warnings
) -> None:
    """Unfinished runs, mixed schedules, missing repeats, repeated data."""
    for run_id, status in table.dropped.items():
        warnings.add("table", "not_done", f"run {run_id} is {status} and not used")
    if undecayed and decayed:
        warnings.add(
            "table", "mixed_schedules", f"{len(undecayed)} undecayed and {len(decayed)} decayed runs: no fit mixes them"
        )
    if not noise.freedom:
        warnings.add(
            "table", "no_seeds", f"no cell was repeated with another seed: intervals assume a standard deviation of "
            f"{noise.sigma:g} of ln(loss) between seeds"
        )  # fmt: skip
    epochs = table.runs["epochs"].astype(float)
    if (epochs > MANY_EPOCHS).any():
        warnings.add(
            "table", "many_epochs", f"{int((epochs > MANY_EPOCHS).sum())} runs pass over the text more than "
            f"{MANY_EPOCHS:g} times (up to {epochs.max():.1f}); the laws assume fresh data"
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
