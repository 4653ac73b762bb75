# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store, on a real filesystem with a real sanlock."""

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace
from typing import Any, Callable, List, Optional

import pytest
from conftest import Pair, joined, key
from sanlock_hosts import Cluster, Host, wait_until

from vmguard import events, gc, paths, report, taking, writers
from vmguard.claims import Claim, Mode
from vmguard.errors import (
    BadRequest,
    Error,
    HostIdTaken,
    LeaseDamaged,
    LeaseNewer,
    SanlockDown,
    SanlockFailed,
    StoreBroken,
    StoreMoved,
)
from vmguard.leases import HostState, Lease, Note, Writer, _cluster, _files, _notes, client, slots
from vmguard.leases._cluster import Elsewhere
from vmguard.leases.device import layout, making
from vmguard.leases.device import store as device_store
from vmguard.leases.device.blocks import Blocks
from vmguard.leases.store import Store, lease_name

ALIGN = 1 << 20
NOTE = Note("lvm:a/b", "exclusive", 1, 1, 7, "one", "guest", "u-u", "/dev/vg/lv", 1.5, "i")


def created(cluster: Cluster, host: Host, path: str = "") -> Store:
    where = path or cluster.store_path
    host.run(lambda: Store.create(where, 1).path)
    return Store.open(where)


def files(path: str) -> List[str]:
    return sorted(os.path.relpath(os.path.join(base, name), path) for base, _, names in os.walk(path) for name in names)


def in_parallel(hosts: List[Host], work: Callable[[Host], Any], times: int = 1) -> List[Any]:
    """The same on several hosts at the same instant; results or errors."""
    from concurrent.futures import ThreadPoolExecutor

    def one(host: Host) -> Any:
        try:
            return host.run(lambda: work(host))
        except Error as error:
            return error

    with ThreadPoolExecutor(len(hosts) * times) as pool:
        return list(pool.map(one, hosts * times))


# -- making and opening a store ----------------------------------------------------------------------------------------


def test_create_makes_a_store_that_opens(cluster: Cluster) -> None:
    host = cluster.host("a")
    store = created(cluster, host)
    assert files(store.path) == ["kept/inode", "kept/lockspace", "lockspace", "setup.json", "vmguard.json"]
    assert os.stat(os.path.join(store.path, "lockspace")).st_size == ALIGN
    assert os.stat(os.path.join(store.path, "lockspace")).st_mode & 0o777 == 0o660
    assert store.lockspace == f"vmguard-{store.cluster[:16]}" and len(store.cluster) == 32
    assert store.io_timeout == 1
    assert Store.open(store.path, store.cluster).cluster == store.cluster
    assert created(cluster, host).cluster == store.cluster
    host.run(lambda: client.check_lockspace(store.lockspace, store.path + "/lockspace"))


def test_a_trailing_slash_is_the_same_store(cluster: Cluster) -> None:
    store = created(cluster, cluster.host("a"))
    assert Store.open(store.path + "/").lease("x") == store.lease("x")


def test_two_setups_at_once_end_in_one_store(cluster: Cluster) -> None:
    hosts = [cluster.host("a"), cluster.host("b")]
    for number in range(5):
        path = f"{cluster.base}/store{number}"
        found = in_parallel(hosts, lambda host: Store.create(path, 1).cluster, times=3)  # noqa: B023
        assert len(set(found)) == 1, found
        hosts[0].run(lambda: client.check_lockspace(Store.open(path).lockspace, path + "/lockspace"))  # noqa: B023
        assert files(path) == ["kept/inode", "kept/lockspace", "lockspace", "setup.json", "vmguard.json"]


