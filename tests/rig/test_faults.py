# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Daemons that hang or die, and a host whose configuration is wrong.

The same three things each time: a start is refused in clear words and in time; guests that run are not touched; and when
the fault is gone things work again with no hand's work, or with the one command that the refusal named.
"""

import threading
import time
from contextlib import contextmanager
from typing import Callable, Iterator, List

import pytest
from conftest import Images
from guests import Disk, Guest, count_in, guest, witness
from hosts import Host, eventually

DEADLINE = 3  # seconds; the default would make these tests long


@pytest.fixture
def impatient(node1: Host) -> Iterator[None]:
    node1.write("/etc/vmguard/vmguard.conf.d/90-test.conf", f"[guard]\ndeadline = {DEADLINE}\n")
    yield
    node1.run("rm", "-f", "/etc/vmguard/vmguard.conf.d/90-test.conf", check=False)


def test_sanlock_hangs(impatient: None, node1: Host, node2: Host, images: Images) -> None:
    """Shorter than what costs the host its lockspace."""
    disk = images.raw("web.img", witness(mark=1))
    web, other = guest("web", [disk]), guest("other", [images.raw("other.img")])
    node1.start(web)
    with node1.frozen("sanlock"):
        began = time.monotonic()
        words = node1.refused(other)
        took = time.monotonic() - began
        assert node1.state(web) == "running"
    assert "cannot tell" in words and "no answer within" in words, words
    assert took < DEADLINE + 2
    before = count_in(disk).value
    eventually(lambda: count_in(disk).value > before, "the running guest goes on")
    assert "web" in node2.refused(guest("thief", [disk]))
    node1.start(other)


def test_guest_ends_while_sanlock_hangs(impatient: None, node1: Host, node2: Host, images: Images) -> None:
    disk, iso = images.raw("web.img"), images.raw("tools.iso")
    web = guest("web", [disk, Disk(iso, readonly=True)])
    node1.start(web)
    with node1.frozen("sanlock"):
        assert node1.destroy(web) < DEADLINE + 3
    eventually(lambda: not node2.try_start(guest("next", [disk])).status, "what it wrote is free", within=5)
    node1.vmguard("gc")
    node2.start(guest("writer", [iso]))


def test_sanlock_dies(node1: Host, node2: Host, images: Images) -> None:
    """Every lease of the host is void at once, while its guests run. `vmguard join` gives them back."""
    disk = images.raw("web.img", witness(mark=1))
    web, other = guest("web", [disk]), guest("other", [images.raw("other.img")])
    node1.start(web)
    node1.kill("sanlock")
    words = node1.refused(other)
    assert "sanlock" in words and "vmguard join" in words, words
    assert node1.state(web) == "running"
    assert "web" in node2.refused(guest("thief", [disk]))
    node1.start_sanlock()
    assert "vmguard join" in node1.refused(other)
    node1.vmguard("join")
    before = count_in(disk).value
    eventually(lambda: count_in(disk).value > before, "the guest goes on")
    assert "web" in node2.refused(guest("thief", [disk]))
    node1.start(other)
    node1.kill9(web)
    eventually(lambda: not node2.try_start(guest("next", [disk])).status, "it is free when the guest has ended")


def test_sanlock_dies_and_another_host_never_stops_trying(node1: Host, node2: Host, images: Images) -> None:
    """
    The dangerous moment is the new join: it frees the leases of the old membership for everybody. Whoever is first has the
    disk; the other one's guest does not run another instruction.
    """
    disk = images.block("web", witness(mark=1))
    web, thief = guest("web", [Disk(disk, "block")]), guest("thief", [Disk(disk, "block")])
    node1.start(web)
    node1.kill("sanlock")
    node1.start_sanlock()
    stop = threading.Event()
    stolen: List[str] = []  # the state of the first guest's QEMU when the other one had started

    def steal() -> None:
        while not stop.is_set() and not stolen:
            if not node2.try_start(thief).status:
                stolen.append(process_state(node1, web))

    attempts = threading.Thread(target=steal)
    attempts.start()
    try:
        done = node1.vmguard("join", check=False)
        end = time.monotonic() + 2
        eventually(lambda: stolen or time.monotonic() > end, "it has tried for a while longer")
    finally:
        stop.set()
        attempts.join()
    if stolen:
        assert stolen[0] in ("T", "Z", ""), "both ran"
        assert done.status == 1 and "web" in done.out, done
        assert not node1.runs(web) and node2.runs(thief)
    else:
        assert done.status == 0 and node1.runs(web), done
        before = count_in(images.path("web.backing")).value
        eventually(lambda: count_in(images.path("web.backing")).value > before, "the guest goes on")


def process_state(host: Host, it: Guest) -> str:
    """As in proc(5): R or S runs, T is stopped; "" for none."""
    pid = host.qemu_pid(it)
    return host.read(f"/proc/{pid}/stat").rpartition(") ")[2][:1] if pid else ""


def test_somebody_else_wrote_while_sanlock_was_dead(node1: Host, node2: Host, images: Images) -> None:
    """
    Without a watchdog nothing stops a guest whose host is thought dead. What can be done is done: the join finds that
    somebody else had the disk, and the guest does not go on.
    """
    disk = images.block("web", witness(mark=1))
    web = guest("web", [Disk(disk, "block")])
    node1.start(web)
    node1.kill("sanlock")
    thief = guest("thief", [Disk(disk, "block")])
    eventually(lambda: not node2.try_start(thief).status, "the host counts as dead", within=90, every=1)
    node1.start_sanlock()
    done = node1.vmguard("join", check=False)
    assert done.status == 1 and "web" in done.out, done
    assert not node1.runs(web)
    assert node2.runs(thief)
    eventually(lambda: node1.state(web) == "", "libvirt has seen it go")
    words = node1.refused(web)
    assert "thief" in words and "node2" in words


# -- libvirtd ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("milliseconds", range(0, 500, 50))
def test_libvirtd_killed_during_a_start(milliseconds: int, node1: Host, node2: Host, images: Images) -> None:
    """Between `prepare` and the fork, no hook is ever called again for that start: the next one cleans up."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    starting = node1.spawn("virsh", "-q", "create", "/dev/stdin", stdin=web.xml)
    time.sleep(milliseconds / 1000)
    node1.kill("libvirtd")
    starting.communicate()
    assert_one_owner_and_mended(node1, node2, web.uuid, disk, restart=True)


