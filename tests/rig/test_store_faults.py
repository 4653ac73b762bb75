# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The store of leases is full, read-only, away, somebody else's, frozen, or a file in it is damaged.

A start is refused in words that name the place; guests that run are not touched, as long as the store is not away for so
long that sanlock must end them; and when the fault is gone, or after `vmguard gc --repair`, things work again.
"""

import json
import os
import shutil
import time
from contextlib import contextmanager
from typing import Callable, ContextManager, Iterator

import pytest
from clusters import SmallStore
from conftest import Images, images_of, rest
from guests import guest
from hosts import Host, eventually


@pytest.fixture(scope="module")
def small() -> Iterator[SmallStore]:
    made = SmallStore("small-store", hosts=2)
    try:
        made.boot()
        yield made
    finally:
        made.destroy()


@pytest.fixture
def rested(small: SmallStore) -> Iterator[SmallStore]:
    yield from rest(small)  # type: ignore[misc]


@pytest.fixture
def images(rested: SmallStore, request: pytest.FixtureRequest) -> Iterator[Images]:
    yield from images_of(rested, request.node.name)


@pytest.fixture
def store(small: SmallStore) -> str:
    return small.store


@contextmanager
def full(host: Host, store: str) -> Iterator[None]:
    host.shell(f"cat /dev/zero >{store}/filler 2>/dev/null; sync")
    try:
        yield
    finally:
        host.run("rm", f"{store}/filler")


@contextmanager
def read_only(host: Host, store: str) -> Iterator[None]:
    """For this host alone, and its lease files: sanlock has the lockspace open for writing, so that cannot be."""
    leases = f"{store}/leases"
    host.run("mount", "--bind", leases, leases)
    host.run("mount", "-o", "remount,bind,ro", leases)
    try:
        yield
    finally:
        host.run("umount", leases)


@contextmanager
def away(host: Host, store: str) -> Iterator[None]:
    """Not mounted: a path that is there and empty."""
    host.run("umount", "--lazy", store)
    try:
        yield
    finally:
        assert isinstance(host.cluster, SmallStore)
        host.cluster.mount_store(host)


@contextmanager
def somebody_elses(host: Host, store: str) -> Iterator[None]:
    """Another store is mounted in its place."""
    other = f"{host.folder}/other-store"
    host.shell(f"rm -rf {other} && cp -r {store} {other}")
    host.shell(f"sed -i 's/[0-9a-f]\\{{32\\}}/{'0' * 32}/g' {other}/vmguard.json")
    host.run("mount", "--bind", other, store)
    try:
        yield
    finally:
        host.run("umount", store)


FAULTS = [full, read_only, away, somebody_elses]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_store_cannot_be_used(
    fault: Callable[[Host, str], ContextManager[None]], node1: Host, node2: Host, images: Images, store: str
) -> None:
    disk = images.raw("web.img")
    web, other = guest("web", [disk]), guest("other", [images.raw("other.img")])
    node1.start(web)
    with fault(node1, store):
        words = node1.refused(other)
        assert store in words and "do:" in words and "in use" not in words, words
        assert node1.state(web) == "running"
        assert "web" in node2.refused(guest("thief", [disk]))
        assert not node1.runs(other)
    node1.start(other)


def test_a_guest_ends_while_the_store_is_away(node1: Host, node2: Host, images: Images, store: str) -> None:
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    with away(node1, store):
        node1.destroy(web)
        assert not node1.runs(web)
    if node2.try_start(guest("next", [disk])).status:
        node1.vmguard("gc")
        node2.start(guest("next", [disk]))


def test_a_full_store_keeps_no_rubbish(node1: Host, images: Images, store: str) -> None:
    """Half-made lease files would keep it full."""
    before = sorted(os.listdir(node1.path(f"{store}/leases")))
    with full(node1, store):
        for number in range(5):
            node1.refused(guest(f"g{number}", [images.raw(f"{number}.img")]))
    assert sorted(os.listdir(node1.path(f"{store}/leases"))) == before


def lease_of(host: Host, store: str, disk: str) -> str:
    """The lease file of a disk that a running guest writes, found by its note."""
    folder = host.path(f"{store}/leases")
    for entry in os.listdir(folder):
        if entry.endswith(".note"):
            with open(f"{folder}/{entry}", encoding="utf-8") as file:
                note = json.load(file)
            if note["path"] == disk and note["mode"] == "exclusive":
                return f"{store}/leases/{entry.split('.')[0]}"
    raise AssertionError(f"no note names {disk}")


def truncated(path: str) -> None:
    os.truncate(path, 700)


def emptied(path: str) -> None:
    os.truncate(path, 0)


def garbage(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(os.urandom(8192))
        os.fsync(file.fileno())


def zeros(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())


def second(path: str) -> str:
    """The other name of a lease file."""
    return path.replace("/leases/", "/kept/")


def removed(path: str) -> None:
    os.unlink(path)
    os.unlink(second(path))


def replaced(path: str) -> None:
    """By a copy, as from a backup."""
    shutil.copy(path, path + ".copy")
    os.replace(path + ".copy", path)


DAMAGES = [truncated, emptied, garbage, zeros, removed, replaced]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_lease(
    damage: Callable[[str], None], node1: Host, node2: Host, images: Images, store: str
) -> None:
    """Nobody has it: refused, mended by the command that the refusal names."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    lease = lease_of(node1, store, disk)
    node1.destroy(web)
    damage(node1.path(lease))
    words = node2.refused(web)
    assert "damaged" in words and lease in words and "vmguard gc --repair" in words, words
    assert node1.refused(web)
    elsewhere = node2.vmguard("gc", "--repair", check=False)
    assert elsewhere.status == 1 and "node1 had it last" in elsewhere.out, elsewhere
    node1.vmguard("gc", "--repair")
    node2.start(web)
    assert "web" in node1.refused(guest("thief", [disk]))