@pytest.mark.parametrize("step", range(9))
def test_a_setup_that_died_is_told_and_finished(cluster: Cluster, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its n-th link, mkdir or format: never a store that opens but is not whole."""
    host = cluster.host("a")
    path = cluster.store_path
    count = [0]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == step + 2:  # the first is the mkdir of the store itself
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return instead

    def work() -> None:
        for module, name in ((os, "link"), (os, "symlink"), (os, "mkdir"), (client, "format_lockspace")):
            monkeypatch.setattr(module, name, deadly(getattr(module, name)))
        Store.create(path, 1)

    with pytest.raises(AssertionError, match="the child died"):
        host.run(work)
    with pytest.raises(StoreBroken) as caught:
        Store.open(path)
    assert ("not finished" in caught.value.why) == (step > 0)
    first = _cluster.read(os.open(path, os.O_RDONLY), path, "setup.json") if step > 0 else None
    store = created(cluster, host)
    assert first is None or store.cluster == first.cluster
    host.run(lambda: client.check_lockspace(store.lockspace, path + "/lockspace"))
    host.run(lambda: store.ensure("x"))


@pytest.mark.parametrize(
    "path", ["/with blank", "/with:colon", "/back\\slash", "/ünicode", "relative", "", "/line\nend", "/" + "a" * 1000]
)
def test_paths_that_sanlock_cannot_take(path: str) -> None:
    with pytest.raises(BadRequest):
        Store.create(path, 1)
    with pytest.raises(StoreBroken):
        Store.open(path)


@pytest.mark.parametrize("timeout", [0, -1, 121, 256])
def test_io_timeouts_that_cannot_be(timeout: int) -> None:
    with pytest.raises(BadRequest):
        Store.create("/var/tmp/vmguard-never-made", timeout)


def test_create_without_a_daemon_makes_nothing(cluster: Cluster) -> None:
    nobody = Host(cluster.base, "nobody")
    with pytest.raises(SanlockDown):
        nobody.run(lambda: Store.create(cluster.store_path, 1))
    assert not os.path.exists(cluster.store_path)


def _edit(path: str, **members: Any) -> None:
    with open(path) as file:
        content = json.load(file)
    os.unlink(path)
    with open(path, "w") as file:
        json.dump({**content, **members}, file)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: shutil.rmtree(path), "missing"),
        (lambda path: [os.unlink(f"{path}/{name}") for name in ("vmguard.json", "setup.json")], "not mounted"),
        (lambda path: os.unlink(path + "/vmguard.json"), "not finished"),
        (lambda path: _edit(path + "/vmguard.json", format=3), "format is 3"),
        (lambda path: _edit(path + "/vmguard.json", format=1), "format is 1"),
        (lambda path: _edit(path + "/vmguard.json", cluster="0" * 32), "damaged"),
        (lambda path: _edit(path + "/vmguard.json", cluster=[]), "damaged"),
        (lambda path: _edit(path + "/vmguard.json", sector=4096), "damaged"),
        (lambda path: _edit(path + "/vmguard.json", io_timeout=True), "damaged"),
        (lambda path: os.truncate(path + "/vmguard.json", 20), "damaged"),
        (lambda path: os.truncate(path + "/vmguard.json", 0), "damaged"),
        (lambda path: [os.unlink(f"{path}/{folder}lockspace") for folder in ("", "kept/")], "lockspace"),
        (lambda path: os.truncate(path + "/lockspace", 512), "lockspace"),
    ],
    ids="gone unmounted half newer older other-name no-string sector bool cut empty no-lockspace short-lockspace".split(),
)
def test_what_is_no_store_is_not_opened(cluster: Cluster, spoil: Callable[[str], Any], why: str) -> None:
    store = created(cluster, cluster.host("a"))
    spoil(store.path)
    with pytest.raises(StoreBroken) as caught:
        Store.open(store.path, store.cluster)
    assert why in caught.value.why


def test_a_store_that_lost_its_lockspace_is_not_given_a_new_one(cluster: Cluster) -> None:
    """In a new lockspace every other host would be dead, and its leases there for the taking."""
    host = cluster.host("a")
    store = created(cluster, host)
    os.unlink(store.path + "/lockspace")
    os.unlink(store.path + "/kept/lockspace")
    with pytest.raises(StoreBroken):
        created(cluster, host)
    assert not os.path.exists(store.path + "/lockspace")


@pytest.fixture
def told(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], List[str]]:
    """The texts of what was written down as put back."""
    monkeypatch.setattr(paths, "LOG", str(tmp_path))

    def texts() -> List[str]:
        lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
        return [line["text"] for line in lines if line["event"] == "put-back"]

    return texts


def test_what_is_made_was_not_removed(cluster: Cluster, told: Callable[[], List[str]]) -> None:
    """Nor was what another host is just making, and has given one of its two names."""
    host = cluster.host("a")
    store = created(cluster, host)
    lease = host.run(lambda: store.ensure("x"))
    os.unlink(lease.path)
    assert store.has("x") and os.path.exists(lease.path)
    events.record("watching", "")
    assert told() == []


def test_a_lockspace_that_was_removed_is_put_back(cluster: Cluster, told: Callable[[], List[str]]) -> None:
    """The same file, which the daemons have open; also in a store whose setup.json alone is left."""
    host = cluster.host("a")
    store = created(cluster, host)
    inode = os.stat(store.path + "/lockspace").st_ino
    os.unlink(store.path + "/lockspace")
    Store.open(store.path)
    assert os.stat(store.path + "/lockspace").st_ino == inode
    for name in ("lockspace", "vmguard.json"):
        os.unlink(f"{store.path}/{name}")
    assert created(cluster, host).cluster == store.cluster
    assert os.stat(store.path + "/lockspace").st_ino == inode
    assert len(told()) == 2


def test_a_lockspace_of_a_backup_is_not_the_one_that_the_hosts_are_in(cluster: Cluster) -> None:
    """Who joins it would see the others dead after a while, and take what they have."""
    host = cluster.host("a")
    store = created(cluster, host)
    host.run(lambda: joined(host, store.path, 1))
    shutil.copy(store.path + "/lockspace", cluster.base + "/backup")
    os.replace(cluster.base + "/backup", store.path + "/lockspace")
    for attempt in (lambda: Store.open(store.path), lambda: Store.create(store.path, 1)):
        with pytest.raises(StoreBroken, match="another file than it was"):
            host.run(attempt)


def test_the_store_of_another_cluster(cluster: Cluster) -> None:
    store = created(cluster, cluster.host("a"))
    with pytest.raises(StoreBroken, match="another cluster"):
        Store.open(store.path, "f" * 32)


def test_a_store_that_moved_is_opened_by_nobody(cluster: Cluster) -> None:
    host = cluster.host("a")
    store, before = created(cluster, host), created(cluster, host)
    with open(store.path + "/vmguard.json") as known:
        store.mark_moved(Elsewhere("/dev/vg/leases", "f" * 32))
        assert os.fstat(known.fileno()).st_nlink == 0, "a client of NFS would go on reading it"
    for attempt in (lambda: Store.open(store.path), lambda: Store.create(store.path, 1), lambda: before.ensure("x")):
        with pytest.raises(StoreMoved) as caught:
            host.run(attempt)
        assert caught.value.to == "/dev/vg/leases" and "vmguard setup --store /dev/vg/leases" in caught.value.remedy
    with pytest.raises(StoreBroken):
        before.mark_moved(Elsewhere("/elsewhere", "e" * 32))
    store.mark_in_use()
    host.run(lambda: Store.open(store.path).ensure("x"))


ONE, OTHER = Elsewhere("/dev/vg/one", "e" * 32), Elsewhere("/dev/vg/other", "f" * 32)


@pytest.mark.parametrize("where", ["_files.make", "os.link", "os.rename"])
def test_two_that_move_a_store_at_once(cluster: Cluster, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hangs at one exact point for as long as the other takes: it overwrites nothing."""
    store = created(cluster, cluster.host("a"))
    slow, quick = Store.look(store.path), Store.look(store.path)
    module: Any = _files if where.startswith("_files") else os
    name = where.split(".")[1]
    real = getattr(module, name)
    outcomes: List[Any] = []

    def hangs(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(module, name, real)
        try:
            quick.mark_moved(OTHER)
            outcomes.append(OTHER)
        except StoreBroken as error:
            outcomes.append(error)
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, hangs)
    if where == "os.rename":  # it has the number, and lives
        slow.mark_moved(ONE)
        assert "somebody else" in outcomes[0].why
    else:
        with pytest.raises(StoreBroken, match="somebody else"):
            slow.mark_moved(ONE)
        assert outcomes == [OTHER]
    assert Store.look(store.path).facts.moved == (ONE if where == "os.rename" else OTHER)
    assert not [name for name in os.listdir(store.path) if name.startswith("new.")]


def test_a_mark_whose_maker_died_or_is_too_late(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    host = cluster.host("a")
    store = created(cluster, host)

    def dies() -> None:
        os.rename = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        Store.look(store.path).mark_moved(ONE)

    with pytest.raises(AssertionError, match="the child died"):
        host.run(dies)
    assert Store.open(store.path).facts.moved is None
    late, real = Store.look(store.path), os.rename

    def hangs(source: str, target: str, **named: Any) -> None:
        """An hour, on another host."""
        monkeypatch.setattr(os, "rename", real)
        elsewhere = "new.00000000" + source[len("new.00000000") :]
        os.rename(source, elsewhere, **named)
        with pytest.raises(StoreBroken, match="somebody else"):
            Store.look(store.path).mark_moved(OTHER)
        os.utime(f"{store.path}/{elsewhere}", (time.time() - _files.ABANDONED - 1,) * 2)
        Store.look(store.path).mark_moved(OTHER)
        real(elsewhere, target, **named)

    monkeypatch.setattr(os, "rename", hangs)
    with pytest.raises(StoreBroken, match="somebody else"):
        late.mark_moved(ONE)
    assert Store.look(store.path).facts.moved == OTHER
    again = Store.look(store.path)
    again.mark_moved(OTHER)
    with pytest.raises(StoreBroken, match="somebody else"):
        late.mark_in_use()


def test_a_store_that_is_to_take_the_place_of_another_is_not_in_use_yet(cluster: Cluster) -> None:
    host = cluster.host("a")
    old = Elsewhere("/srv/old", "f" * 32)
    host.run(lambda: Store.create(cluster.store_path, 1, old).path)
    with pytest.raises(StoreBroken, match="has not finished") as caught:
        Store.open(cluster.store_path)
    assert f"vmguard store convert {cluster.store_path}" in caught.value.remedy
    Store.look(cluster.store_path).mark_in_use(converted=5.5)
    assert Store.open(cluster.store_path).converted == 5.5


# -- leases ------------------------------------------------------------------------------------------------------------


def test_lease_names_are_hashes() -> None:
    # The names are on disk, in every store there is: they never change.
    assert lease_name("lvm:a/b") == "b03082663cbfea502719916337977d7e35fd116e"
    assert len({lease_name(f"x{i}") for i in range(1000)}) == 1000
    assert len(lease_name("\udcff")) == 40


def test_ensure_makes_a_free_lease_once(directory: Pair, identity: str) -> None:
    lease = directory.one.run(lambda: directory.store.ensure(identity))
    assert lease == directory.store.lease(identity)
    found = os.stat(lease.path)
    assert (found.st_size, found.st_mode & 0o777, found.st_nlink) == (3 * ALIGN, 0o660, 2)
    assert found.st_blocks * 512 >= 3 * ALIGN, "a hole in it may make QEMU or the filesystem see larger sectors"
    for slot in slots.of(lease):
        assert directory.one.run(lambda slot=slot: (client.version(slot), client.owners(slot))) == (0, ())  # type: ignore[misc]
    assert directory.two.run(lambda: directory.store.ensure(identity)) == lease
    assert os.stat(lease.path).st_ino == found.st_ino


def test_hosts_that_ensure_at_once_have_one_lease(pair: Pair, identity: str) -> None:
    """All ensure and acquire at once: one lease file, one owner."""

    def work(host: Host) -> int:
        lease = pair.store.ensure(identity)
        with client.Connection() as connection:
            return connection.acquire(lease, False)

    found = in_parallel([pair.one, pair.two], work, times=3)
    assert sorted(one for one in found if isinstance(one, int)) == [1], found
    assert pair.one.run(pair.store.leftovers) == ()


def test_ensure_leaves_a_damaged_lease_alone(directory: Pair, identity: str) -> None:
    lease = directory.one.run(lambda: directory.store.ensure(identity))
    os.truncate(lease.path, 512)
    with pytest.raises(LeaseDamaged) as caught:
        directory.one.run(lambda: directory.store.ensure(identity))
    assert caught.value.identity == identity
    assert os.stat(lease.path).st_size == 512
    os.unlink(lease.path)


def test_an_unmounted_store_gets_no_leases(cluster: Cluster) -> None:
    host = cluster.host("a")
    store = created(cluster, host)
    os.rename(store.path, store.path + ".away")
    for folder in ("", "/leases"):
        os.makedirs(store.path + folder)
        with pytest.raises(StoreBroken, match="not mounted"):
            host.run(lambda: store.ensure("x"))
    assert files(store.path) == []


def test_another_store_mounted_in_its_place_gets_no_leases(cluster: Cluster) -> None:
    host = cluster.host("a")
    store = created(cluster, host)
    other = created(cluster, host, store.path + "2")
    os.rename(store.path, store.path + ".away")
    os.rename(other.path, store.path)
    with pytest.raises(StoreBroken, match="another cluster"):
        host.run(lambda: store.ensure("x"))


FULL = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO]


@pytest.mark.parametrize("code", FULL, ids=[errno.errorcode[code] for code in FULL])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "link"])
def test_a_disk_that_fails_leaves_nothing_behind(
    directory: Pair, identity: str, code: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(os, call)

    def failing(*args: Any, **kwargs: Any) -> Any:
        # Of the opens only that which makes a file fails; of the writes only those into the lease, not the test's own.
        if (call == "open" and not args[1] & os.O_CREAT) or (call == "write" and len(args[1]) < ALIGN):
            return real(*args, **kwargs)
        raise OSError(code, os.strerror(code))

    def work() -> None:
        facts = client.daemon_facts()
        monkeypatch.setattr(client, "daemon_facts", lambda: facts)
        monkeypatch.setattr(os, call, failing)
        directory.store.ensure(identity)

    with pytest.raises(StoreBroken) as caught:
        directory.one.run(work)
    assert caught.value.why
    entries = os.listdir(directory.store.path + "/leases") + os.listdir(directory.store.path + "/kept")
    assert lease_name(identity) not in entries and not [name for name in entries if name.startswith("new.")]


def test_a_really_full_disk(cluster: Cluster) -> None:
    """A filesystem of its own, filled up."""
    image, mount = cluster.base + "/image", cluster.base + "/mount"
    os.mkdir(mount)
    with open(image, "wb") as file:
        file.truncate(16 * ALIGN)
    made = subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], capture_output=True)
    if made.returncode or subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True).returncode:
        pytest.skip("no loop mounts here")
    try:
        host = cluster.host("a")
        store = created(cluster, host, mount + "/store")
        with pytest.raises(StoreBroken) as caught:
            for number in range(32):
                host.run(lambda: store.ensure(f"x{number}"))  # noqa: B023
        assert caught.value.why == "no space is left"
        assert store.leftovers() == ()
        assert host.run(store.judged) == ([], [])
        store.claim_host_id(1, key("a"))
    finally:
        for one in cluster.hosts:
            one.stop()
        subprocess.run(["umount", mount], check=True)


