"""When a sweep is hopeless: the first runs that ended have all failed, and all with one error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweep.record import FINISHED

# What differs between two messages of one error: paths, hexadecimal names such as run ids, numbers.
VARYING = re.compile(
    r"(?:\.{0,2}/|~/)[^\s:;,'\"()]*|\b0x[0-9a-f]+\b|\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b|\d+(?:\.\d+)?(?:e[+-]?\d+)?", re.I
)


def alike(errors: Sequence[str]) -> str | None:
    """The first of `errors` where all say the same, paths and numbers aside, else None."""
    return errors[0] if len({VARYING.sub("#", error) for error in errors}) == 1 else None


def common_failure(ended: Sequence[tuple[str, str | None]], stop_after: int) -> str | None:
    """Why a sweep should stop, or None: of the runs that have ended for good in this call, given by status and error,
    there are `stop_after` or more and all have failed with one error."""
    if len(ended) < stop_after or any(status != "failed" for status, _ in ended):
        return None
    error = alike([error or "unknown" for _, error in ended])
    return error and f"the first {len(ended)} runs that ended have all failed with: {error}"


def ended_for_good(
    statuses: Iterable[Mapping[str, Any]], retries: int, submission: int
) -> list[tuple[str, str | None]]:
    """Status and error of the runs that have ended in call `submission` and are not tried again in it, for
    `common_failure`; `statuses` are contents of status.json."""
    return [
        (status["status"], status.get("error"))
        for status in statuses
        if (status.get("claim") or [None])[0] == submission
        and (status["status"] in FINISHED or failed_for_good(status, retries))
    ]


def failed_attempts(status: Mapping[str, Any]) -> int:
    """Attempts at a run that have failed since a person asked for it. Those that ran out of memory and left a smaller
    micro-batch to the next are its progress, so that they do not count."""
    return int(status.get("failures", 0)) - len(status.get("halved_in", ()))


def failed_for_good(status: Mapping[str, Any], retries: int) -> bool:
    """Whether a run has failed and is not to be tried again unless a person asks."""
    return status["status"] == "failed" and (failed_attempts(status) > retries or status.get("retry") is False)