@pytest.mark.parametrize("damage", [garbage, truncated, removed, replaced], ids=lambda damage: damage.__name__)
def test_a_damaged_lease_of_a_running_guest(
    damage: Callable[[str], None], node1: Host, node2: Host, images: Images, store: str
) -> None:
    """Repair must not free what somebody has: it says so and leaves it, on both hosts."""
    disk = images.raw("web.img")
    web, thief = guest("web", [disk]), guest("thief", [disk])
    node1.start(web)
    damage(node1.path(lease_of(node1, store, disk)))
    node2.refused(thief)
    assert f"the lease of {disk} is not on the disk as web has it" in node1.vmguard("status", check=False).out
    for host in (node2, node1):
        assert host.vmguard("gc", "--repair", check=False).status == 1
    node2.refused(thief)
    node1.refused(thief)
    assert node1.state(web) == "running"
    node1.destroy(web)
    eventually(lambda: not node1.vmguard("gc", "--repair", check=False).status, "it is mended when the guest is gone")
    node2.start(thief)


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_lease_file_that_is_removed_under_its_guest(
    name: str, node1: Host, node2: Host, images: Images, store: str
) -> None:
    """It is put back before it could be made a second time, by whoever wants it next."""
    disk = images.raw("web.img")
    web, thief = guest("web", [disk]), guest("thief", [disk])
    node1.start(web)
    lease = node1.path(lease_of(node1, store, disk))
    os.unlink(lease if name == "first" else second(lease))
    assert '"web"' in node2.refused(thief)
    assert os.path.samefile(lease, second(lease))
    assert name == "second" or "put-back" in node2.read("/var/log/vmguard/events.jsonl")
    node1.destroy(web)
    node2.start(thief)
    assert '"thief"' in node1.refused(web)


def test_a_lease_file_that_was_being_made(node1: Host, images: Images, store: str) -> None:
    """What a host that died while making one leaves behind is in nobody's way."""
    node1.shell(f"head -c 4096 /dev/zero >{store}/leases/new.4711.1 ; touch {store}/leases/new.4712.1")
    node1.start(guest("web", [images.raw("web.img")]))
    node1.vmguard("gc")


def test_the_store_is_frozen_for_a_moment(node1: Host, node2: Host, images: Images, store: str) -> None:
    """Shorter than what sanlock allows: starts wait or are refused, nobody is ended."""
    disk = images.raw("web.img")
    web, other = guest("web", [disk]), guest("other", [images.raw("other.img")])
    node1.start(web)
    node1.write("/etc/vmguard/vmguard.conf.d/90-test.conf", "[guard]\ndeadline = 2\n")
    node1.run("fsfreeze", "--freeze", store)
    try:
        words = node1.refused(other)
    finally:
        node1.run("fsfreeze", "--unfreeze", store)
        node1.run("rm", "/etc/vmguard/vmguard.conf.d/90-test.conf")
    assert "no answer within" in words, words
    assert node1.state(web) == "running"
    node1.start(other)
    assert "web" in node2.refused(guest("thief", [disk]))


def test_the_store_is_frozen_for_too_long(node1: Host, node2: Host, images: Images, store: str) -> None:
    """sanlock ends the guests, since another host may soon take their disks; `vmguard join` brings the host back."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    node1.run("fsfreeze", "--freeze", store)
    began = time.monotonic()
    try:
        eventually(lambda: not node1.runs(web), "sanlock has ended the guest", within=30)
        print(f"ended after {time.monotonic() - began:.1f} s")
    finally:
        node1.run("fsfreeze", "--unfreeze", store)
    eventually(lambda: not node1.lockspaces(), "the lockspace is left", within=30)
    words = node1.refused(guest("other", [images.raw("other.img")]))
    assert "vmguard join" in words, words
    for host in (node1, node2):
        eventually(lambda host=host: not host.vmguard("join", check=False).status, "it joins", within=30)  # type: ignore[misc]
    node2.start(guest("next", [disk]))