def test_damaged_leases_are_found_and_made_anew_on_order_alone(pair: Pair, identity: str) -> None:
    good, bad = (pair.one.run(lambda: pair.store.ensure(identity + which)) for which in ("/good", "/bad"))  # noqa: B023
    pair.store.write_note(NOTE._replace(identity=identity + "/bad"))
    with open(bad.path, "r+b") as file:
        file.seek(bad.offset)
        file.write(b"\xff" * bad.sector)
    damaged = pair.one.run(pair.store.judged).damaged
    assert bad.name in damaged and good.name not in damaged
    with pytest.raises(BadRequest, match="not damaged"):
        pair.one.run(lambda: pair.store.reformat(good.name))
    with pytest.raises(BadRequest):
        pair.one.run(lambda: pair.store.reformat("../lockspace"))
    pair.one.run(lambda: pair.store.reformat(bad.name))
    assert pair.one.run(lambda: client.version(bad)) == 0
    (left,) = pair.store.notes(identity + "/bad")
    assert (left.host_id, left.lver, left.writer) == (0, 0, None), "versions begin anew: an old note must not match one"


def test_who_wrote_before_a_lease_was_made_anew_is_not_known(pair: Pair, identity: str) -> None:
    """Not: nobody did. A state that was saved long ago would be taken for the last word."""
    lease = pair.one.run(lambda: pair.store.ensure(identity))
    pair.store.write_note(NOTE._replace(identity=identity, writer=Writer(7, "u-u", "web", "one", 1.5), restored=("a",)))
    garbled(lease)
    this: Any = SimpleNamespace(store=pair.store, host_id=1, states={2: HostState(2, 4, "live")})
    for _ in range(2):
        pair.one.run(lambda: pair.store.reformat(lease.name))
        want: Any = SimpleNamespace(claim=SimpleNamespace(identity=identity), lver=1)
        assert writers._writer_before(want, this) is None
        note = pair.store.note(identity)
        assert note is not None and note.restored == ("a",), "used up they stay"
        garbled(lease)
        assert "no note says" in pair.one.run(lambda: gc._may_be_held(lease.name, this)), "it speaks of nobody"
    pair.one.run(lambda: pair.store.reformat(lease.name))


