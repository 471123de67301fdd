"""Laws of one synthetic sweep and files of all figures, made once for all tests that look at them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from analysis.chain.derive import derive
from analysis.chain.results import Laws
from analysis.figures import write_measured
from analysis.tables.table import Table
from analysis.uncertainty.simulate import synthetic_sweep


@dataclass(frozen=True)
class Derived:
    """A table and its laws."""

    table: Table
    laws: Laws


def _derive(table: Table, replicates: int) -> Derived:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Derived(table, derive(table, replicates=replicates, seed=0))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def full() -> Derived:
    """A sweep that supports every law."""
    return _derive(synthetic_sweep(points_per_decade=6), replicates=8)


@pytest.fixture(scope="session")
def poor() -> Derived:
    """A sweep of two sizes, which supports the critical batch and nothing else; no intervals."""
    return _derive(synthetic_sweep(cells={(2, 16): (2, 8, 32), (2, 32): (16,)}, points_per_decade=6), replicates=0)


@pytest.fixture(scope="session")
def published_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `isoloss figures published`, run as a user does and without loading torch, which costs seconds."""
    out = tmp_path_factory.mktemp("published")
    script = "import sys; from analysis.cli.verbs import run; code = run('figures', sys.argv[1:]); "
    script += "sys.exit(code or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script, "published", "--out", str(out)], check=True, timeout=120)
    return out


@pytest.fixture(scope="session")
def measured_files(full: Derived, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Figure -> its four files, of the sweep that supports all."""
    return write_measured(full.laws, tmp_path_factory.mktemp("measured"), dpi=50)
