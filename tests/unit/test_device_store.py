# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The store on a block device: what a directory cannot have. Real sanlock, on loop devices.

Places are given out by processes that are killed at each write, and whose last write is torn; by two hosts at the same instant;
on a device that is full, grows, is damaged or another one.
"""

import os
import signal
import subprocess
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Callable, List

import pytest
from conftest import Pair, joined
from hypothesis import given
from hypothesis import strategies as st
from sanlock_hosts import Cluster, Host, wait_until
from test_store import NOTE, in_parallel

from vmguard import gc
from vmguard.claims import needs_of
from vmguard.domain import HostPath, parse
from vmguard.errors import BadRequest, LeaseDamaged, NotJoined, SanlockDown, StoreBroken, StoreMoved, UsedByHost
from vmguard.leases import Lease, Note, Writer, _cluster, _notes, client, lockspace, slots
from vmguard.leases._cluster import Elsewhere
from vmguard.leases._notes import HostRecord
from vmguard.leases.device import index, layout, making
from vmguard.leases.device import store as device_store
from vmguard.leases.device.blocks import Blocks
from vmguard.leases.device.layout import READY, REMOVED, RESERVED, SPOILT, Entry, Head
from vmguard.leases.device.store import DeviceStore
from vmguard.leases.store import Store, exists, lease_name
from vmguard.storage import resolve
from vmguard.storage.facts import Facts, LiveFacts
from vmguard.storage.recorded import RecordedFacts

CLUSTER = "0123456789abcdef" * 2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (device_store, making):
        monkeypatch.setattr(module, "SETTLES", 0.1)


@pytest.fixture
def two(cluster: Cluster, quick: None) -> Pair:
    """Two hosts over a small device of their own."""
    return pair_on(cluster, cluster.device(32))


def pair_on(cluster: Cluster, path: str) -> Pair:
    one, other = cluster.host("one"), cluster.host("two")
    one.run(lambda: Store.create(path, 1).path)
    one.run(lambda: joined(one, path, 1))
    other.run(lambda: joined(other, path, 2))
    return Pair(one, other, Store.open(path), cluster)


def store_of(pair: Pair) -> DeviceStore:
    """As another process finds it: nothing is remembered."""
    found = Store.open(pair.store.path)
    assert isinstance(found, DeviceStore)
    return found


def entries(pair: Pair) -> List[Entry]:
    return [one.entry for one in store_of(pair).index.everything()[0]]


def acquired(lease: Lease) -> int:
    with client.Connection() as connection:
        lver = connection.acquire(lease, shared=False)
        connection.release(lease)
        return lver


# -- bytes -------------------------------------------------------------------------------------------------------------

names = st.binary(min_size=20, max_size=20).map(bytes.hex)
some_entries = st.dictionaries(
    st.integers(0, layout.ENTRIES - 1),
    st.builds(
        Entry,
        names,
        st.integers(0, 2**32 - 1),
        st.integers(1, layout.REMOVED),
        st.integers(0, 2000),
        st.integers(0, 2**32 - 1),
    ),
)


@given(some_entries, st.integers(0, layout.BUCKETS - 1), st.integers(0, layout.PIECES - 1))
def test_entries_come_back_as_they_were(found: Any, bucket: int, piece: int) -> None:
    data = layout.encode_piece(CLUSTER, bucket, piece, found)
    assert len(data) == layout.PIECE
    assert layout.decode_piece(CLUSTER, bucket, piece, data) == found
    assert layout.decode_piece(CLUSTER, bucket, (piece + 1) % layout.PIECES, data) is None, "of another place"
    assert layout.decode_piece(CLUSTER[::-1], bucket, piece, data) is None, "of another cluster"


@given(some_entries, st.integers(0, layout.PIECE - 1), st.integers(1, 255))
def test_a_changed_byte_shows(found: Any, where: int, change: int) -> None:
    data = bytearray(layout.encode_piece(CLUSTER, 3, 4, found))
    data[where] ^= change
    assert layout.decode_piece(CLUSTER, 3, 4, bytes(data)) is None


@given(some_entries, some_entries, st.integers(1, layout.PIECE - 1))
def test_a_torn_sector_is_the_old_the_new_or_none(old: Any, new: Any, cut: int) -> None:
    before, after = (layout.encode_piece(CLUSTER, 3, 4, one) for one in (old, new))
    assert layout.decode_piece(CLUSTER, 3, 4, after[:cut] + before[cut:]) in (old, new, None)


def test_zeros_are_no_empty_index() -> None:
    """Whoever wipes the index must not make everything look free."""
    assert layout.decode_bucket(CLUSTER, 0, bytes(layout.BLOCK)) == [None] * layout.PIECES
    data = layout.empty_index(CLUSTER)
    assert len(data) == layout.BUCKETS * layout.BLOCK
    for bucket in (0, 1, layout.BUCKETS - 1):
        block = data[bucket * layout.BLOCK : (bucket + 1) * layout.BLOCK]
        assert layout.decode_bucket(CLUSTER, bucket, block) == [{}] * layout.PIECES


@given(st.binary(max_size=9000), st.integers(0, 2**63), st.integers(0, 2**40))
def test_frames_come_back_as_they_were(body: bytes, number: int, at: int) -> None:
    data = layout.seal(b"vmgnote\0", CLUSTER, at, body, number)
    assert len(data) % layout.BLOCK == 0 and layout.length(b"vmgnote\0", data) == len(data)
    assert layout.unseal(b"vmgnote\0", CLUSTER, at, data) == (number, body)
    assert layout.unseal(b"vmgnote\0", CLUSTER, at + 1, data) is None
    assert layout.unseal(b"vmghost\0", CLUSTER, at, data) is None


@given(st.binary(max_size=layout.BLOCK))
def test_garbage_is_no_frame(data: bytes) -> None:
    assert layout.unseal(b"vmgnote\0", CLUSTER, 0, data) is None
    assert layout.length(b"vmgnote\0", b"vmgnote\0" + data) >= 0


text = st.text(max_size=5000)


@given(text, text, st.lists(text, max_size=70), st.lists(st.tuples(text, text), max_size=20), st.sampled_from([4096, 16384]))
def test_a_note_fits_whatever_is_in_it(domain: str, path: str, restored: Any, disks: Any, room: int) -> None:
    """A start must not fail for it; who has the lease, and at which version, is never left out."""
    writer = Writer(7, "u-u", domain, "one", 1.5)
    note = NOTE._replace(domain=domain, path=path, restored=tuple(restored), disks=tuple(disks), writer=writer)
    body = layout.fitting(note, room)
    assert len(layout.seal(layout.NOTE_KIND, CLUSTER, 0, body)) <= room
    found = _notes.decode_note(body)
    assert found is not None and found.writer is not None
    assert found[:6] == note[:6] and found.uuid == note.uuid and found.writer.uuid == "u-u"


def test_what_fits_is_left_as_it_is() -> None:
    """What libvirt itself can have: 200 disks with their paths, and as many saved states as are kept."""
    marks = tuple(f"{number:064x}" for number in range(64))
    disks = tuple((f"/dev/vg/a-volume-with-a-name-{number}", f"lvm:{'x' * 38}/{'y' * 36}{number}") for number in range(200))
    note = NOTE._replace(restored=marks, disks=disks)
    assert _notes.decode_note(layout.fitting(note, layout.LONG)) == note


@given(st.text(min_size=1, max_size=64), st.integers(1, 200))
def test_host_records_fit_in_a_sector(name: str, host_id: int) -> None:
    record = HostRecord(host_id, "0123456789abcdef", name, "b" * 36, 1.5)
    data = layout.encode_host(CLUSTER, record)
    assert not any(data[layout.PIECE :])
    found = layout.decode_host(CLUSTER, host_id, data)
    assert found is not None and name.startswith(found.host)
    assert found._replace(host="") == record._replace(host="")
    assert layout.decode_host(CLUSTER, host_id, bytes(layout.BLOCK)) is None
    torn = layout.decode_host(CLUSTER, host_id, data[:100] + bytes(layout.BLOCK - 100))
    assert torn == HostRecord(host_id, "", "")


@pytest.mark.parametrize("mark", [{}, {"moved": Elsewhere("/x" * 450, CLUSTER)}, {"instead_of": Elsewhere("/y", "")}])
def test_the_head_comes_back_as_it_was(mark: Any) -> None:
    facts = _cluster.new(10, 512, None)._replace(by="n" * 64, converted=1764108000.123456, **mark)
    head = Head(facts, 2**50, "LVM-" + "x" * 64, 7)
    sector, marks = layout.encode_head(head)
    assert not any(sector[layout.PIECE :]), "it can tear"
    assert layout.decode_head("", sector + marks) == head._replace(facts=facts._replace(by="n" * 48))
    # Without the second block the word still counts.
    if mark:
        found = layout.decode_head("", sector + bytes(layout.BLOCK))
        assert found is not None and (found.facts.moved, found.facts.instead_of) != (None, None)


@given(st.text(min_size=1, max_size=64))
def test_the_head_fits_whatever_the_host_is_called(name: str) -> None:
    facts = _cluster.new(120, 4096, None)._replace(by=name, created=1764108000.123456, converted=1764108000.123456)
    sector, marks = layout.encode_head(Head(facts, 2**50, "LVM-" + "x" * 64, 7))
    assert not any(sector[layout.PIECE :])
    found = layout.decode_head("", sector + marks)
    assert found is not None and name.startswith(found.facts.by)
    assert found.facts._replace(by=name) == facts


def test_places_do_not_overlap() -> None:
    """Written down, not computed: these numbers are on disk, in every store there is."""
    assert (layout.LOCKSPACE, layout.HOSTS, layout.ALLOCATION, layout.INDEX, layout.PLACES) == tuple(
        n << 20 for n in (1, 2, 3, 4, 8)
    )
    assert layout.host_at(200) + layout.BLOCK <= layout.NEXT < layout.ALLOCATION
    assert layout.bucket_at(layout.BUCKETS) == layout.PLACES
    ends = [
        layout.WHAT_FOR + layout.BLOCK, *(at + layout.LONG for at in layout.LEASE_NOTES),
        layout.TICKET_NOTE + layout.LONG, layout.DRAIN_NOTE + layout.SHORT, layout.HOST_NOTES + 200 * layout.BLOCK,
    ]  # fmt: skip
    begins = [
        layout.WHAT_FOR, *layout.LEASE_NOTES, layout.TICKET_NOTE, layout.DRAIN_NOTE, layout.HOST_NOTES, layout.PLACE
    ]  # fmt: skip
    assert begins[0] == slots.FILE_BYTES and all(end <= begin for end, begin in zip(ends, begins[1:]))
    assert [layout.places(layout.bytes_for(n)) for n in (0, 1, 7)] == [0, 1, 7]
    assert layout.places(layout.bytes_for(7) - 1) == 6 and layout.places(0) == 0


# -- making it ---------------------------------------------------------------------------------------------------------


def test_what_is_on_a_device_stays_there(cluster: Cluster, quick: None) -> None:
    host = cluster.host("a")
    for make in (
        lambda path: subprocess.run(["mkfs.ext4", "-q", path], check=True),
        lambda path: subprocess.run(["mkswap", path], check=True, stdout=subprocess.DEVNULL),
        lambda path: Blocks(path).write(0, b"some guest's boot sector".ljust(4096, b"\0")),
        lambda path: subprocess.run(["sfdisk", "-q", path], input=b",10M\n", check=True, stderr=subprocess.DEVNULL),
    ):
        path = cluster.device(32)
        make(path)
        before = Blocks(path).read(0, 32 << 20)
        with pytest.raises(BadRequest, match="not empty"):
            host.run(lambda: Store.create(path, 1))  # noqa: B023
        assert Blocks(path).read(0, 32 << 20) == before
        with pytest.raises(StoreBroken, match="no store is on it"):
            Store.open(path)


def test_a_device_that_is_too_small(cluster: Cluster) -> None:
    path = cluster.device(16)
    with pytest.raises(BadRequest, match="too small"):
        cluster.host("a").run(lambda: Store.create(path, 1))
    assert not any(Blocks(path).read(0, 16 << 20))


def test_a_device_that_sanlock_may_not_write(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cluster.device(32)
    os.chmod(path, 0o660)
    facts = cluster.host("a").run(client.daemon_facts)._replace(uid=4711, gid=4712, pid=1)
    making._see_daemon_may_write(path, facts._replace(uid=0))
    making._see_daemon_may_write(path, facts._replace(gid=os.stat(path).st_gid))
    with pytest.raises(BadRequest, match="may not read and write"):
        making._see_daemon_may_write(path, facts)


def test_setups_at_once_end_in_one_store(cluster: Cluster, quick: None) -> None:
    hosts = [cluster.host("a"), cluster.host("b")]
    for _ in range(3):
        path = cluster.device(32)
        found = in_parallel(hosts, lambda host: Store.create(path, 1).cluster, times=3)  # noqa: B023
        assert len(set(found)) == 1, found
        store = Store.open(path)
        hosts[0].run(
            lambda: client.check_lockspace(store.lockspace, path, layout.LOCKSPACE, 512)  # noqa: B023
        )


def test_a_setup_that_died_is_told_and_finished(cluster: Cluster, quick: None) -> None:
    """Killed before its n-th write: never a store that opens but is not whole, and the next setup need not wait."""
    host = cluster.host("a")
    path = cluster.device(32)
    for step in range(1, 20):
        died = killed_at(host, step, lambda: Store.create(path, 1))
        if not died:
            break
        if step > 1:
            with pytest.raises(StoreBroken, match="not finished"):
                Store.open(path)
            assert not exists(path), "setup must not look for one in it"
        else:
            with pytest.raises(StoreBroken, match="no store"):
                Store.open(path)
    assert 6 < step < 19
    Store.open(path)


def test_a_claim_of_another_host_is_waited_for(cluster: Cluster, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that died somewhere else cannot be seen to be dead: after a while it is."""
    monkeypatch.setattr(making, "ABANDONED", 1.0)
    path = cluster.device(32)
    claim = layout.seal(layout.SETUP_KIND, "", 0, b'{"boot": "elsewhere", "pid": 1}')
    Blocks(path).write(0, claim)
    assert cluster.host("a").run(lambda: Store.create(path, 1).path) == path