def garbled(place: Lease) -> None:
    with open(place.path, "r+b") as file:
        file.seek(place.offset)
        file.write(b"\xff" * place.sector)


@pytest.mark.parametrize("held", [slot for slot in slots.SUFFIXES if slot != "lease"])
def test_what_is_whole_beside_a_damaged_lease_is_not_made_anew(pair: Pair, identity: str, held: str) -> None:
    """A guest that has come runs on its ticket, and cannot get a damaged lease."""
    lease = pair.one.run(lambda: pair.store.ensure(identity))
    busy = pair.two.guest()
    assert busy.call("acquire", pair.store.slot(identity, held), False) == 1
    garbled(lease)
    assert pair.one.run(lambda: pair.store.damaged_slots(lease.name)) == ("lease",)
    pair.one.run(lambda: pair.store.reformat(lease.name))
    assert pair.one.run(lambda: client.owners(pair.store.slot(identity, held)))[0].host_id == 2
    assert pair.one.run(lambda: (client.version(lease), client.owners(lease))) == (0, ())


def test_a_damaged_lease_that_this_host_holds_is_not_made_anew(pair: Pair, identity: str) -> None:
    """For a guest whose record is lost: no note of another host, and no record, speaks of it."""
    lease = pair.one.run(lambda: pair.store.ensure(identity))
    busy = pair.one.guest()
    assert busy.call("acquire", lease, False) == 1
    garbled(lease)
    this: Any = SimpleNamespace(store=pair.store, host_id=1, states={})
    assert "this host holds it" in pair.one.run(lambda: gc._may_be_held(lease.name, this))
    pair.one.run(lambda: pair.store.reformat(lease.name))


