# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client against real sanlock daemons: two hosts over one store."""

import ctypes
import errno
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import pytest
from conftest import Pair
from sanlock_hosts import Host, wait_until

from vmguard.errors import BadRequest, LeaseDamaged, NotJoined, SanlockDown, SanlockFailed, StoreBroken
from vmguard.leases import HostState, Lease, Lock, Owner, _library, client

ALIGN = 1 << 20


def ensured(pair: Pair, identity: str) -> Lease:
    found = pair.one.run(lambda: pair.store.ensure(identity))
    assert isinstance(found, Lease)
    return found


def take(host: Host, lease: Lease, shared: bool = False) -> int:
    """Acquire as `prepare` does: the process ends, the lease stays."""

    def work() -> int:
        with client.Connection() as connection:
            return connection.acquire(lease, shared)

    found = host.run(work)
    orphaned(host, lease)
    assert isinstance(found, int)
    return found


def give_back(host: Host, lease: Lease) -> Any:
    def work() -> bool:
        with client.Connection() as connection:
            return connection.give_back(lease)

    return host.run(work)


def locks_of(host: Host, lease: Lease) -> Tuple[Lock, ...]:
    return tuple(lock for lock in host.run(lambda: client.locks(lease.lockspace)) if lock.name == lease.name)


def orphaned(host: Host, lease: Lease) -> None:
    wait_until(lambda: [lock.pid for lock in locks_of(host, lease)] == [None], what="the lease is an orphan")


def code_of(work: Callable[[], Any]) -> int:
    with pytest.raises(SanlockFailed) as caught:
        work()
    return caught.value.code


def adopted(host: Host, pid: int, lease: Lease) -> Dict[str, Lock]:
    def work() -> Dict[str, Lock]:
        client.adopt(pid, [lease])
        return client.held_by(pid)

    found = host.run(work)
    assert isinstance(found, dict)
    return found


def owners(host: Host, lease: Lease) -> Tuple[Owner, ...]:
    found = host.run(lambda: client.owners(lease))
    assert isinstance(found, tuple)
    return found


# -- exclusive ---------------------------------------------------------------------------------------------------------