# -- dying while a place is given out ----------------------------------------------------------------------------------


def killed_at(host: Host, step: int, work: Callable[[], Any], torn: bool = False) -> bool:
    """
    Do it on a host, and be killed before the n-th write or format; or in the middle of it, half of its bytes written.
    False: it was done before.
    """
    count = [0]
    write, formats = Blocks.write, {name: getattr(client, name) for name in ("format_lease", "format_lockspace")}

    def last(self: Blocks, offset: int, data: bytes, sync: bool = True) -> None:
        count[0] += 1
        if count[0] == step:
            if torn:
                half = len(data) // 2
                if half < self.sector:  # a sector that did tear, whatever disks promise
                    old = self.read(offset - offset % layout.BLOCK)[offset % layout.BLOCK :][: len(data)]
                    write(self, offset, data[:half] + old[half:])
                else:
                    write(self, offset, data[: half - half % self.sector])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, offset, data, sync)

    def formatting(name: str) -> Callable[..., None]:
        def instead(*args: Any) -> None:
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            formats[name](*args)

        return instead

    def dying() -> None:
        Blocks.write = last  # type: ignore[method-assign]
        for name in formats:
            setattr(client, name, formatting(name))
        work()

    try:
        host.run(dying)
    except AssertionError as error:
        assert "the child died" in str(error)
        return True
    return False


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
@pytest.mark.parametrize("by", ["same", "other"])
def test_killed_at_each_step(cluster: Cluster, quick: None, torn: bool, by: str) -> None:
    """Whatever a dead one left: the next gets one lease, which both see, and nothing of anybody else's is touched."""
    pair = pair_on(cluster, cluster.device(256))
    kept = pair.one.run(lambda: store_of(pair).ensure("kept"))
    assert pair.one.run(lambda: acquired(kept)) == 1
    survivor = pair.one if by == "same" else pair.two
    steps = 0
    for step in range(1, 20):
        identity = f"x{step}"
        died = killed_at(pair.one, step, lambda: store_of(pair).ensure(identity), torn)  # noqa: B023
        if not died:
            break
        steps += 1
        if store_of(pair).damage():
            # A sector that tore is no sector of the index any more. That stops what needs it, and is mended.
            assert torn
            with pytest.raises(StoreBroken, match="damaged"):
                survivor.run(lambda: store_of(pair).ensure(identity))  # noqa: B023
            survivor.run(lambda: store_of(pair).mend())
        lease = survivor.run(lambda: store_of(pair).ensure(identity))  # noqa: B023
        assert pair.two.run(lambda: store_of(pair).ensure(identity)) == lease  # noqa: B023
        assert {pair.one.run(lambda: acquired(lease)), pair.two.run(lambda: acquired(lease))} == {1, 2}  # noqa: B023
        ready = [one.place for one in entries(pair) if one.state == READY]
        assert len(ready) == len(set(ready)), "two leases at one place"
        assert pair.two.run(lambda: client.version(kept)) == 1
    assert steps >= 7, "there are that many writes at least"
    found = store_of(pair)
    assert pair.one.run(found.judged) == ([], []) and found.damage() == ()
    # What is spoilt stays so while the host is there whose daemon may still be writing; then gc gives it free.
    spoilt = [one for one in entries(pair) if one.state in (RESERVED, SPOILT)]
    assert spoilt and pair.two.run(found.leftovers) == ()
    pair.one.run(lambda: lockspace.leave(Store.open(found.path), 1))
    wait_until(lambda: pair.two.run(found.leftovers), 10, "two sees that one has left")
    assert len(pair.two.run(found.clean)) == len(spoilt)
    assert not [one for one in entries(pair) if one.state in (RESERVED, SPOILT)]
    before = len(found.lease_names())
    pair.two.run(lambda: store_of(pair).ensure("after"))
    assert len(store_of(pair).lease_names()) == before + 1