def test_a_host_that_has_joined_anew_may_have_a_damaged_lease(pair: Pair, identity: str) -> None:
    """Its sanlock here may know it by its earlier membership for as long as it takes to look at the hosts again."""
    lease = pair.one.run(lambda: pair.store.ensure(identity))
    garbled(lease)
    for state, generation, held in (
        ("live", 3, False), ("live", 4, True), ("live", 5, True), ("free", 4, False), ("free", 5, True), ("dead", 5, True),
    ):  # fmt: skip
        this: Any = SimpleNamespace(store=pair.store, host_id=1, states={2: HostState(2, 4, state)})
        pair.store.write_note(NOTE._replace(identity=identity, host_id=2, generation=generation))
        assert bool(pair.one.run(lambda: gc._may_be_held(lease.name, this))) == held  # noqa: B023
    pair.one.run(lambda: pair.store.reformat(lease.name))


@pytest.mark.parametrize(
    ("size", "damaged"),
    [(512, ("lease", "ticket", "drain")), (ALIGN // 2, ("lease", "ticket", "drain")), (3 * ALIGN - 1, ("drain",))],
)
def test_what_was_cut_off_is_damaged(directory: Pair, identity: str, size: int, damaged: Any) -> None:
    lease = directory.one.run(lambda: directory.store.ensure(identity))
    os.truncate(lease.path, size)
    assert directory.one.run(lambda: directory.store.damaged_slots(lease.name)) == damaged
    directory.one.run(lambda: directory.store.reformat(lease.name))
    assert os.stat(lease.path).st_size == 3 * ALIGN
    assert directory.one.run(lambda: directory.store.damaged_slots(lease.name)) == ()


def test_who_may_have_a_damaged_ticket_is_asked_first(pair: Pair, identity: str) -> None:
    """The note beside the lease is that of its source, which has left."""
    lease = pair.one.run(lambda: pair.store.ensure(identity))
    note = NOTE._replace(identity=identity, host_id=3, domain="web")
    pair.store.write_note(note)
    states = {2: HostState(2, 1, "live")}
    this: Any = SimpleNamespace(store=pair.store, host_id=1, states=states)
    garbled(lease)
    assert pair.one.run(lambda: gc._may_be_held(lease.name, this)) == ""
    pair.store.write_note(note._replace(slot="ticket", host_id=2, host="two"))
    assert pair.one.run(lambda: gc._may_be_held(lease.name, this)) == "", "its ticket can be read, and is left alone"
    garbled(slots.ticket(lease))
    assert pair.one.run(lambda: gc._may_be_held(lease.name, this)).startswith("two had it last")
    pair.one.run(lambda: pair.store.reformat(lease.name))


def of_version(place: Lease, major: int, right: bool = True) -> None:
    """A lease of another version of sanlock's format; right: its checksum is."""
    with open(place.path, "r+b") as file:
        file.seek(place.offset)
        block = bytearray(file.read(place.sector))
        block[4:8] = (major << 16).to_bytes(4, "little")
        if right:
            block[168:172] = slots.checksum(block)
        file.seek(place.offset)
        file.write(block)
        os.fsync(file.fileno())


def test_a_lease_of_a_newer_sanlock_is_not_damaged(pair: Pair, identity: str) -> None:
    """While a cluster is updated host by host. Made anew it would be free, whoever has it."""
    lease = pair.one.run(lambda: pair.store.ensure(identity))
    of_version(lease, 0x70)
    this: Any = SimpleNamespace(store=pair.store, host_id=1, states={})
    claim = Claim(identity, Mode.EXCLUSIVE, "disk vda", "/d", "")

    def acquired() -> None:
        with client.Connection() as connection:
            taking.acquire(claim, this, connection)

    for ask in (lambda: client.version(lease), lambda: client.owners(lease), acquired):
        with pytest.raises(LeaseNewer) as caught:
            pair.one.run(ask)
        assert caught.value.path == lease.path
    judged = pair.one.run(pair.store.judged)
    assert lease.name in judged.newer and lease.name not in judged.damaged
    with pytest.raises(LeaseNewer):
        pair.one.run(lambda: pair.store.reformat(lease.name))
    for repair, force in ((False, ""), (True, ""), (True, "so be it")):
        (found,) = [one for one in pair.one.run(lambda: gc._damaged(this, repair, force)) if lease.name in one.text]  # noqa: B023
        assert not found.mended and "update sanlock" in found.text and "--repair" not in found.text
    with open(lease.path, "rb") as file:
        file.seek(lease.offset + 4)
        assert file.read(4) == (0x70 << 16).to_bytes(4, "little"), "it is as it was"
    # The word that says the version can be damaged as any other.
    of_version(lease, 0x71, right=False)
    assert lease.name in pair.one.run(pair.store.judged).damaged
    pair.one.run(lambda: pair.store.reformat(lease.name))


@pytest.mark.parametrize("command", ["cp -a", "tar"])
def test_a_whole_store_from_a_backup_is_not_the_one_that_the_hosts_are_in(cluster: Cluster, command: str) -> None:
    """Both names are kept by such a copy, and all leases are free in it."""
    host = cluster.host("a")
    store = created(cluster, host)
    host.run(lambda: joined(host, store.path, 1))
    host.run(lambda: store.ensure("x"))
    backup = cluster.base + "/backup"
    if command == "tar":
        subprocess.run(["tar", "cf", backup, "-C", store.path, "."], check=True)
        subprocess.run(["tar", "xf", backup, "-C", store.path], check=True)
    else:
        subprocess.run(["cp", "-a", store.path, backup], check=True)
        os.rename(store.path, cluster.base + "/gone")
        os.rename(backup, store.path)
    for attempt in (lambda: Store.open(store.path), lambda: Store.create(store.path, 1)):
        with pytest.raises(StoreBroken, match="another file than it was"):
            host.run(attempt)
    shutil.rmtree(store.path + "/kept")  # an administrator says that it is to be the store
    Store.open(store.path)


# -- files that somebody removed or replaced ---------------------------------------------------------------------------


def both_names(pair: Pair, identity: str) -> List[str]:
    return [f"{pair.store.path}/{folder}/{lease_name(identity)}" for folder in ("leases", "kept")]


def got(host: Host, pair: Pair, identity: str) -> Any:
    """What a host is told that starts a guest on it: a version, or an error."""

    def work() -> int:
        with client.Connection() as connection:
            return connection.acquire(pair.store.ensure(identity), False, outlive=False)

    try:
        return host.run(work)
    except Error as error:
        return error


@pytest.mark.parametrize("removed", [["leases"], ["kept"], ["leases", "kept"]], ids="-".join)
def test_a_lease_whose_file_is_removed_is_not_had_twice(
    directory: Pair, identity: str, removed: List[str], told: Callable[[], List[str]]
) -> None:
    """An administrator's rm, a filesystem check."""
    busy = directory.one.guest()
    assert busy.call("acquire", directory.one.run(lambda: directory.store.ensure(identity)), False, False) == 1
    directory.store.write_note(NOTE._replace(identity=identity, host_id=1))
    for path in both_names(directory, identity):
        if path.split("/")[-2] in removed:
            os.unlink(path)
    assert lease_name(identity) in directory.store.lease_names()
    error = got(directory.two, directory, identity)
    if len(removed) == 2:
        assert isinstance(error, LeaseDamaged) and "has been removed" in report.sentence(error, "web")
        assert not any(map(os.path.exists, both_names(directory, identity))), "it must not look as if it were there"
    else:
        assert isinstance(error, SanlockFailed) and error.code == -243
        assert os.path.samefile(*both_names(directory, identity)), "the next time it is put back again"
        assert removed == ["kept"] or lease_name(identity) in told()[0]
    busy.kill()
    if len(removed) == 2:
        directory.one.run(lambda: directory.store.reformat(lease_name(identity)))
    wait_until(lambda: isinstance(got(directory.two, directory, identity), int))


@pytest.mark.parametrize("replaced", ["leases", "kept"])
def test_a_lease_whose_file_is_replaced_is_had_by_nobody(directory: Pair, identity: str, replaced: str) -> None:
    """By that of a backup, in which it is free."""
    lease = directory.one.run(lambda: directory.store.ensure(identity))
    shutil.copy(lease.path, directory.cluster.base + "/backup")
    busy = directory.one.guest()
    assert busy.call("acquire", lease, False, False) == 1
    os.replace(directory.cluster.base + "/backup", f"{directory.store.path}/{replaced}/{lease.name}")
    for host in (directory.one, directory.two):
        error = got(host, directory, identity)
        assert isinstance(error, LeaseDamaged) and "backup" in report.sentence(error, "web")
    assert lease.name in directory.one.run(directory.store.judged).damaged
    this: Any = SimpleNamespace(store=directory.store, host_id=1, states={})
    assert "this host holds it" in directory.one.run(lambda: gc._may_be_held(lease.name, this))
    busy.kill()
    directory.one.run(lambda: directory.store.reformat(lease.name))
    assert os.path.samefile(*both_names(directory, identity))
    assert lease.name not in directory.one.run(directory.store.judged).damaged
    wait_until(lambda: got(directory.two, directory, identity) == 1)


def test_a_lease_that_lost_a_name_is_found_and_named_again(
    directory: Pair, identity: str, told: Callable[[], List[str]]
) -> None:
    lease = directory.one.run(lambda: directory.store.ensure(identity))
    this: Any = SimpleNamespace(store=directory.store)
    for path in both_names(directory, identity):
        os.unlink(path)
        assert lease.name in directory.store.unnamed()
        assert directory.one.run(lambda: directory.store.damaged_slots(lease.name)) == ()
        assert not any(one.mended for one in directory.one.run(lambda: gc._put_back(this, True)))
        assert lease.name in directory.store.unnamed()
        assert any(one.mended and lease.name in one.text for one in directory.one.run(lambda: gc._put_back(this, False)))
        assert directory.store.unnamed() == ()


def test_a_store_from_before_there_were_second_names(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    host = cluster.host("a")
    store = created(cluster, host)
    host.run(lambda: store.ensure("x"))
    shutil.rmtree(store.path + "/kept")
    os.chown(store.path + "/leases", -1, 4711)  # the group of sanlock's user
    monkeypatch.setattr(paths, "LOG", cluster.base)
    before = os.umask(0o077)
    lease = host.run(lambda: Store.open(store.path).ensure("x"))
    os.umask(before)
    found = os.stat(store.path + "/kept")
    assert (found.st_gid, found.st_mode & 0o777) == (4711, 0o750), "sanlock makes leases in it"
    assert os.path.samefile(lease.path, f"{store.path}/kept/{lease.name}")
    assert os.path.samefile(store.path + "/lockspace", store.path + "/kept/lockspace")
    host.run(lambda: Store.open(store.path).ensure("y"))


# -- leftovers ---------------------------------------------------------------------------------------------------------


def test_what_a_dead_maker_left_is_removed_and_a_living_one_left_in_peace(directory: Pair) -> None:
    def work(live: bool) -> str:
        with _files.directory(directory.store.path + "/leases") as fd:
            name = _files.make(fd, b"x", 0o600)
            assert not live or directory.store.leftovers() == ()
            return name

    dead = directory.store.path + "/leases/" + directory.one.run(lambda: work(True))
    assert directory.store.leftovers() == (dead,)
    assert directory.store.clean() == (dead,)
    assert not os.path.exists(dead)


@pytest.mark.parametrize(("age", "old"), [(60, False), (3700, True)], ids=["a-minute", "an-hour"])
def test_files_of_other_hosts_are_left_for_an_hour(directory: Pair, age: int, old: bool) -> None:
    path = directory.store.path + "/leases/new.00000000.1.1.00000000"
    with open(path, "w"):
        pass
    os.utime(path, (time.time() - age,) * 2)
    assert directory.store.leftovers() == ((path,) if old else ())
    os.unlink(path)


def test_only_files_that_are_being_made_are_leftovers(directory: Pair) -> None:
    path = directory.store.path + "/leases/new.txt"
    with open(path, "w"):
        pass
    os.utime(path, (0, 0))
    assert directory.store.leftovers() == ()
    os.unlink(path)


# -- notes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exclusive", "shared", "host"])
def test_notes_come_back_as_they_were(pair: Pair, identity: str, mode: str) -> None:
    pair.one.run(lambda: pair.store.ensure(identity))
    note = NOTE._replace(identity=identity, mode=mode, domain='we"ird\n\u202e', path="/dev/\udcff", lver=2**40)
    pair.store.write_note(note)
    assert pair.store.notes(identity) == (note,)
    assert pair.store.identity_of(lease_name(identity)) == identity
    newer = note._replace(lver=note.lver + 1)
    pair.store.write_note(newer)
    assert pair.store.notes(identity) == (newer,)


def test_shared_notes_of_two_hosts_stand_side_by_side(pair: Pair, identity: str) -> None:
    pair.one.run(lambda: pair.store.ensure(identity))
    for host_id in (1, 2):
        pair.store.write_note(NOTE._replace(identity=identity, mode="shared", host_id=host_id))
    assert [note.host_id for note in pair.store.notes(identity)] == [1, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 60000,
        b"{" + b" " * (65 * 1024) + b"}",
        {"format": 2},
        {"lver": "7"},
        {"lver": -1},
        {"lver": True},
        {"lver": 2**64},
        {"host_id": None},
        {"since": float("inf")},
        {"since": float("nan")},
        {"since": "now"},
        {"mode": "mine"},
        {"identity": "another"},
        {"identity": "\ud800"},
        {"path": "/\udfff"},
        {"domain": ["x"]},
    ],
    ids=lambda content: str(content)[:20],
)
def test_notes_that_are_none_are_passed_over(directory: Pair, identity: str, content: Any) -> None:
    note = NOTE._replace(identity=identity)
    directory.store.write_note(note._replace(mode="shared", host_id=2))
    path = directory.store.lease_path(lease_name(identity)) + ".note"
    if isinstance(content, dict):
        content = json.dumps({**note._asdict(), **content}).encode()
    with open(path, "wb") as file:
        file.write(content)
    assert [one.mode for one in directory.store.notes(identity)] == ["shared"]


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)],
    ids=["fifo", "directory", "link"],
)
def test_notes_that_are_no_files(directory: Pair, identity: str, make: Callable[[str], None]) -> None:
    make(directory.store.lease_path(lease_name(identity)) + ".note")
    assert directory.store.notes(identity) == ()