def test_a_lease_outlives_its_taker_and_goes_with_its_guest(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    assert take(pair.one, lease) == 1
    assert locks_of(pair.one, lease) == (Lock(lease.name, 1, False, None),)
    assert [lock for lock in pair.one.run(lambda: client.orphans(lease.lockspace)) if lock.name == lease.name]
    assert code_of(lambda: take(pair.two, lease)) == _library.ACQUIRE_IDLIVE
    guest = pair.one.guest()
    assert adopted(pair.one, guest.pid, lease) == {lease.name: Lock(lease.name, 1, False, guest.pid)}
    assert locks_of(pair.one, lease) == (Lock(lease.name, 1, False, guest.pid),)
    assert code_of(lambda: take(pair.two, lease)) == _library.ACQUIRE_IDLIVE
    guest.kill()
    wait_until(lambda: owners(pair.two, lease) == (), what="free after the guest's end")
    assert take(pair.two, lease) == 2
    assert give_back(pair.two, lease) is True


def test_owners_name_host_and_generation(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    assert owners(pair.two, lease) == ()
    take(pair.one, lease)
    generation = {state.host_id: state.generation for state in pair.one.run(lambda: client.hosts(lease.lockspace))}
    assert owners(pair.two, lease) == (Owner(1, generation[1], shared=False),)
    assert pair.two.run(lambda: client.version(lease)) == 1
    give_back(pair.one, lease)


def test_release_of_what_one_has_just_taken_frees_it_at_once(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)

    def work() -> Tuple[Owner, ...]:
        with client.Connection() as connection:
            connection.acquire(lease, False)
            assert connection.held() == {lease.name: Lock(lease.name, 1, False, os.getpid())}
            connection.release(lease)
            assert connection.held() == {}
            return client.owners(lease)

    assert pair.one.run(work) == ()


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_give_back_frees_an_orphan_and_says_if_there_was_one(pair: Pair, identity: str, shared: bool) -> None:
    lease = ensured(pair, identity)
    take(pair.one, lease, shared)
    assert give_back(pair.one, lease) is True
    wait_until(lambda: owners(pair.two, lease) == (), 5, "free on disk")
    assert give_back(pair.one, lease) is False
    assert locks_of(pair.one, lease) == ()


def test_give_back_leaves_a_lease_that_a_guest_has(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    take(pair.one, lease)
    guest = pair.one.guest()
    adopted(pair.one, guest.pid, lease)
    assert give_back(pair.one, lease) is False
    assert owners(pair.two, lease) != ()
    guest.kill()


def test_give_back_of_one_leaves_the_others(pair: Pair, identity: str) -> None:
    leases = [ensured(pair, f"{identity}/{number}") for number in range(2)]
    for lease in leases:
        take(pair.one, lease)
    assert give_back(pair.one, leases[0]) is True
    assert locks_of(pair.one, leases[1]) != ()
    give_back(pair.one, leases[1])


def test_adopting_what_is_no_orphan_any_more_shows_in_the_version(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    assert take(pair.one, lease) == 1
    give_back(pair.one, lease)
    wait_until(lambda: owners(pair.two, lease) == ())
    assert take(pair.two, lease) == 2
    give_back(pair.two, lease)
    wait_until(lambda: owners(pair.two, lease) == ())
    guest = pair.one.guest()
    assert adopted(pair.one, guest.pid, lease)[lease.name].lver == 3
    guest.kill()


def test_a_failed_adoption_leaves_those_before_it_with_the_guest(pair: Pair, identity: str) -> None:
    first, second = ensured(pair, identity + "/1"), ensured(pair, identity + "/2")
    take(pair.one, first)
    take(pair.one, second, shared=True)
    guest = pair.one.guest()
    assert code_of(lambda: pair.one.run(lambda: client.adopt(guest.pid, [first, second]))) == -errno.EUCLEAN
    assert set(pair.one.run(lambda: client.held_by(guest.pid))) == {first.name}
    assert len(owners(pair.two, first)) == 1
    guest.kill()
    give_back(pair.one, second)


def test_an_adoption_whose_file_is_gone_is_not_begun(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    take(pair.one, lease)
    guest = pair.one.guest()
    os.rename(lease.path, lease.path + ".away")
    try:
        with pytest.raises(StoreBroken):
            pair.one.run(lambda: client.adopt(guest.pid, [lease]))
    finally:
        os.rename(lease.path + ".away", lease.path)
    # Begun, it would have left the lease ours on disk and unknown to the daemon.
    assert locks_of(pair.one, lease) == (Lock(lease.name, 1, False, None),)
    assert adopted(pair.one, guest.pid, lease)[lease.name].lver == 1
    guest.kill()


def test_adoption_of_more_than_eight(pair: Pair, identity: str) -> None:
    leases = [ensured(pair, f"{identity}/{number}") for number in range(9)]
    for lease in leases:
        take(pair.one, lease)
    guest = pair.one.guest()
    pair.one.run(lambda: client.adopt(guest.pid, leases))
    assert set(pair.one.run(lambda: client.held_by(guest.pid))) == {lease.name for lease in leases}
    guest.kill()
    wait_until(lambda: not any(owners(pair.two, lease) for lease in leases), what="all nine free")


# -- shared ------------------------------------------------------------------------------------------------------------


def test_shared_on_both_hosts_excludes_the_exclusive(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    assert take(pair.one, lease, shared=True) == 0
    assert take(pair.two, lease, shared=True) == 0
    assert locks_of(pair.one, lease) == (Lock(lease.name, 0, True, None),)
    found = owners(pair.one, lease)
    assert {owner.host_id for owner in found} == {1, 2} and all(owner.shared for owner in found)
    give_back(pair.one, lease)
    wait_until(lambda: {owner.host_id for owner in owners(pair.two, lease)} == {2})
    assert code_of(lambda: take(pair.one, lease)) == -errno.EAGAIN
    give_back(pair.two, lease)


@pytest.mark.parametrize("first", [False, True], ids=["exclusive-first", "shared-first"])
@pytest.mark.parametrize("second", [False, True], ids=["then-exclusive", "then-shared"])
def test_an_orphan_here_answers_euclean_whatever_its_mode(pair: Pair, identity: str, first: bool, second: bool) -> None:
    lease = ensured(pair, identity)
    take(pair.one, lease, first)
    assert code_of(lambda: take(pair.one, lease, second)) == -errno.EUCLEAN
    assert locks_of(pair.one, lease)[0].shared is first
    give_back(pair.one, lease)


# -- who is registered, who is there -----------------------------------------------------------------------------------


def test_registered(pair: Pair) -> None:
    guest = pair.one.guest()
    assert pair.one.run(lambda: client.registered(guest.pid)) is True
    assert pair.two.run(lambda: client.registered(guest.pid)) is False
    assert pair.one.run(lambda: client.held_by(guest.pid)) == {}
    guest.kill()
    wait_until(lambda: pair.one.run(lambda: client.registered(guest.pid)) is False)
    assert code_of(lambda: pair.one.run(lambda: client.held_by(guest.pid))) == -errno.ESRCH


def test_adoption_by_a_process_that_is_not_registered_changes_nothing(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    take(pair.one, lease)
    assert code_of(lambda: pair.one.run(lambda: client.adopt(os.getppid(), [lease]))) == -errno.ESRCH
    assert locks_of(pair.one, lease) == (Lock(lease.name, 1, False, None),)
    give_back(pair.one, lease)


def test_the_descriptor_is_not_inherited(pair: Pair) -> None:
    def work() -> bool:
        with client.Connection() as connection:
            return os.get_inheritable(connection._fd)

    assert pair.one.run(work) is False


def test_hosts(pair: Pair) -> None:
    def two_alive() -> Tuple[HostState, ...]:
        found = pair.one.run(lambda: client.hosts(pair.store.lockspace))
        assert isinstance(found, tuple)
        return found if [state.state for state in found[:2]] == ["live", "live"] else ()

    states = wait_until(two_alive)[:2]  # a host that another test killed may be there too
    assert [(state.host_id, state.state) for state in states] == [(1, "live"), (2, "live")]
    assert all(state.generation >= 1 and state.timestamp > 0 for state in states)


@pytest.mark.parametrize(
    "ask",
    [client.hosts, lambda name: client.used_by_orphans(name, True)],
    ids=["hosts", "used_by_orphans"],
)
def test_a_lockspace_that_is_not_joined(pair: Pair, ask: Callable[[str], Any]) -> None:
    with pytest.raises(NotJoined) as caught:
        pair.one.run(lambda: ask("vmguard-nowhere"))
    assert caught.value.joining is False


def test_joined_means_this_host_id_and_path(pair: Pair) -> None:
    name, path = pair.store.lockspace, pair.store.lockspace_path
    place = pair.store.lockspace_offset, pair.store.sector
    assert pair.one.run(lambda: client.joined(name, 1, path, *place)) is True
    assert pair.one.run(lambda: client.joined(name, 2, path, *place)) is False
    assert pair.one.run(lambda: client.joined(name, 1, path + "x", *place)) is False


def test_acquire_without_the_lockspace(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    stranger = pair.cluster.host("stranger")
    assert code_of(lambda: take(stranger, lease)) == -errno.ENOSPC
    stranger.stop()


def test_used_by_orphans_is_seen_in_the_daemon(pair: Pair) -> None:
    from vmguard.leases import status

    for on in (True, False):
        pair.two.run(lambda: client.used_by_orphans(pair.store.lockspace, on))  # noqa: B023
        assert [space.used_by_orphans for space in pair.two.run(status.status).spaces] == [on]


def test_daemon_facts(pair: Pair) -> None:
    facts = pair.one.run(client.daemon_facts)
    assert (facts.host_name, facts.use_watchdog, facts.uid, facts.gid) == ("one", False, 0, 0)
    assert facts.version and pair.one.daemon is not None and facts.pid == pair.one.daemon.pid


# -- what can be wrong -------------------------------------------------------------------------------------------------


def test_no_daemon(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    nobody = Host(pair.cluster.base, "nobody")
    calls: Dict[str, Callable[[], Any]] = {
        "register": lambda: client.Connection().__enter__(),
        "adopt": lambda: client.adopt(os.getpid(), [lease]),
        "held_by": lambda: client.held_by(os.getpid()),
        "registered": lambda: client.registered(os.getpid()),
        "owners": lambda: client.owners(lease),
        "version": lambda: client.version(lease),
        "hosts": lambda: client.hosts(lease.lockspace),
        "joined": lambda: client.joined(lease.lockspace, 1, lease.path),
        "locks": lambda: client.locks(lease.lockspace),
        "used_by_orphans": lambda: client.used_by_orphans(lease.lockspace, True),
        "daemon_facts": client.daemon_facts,
    }
    for name, call in calls.items():
        with pytest.raises(SanlockDown) as caught:
            nobody.run(call)
        assert caught.value.errno == errno.ENOENT, name


def test_a_daemon_that_dies_under_a_connection(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    short = pair.cluster.host("short")
    guest = short.guest()
    short.kill_daemon()
    for method, arguments in (("acquire", (lease, False)), ("held", ()), ("give_back", (lease,))):
        with pytest.raises(SanlockDown):
            guest.call(method, *arguments)
    with pytest.raises(SanlockDown) as caught:
        short.run(client.daemon_facts)
    assert caught.value.errno == errno.ECONNREFUSED
    short.stop()


def _damage(lease: Lease, kind: str) -> None:
    with open(lease.path, "r+b") as file:
        file.seek(lease.offset)
        if kind == "zeros":
            file.write(bytes(ALIGN))
        elif kind == "short":
            file.truncate(0)
        elif kind == "noise":
            file.write(b"\xa5" * 4096)
        elif kind == "checksum":
            file.seek(lease.offset + 20)
            file.write(b"\xff")


@pytest.mark.parametrize("kind", ["zeros", "short", "noise", "checksum"])
def test_a_damaged_lease(pair: Pair, identity: str, kind: str) -> None:
    if kind == "short" and pair.store.kind != "directory":
        pytest.skip("a device does not become shorter")
    lease = ensured(pair, identity)
    _damage(lease, kind)
    for ask in (client.version, client.owners):
        with pytest.raises(LeaseDamaged) as caught:
            pair.one.run(lambda: ask(lease))  # noqa: B023
        assert caught.value.path == lease.path


def test_another_lease_in_the_place_of_this_one_is_damage(pair: Pair, identity: str) -> None:
    lease = ensured(pair, identity)
    for wrong in (lease._replace(name="a" * 40), lease._replace(lockspace="vmguard-other")):
        for ask in (client.version, client.owners):
            with pytest.raises(LeaseDamaged):
                pair.one.run(lambda: ask(wrong))  # noqa: B023


def test_a_lease_file_that_is_missing(directory: Pair, identity: str) -> None:
    lease = directory.store.lease(identity)
    for ask in (client.version, client.owners):
        with pytest.raises(StoreBroken):
            directory.one.run(lambda: ask(lease))  # noqa: B023


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a" * 48},
        {"name": "a b"},
        {"name": "a:b"},
        {"name": "a\n"},
        {"lockspace": ""},
        {"path": "/with blank"},
        {"path": "/with:colon"},
        {"path": "/with\\backslash"},
        {"path": "relative"},
        {"path": "/ünicode"},
        {"path": "/" + "a" * 1023},
        {"offset": 512},
        {"offset": -ALIGN},
    ],
    ids=lambda wrong: "-".join(f"{key}={str(value)[:12]}" for key, value in wrong.items()),
)
def test_what_sanlock_would_crash_on_never_reaches_it(wrong: Dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        _library.resource(Lease("vmguard-x", "a", "/a")._replace(**wrong))


@pytest.mark.parametrize("pid", [0, -1])
def test_no_pid(pid: int) -> None:
    for call in (client.held_by, client.registered, lambda pid: client.adopt(pid, [])):
        with pytest.raises(BadRequest):
            call(pid)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("", []),
        ("ls:a:/p:0:7", [("ls", Lock("a", 7, False))]),
        ("ls:a:/p:0:7 ls2:b:/q:1048576:SH", [("ls", Lock("a", 7, False)), ("ls2", Lock("b", 0, True))]),
        ("ls:a:/with\\:colon:0:7", [("ls", Lock("a", 7, False))]),
        ("ls:a:/back\\\\:0:7", [("ls", Lock("a", 7, False))]),
        ("ls:a:/p:0:/q:0:7", [("ls", Lock("a", 7, False))]),
    ],
    ids=["none", "exclusive", "two", "colon", "backslash-before-colon", "two-disks"],
)
def test_state_strings(state: str, expected: Any) -> None:
    assert list(client.parse_state(state)) == expected


def test_a_filesystem_that_takes_no_sectors(tmp_path: Path) -> None:
    """EINVAL is what sanlock gets from it, and what it says of a lease with another size of sectors."""
    image, point, plain = tmp_path / "disk", tmp_path / "point", tmp_path / "plain"
    for path in (image, plain):
        path.write_bytes(bytes(16 << 20))
    point.mkdir()
    script = """
        mkfs.ext4 -q -b 4096 "$1" && loop=$(losetup --find --show --sector-size 4096 "$1") && trap 'losetup -d $loop' EXIT
        mount "$loop" "$2" && head -c 4096 /dev/zero >"$2/lease" && sync && read
        umount "$2"
    """
    words = ["unshare", "--mount", "sh", "-c", script, "sh", str(image), str(point)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as mounted:
        there = f"/proc/{mounted.pid}/root{point}/lease"
        try:
            wait_until(lambda: os.path.exists(there) or mounted.poll() is not None, what="it is mounted")
            if mounted.poll() is not None:
                pytest.skip("needs root and a loop device with sectors of 4096 bytes")
            broken = client.file_failure("format", -errno.EINVAL, there, "x")
        finally:
            assert mounted.stdin is not None
            mounted.stdin.close()
    assert isinstance(broken, StoreBroken) and "direct=disabled" in broken.remedy
    assert isinstance(client.file_failure("read", -errno.EINVAL, str(plain), "x"), LeaseDamaged)


@pytest.mark.parametrize("state", ["x", "ls:a:7", "ls:a:/p:0:", "ls:a:/p:0:x", "ls:a:/p:0:7  ls:b:/p:0:7"])
def test_state_strings_that_are_none(state: str) -> None:
    with pytest.raises(SanlockFailed):
        list(client.parse_state(state))


# -- the structures, compared with the project's own binding -----------------------------------------------------------


def test_sizes_of_the_structures() -> None:
    sizes = [ctypes.sizeof(t) for t in (_library.Disk, _library.Resource, _library.Lockspace, _library.Host)]
    assert sizes == [1040, 128 + 1040, 64 + 1040, 32]


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_the_binding_sees_the_same(pair: Pair, identity: str, shared: bool) -> None:
    sanlock = pytest.importorskip("sanlock")
    lease = ensured(pair, identity)
    take(pair.one, lease, shared)

    def theirs() -> Any:
        disks = [(lease.path, lease.offset)]
        names = lease.lockspace.encode(), lease.name.encode()
        read = sanlock.read_resource(lease.path, lease.offset, sector=lease.sector)
        assert (read["lockspace"], read["resource"]) == names
        owners = [(o["host_id"], o["generation"]) for o in sanlock.read_resource_owners(*names, disks, sector=lease.sector)]
        hosts = [(h["host_id"], h["generation"], h["flags"]) for h in sanlock.get_hosts(names[0])]
        return read["version"], owners, hosts

    def ours() -> Any:
        numbers = {state: number for number, state in _library.HOST_STATES.items()}
        hosts = [(h.host_id, h.generation, numbers[h.state]) for h in client.hosts(lease.lockspace)]
        return client.version(lease), [(o.host_id, o.generation) for o in client.owners(lease)], hosts

    assert pair.two.run(ours) == pair.two.run(theirs)
    give_back(pair.one, lease)


# -- death -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dead_host_keeps_its_lease_until_it_is_certainly_dead(pair: Pair, identity: str) -> None:
    from conftest import joined

    lease = ensured(pair, identity)
    third = pair.cluster.host("third")
    third.run(lambda: joined(third, pair.store.path, 3))
    take(third, lease)
    third.kill_daemon()
    began = time.monotonic()
    seen = set()

    def taken() -> bool:
        try:
            take(pair.two, lease)
            return True
        except SanlockFailed as error:
            seen.add(error.code)
            return False

    wait_until(taken, 100)
    assert time.monotonic() - began > 8 * 1 + 60 - 4
    assert seen <= {_library.ACQUIRE_IDLIVE, _library.ACQUIRE_OWNED_RETRY}
    states = {state.host_id: state.state for state in pair.two.run(lambda: client.hosts(lease.lockspace))}
    assert states[3] == "dead"
    give_back(pair.two, lease)


def test_a_stopped_daemon_hangs_the_call_and_the_child_can_be_killed(pair: Pair) -> None:
    stopped = pair.cluster.host("stopped")
    assert stopped.daemon is not None
    os.kill(stopped.daemon.pid, signal.SIGSTOP)
    with pytest.raises(AssertionError, match="no answer"):
        stopped.run(client.daemon_facts, seconds=0.5)
    os.kill(stopped.daemon.pid, signal.SIGCONT)
    assert stopped.run(client.daemon_facts).host_name == "stopped"
    stopped.stop()
