"""Columns of numbers as they come from anybody's table: equal in length, finite, positive."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sweep.schema import InputError


def positive(law: str, **columns: npt.ArrayLike | None) -> dict[str, np.ndarray]:
    """The columns that are not None as float arrays [n]. Raises InputError, naming `law`, the column and the row, where
    they differ in length or hold anything but positive numbers."""
    found = {name: np.atleast_1d(np.asarray(values, dtype=float)) for name, values in columns.items()
             if values is not None}  # fmt: skip
    lengths = {len(values) for values in found.values()}
    if len(lengths) > 1:
        text = ", ".join(f"{name} {len(values)}" for name, values in found.items())
        raise InputError(f"{law}: columns of different lengths ({text}); give one value a row in each")
    for name, values in found.items():
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            row, count = int(np.flatnonzero(bad)[0]), int(bad.sum())
            raise InputError(
                f"{law}: {name} {values[row]:g} in row {row} is not a positive number ({count} such "
                f"row{'s' * (count > 1)}); correct or remove {'them' if count > 1 else 'it'}"
            )
    return found
