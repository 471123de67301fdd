"""S_min, E_min and C_min of every evaluation (Kaplan et al. 2020, Eqs. 5.4, 5.5): a table as long as the curves.

At 1e7 rows it is the largest thing the analysis makes, so it is made in blocks and written as it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.tables.runs import Run
from analysis.tables.table import Table

_BLOCK = 2**19  # rows
_FEW = ["run_id", "group", "params", "batch_tokens", "lr", "seed"]  # columns of one value a run


@dataclass(frozen=True)
class Adjusted:
    """The evaluations of the undecayed `runs`, with B_crit at their loss.

    law: (intercept, slope) of ln B_crit against ln L, None where there is none; then what follows from it is nan.
    measured: losses (lowest, highest) at which the law is known; `extrapolated` says which rows lie outside.
    """

    table: Table
    runs: Sequence[Run]
    law: tuple[float, float] | None
    measured: tuple[float, float]

    def frame(self) -> pd.DataFrame:
        """All of it."""
        return pd.concat(list(self.blocks()), ignore_index=True)

    def write(self, path: Path) -> None:
        """As Parquet."""
        writer = None
        for block in self.blocks():
            rows = pa.Table.from_pandas(block, preserve_index=False)
            writer = writer or pq.ParquetWriter(path, rows.schema, use_dictionary=_FEW)
            writer.write_table(rows)
        if writer is not None:
            writer.close()

    def blocks(self) -> Iterator[pd.DataFrame]:
        """Rows of several runs at a time; one empty frame where there are no runs."""
        spans = dict(zip(self.table.runs["run_id"], self.table.spans().tolist(), strict=True))
        chosen: list[tuple[Run, slice]] = []
        rows = 0
        for run in self.runs:
            first, past = spans[run.run_id]
            first += int(self.table.curves["tokens"].to_numpy()[first] == 0)  # the evaluation before training
            chosen.append((run, slice(first, past)))
            rows += past - first
            if rows >= _BLOCK:
                yield self._block(chosen)
                chosen, rows = [], 0
        if chosen or not self.runs:
            yield self._block(chosen)

    def _block(self, chosen: list[tuple[Run, slice]]) -> pd.DataFrame:
        members = [run for run, _ in chosen]
        count = np.array([rows.stop - rows.start for _, rows in chosen], dtype=int)
        row = np.concatenate([np.arange(rows.start, rows.stop) for _, rows in chosen]) if chosen else count
        curves = self.table.curves
        tokens, step = curves["tokens"].to_numpy()[row], curves["step"].array[row].to_numpy(float, na_value=np.nan)
        at, ends = np.log(tokens), np.cumsum(count)
        ln_loss = np.empty(len(row))
        for run, a, b in zip(members, ends - count, ends, strict=True):
            ln_loss[a:b] = np.interp(at[a:b], run.curve.x, run.curve.y)

        def each(values: list[float]) -> np.ndarray:
            return np.repeat(np.array(values, dtype=float), count)

        batch, flops = each([run.batch for run in members]), each([run.flops_per_token for run in members]) * tokens
        b_crit = np.full(len(row), np.nan) if self.law is None else np.exp(self.law[0] + self.law[1] * ln_loss)
        loss, share = np.exp(ln_loss), 1 / (1 + batch / b_crit)
        groups = pd.Categorical([run.group for run in members], categories=sorted({run.group for run in self.runs}))
        columns = {
            "run_id": curves["run_id"].array[row],
            "group": groups.repeat(count),
            "params": each([run.params for run in members]),
            "batch_tokens": batch,
            "lr": each([run.lr for run in members]),
            "seed": np.repeat(np.array([run.seed for run in members], dtype=int), count),
            "step": step,
            "tokens": tokens,
            "flops": flops,
            "test_loss": curves["test_loss"].to_numpy()[row],
            "loss": loss,
            "warmup": at < each([run.curve.start for run in members]),
            "B_crit": b_crit,
            "steps_min": step / (1 + b_crit / batch),
            "tokens_min": tokens * share,
            "flops_min": flops * share,
            "extrapolated": (loss < self.measured[0]) | (loss > self.measured[1]) | (self.law is None),
        }
        return pd.DataFrame(columns, copy=False)
