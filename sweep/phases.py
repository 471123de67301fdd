"""How a stack of runs goes through its sequences: how many runs and sequences a pass has until which of them leave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from sweep.ladder import largest_divisor


@dataclass(frozen=True)
class PassCosts:
    """Seconds of one forward and backward pass."""

    calls: float  # of a pass
    token: float  # of a token of a run by itself
    together: float = 1.0  # times that, of a token of several runs: many small products for one large one

    def seconds(self, runs: int, tokens: int) -> float:
        """Of a pass over so many tokens of each of `runs`."""
        return self.calls + self.token * runs * tokens * (self.together if runs > 1 else 1.0)


@dataclass(frozen=True)
class Phase:
    """What a stack does until some of its runs leave."""

    runs: int
    micro: int  # sequences of each run in a pass
    passes: float
    leaving: tuple[int, ...]  # which runs leave at its end

    def seconds(self, costs: PassCosts, n_ctx: int) -> float:
        """Of all its passes."""
        return self.passes * costs.seconds(self.runs, self.micro * n_ctx)


@lru_cache(maxsize=4096)
def phases(members: tuple[tuple[int, int, int], ...]) -> list[Phase]:
    """The phases of a stack of runs of (sequences in all, sequences a batch, sequences a pass at most), in time. All
    stand at one position, and a pass ends where any of them may have its update."""
    order = sorted(range(len(members)), key=lambda i: -members[i][0])
    backwards: list[Phase] = []  # from the end, where the longest run is alone
    common = limit = 0
    for count, i in enumerate(order, 1):
        sequences, batch, most = members[i]
        common, limit = math.gcd(common, batch), min(limit or most, most)
        start = members[order[count]][0] if count < len(order) else 0
        leaving = (i, *backwards.pop().leaving) if backwards and not backwards[-1].passes else (i,)
        micro = largest_divisor(common, limit)
        backwards.append(Phase(count, micro, (sequences - start) / micro, leaving))
    return backwards[::-1]