def test_members_that_a_later_version_added_are_passed_over() -> None:
    data = json.loads(_notes.encode_note(NOTE))
    assert _notes.decode_note(json.dumps({**data, "colour": "red"}).encode()) == NOTE


def test_a_note_that_cannot_be_written_leaves_the_old_one(
    directory: Pair, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = NOTE._replace(identity=identity)
    directory.store.write_note(note)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as patch, pytest.raises(StoreBroken):
        patch.setattr(os, "write", full)
        directory.store.write_note(note._replace(lver=8))
    assert directory.store.notes(identity) == (note,)
    assert not [name for name in os.listdir(directory.store.path + "/leases") if name.startswith("new.")]


# -- host ids ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["directory", "device"])
def empty(request: pytest.FixtureRequest, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store without hosts."""
    for module in (device_store, making):
        monkeypatch.setattr(module, "SETTLES", 0.1)
    return created(cluster, cluster.host("a"), cluster.place(request.param))


def test_ids_are_given_from_the_lowest_and_kept(empty: Store) -> None:
    assert [empty.claim_host_id(None, key(name)) for name in ("a", "b", "a", "c")] == [1, 2, 1, 3]
    empty.release_host_id(2)
    assert empty.claim_host_id(None, key("d")) == 2
    assert [(record.host_id, record.host) for record in empty.hosts_known()] == [(1, "a"), (2, "d"), (3, "c")]
    assert (empty.host_name(3), empty.host_name(4)) == ("c", None)


def test_an_id_of_another_machine_is_refused(empty: Store) -> None:
    empty.claim_host_id(7, key("a"))
    assert empty.claim_host_id(7, key("a")) == 7
    for attempt in (
        lambda: empty.claim_host_id(7, key("b")),
        lambda: empty.record_join(7, key("b"), "boot"),
        lambda: empty.release_host_id(7, key("b")),
    ):
        with pytest.raises(HostIdTaken) as caught:
            attempt()
        assert (caught.value.host_id, caught.value.by, caught.value.live) == (7, "a", False)
    assert empty.host_record(7) is not None


@pytest.mark.parametrize("wanted", [0, -1, None])
def test_numbers_that_are_no_host_ids(empty: Store, wanted: Optional[int]) -> None:
    wanted = empty.host_ids[-1] + 1 if wanted is None else wanted
    with pytest.raises(BadRequest):
        empty.claim_host_id(wanted, key("a"))


def spoil_record(store: Store, host_id: int, content: bytes) -> None:
    if store.kind == "directory":
        with open(f"{store.path}/hosts/{host_id}.json", "wb") as file:
            file.write(content)
    else:
        content = content or b"\xff"
        Blocks(store.path).write(layout.host_at(host_id), content.ljust(layout.BLOCK, b"\0"))


@pytest.mark.parametrize("content", [b"", b"{", b'{"host_id": 2, "machine": "x", "host": "y"}', b'{"host_id": 1}'])
def test_a_record_that_cannot_be_read_is_somebody_elses(empty: Store, content: bytes) -> None:
    spoil_record(empty, 1, content)
    assert empty.claim_host_id(None, key("a")) == 2
    with pytest.raises(HostIdTaken):
        empty.claim_host_id(1, key("a"))


@pytest.mark.parametrize("kind", ["directory", "device"])
def test_hosts_that_claim_at_once_get_ids_of_their_own(
    cluster: Cluster, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_store, "SETTLES", 0.5)
    hosts = [cluster.host(name) for name in "ab"]
    store = created(cluster, hosts[0], cluster.place(kind))
    found = in_parallel(hosts, lambda host: store.claim_host_id(None, key(f"{host.name}{os.getpid()}")), times=6)
    assert sorted(found) == list(range(1, 13))


@pytest.mark.parametrize("kind", ["directory", "device"])
def test_one_machine_that_claims_twice_at_once_gets_one_id(cluster: Cluster, kind: str) -> None:
    host = cluster.host("a")
    store = created(cluster, host, cluster.place(kind))
    assert set(in_parallel([host], lambda _: store.claim_host_id(None, key("same")), times=6)) == {1}


def test_all_ids_taken(empty: Store) -> None:
    for host_id in empty.host_ids:
        spoil_record(empty, host_id, b"x")
    with pytest.raises(StoreBroken, match="taken"):
        empty.claim_host_id(None, key("a"))


def test_records_of_joins(empty: Store) -> None:
    empty.claim_host_id(1, key("a"))
    assert empty.joined_before(1, key("a"), "boot1") is False
    empty.record_join(1, key("a"), "boot1")
    assert empty.joined_before(1, key("a"), "boot1") is True
    assert empty.joined_before(1, key("a"), "boot2") is False
    with pytest.raises(BadRequest):
        empty.record_join(2, key("a"), "boot1")