def test_the_places_of_the_dead_are_used_when_there_are_no_others(two: Pair) -> None:
    assert killed_at(two.one, 5, lambda: store_of(two).ensure("x"))
    two.one.run(lambda: lockspace.leave(Store.open(two.store.path), 1))
    for number in range(5):
        two.two.run(lambda: store_of(two).ensure(f"y{number}"))  # noqa: B023
    with pytest.raises(StoreBroken, match="all its 6 places"):
        two.two.run(lambda: store_of(two).ensure("y5"))
    wait_until(lambda: two.two.run(lambda: store_of(two).clean()), 10, "two sees that one has left")
    two.two.run(lambda: store_of(two).ensure("y5"))


def test_two_hosts_at_the_same_instant(cluster: Cluster, quick: None) -> None:
    """The same identities on both, in the same order: one place each."""
    pair = pair_on(cluster, cluster.device(256))
    for round_ in range(10):
        found = in_parallel(
            [pair.one, pair.two],
            lambda _: [store_of(pair).ensure(f"{round_}-{number}") for number in range(3)],  # noqa: B023
            times=2,
        )
        assert all(isinstance(one, list) and one == found[0] for one in found), found
    ready = [one for one in entries(pair) if one.state == READY]
    assert len(ready) == 30 == len({one.place for one in ready}) == len({one.name for one in ready})
    assert len(entries(pair)) == 30, "nothing was spoilt"


