"""A real SLURM of four nodes for the tests of this folder, which are skipped where it cannot run.

One that is up already, by `scripts/slurm_local.sh up`, is used and left up: quicker while tests are written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from drills.cluster import Cluster, missing

# Small enough that sweeps of tests are split, which an array of 1,001 would rarely show.
ARRAY = "8"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, so that `-m "not slurm"` leaves them out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slurm")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, up; SLURM_CONF names it."""
    if reason := missing():
        pytest.skip(reason)
    cluster = Cluster(ARRAY=ARRAY)
    cluster.up()
    yield cluster
    if not cluster.was_up:
        cluster.down()


@pytest.fixture(autouse=True)
def nodes_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Brings back, after every test, the nodes that it took away."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").up()
