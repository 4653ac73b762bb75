# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the tests of the cluster are told with: node1, node2, volumes, images.

`node1` and `node2` belong to one guarded cluster for all tests, at rest before each and left so. A node that a test broke is
switched off and on again. What failed leaves its logs in a folder that is named at the end: VMGUARD_CLUSTER_LOGS.
"""

import os
import re
import shlex
import shutil
import sys
import threading
from contextlib import contextmanager
from typing import Iterator, List, Sequence, TypeVar

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "rig")]
pytest.register_assert_rewrite("hosts", "guests", "nodes", "guarded", "moves")

import hosts  # noqa: E402
import image  # noqa: E402
import nodes  # noqa: E402
from guarded import MOUNT, Guarded, Volume  # noqa: E402
from guests import IDLE, MiB  # noqa: E402
from nodes import Node, each  # noqa: E402

NEEDED = "qemu-system-x86_64 qemu-img mmdebstrap mke2fs cpio zstd ip unshare nsenter ssh ssh-keygen".split()
LOGS = os.environ.get("VMGUARD_CLUSTER_LOGS", os.path.join(image.BASE, "logs"))
# A cluster that stays for the next run, which then begins in a minute: for whoever writes tests. `make cluster-down` ends it.
KEEP = os.environ.get("VMGUARD_CLUSTER_KEEP") == "1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "smoke: of the part that is run for every change")
    config.addinivalue_line("markers", "slow: waits for the certain death of a node, two minutes and more")


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Skip all of it, with the reason, where the machine cannot hold a cluster. Asking for it in words makes that an error."""
    missing = [program for program in NEEDED if shutil.which(program, path=hosts.ENVIRONMENT["PATH"]) is None]
    why = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    if not why and not os.path.exists("/dev/net/tun"):
        why = "needs /dev/net/tun"
    if why and os.environ.get("VMGUARD_CLUSTER") == "must":
        raise pytest.UsageError(f"the cluster cannot run: it {why}")
    for item in items:
        if str(item.path).startswith(HERE):
            # The first test also waits for the image and for the nodes.
            item.add_marker(pytest.mark.timeout(1800))
            if why:
                item.add_marker(pytest.mark.skip(reason=f"the cluster {why}"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the logs of what failed, before the nodes are put to rest."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    cluster = getattr(item.session, "vmguard_cluster", None)
    if report.failed and cluster is not None:
        folder = os.path.join(LOGS, re.sub(r"[^a-zA-Z0-9_.-]", "_", item.name)[:80])
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        with open(os.path.join(folder, "why"), "w", encoding="utf-8") as file:
            file.write(report.longreprtext)
        each(cluster.hosts, lambda node: node.collect(os.path.join(folder, node.name)))
        report.sections.append(("logs of the nodes", folder))


Anyone = TypeVar("Anyone", bound=Guarded)


@contextmanager
def running(request: pytest.FixtureRequest, made: Anyone) -> Iterator[Anyone]:
    """A cluster that runs, and whose logs are kept when a test fails."""
    others = getattr(request.session, "vmguard_cluster", None)
    request.session.vmguard_cluster = made  # type: ignore[attr-defined]
    try:
        made.prepare()
        yield made
    finally:
        made.destroy()
        request.session.vmguard_cluster = others  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    """Two guarded nodes that run."""
    nodes.sweep()
    with running(request, Guarded("kept" if KEEP else "guarded", kept=KEEP)) as made:
        if KEEP:  # of a run that was killed
            each(made.hosts, Node.remove_all_guests)
        yield made


def rest(cluster: Guarded) -> Iterator[Guarded]:
    """The cluster for one test; then its guests go, and nothing may be left of them."""
    yield cluster
    left = []
    for node, found in zip(cluster.hosts, each(cluster.hosts, lambda node: put_to_rest(cluster, node))):
        if found:
            cluster.recover(node)
        left += [one for one in found if one != BROKEN]
    assert not left, "the guests are gone, and the nodes still have:\n" + "\n".join(left)


BROKEN = "a test broke it"


def put_to_rest(cluster: Guarded, node: Node) -> List[str]:
    """Remove a node's guests; what is left of them then."""
    if not node.was_on:
        return []
    # A member that has lost its lockspace still lists it for a while: the join knows.
    if not cluster.healthy(node) or node.vmguard("join", check=False).status:
        return [BROKEN]
    node.remove_all_guests()
    try:
        hosts.eventually(lambda: not node.leftovers(), "at rest", within=20 * cluster.patience, every=0.5)
    except AssertionError:
        return node.leftovers()
    return []


@pytest.fixture
def rested(cluster: Guarded) -> Iterator[Guarded]:
    """The cluster, at rest before the test and after it."""
    yield from rest(cluster)


@pytest.fixture
def node1(rested: Guarded) -> Node:
    return rested.hosts[0]


@pytest.fixture
def node2(rested: Guarded) -> Node:
    return rested.hosts[1]


class Volumes:
    """Logical volumes for one test; `make` gives one that is active on all nodes."""

    def __init__(self, cluster: Guarded) -> None:
        self.cluster = cluster
        self.names: List[str] = []

    def make(
        self, name: str, megabytes: int = 8, content: bytes = IDLE, options: Sequence[str] = (), shared: bool = True
    ) -> Volume:
        self.names.append(name)
        return self.cluster.volume(name, megabytes, content, options, shared)


def volumes_of(cluster: Guarded) -> Iterator[Volumes]:
    """Volumes for one test; then its guests go, and they."""
    made = Volumes(cluster)
    yield made
    for node in cluster.hosts:
        if not node.is_on():
            cluster.recover(node)
        node.remove_all_guests()
    if made.names:
        cluster.remove(*reversed(made.names))


@pytest.fixture
def volumes(rested: Guarded) -> Iterator[Volumes]:
    yield from volumes_of(rested)


@contextmanager
def watched(cluster: Guarded, volume: Volume, mark: int = 1) -> Iterator[None]:
    """The witness's counter on a volume is read all the time, below the nodes: it never goes back, and nobody else writes."""
    back: List[str] = []
    stop = threading.Event()

    def look() -> None:
        last = cluster.count(volume)
        while not stop.wait(0.02):
            now = cluster.count(volume)
            if now.value < last.value or now.mark not in (0, mark):
                back.append(f"from {last} to {now}")
            last = now

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not back, back


def counts(cluster: Guarded, volume: Volume) -> None:
    """The guest on a volume writes."""
    before = cluster.count(volume).value
    hosts.eventually(lambda: cluster.count(volume).value > before + 3, f"the guest on {volume.name} writes", within=90, every=0.2)


class Images:
    """Image files on GFS2, one folder a test."""

    def __init__(self, cluster: Guarded, folder: str) -> None:
        self.cluster = cluster
        self.folder = folder
        self.node = cluster.hosts[0]
        self.node.shell(f"rm -rf {folder}; mkdir -p {folder}; chmod 777 {folder}")

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def raw(self, name: str, content: bytes = IDLE, size: int = 2 * MiB) -> str:
        path = self.path(name)
        self.node.write(path, content, 0o666)
        self.node.run("truncate", "-s", str(size), path)
        return path


@pytest.fixture
def images(rested: Guarded, request: pytest.FixtureRequest) -> Iterator[Images]:
    folder = os.path.join(MOUNT, "images", re.sub(r"[^a-zA-Z0-9_.-]", "_", request.node.name)[:80])
    made = Images(rested, folder)
    yield made
    for node in rested.hosts:
        if node.pid:
            node.remove_all_guests()
    if made.node.pid:
        made.node.shell(f"rm -rf {shlex.quote(folder)}", check=False)