def assert_one_owner_and_mended(node1: Host, node2: Host, uuid: str, disk: str, restart: bool = False) -> None:
    """Whatever was killed: a guest that runs is guarded, and one that does not keeps nothing after the next look."""
    web, other = guest("web", [disk], uuid=uuid), guest("other", [disk])
    for _ in range(2):
        stolen = not node2.try_start(other).status
        assert not (stolen and node1.runs(web)), "two owners"
        if stolen:
            node2.destroy(other)
        if restart:
            node1.start_libvirtd()
            restart = False
    if node1.runs(web):
        eventually(lambda: node1.state(web) == "running", "libvirtd has it")
        assert "web" in node2.refused(other)
        return
    node1.vmguard("gc")
    node2.start(other)


@pytest.mark.parametrize("milliseconds", range(0, 200, 40))
def test_libvirtd_killed_during_a_stop(milliseconds: int, node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    stopping = node1.spawn("virsh", "-q", "destroy", web.uuid)
    time.sleep(milliseconds / 1000)
    node1.kill("libvirtd")
    stopping.communicate()
    assert_one_owner_and_mended(node1, node2, web.uuid, disk, restart=True)


# -- what is written down ----------------------------------------------------------------------------------------------

CONF = "/etc/vmguard/vmguard.conf.d"


@contextmanager
def covered(host: Host, target: str, source: str) -> Iterator[None]:
    """Something else lies over a path of this host for a while."""
    host.run("mount", "--bind", source, target)
    try:
        yield
    finally:
        host.run("umount", target)


def garbage(host: Host) -> Callable[[], None]:
    return replaced(host, f"{CONF}/99-bad.conf", "\x00\x01garbage")


def unknown_key(host: Host) -> Callable[[], None]:
    return replaced(host, f"{CONF}/99-bad.conf", "[guard]\nmodus = enforce\n")


def bad_value(host: Host) -> Callable[[], None]:
    return replaced(host, f"{CONF}/99-bad.conf", "[store]\nhost_id = 0\n")


def another_host_id(host: Host) -> Callable[[], None]:
    return replaced(host, f"{CONF}/99-bad.conf", "[store]\nhost_id = 77\n")


def another_cluster(host: Host) -> Callable[[], None]:
    return replaced(host, f"{CONF}/99-bad.conf", f"[store]\ncluster = {'0' * 32}\n")


def setup_lost(host: Host) -> Callable[[], None]:
    return replaced(host, f"{CONF}/10-setup.conf", None)


def setup_empty(host: Host) -> Callable[[], None]:
    return replaced(host, f"{CONF}/10-setup.conf", "")


def record_damaged(host: Host) -> Callable[[], None]:
    return replaced(host, "/var/lib/vmguard/host.json", '{"store": ')


def no_such_store(host: Host) -> Callable[[], None]:
    return replaced(host, f"{CONF}/99-bad.conf", "[store]\npath = /nowhere/store\n")


def replaced(host: Host, path: str, text: object) -> Callable[[], None]:
    """Put text in a file's place, or nothing; what undoes it."""
    before = host.read(path)
    if text is None:
        host.run("rm", path)
    else:
        host.write(path, str(text))
    return lambda: host.write(path, before) if before else host.run("rm", "-f", path) and None


WRONG = [
    garbage, unknown_key, bad_value, another_host_id, another_cluster, setup_lost, setup_empty, record_damaged,
    no_such_store,
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_wrong_configuration(
    wrong: Callable[[Host], Callable[[], None]], node1: Host, node2: Host, images: Images
) -> None:
    disk = images.raw("web.img")
    web, other = guest("web", [disk]), guest("other", [images.raw("other.img")])
    node1.start(web)
    undo = wrong(node1)
    try:
        words = node1.refused(other)
        assert "/" in words and "do:" in words, "it names the file and the remedy"
        assert node1.state(web) == "running"
        assert "web" in node2.refused(guest("thief", [disk]))
    finally:
        undo()
    node1.start(other)


def test_the_library_is_gone(node1: Host, images: Images) -> None:
    """A half-done update. The hook script alone must not say yes."""
    web, other = guest("web", [images.raw("web.img")]), guest("other", [images.raw("other.img")])
    node1.start(web)
    library = node1.shell("dirname $(find /usr/local/lib -path '*vmguard/hook.py')").out.strip()
    empty = images.path("empty")
    node1.run("mkdir", empty)
    with covered(node1, library, empty):
        words = node1.refused(other)
        assert "vmguard" in words and "nstall" in words
        node1.destroy(web)
    node1.start(other)


def test_python_is_gone(node1: Host, images: Images) -> None:
    other = guest("other", [images.raw("other.img")])
    with covered(node1, node1.run("readlink", "-f", "/usr/bin/python3").out.strip(), "/dev/null"):
        assert "python3" in node1.refused(other)
    node1.start(other)


def test_a_record_that_cannot_be_read(node1: Host, node2: Host, images: Images) -> None:
    """What it stands for may be anything: nothing starts beside it, and one command mends it."""
    disk = images.raw("web.img")
    web, other = guest("web", [disk]), guest("other", [images.raw("other.img")])
    node1.start(web)
    node1.write("/run/vmguard/instances/broken.json", '{"id": "x", "wan')
    words = node1.refused(other)
    assert "vmguard gc" in words, words
    node1.vmguard("gc")
    assert node1.state(web) == "running"
    assert "web" in node2.refused(guest("thief", [disk]))
    node1.start(other)


def test_records_cannot_be_written(node1: Host, images: Images) -> None:
    web, other = guest("web", [images.raw("web.img")]), guest("other", [images.raw("other.img")])
    node1.start(web)
    node1.shell("mount --bind /run/vmguard /run/vmguard && mount -o remount,bind,ro /run/vmguard")
    try:
        words = node1.refused(other)
        assert "/run/vmguard" in words
        assert node1.state(web) == "running"
    finally:
        node1.run("umount", "/run/vmguard")
    node1.start(other)


def test_audit_mode_refuses_nothing_and_writes_it_down(node1: Host, node2: Host, images: Images) -> None:
    device = images.block("web")
    node1.start(guest("web1", [Disk(device, "block")]))
    node2.write(f"{CONF}/99-audit.conf", "[guard]\nmode = audit\n")
    try:
        node2.start(guest("web2", [Disk(device, "block")]))
        assert "web1" in node2.shell("cat /var/log/vmguard/*").out
        node2.remove_all_guests()
    finally:
        node2.run("rm", f"{CONF}/99-audit.conf")
    assert "web1" in node2.refused(guest("web2", [Disk(device, "block")]))