def test_a_host_that_is_no_member_makes_no_leases(two: Pair) -> None:
    stranger = two.cluster.host("three")
    with pytest.raises(NotJoined):
        stranger.run(lambda: store_of(two).ensure("x"))
    assert entries(two) == []


def test_while_another_is_at_it_one_waits_and_then_says_so(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PATIENCE", 0.3)
    busy = two.one.guest()
    guard = store_of(two).index.guard()
    busy.call("acquire", guard, False, False)
    with pytest.raises(StoreBroken, match="have been making leases"):
        two.two.run(lambda: store_of(two).ensure("x"))
    busy.kill()  # not kept by the host: gone with the process
    two.two.run(lambda: store_of(two).ensure("x"))


@pytest.mark.slow
def test_a_host_that_dies_at_it(two: Pair) -> None:
    busy = two.one.guest()
    busy.call("acquire", store_of(two).index.guard(), False, False)
    two.one.stop()

    def silent() -> bool:
        try:
            two.two.run(lambda: store_of(two).ensure("x"))
        except StoreBroken as error:
            return "does not answer" in error.why
        return False

    wait_until(silent, 30, "it is seen not to answer")

    def free() -> bool:
        with suppress(StoreBroken):
            two.two.run(lambda: store_of(two).ensure("x"))
            return True
        return False

    wait_until(free, 90, "the certain death of the other host")


# -- full, larger, smaller, damaged ------------------------------------------------------------------------------------


def test_a_full_device_says_so_and_grows(two: Pair) -> None:
    for number in range(6):
        two.one.run(lambda: store_of(two).ensure(f"x{number}"))  # noqa: B023
    assert store_of(two).room() == (6, 6)
    with pytest.raises(StoreBroken) as caught:
        two.one.run(lambda: store_of(two).ensure("y"))
    assert "all its 6 places" in caught.value.why and "lvextend" in caught.value.remedy
    assert len(entries(two)) == 6
    two.cluster.grow(two.store.path, 40)
    lease = two.one.run(lambda: store_of(two).ensure("y"))
    assert two.two.run(lambda: acquired(lease)) == 1
    assert store_of(two).room() == (7, 8)


def test_a_host_that_sees_the_old_size_is_told(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    old = store_of(two)._blocks.size()
    for number in range(6):
        two.one.run(lambda: store_of(two).ensure(f"x{number}"))  # noqa: B023
    two.cluster.grow(two.store.path, 64)
    two.one.run(lambda: store_of(two).ensure("y"))
    monkeypatch.setattr(Blocks, "size", lambda self: old)
    with pytest.raises(StoreBroken) as caught:
        two.two.run(lambda: store_of(two).ensure("y"))
    assert "behind its end" in caught.value.why and "--refresh" in caught.value.remedy
    assert two.two.run(lambda: store_of(two).ensure("x5"))


def test_a_device_that_has_become_smaller(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blocks, "size", lambda self: 20 << 20)
    with pytest.raises(StoreBroken, match="had .* when the store was made"):
        Store.open(two.store.path)


def garble(path: str, offset: int, data: bytes = b"\xff" * 512) -> None:
    Blocks(path).write(offset, data)


@pytest.mark.parametrize("data", [b"\xff" * 512, bytes(512)], ids=["garbage", "zeros"])
def test_a_damaged_index_hides_nothing_and_is_mended(two: Pair, data: bytes) -> None:
    """The lease that its damage hides is not made a second time."""
    lease = two.one.run(lambda: store_of(two).ensure("x"))
    assert two.one.run(lambda: acquired(lease)) == 1
    (found,) = store_of(two).index.everything()[0]
    garble(two.store.path, layout.bucket_at(found.bucket) + found.piece * layout.PIECE, data)
    for work in (lambda: store_of(two).ensure("x"), lambda: store_of(two).has("x"), lambda: store_of(two).lease("x")):
        with pytest.raises(StoreBroken) as caught:
            two.two.run(work)
        assert "index is damaged" in caught.value.why and "gc --repair" in caught.value.remedy
    assert store_of(two).damage()
    two.two.run(lambda: store_of(two).mend())
    assert store_of(two).damage() == ()
    assert two.two.run(lambda: store_of(two).ensure("x")) == lease
    assert two.two.run(lambda: acquired(lease)) == 2


def index_damaged(pair: Pair, identity: str) -> None:
    """The sector of the index is damaged in which a lease is."""
    (found,) = [one for one in store_of(pair).index.everything()[0] if one.entry.name == lease_name(identity)]
    garble(pair.store.path, layout.bucket_at(found.bucket) + found.piece * layout.PIECE)


@pytest.mark.parametrize("count", ["whole", "lost"])
def test_who_sees_the_old_size_does_not_mend(two: Pair, monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    """A lease behind the end that he sees would be forgotten, and made a second time."""
    old = store_of(two)._blocks.size()
    for number in range(6):
        two.one.run(lambda: store_of(two).ensure(f"x{number}"))  # noqa: B023
    two.cluster.grow(two.store.path, 64)
    lease = two.one.run(lambda: store_of(two).ensure("y"))
    index_damaged(two, "y")
    if count == "lost":
        garble(two.store.path, layout.NEXT)
    with monkeypatch.context() as here:
        here.setattr(Blocks, "size", lambda self: old)
        with pytest.raises(StoreBroken) as caught:
            two.two.run(lambda: store_of(two).mend())
        assert "--refresh" in caught.value.remedy
        assert ("behind its end" if count == "whole" else "count of the places") in caught.value.why
    assert store_of(two).damage()
    if count == "lost":
        two.one.run(lambda: store_of(two).ensure("z"))  # counts anew
        assert two.one.run(lambda: store_of(two).index._mark()) == 8
    two.two.run(lambda: store_of(two).mend())
    assert two.two.run(lambda: store_of(two).ensure("y")) == lease


def test_the_count_of_places_never_goes_down(two: Pair) -> None:
    """It tells a host that it sees less of the device than others have given out."""
    for number in range(3):
        two.one.run(lambda: store_of(two).ensure(f"x{number}"))  # noqa: B023
    garble(two.store.path, layout.place(1), bytes(layout.BLOCK))
    taken = next(one for one in store_of(two).index.everything()[0] if one.entry.place == 1)
    store_of(two).index._set(taken, taken.entry._replace(state=REMOVED))
    garble(two.store.path, layout.place(1) + layout.MiB, bytes(layout.BLOCK))
    garble(two.store.path, layout.place(1) + 2 * layout.MiB, bytes(layout.BLOCK))
    garble(two.store.path, layout.NEXT)
    assert two.two.run(lambda: store_of(two).ensure("y")).offset == layout.place(1)
    assert store_of(two).index._mark() == 3


@pytest.mark.parametrize("slot", list(slots.SUFFIXES))
def test_a_lease_that_is_damaged_in_part_is_not_forgotten(two: Pair, slot: str) -> None:
    """It comes back into the index, and is repaired there as others are: when nobody can have it."""
    lease = two.one.run(lambda: store_of(two).ensure("x"))
    busy = two.one.guest()
    assert busy.call("acquire", lease, False) == 1
    garble(two.store.path, store_of(two).slot("x", slot).offset)
    index_damaged(two, "x")
    two.two.run(lambda: store_of(two).mend())
    assert two.two.run(lambda: store_of(two).ensure("x")) == lease
    assert two.two.run(store_of(two).judged).damaged == [lease.name]


def test_places_that_contradict_themselves_are_not_mended(two: Pair) -> None:
    lease = two.one.run(lambda: store_of(two).ensure("x"))
    other = slots.ticket(two.one.run(lambda: store_of(two).ensure("y")))
    garble(two.store.path, slots.ticket(lease).offset, Blocks(two.store.path).read(other.offset))
    index_damaged(two, "x")
    with pytest.raises(LeaseDamaged):
        two.two.run(lambda: store_of(two).mend())
    assert store_of(two).damage()


def test_two_places_that_were_both_had_are_not_chosen_from(two: Pair) -> None:
    """Also at the first place, and at the first version."""
    lease = two.one.run(lambda: store_of(two).ensure("x"))
    busy = two.one.guest()
    assert (busy.call("acquire", lease, False), lease.offset) == (1, layout.place(0))
    garble(two.store.path, layout.place(2), Blocks(two.store.path).read(lease.offset, layout.LEASES))
    index_damaged(two, "x")
    with pytest.raises(LeaseDamaged):
        two.two.run(lambda: store_of(two).mend())
    assert store_of(two).damage()


def test_a_half_made_lease_is_none(two: Pair) -> None:
    assert killed_at(two.one, 5, lambda: store_of(two).ensure("x")), "its ticket and drain mark are not there"
    index_damaged(two, "x")
    two.two.run(lambda: store_of(two).mend())
    assert store_of(two).has("x") is False


def test_a_whole_index_that_was_wiped(two: Pair) -> None:
    leases = [two.one.run(lambda: store_of(two).ensure(f"x{number}")) for number in range(5)]  # noqa: B023
    assert killed_at(two.one, 6, lambda: store_of(two).ensure("dead"))
    garble(two.store.path, layout.INDEX, bytes(layout.PLACES - layout.INDEX))
    two.two.run(lambda: store_of(two).mend())
    assert [two.two.run(lambda: store_of(two).ensure(f"x{number}")) for number in range(5)] == leases  # noqa: B023


def test_killed_while_the_index_is_mended(two: Pair) -> None:
    """At each write: a lease is found where it was, or the index is still damaged. Never is it not there."""
    leases = [two.one.run(lambda: store_of(two).ensure(f"x{number}")) for number in range(5)]  # noqa: B023
    found = store_of(two).index.everything()[0]
    for step in range(1, 20):
        for torn in (False, True):
            for one in found:
                garble(two.store.path, layout.bucket_at(one.bucket) + one.piece * layout.PIECE)
            died = killed_at(two.one, step, lambda: store_of(two).mend(), torn)
            for number, lease in enumerate(leases):
                try:
                    assert store_of(two).lease(f"x{number}") == lease
                except StoreBroken as error:
                    assert died and "index is damaged" in error.why, error.why
        if not died:
            break
    assert 5 < step < 19
    assert store_of(two).damage() == ()


@pytest.mark.parametrize("work", ["mend", "clean"])
def test_who_has_lost_the_index_writes_no_more(two: Pair, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    """sanlock died while he looked at every place, and what he read is of the past: others may have given places out."""
    two.one.run(lambda: store_of(two).ensure("x"))
    if work == "clean":
        assert killed_at(two.one, 5, lambda: store_of(two).ensure("y"))
        monkeypatch.setattr(DeviceStore, "_over", lambda self, host_id, generation: True)
    else:
        index_damaged(two, "x")
    everything, looks = index.Index.everything, [0]

    def slowly(self: index.Index) -> Any:
        found = everything(self)
        looks[0] += 1
        if looks[0] == (2 if work == "clean" else 1):
            assert two.one.daemon is not None
            os.kill(two.one.daemon.pid, signal.SIGKILL)  # no child of this one
            time.sleep(0.2)
        return found

    before = Blocks(two.store.path).read(layout.INDEX, 32 * layout.MiB - layout.INDEX)
    monkeypatch.setattr(index.Index, "everything", slowly)
    with pytest.raises(SanlockDown):
        two.one.run(lambda: getattr(store_of(two), work)())
    assert Blocks(two.store.path).read(layout.INDEX, 32 * layout.MiB - layout.INDEX) == before


def test_an_overflowing_bucket_is_mended(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had no room in its bucket is found again, whichever of the two was damaged."""
    monkeypatch.setattr(layout, "bucket_of", lambda name: 7)
    lease = two.one.run(lambda: store_of(two).ensure("x"))
    (entry,) = entries(two)
    made = store_of(two).index
    filler = [{p: Entry(f"{q:020x}{p:020x}", 5, READY) for p in range(layout.ENTRIES)} for q in range(layout.PIECES)]
    for piece, full in enumerate(filler):
        made._write_piece(7, piece, full)
    made._write_piece(8, 0, {0: entry})
    assert store_of(two).lease("x") == lease
    garble(two.store.path, layout.bucket_at(8))
    two.one.run(lambda: store_of(two).mend())
    assert store_of(two).lease("x") == lease and store_of(two).damage() == ()


def test_where_a_lease_lies_none_is_made(two: Pair) -> None:
    """The count of places is wrong, and the index knows nothing: the lease itself says no."""
    lease = two.one.run(lambda: store_of(two).ensure("x"))
    busy = two.one.guest()
    assert busy.call("acquire", lease, False) == 1
    garble(two.store.path, layout.INDEX, layout.empty_index(two.store.cluster))
    garble(two.store.path, layout.NEXT, bytes(512))
    other = two.two.run(lambda: store_of(two).ensure("y"))
    assert other.offset != lease.offset
    assert two.two.run(lambda: client.owners(lease)) != ()


def test_a_bucket_that_overflows(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no room in its bucket is found in the next, also when the bucket has room again."""
    monkeypatch.setattr(layout, "bucket_of", lambda name: layout.BUCKETS - 1)
    made = store_of(two).index
    block = b"".join(
        layout.encode_piece(
            made.cluster,
            layout.BUCKETS - 1,
            piece,
            {position: Entry(f"{piece:020x}{position:020x}", 1000, READY) for position in range(layout.ENTRIES)},
        )
        for piece in range(layout.PIECES)
    )
    garble(two.store.path, layout.bucket_at(layout.BUCKETS - 1), block)
    lease = two.one.run(lambda: store_of(two).ensure("x"))
    (found,) = [one for one in store_of(two).index.everything()[0] if one.entry.name == lease.name]
    assert found.bucket == 0
    first = next(one for one in store_of(two).index.everything()[0] if one.bucket == layout.BUCKETS - 1)
    store_of(two).index._set(first, first.entry._replace(state=layout.REMOVED))
    assert store_of(two).lease("x") == lease
    two.one.run(lambda: store_of(two).ensure("y"))
    again = [one for one in store_of(two).index.everything()[0] if one.entry.name == lease_name("y")]
    assert (again[0].bucket, again[0].position) == (first.bucket, first.position)


@pytest.mark.parametrize("where", [0, 20, 100], ids=["magic", "count", "name"])
def test_a_damaged_lease_on_making_leases(two: Pair, where: int) -> None:
    """It is made anew when nobody else can have it."""
    two.one.run(lambda: store_of(two).ensure("x"))
    assert store_of(two).damage() == ()
    block = bytearray(Blocks(two.store.path).read(layout.ALLOCATION))
    block[where] ^= 1
    garble(two.store.path, layout.ALLOCATION, bytes(block))
    with pytest.raises(LeaseDamaged):
        two.one.run(lambda: store_of(two).ensure("y"))
    assert "damaged" in store_of(two).damage()[0]
    with pytest.raises(StoreBroken, match="two may be making leases") as caught:
        two.one.run(lambda: store_of(two).mend())
    assert "vmguard leave" in caught.value.remedy
    (left,) = two.one.run(lambda: gc._damaged_store(SimpleNamespace(store=store_of(two)), True))  # type: ignore[arg-type]
    assert not left.mended and "two may be making leases" in left.text, "gc says it, and goes on"
    assert store_of(two).damage()
    two.two.run(lambda: lockspace.leave(Store.open(two.store.path), 2))

    def mended() -> bool:
        with suppress(StoreBroken):
            two.one.run(lambda: store_of(two).mend())
            return True
        return False

    wait_until(mended, 10, "one sees that two has left")
    assert store_of(two).damage() == ()
    assert two.one.run(lambda: acquired(store_of(two).ensure("y"))) == 1


# -- notes -------------------------------------------------------------------------------------------------------------


def test_a_torn_note_leaves_the_one_before(two: Pair) -> None:
    two.one.run(lambda: store_of(two).ensure("x"))

    def long(lver: int) -> Note:
        disks = tuple((f"/dev/vg/lv{number}", f"lvm:{number * lver}") for number in range(200))
        return NOTE._replace(identity="x", lver=lver, disks=disks)

    for lver in range(1, 6):
        store_of(two).write_note(long(lver))
    assert killed_at(two.one, 1, lambda: store_of(two).write_note(long(6)), torn=True)
    assert store_of(two).note("x") == long(5)
    store_of(two).write_note(long(7))
    assert store_of(two).note("x") == long(7)
    assert store_of(two).notes("x") == (long(7),)


def test_notes_of_an_earlier_store_say_nothing(cluster: Cluster, quick: None) -> None:
    """A device that was wiped at its beginning only, and made a store again."""
    path = cluster.device(32)
    pair = pair_on(cluster, path)
    pair.one.run(lambda: store_of(pair).ensure("x"))
    store_of(pair).write_note(NOTE._replace(identity="x"))
    for host, number in ((pair.one, 1), (pair.two, 2)):
        host.run(lambda: lockspace.leave(Store.open(path), number))  # noqa: B023
    garble(path, 0, bytes(1 << 20))
    pair.one.run(lambda: Store.create(path, 1).path)
    pair.one.run(lambda: joined(pair.one, path, 1))
    lease = pair.one.run(lambda: store_of(pair).ensure("x"))
    assert store_of(pair).notes("x") == ()
    assert pair.one.run(lambda: client.version(lease)) == 0


def test_the_notes_of_all_hosts_have_room(two: Pair) -> None:
    two.one.run(lambda: store_of(two).ensure("x"))
    shared = NOTE._replace(identity="x", mode="shared", path="/p" * 4000)
    for host_id in (1, 2, 100, 200):
        store_of(two).write_note(shared._replace(host_id=host_id))
    with pytest.raises(StoreBroken, match="host 201"):
        store_of(two).write_note(shared._replace(host_id=201))
    assert [one.host_id for one in store_of(two).notes("x")] == [1, 2, 100, 200]
    assert store_of(two).identity_of(lease_name("x")) == "x"


@pytest.mark.parametrize("slot", ["lease", "ticket", "drain"])
def test_the_notes_of_the_slots_are_each_others(two: Pair, slot: str) -> None:
    two.one.run(lambda: store_of(two).ensure("x"))
    for lver, each in enumerate(slots.SUFFIXES, 1):
        store_of(two).write_note(NOTE._replace(identity="x", slot=each, lver=lver))
    found = store_of(two).note("x", slot)
    assert found is not None and found.slot == slot
    for place in (layout.TICKET_NOTE, layout.DRAIN_NOTE, *layout.LEASE_NOTES):
        garble(two.store.path, store_of(two).lease("x").offset + place)
    assert store_of(two).note("x", slot) is None


# -- another device ----------------------------------------------------------------------------------------------------


def test_a_copy_of_the_volume_is_not_the_store(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot has the same cluster id."""
    found = store_of(two)
    volume = "LVM-" + "x" * 64
    sector, marks = layout.encode_head(found.head._replace(volume=volume))
    garble(found.path, 0, sector + marks)
    with pytest.raises(StoreBroken, match="copy, or a snapshot"):
        Store.open(found.path)
    monkeypatch.setattr(device_store, "volume_of", lambda _: volume)
    Store.open(found.path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 2}, "format is 2"),
        ({"cluster": "0" * 32}, "damaged"),
        ({"sector": 4096}, "made on a device with sectors of 4096"),
        ({"state": "odd"}, "damaged"),
        ({"io_timeout": True}, "damaged"),
        ({"size": "1"}, "damaged"),
    ],
)
def test_heads_that_are_not_understood(two: Pair, change: Any, why: str) -> None:
    found = store_of(two)
    members = {**_cluster.members(found.facts), "format": 1, "state": "in use", "size": 1, "volume": "", **change}
    garble(found.path, 0, layout.seal(layout.HEAD_KIND, "", 0, _notes.text(members)))
    with pytest.raises(StoreBroken) as caught:
        Store.open(found.path)
    assert why in caught.value.why


def test_a_head_that_was_wiped_under_living_hosts(two: Pair) -> None:
    """Their lockspace is not formatted: it would end them, and their guests."""
    garble(two.store.path, layout.HEAD, bytes(layout.BLOCK))
    before = Blocks(two.store.path).read(0, layout.LOCKSPACE)
    stranger = two.cluster.host("three")
    with pytest.raises(BadRequest, match="hosts are alive"):
        stranger.run(lambda: Store.create(two.store.path, 1))
    assert Blocks(two.store.path).read(0, layout.LOCKSPACE) == before
    for host in (two.one, two.two):
        host.stop()
    assert stranger.run(lambda: Store.create(two.store.path, 1).cluster) != two.store.cluster


def test_a_damaged_head_is_no_empty_device(two: Pair) -> None:
    block = bytearray(Blocks(two.store.path).read(0))
    block[100] ^= 1
    garble(two.store.path, 0, bytes(block))
    with pytest.raises(StoreBroken, match="head is damaged"):
        Store.open(two.store.path)
    with pytest.raises(StoreBroken, match="head is damaged"):
        two.one.run(lambda: Store.create(two.store.path, 1))


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(StoreBroken) as caught:
        Store.open("/dev/no-such-group/leases")
    assert "no such device" in caught.value.why and "lvchange" in caught.value.remedy


ONE, OTHER = Elsewhere("/srv/one", "e" * 32), Elsewhere("/srv/other", "f" * 32)


@pytest.mark.parametrize("member", [True, False], ids=["member", "no-member"])
def test_two_that_move_a_store_at_once(two: Pair, member: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hangs before its first write for as long as the other takes."""
    slow, quick = Store.look(two.store.path), Store.look(two.store.path)
    monkeypatch.setattr(index, "PATIENCE", 0.2)
    write = Blocks.write

    def work() -> List[str]:
        outcomes: List[str] = []

        def tried(store: Store, to: Elsewhere) -> None:
            try:
                store.mark_moved(to)
                outcomes.append(to.path)
            except StoreBroken as error:
                outcomes.append(error.why)

        def hangs(self: Blocks, *arguments: Any, **named: Any) -> None:
            Blocks.write = write  # type: ignore[method-assign]
            if not member:  # it comes to its write when the other one has not looked again yet
                device_store.time.sleep = lambda _: write(self, *arguments, **named)  # type: ignore[assignment,misc]
            tried(quick, OTHER)
            write(self, *arguments, **named)

        Blocks.write = hangs  # type: ignore[method-assign]
        tried(slow, ONE)
        return outcomes

    host = two.one if member else two.cluster.host("away")
    found = host.run(work)
    moved = Store.look(two.store.path).facts.moved
    assert moved is not None and found.count(moved.path) == 1 and len(found) == 2, found
    assert any("somebody else" in one or "making leases" in one for one in found), found


def test_a_store_that_moved_is_opened_by_nobody(two: Pair) -> None:
    def marked() -> None:
        two.one.run(lambda: Store.look(two.store.path).mark_moved(Elsewhere("/srv/leases", CLUSTER)))

    found, opened_before = store_of(two), store_of(two)
    marked()
    with pytest.raises(StoreMoved) as caught:
        Store.open(found.path)
    assert caught.value.to == "/srv/leases" and "vmguard setup --store /srv/leases" in caught.value.remedy
    with pytest.raises(StoreMoved):
        two.one.run(lambda: opened_before.ensure("x"))
    assert Store.look(found.path).facts.moved == Elsewhere("/srv/leases", CLUSTER)
    # To die while the mark is taken away leaves it, with its name, or none.
    assert killed_at(two.one, 2, lambda: Store.look(two.store.path).mark_in_use())
    Store.open(found.path)
    marked()
    assert killed_at(two.one, 1, lambda: Store.look(two.store.path).mark_in_use())
    assert Store.look(found.path).facts.moved == Elsewhere("/srv/leases", CLUSTER)
    two.one.run(lambda: Store.look(two.store.path).mark_in_use())
    Store.open(found.path)
    assert two.one.run(lambda: store_of(two).ensure("x"))


# -- nobody's disk -----------------------------------------------------------------------------------------------------


class KnownStore(LiveFacts):
    """This host, with its leases on a device."""

    def __init__(self, path: str) -> None:
        self.path = path

    def lease_store(self) -> str:
        return self.path


def used(path: str, facts: Facts) -> str:
    (found,) = resolve(HostPath(path), facts)
    return found.used_by_host or ""


def test_the_device_is_used_by_the_host(cluster: Cluster, tmp_path: Any) -> None:
    """Under each of its names, behind a loop device, as the whole disk of a partition, and the reverse."""
    device, other = cluster.device(64), cluster.device(64)
    facts = KnownStore(device)
    alias = tmp_path / "alias"
    alias.symlink_to(device)
    for name in (device, str(alias)):
        assert "vmguard has the leases" in used(name, facts)
    assert used(other, facts) == ""
    command = ["losetup", "--find", "--show", device]
    over = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        assert "vmguard has the leases" in used(device, KnownStore(over))
    finally:
        subprocess.run(["losetup", "--detach", over], check=True)


class RecordedStore(RecordedFacts):
    """A host that was written down, with its leases on one of its devices."""

    store = ""

    def lease_store(self) -> str:
        return self.store


def used_there(host: str, store: str, path: str) -> str:
    facts = RecordedStore.load(os.path.join(os.path.dirname(__file__), "hosts", host + ".json"))
    assert isinstance(facts, RecordedStore)
    facts.store = store
    return used(path, facts)


def test_volumes_and_partitions_beside_it_are_free() -> None:
    for name in ("/dev/data/linear", "/dev/mapper/data-linear"):
        assert "vmguard has the leases" in used_there("lvm", "/dev/data/linear", name)
    assert used_there("lvm", "/dev/data/linear", "/dev/mapper/data-raid1") == ""
    assert "physical volume" in used_there("lvm", "/dev/data/linear", "/dev/sdb")
    part, whole = "/dev/mapper/mpatha-part1", "/dev/mapper/mpatha"
    assert "vmguard has the leases" in used_there("multipath", part, part)
    assert "vmguard has the leases" in used_there("multipath", part, whole)


def test_a_guest_that_writes_the_leases_is_refused(cluster: Cluster) -> None:
    device = cluster.device(32)
    xml = f"""<domain type='kvm'><name>x</name><uuid>11111111-1111-4111-8111-111111111111</uuid>
    <os><type>hvm</type></os><devices><disk type='block' device='disk'><driver name='qemu' type='raw'/>
    <source dev='{device}'/><target dev='vda'/></disk></devices></domain>"""
    with pytest.raises(UsedByHost) as caught:
        needs_of(parse(xml.encode()), KnownStore(device))
    assert "vmguard has the leases" in caught.value.how
    needs_of(parse(xml.encode()), KnownStore("/var/lib/vmguard/store"))
