# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What stands in the way of a conversion is found before the old store is marked; what comes after cannot be stopped by one lease.
With real sanlock daemons, and without guests: tests/rig/test_conversion.py has those.
"""

import os
import signal
from pathlib import Path
from typing import Any, Callable, List

import pytest
from conftest import Pair, joined, key
from sanlock_hosts import Cluster, Host
from test_device_store import acquired, quick  # noqa: F401
from test_store import NOTE

from vmguard import conversion, host, membership, paths
from vmguard.errors import BadRequest, StoreBroken
from vmguard.leases import Lease, Writer, client, lockspace
from vmguard.leases._cluster import Elsewhere
from vmguard.leases._directory import DirectoryStore
from vmguard.leases.store import Store, exists
from vmguard.setup import others

Nothing = Callable[[], Any]


@pytest.fixture
def moving(cluster: Cluster, quick: None) -> Pair:  # noqa: F811
    """A cluster over a directory. The second host has left it."""
    one, two = cluster.host("one"), cluster.host("two")
    path = cluster.store_path
    one.run(lambda: Store.create(path, 1).path)
    one.run(lambda: joined(one, path, 1))
    Store.open(path).claim_host_id(2, key("two"))
    return Pair(one, two, Store.open(path), cluster)


def configured(pair: Pair, here: Host, host_id: int, shared: str = "yes") -> None:
    """In a child: be set up."""
    root = Path(pair.cluster.base, f"root-{here.name}")
    for name in ("run", "state", "log"):
        setattr(paths, name.upper(), str(root / name))
        os.makedirs(root / name, exist_ok=True)
    paths.CONFIG, paths.CONFIG_DIR = str(root / "vmguard.conf"), str(root / "vmguard.conf.d")
    Path(paths.CONFIG).write_text(
        f"[store]\npath = {pair.store.path}\ncluster = {pair.store.cluster}\nhost_id = {host_id}\n"
        f"shared = {shared}\nio_timeout = 1\n"
    )
    host.key = lambda: key(here.name)


def convert(pair: Pair, target: str, before: Nothing = lambda: None, shared: bool = True, told: Any = None) -> Any:
    """On the first host. before: what is done there first. told: what is done with the words."""

    def work() -> conversion.Converted:
        configured(pair, pair.one, 1)
        before()
        return conversion.convert(target, told or (lambda words: None), shared)

    return pair.one.run(work, 200)


def used(pair: Pair, identity: str, **more: Any) -> Lease:
    """A lease that somebody has had, with a note that says so."""
    lease = pair.one.run(lambda: pair.store.ensure(identity))
    lver = pair.one.run(lambda: acquired(lease))
    pair.store.write_note(NOTE._replace(identity=identity, lver=lver, writer=Writer(lver, "u-u", "d", "h", 1.0), **more))
    assert isinstance(lease, Lease)
    return lease


def untouched(pair: Pair) -> None:
    """The old store is what it was, for everybody."""
    Store.open(pair.store.path, pair.store.cluster)
    assert pair.one.run(lambda: lockspace.state(Store.open(pair.store.path), 1)) == "joined"


def test_what_is_known_goes_along(moving: Pair) -> None:
    used(moving, "file:a")
    moving.one.run(lambda: moving.store.ensure("file:never-used"))
    target = moving.cluster.device(64)
    done = convert(moving, target)
    assert (done.carried, done.lost) == (1, 1)
    note = Store.open(target).note("file:a")
    assert note is not None and note.lver == 0 and note.writer is not None and note.writer.uuid == "u-u"
    assert Store.look(moving.store.path).facts.moved == Elsewhere(target, Store.open(target).cluster)


# -- the place ---------------------------------------------------------------------------------------------------------


def test_a_place_that_setup_would_refuse(moving: Pair) -> None:
    """It would do so when the old store is no more."""
    point = Path(moving.cluster.base, "point")
    point.mkdir()
    fstab = Path(moving.cluster.base, "fstab")
    fstab.write_text(f"/dev/x {point} gfs2 defaults 0 0\n")

    def here() -> None:
        others.FSTAB = str(fstab)

    device = moving.cluster.device(64)
    for target, why in (
        (str(point / "store"), "not mounted"), ("/dev/shm/leases", "no block device"), ("/dev/none/leases", "no block device"),
    ):  # fmt: skip
        with pytest.raises(BadRequest, match=why):
            convert(moving, target, here)
        assert not os.path.lexists(target)
    with pytest.raises(BadRequest, match="other hosts do not see") as caught:
        convert(moving, device, shared=False)
    assert "--shared yes" in caught.value.remedy
    assert not exists(device)
    untouched(moving)


def test_a_device_that_this_host_uses(moving: Pair) -> None:
    device = moving.cluster.device(64)

    def here() -> None:
        used = conversion.place.device(device)._replace(used="it is mounted on /srv")
        conversion.place.device = lambda path: used  # type: ignore[assignment]

    with pytest.raises(BadRequest, match="cannot hold leases: it is mounted on /srv"):
        convert(moving, device, here)
    assert not exists(device)
    untouched(moving)


@pytest.mark.parametrize("kind", ["device", "directory"])
def test_too_little_room(moving: Pair, kind: str) -> None:
    """Found out while there is a way back; with more room the same command goes on."""
    for number in range(6):
        used(moving, f"file:{number}")
    target = moving.cluster.device(32) if kind == "device" else os.path.join(moving.cluster.base, "new")

    def full() -> None:
        real = os.statvfs
        conversion.os.statvfs = lambda path: os.statvfs_result((*real(path)[:4], 2000, *real(path)[5:]))  # type: ignore

    with pytest.raises(BadRequest, match="room for the leases of [26] storage objects, and needs it for 7") as caught:
        convert(moving, target, full)
    assert "make it larger" in caught.value.remedy
    untouched(moving)
    if kind == "device":
        moving.cluster.grow(target, 64)
    assert convert(moving, target).carried == 6


# -- one lease ---------------------------------------------------------------------------------------------------------


def test_a_damaged_lease_stops_nothing(moving: Pair) -> None:
    """Who wrote what it was for is lost; which of its saved states are used up is not."""
    damaged, short = used(moving, "file:a"), used(moving, "file:short")
    woken = used(moving, "domain:c", restored=("mark",))
    used(moving, "file:b")
    for lease in (damaged, woken):
        with open(lease.path, "r+b") as file:
            file.write(b"\xff" * 512)
    os.truncate(short.path, 0)
    target = moving.cluster.device(64)
    done = convert(moving, target)
    assert (done.carried, done.lost) == (2, 2)
    note = Store.open(target).note("domain:c")
    assert note is not None and (note.writer, note.restored) == (None, ("mark",))


def test_an_old_store_that_goes_away_half_way(moving: Pair) -> None:
    """That is not the fault of one lease: nothing is given up, and the same command goes on."""
    used(moving, "file:a")
    target = moving.cluster.device(64)
    gone = moving.store.path + "-gone"

    def told(words: str) -> None:
        if words.startswith("joining"):
            names = DirectoryStore.lease_names

            def then_gone(self: DirectoryStore) -> List[str]:
                found = names(self)
                os.rename(moving.store.path, gone)
                return found

            DirectoryStore.lease_names = then_gone  # type: ignore[method-assign]

    with pytest.raises(StoreBroken):
        convert(moving, target, told=told)
    os.rename(gone, moving.store.path)
    assert convert(moving, target).carried == 1


def test_what_was_carried_over_and_is_not_true_any_more(moving: Pair) -> None:
    lease = used(moving, "file:a")
    target = moving.cluster.device(64)

    def dies() -> None:
        conversion.os.sync = lambda: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]

    with pytest.raises(AssertionError, match="the child died"):
        convert(moving, target, dies)
    assert Store.look(target).note("file:a") is not None
    # The old one is in use once more, and somebody has it of whom no note says anything.
    Store.look(moving.store.path).mark_in_use()
    moving.one.run(lambda: lockspace.join(Store.open(moving.store.path), 1, key("one")))
    moving.one.run(lambda: acquired(lease))
    done = convert(moving, target)
    assert (done.carried, done.lost) == (0, 1)
    assert Store.open(target).note("file:a") is None


# -- two at once -------------------------------------------------------------------------------------------------------


def guests_on(pair: Pair) -> None:
    """In a child: a guest runs on the second host, that of an earlier time."""
    from types import SimpleNamespace

    configured(pair, pair.two, 2)
    conversion.instance.load_all = lambda: [SimpleNamespace(name="web", id="x")]  # type: ignore
    conversion.qemu_of = lambda one: one  # type: ignore


def test_a_mark_of_another_conversion_is_left_alone(moving: Pair) -> None:
    """Two hosts at it: what stops one does not bring back the old store, for the other goes on to the new one."""
    used(moving, "file:a")
    target = moving.cluster.device(64)

    def second() -> None:
        guests_on(moving)
        conversion.convert(target, lambda words: None, True)

    def told(words: str) -> None:
        if words.startswith("joining"):
            with pytest.raises(BadRequest, match="web"):
                moving.two.run(second)

    assert convert(moving, target, told=told).carried == 1
    assert Store.look(moving.store.path).facts.moved is not None
    Store.open(target)


def test_a_clone_of_a_member_moves_nothing(moving: Pair) -> None:
    """It has the host id of its living original, which has the guests."""
    target = moving.cluster.device(64)

    def clone() -> None:
        configured(moving, moving.two, 1)
        host.key = lambda: key("one")
        conversion.convert(target, lambda words: None, True)

    with pytest.raises(BadRequest, match="not certainly dead: one"):
        moving.two.run(clone, 200)
    untouched(moving)


def test_who_is_still_in_a_store_that_moved_can_leave_it(moving: Pair) -> None:
    """A conversion died before it looked whether somebody had come in: the mark stays, and must be no trap."""
    moving.two.run(lambda: lockspace.join(Store.open(moving.store.path), 2, key("two")))
    target = moving.cluster.device(64)

    def dies() -> None:
        conversion._see_nobody_has_anything = lambda *_: {}

        def marked(words: str) -> None:
            if words.endswith("marked as moved"):
                os.kill(os.getpid(), signal.SIGKILL)

        conversion.convert(target, marked, True)

    with pytest.raises(AssertionError, match="the child died"):
        convert(moving, target, dies)
    with pytest.raises(BadRequest, match="not certainly dead: two"):
        convert(moving, target)

    def leaves() -> bool:
        configured(moving, moving.two, 2)
        return membership.leave_host()

    assert moving.two.run(leaves)
    convert(moving, target)


def test_who_set_the_mark_comes_too_late_to_take_it_away(moving: Pair) -> None:
    """It had found somebody in the way, who then left; another conversion to the same place goes on meanwhile."""
    used(moving, "file:a")
    target = moving.cluster.device(64)
    first: List[Store] = []

    def told(words: str) -> None:
        if words.endswith("marked as moved"):
            first.append(Store.look(moving.store.path))
        elif words.startswith("joining"):
            with pytest.raises(StoreBroken, match="somebody else"):
                first[0].mark_in_use()

    assert convert(moving, target, told=told).carried == 1
    assert Store.look(moving.store.path).facts.moved is not None
    Store.open(target)


def test_a_mark_that_was_taken_away_meanwhile(moving: Pair) -> None:
    """Two stores in use would protect nothing."""
    used(moving, "file:a")
    target = moving.cluster.device(64)

    def told(words: str) -> None:
        if words.startswith("joining"):
            Store.look(moving.store.path).mark_in_use()

    with pytest.raises(BadRequest, match="is in use again"):
        convert(moving, target, told=told)
    Store.open(moving.store.path)
    with pytest.raises(StoreBroken, match="has not finished"):
        Store.open(target)
    assert moving.one.run(lambda: lockspace.state(Store.look(target), 1)) == "out"
    moving.one.run(lambda: lockspace.join(Store.open(moving.store.path), 1, key("one")))
    assert convert(moving, target).carried == 1
    assert moving.one.run(lambda: client.locks(Store.open(target).lockspace)) == ()
