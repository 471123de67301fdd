"""Which runs are trained as one stacked model."""

from __future__ import annotations

from collections.abc import Iterable

from sweep.spec import PlannedRun


def stacks(runs: Iterable[PlannedRun]) -> list[list[PlannedRun]]:
    """`runs` by their stack, a run without one by itself. Stacks stand where their first run does, and members in the
    order of `runs`."""
    found: dict[tuple[str, int | str], list[PlannedRun]] = {}
    for run in runs:
        key = ("alone", run.run_id) if run.stack is None else ("stack", run.stack)
        found.setdefault(key, []).append(run)
    return list(found.values())
