# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the tests of the rig are told with: node1, node2, node3, images.

`node1` and `node2` belong to one guarded cluster for all tests. Each test finds it at rest and must leave it so: when its
guests are gone, no host holds a lease and none has a record. A host that a test broke is switched off and on again.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from typing import Iterator, List, NamedTuple, Optional

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
pytest.register_assert_rewrite("hosts", "clusters", "guests")

import hosts  # noqa: E402
from clusters import Guarded, OnDevice  # noqa: E402
from guests import IDLE, MiB  # noqa: E402
from hosts import Cluster, Host  # noqa: E402

NEEDED = ("libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "sanlock", "ip", "unshare", "nsenter", "losetup")


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Skip all of it, with the reason, where the machine cannot be a rig. Asking for it in words makes that an error."""
    missing = [program for program in NEEDED if shutil.which(program, path=hosts.ENVIRONMENT["PATH"]) is None]
    why = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    if why and os.environ.get("VMGUARD_RIG") == "must":
        raise pytest.UsageError(f"the rig cannot run: it {why}")
    for item in items:
        if why and str(item.path).startswith(hosts.HERE):
            item.add_marker(pytest.mark.skip(reason=f"the rig {why}"))


@pytest.fixture(scope="session", autouse=True)
def swept() -> None:
    hosts.sweep()


@pytest.fixture(scope="session")
def cluster(swept: None) -> Iterator[Guarded]:
    """
    Two guarded hosts that run, and a third that `node3` switches on. VMGUARD_RIG_STORE=device: with their leases on a block
    device, for every test that does not look into the directory.
    """
    kind = OnDevice if os.environ.get("VMGUARD_RIG_STORE") == "device" else Guarded
    made = kind("guarded", hosts=3)
    try:
        made.boot(made.hosts[:2])
        yield made
    finally:
        made.destroy()


def rest(cluster: Guarded) -> Iterator[Guarded]:
    """The cluster for one test; then its guests go, and nothing may be left of them."""
    yield cluster
    left = []
    for host in cluster.hosts:
        if not host.was_on:
            continue
        # A member that has lost its lockspace still lists it for a while: the join knows.
        if not cluster.healthy(host) or host.vmguard("join", check=False).status:
            cluster.recover(host)
            continue
        host.remove_all_guests()
        try:
            hosts.eventually(lambda host=host: not host.leftovers(), "at rest", within=5)  # type: ignore[misc]
        except AssertionError:
            left += host.leftovers()
            cluster.recover(host)
    assert not left, "the guests are gone, and the hosts still have:\n" + "\n".join(left)


@pytest.fixture
def rested(cluster: Guarded) -> Iterator[Guarded]:
    """The cluster, at rest before the test and after it."""
    yield from rest(cluster)


@pytest.fixture
def node1(rested: Guarded) -> Host:
    return rested.hosts[0]


@pytest.fixture
def node2(rested: Guarded) -> Host:
    return rested.hosts[1]


@pytest.fixture
def node3(rested: Guarded) -> Host:
    if not rested.hosts[2].pid:
        rested.boot([rested.hosts[2]])
    return rested.hosts[2]


class Portrait(NamedTuple):
    """Everything about a file that a start which got too far would change."""

    owner: int
    group: int
    mode: int
    size: int
    changed: int  # ctime: chown, chmod, labels and writes all move it
    digest: str


def portrait(path: str) -> Portrait:
    status = os.stat(path)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return Portrait(
        status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_size, status.st_ctime_ns, digest
    )


class Images:
    """Disk images in a folder that all hosts see, one folder a test."""

    def __init__(self, cluster: Cluster, folder: str) -> None:
        self.cluster = cluster
        self.folder = folder
        os.makedirs(folder)
        os.chmod(folder, 0o777)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def raw(self, name: str, content: bytes = IDLE, size: int = 2 * MiB) -> str:
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(content)
            file.truncate(size)
        os.chmod(path, 0o666)
        return path

    def qcow2(self, name: str, backing: Optional[str] = None, backing_format: str = "raw", size: int = 2 * MiB) -> str:
        path = self.path(name)
        words = ["qemu-img", "create", "-q", "-f", "qcow2"]
        words += ["-b", backing, "-F", backing_format] if backing else []
        subprocess.run([*words, path, *([] if backing else [str(size)])], check=True)
        os.chmod(path, 0o666)
        return path

    def block(self, name: str, content: bytes = IDLE, size: int = 2 * MiB) -> str:
        """A block device that each host reaches through a node of its own, as a LUN or a shared volume is."""
        return self.cluster.block_device(name, self.raw(name + ".backing", content, size))


def images_of(cluster: Cluster, test: str) -> Iterator[Images]:
    folder = os.path.join(cluster.shared, re.sub(r"[^a-zA-Z0-9_.-]", "_", test)[:80])
    shutil.rmtree(folder, ignore_errors=True)
    yield Images(cluster, folder)
    cluster.forget_loops()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def images(rested: Guarded, request: pytest.FixtureRequest) -> Iterator[Images]:
    yield from images_of(rested, request.node.name)
