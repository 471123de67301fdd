"""The figures, one module each, and their registry.

    from analysis.figures import write_published
    write_published(Path("figures"))      # each figure of the papers, from published constants

A module has `NAME`, `LAW` (the law it shows, as warnings name it), `published()`, `measured(laws)` (None where the
sweep cannot support the figure) and `draw(data)`. Each figure is written as NAME.png, .svg, .pdf and, with exactly what
is drawn, .csv.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.chain.results import Laws

# In the order of the report.
NAMES = (
    "contributions",
    "optimal_size_and_steps",
    "critical_batch",
    "loss_slices",
    "frontier",
    "parameters_vs_flops",
    "isoflop",
    "isoloss",
)
DPI = 160


def module(name: str) -> Any:
    """The module of figure `name`; importing it imports matplotlib."""
    return importlib.import_module(f"{__name__}.{name}")


def write_published(out: Path, *, dpi: int = DPI) -> dict[str, list[Path]]:
    """Draw every figure from published constants into `out`; name -> its four files."""
    return {name: _write(module(name), module(name).published(), out, dpi) for name in NAMES}


def write_measured(laws: Laws, out: Path, *, dpi: int = DPI) -> dict[str, list[Path]]:
    """Draw every figure that `laws` supports into `out`; name -> its four files. The others are left out."""
    return {name: _write(figure, data, out, dpi) for name, figure, data in _supported(laws)}


def _supported(laws: Laws) -> Iterator[tuple[str, Any, Any]]:
    for name in NAMES:
        data = module(name).measured(laws)
        if data is not None:
            yield name, module(name), data


def _write(figure: Any, data: Any, out: Path, dpi: int) -> list[Path]:
    from analysis.figures import style

    return style.save(figure.draw(data), data, out, dpi=dpi)
