# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures that several test modules share."""

import os
from typing import Iterator, NamedTuple

import hypothesis
import pytest
from sanlock_hosts import SANLOCK, Cluster, Host

from vmguard import host as this_host
from vmguard.leases import lockspace
from vmguard.leases.store import Store

# How fast examples come is no matter of this code: the machine may be busy.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: waits for the certain death of a host, more than a minute")


def key(name: str) -> this_host.HostKey:
    """The machine that a host of a test is."""
    return this_host.HostKey(name.encode().hex().ljust(16, "0")[:16], name)


class Pair(NamedTuple):
    """Two hosts, 1 and 2 of one store."""

    one: Host
    two: Host
    store: Store
    cluster: Cluster


def joined(host: Host, path: str, host_id: int) -> None:
    """Claim a host id, and join by it."""
    store = Store.open(path)
    store.claim_host_id(host_id, key(host.name))
    lockspace.join(store, host_id, key(host.name))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A place for hosts."""
    if not os.access(SANLOCK, os.X_OK) or os.geteuid() != 0:
        pytest.skip("needs sanlock, and root")
    found = Cluster()
    try:
        yield found
    finally:
        found.close()


def _pair(kind: str) -> Iterator[Pair]:
    if not os.access(SANLOCK, os.X_OK) or os.geteuid() != 0:
        pytest.skip("needs sanlock, and root")
    cluster = Cluster()
    try:
        one, two = cluster.host("one"), cluster.host("two")
        path = cluster.device(2048, 4096 if kind == "device4k" else 512) if kind != "directory" else cluster.store_path
        one.run(lambda: Store.create(path, 1).path)
        one.run(lambda: joined(one, path, 1))
        two.run(lambda: joined(two, path, 2))
        yield Pair(one, two, Store.open(path), cluster)
    finally:
        cluster.close()


# The kinds of stores there are; a device with sectors of 4096 bytes counts as one of its own.
KINDS = ("directory", "device", "device4k")


@pytest.fixture(scope="session", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two hosts that stay for all tests: each test takes leases of its own."""
    yield from _pair(request.param)


@pytest.fixture(scope="session")
def directory() -> Iterator[Pair]:
    """The same over a directory, for what only files can have."""
    yield from _pair("directory")


@pytest.fixture(scope="session", params=KINDS[1:])
def device(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The same over a block device."""
    yield from _pair(request.param)


@pytest.fixture
def identity(request: pytest.FixtureRequest) -> str:
    """An identity that no other test uses."""
    return f"test:{request.node.nodeid}"
