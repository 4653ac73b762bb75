# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian packages: how they are built, and what they do to a host with guests on it, on each release."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import threading
import time
from pathlib import Path
from typing import Dict, List, Set

import machines
import pytest
from conftest import build
from machines import Machine, eventually, guest

Built = Dict[str, List[str]]
# Directories that others fill while the machine runs.
PASSING = (
    "/proc", "/sys", "/run", "/srv", "/dev", "/tmp", "/var/log", "/var/cache", "/var/lib/dpkg", "/var/lib/apt",
    "/var/lib/libvirt",
)  # fmt: skip


def digests(paths: List[str]) -> Dict[str, str]:
    return {os.path.basename(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def test_two_builds_are_equal(built: Built, tmp_path: Path) -> None:
    again = build("deb", tmp_path)
    folder = os.path.dirname(built["0.1.0"][0])
    names = [name for name in sorted(os.listdir(folder)) if name.endswith((".deb", ".dsc", ".tar.gz", ".tar.xz"))]
    assert len(names) == 5, names
    assert digests([os.path.join(folder, name) for name in names]) == digests([str(tmp_path / name) for name in names])
    assert again


def test_tarball_makes_itself(tmp_path: Path) -> None:
    """From the unpacked tarball, which has no git, `make dist` makes the same bytes."""

    def dist(root: str, to: Path) -> bytes:
        words = [os.path.join(root, "packaging/dist"), str(to)]
        return Path(subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()).read_bytes()

    first = dist(machines.ROOT, tmp_path / "a")
    with tarfile.open(next((tmp_path / "a").iterdir())) as tar:
        tar.extractall(tmp_path / "tree")
    assert dist(str(next((tmp_path / "tree").iterdir())), tmp_path / "b") == first


def test_lintian(built: Built) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    changes = [path for path in built["0.1.0"] if path.endswith(".changes")]
    words = ["lintian", "--allow-root", "--fail-on", "error,warning", *changes]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert not [line for line in done.stdout.splitlines() if line.startswith(("E:", "W:"))]


# -- on a machine ---------------------------------------------------------------------------------------------------------


def put(machine: Machine, built: Built, version: str) -> List[str]:
    """Copy the packages to the machine; their paths there."""
    found = []
    for path in built[version]:
        if path.endswith(".deb"):
            shutil.copy(path, machine.disk)
            found.append("/srv/" + os.path.basename(path))
    return found


def apt(machine: Machine, *words: str, check: bool = True) -> str:
    # What is needed is there: nothing is downloaded, and the machine has no network.
    done = machine.run("apt-get", "-q", "-y", "--allow-downgrades", *words, check=check)
    assert "Traceback" not in done.out
    return done.out


def files(machine: Machine) -> Set[str]:
    """All there is on the disk, but for what changes by itself."""
    pruned = " -o ".join(f"-path {path}" for path in PASSING)
    found = machine.run("sh", "-c", f"find / \\( {pruned} \\) -prune -o -print").out.split("\n")
    return {path for path in found if "__pycache__" not in path and not path.endswith(".old")}


def set_up(machine: Machine, *words: str) -> str:
    return machine.run("vmguard", "setup", "--yes", "--single-host", "--io-timeout", "1", *words).out


def guarded(machine: Machine) -> bool:
    return machine.exists("/etc/libvirt/hooks/qemu.d/50-vmguard")


@pytest.fixture
def running(machine: Machine) -> Machine:
    """A machine with its daemons."""
    machine.start_daemons()
    return machine


def test_first_ten_minutes(running: Machine, built: Built) -> None:
    """Installed beside a running guest, set up, a double start refused; removed, purged, and nothing left."""
    before = files(running)
    web = guest("web", [running.image("web.img")])
    running.start(web)
    pid = running.qemu(web)

    commands = 0
    began = time.monotonic()
    apt(running, "install", *put(running, built, "0.1.0"))
    commands += 1
    assert not guarded(running)
    set_up(running)
    commands += 1
    copy = guest("copy", ["/srv/web.img"])
    refused = running.start(copy, check=False)
    commands += 1
    seconds = time.monotonic() - began
    assert refused.status and "web" in refused.out and "in use" in refused.out, refused
    assert commands <= 3
    print(f"{running.suite}: {commands} commands, {seconds:.1f} s from the package to the first refused start")

    assert running.qemu(web) == pid
    assert "web" in running.run("vmguard", "status", check=False).out
    assert running.run("vmguard", "verify", check=False).status == 0

    # The guest runs on through the removal, and what starts now is not guarded.
    out = apt(running, "remove", "vmguard", "python3-vmguard")
    assert "Left to do" in out
    assert not guarded(running)
    assert running.qemu(web) == pid
    other = guest("other", [running.image("other.img")])
    running.start(other)
    # Unguarded: QEMU's own lock is what is left.
    assert "vmguard" not in running.start(copy, check=False).out
    # sanlock's name for this host is not ours to take back; the second is debhelper's note for a purge.
    theirs = ("/etc/sanlock", "/var/lib/systemd/deb-systemd-helper")
    left = {path for path in files(running) - before if not path.startswith((*theirs, "/etc/vmguard"))}
    assert left <= {"/var/lib/vmguard", *(path for path in left if path.startswith("/var/lib/vmguard/store"))}
    assert running.exists("/etc/vmguard/vmguard.conf")

    apt(running, "purge", "vmguard", "python3-vmguard")
    assert not {path for path in files(running) - before if not path.startswith("/etc/sanlock")}
    for path in ("/var/log/vmguard", "/run/vmguard"):
        assert not running.exists(path)
    running.virsh("destroy", "web")
    running.start(web)
    assert not before - files(running)


def test_installation_alone_changes_nothing(running: Machine, built: Built) -> None:
    before = {name: running.read(f"/etc/libvirt/{name}") for name in ("qemu.conf", "qemu-sanlock.conf")}
    libvirt = running.run("pidof", running.libvirt).out
    apt(running, "install", *put(running, built, "0.1.0"))
    running.start(guest("one", [running.image("disk.img")]))
    assert "vmguard" not in running.start(guest("two", ["/srv/disk.img"]), check=False).out
    assert before == {name: running.read(f"/etc/libvirt/{name}") for name in before}
    assert running.run("pidof", running.libvirt).out == libvirt
    apt(running, "purge", "vmguard", "python3-vmguard")
    assert running.run("pidof", running.libvirt).out == libvirt


def test_admins_own_hook_stays_and_runs(running: Machine, built: Built) -> None:
    running.run("mkdir", "-p", "/etc/libvirt/hooks")
    running.write("/etc/libvirt/hooks/qemu", "#!/bin/sh\necho $1 $2 >>/var/log/own\n")
    running.run("chmod", "755", "/etc/libvirt/hooks/qemu")
    apt(running, "install", *put(running, built, "0.1.0"))
    set_up(running)
    path = running.image("disk.img")
    running.start(guest("one", [path]))
    assert "in use" in running.start(guest("two", [path]), check=False).out
    assert "one prepare" in running.read("/var/log/own")
    apt(running, "purge", "vmguard", "python3-vmguard")
    assert "own" in running.read("/etc/libvirt/hooks/qemu")


def test_upgrade_and_downgrade_while_somebody_starts(running: Machine, built: Built) -> None:
    """At no moment is the second writer let in; the first is not touched; a guest of its own disk starts afterwards."""
    old, new = put(running, built, "0.1.0"), put(running, built, "0.1.1")
    apt(running, "install", *old)
    set_up(running)
    path = running.image("web.img")
    web = guest("web", [path])
    running.start(web)
    pid = running.qemu(web)
    # An earlier version of the hook: the update must replace it.
    hook = "/etc/libvirt/hooks/qemu.d/50-vmguard"
    running.write(hook, running.read(hook) + "# of an earlier version\n")

    copy, over, answers = guest("copy", [path]), threading.Event(), []
    running.write("/srv/copy.xml", copy.xml)

    def try_it() -> None:
        while not over.is_set():
            answers.append(running.virsh("create", "/srv/copy.xml", check=False))

    thread = threading.Thread(target=try_it)
    thread.start()
    try:
        eventually(lambda: answers, "the first answer")
        for debs in (new, old, new):
            apt(running, "install", *debs)
    finally:
        over.set()
        thread.join()
    assert len(answers) > 5
    for answer in answers:
        assert answer.status and "in use" in answer.out, answer
    assert running.qemu(web) == pid
    assert "earlier version" not in running.read(hook)
    assert "0.1.1" in running.run("dpkg", "-s", "vmguard").out
    assert not [name for name in os.listdir(f"/proc/{running.pid}/root/etc/libvirt/hooks/qemu.d") if name != "50-vmguard"]
    running.start(guest("other", [running.image("other.img")]))


def test_hook_that_an_admin_took_away_stays_away(running: Machine, built: Built) -> None:
    apt(running, "install", *put(running, built, "0.1.0"))
    set_up(running)
    running.run("rm", "/etc/libvirt/hooks/qemu.d/50-vmguard")
    apt(running, "install", *put(running, built, "0.1.1"))
    assert not guarded(running)
    assert "hook" in running.run("vmguard", "status", check=False).out


def test_library_gone_by_force(running: Machine, built: Built) -> None:
    """A half removal: the guard cannot tell, and says what is missing. Never open because a file is gone."""
    apt(running, "install", *put(running, built, "0.1.0"))
    set_up(running)
    path = running.image("disk.img")
    web = guest("web", [path])
    running.start(web)
    running.run("dpkg", "--remove", "--force-depends", "python3-vmguard")
    refused = running.start(guest("other", [running.image("other.img")]), check=False)
    assert refused.status and "library is missing" in refused.out
    assert running.qemu(web)
    running.run("dpkg", "--install", *put(running, built, "0.1.0"))
    assert "in use" in running.start(guest("copy", [path]), check=False).out


def test_removal_that_cannot_be(running: Machine, built: Built) -> None:
    """Half of libvirt's configuration cannot be put back: the package stays, and so does the guard."""
    apt(running, "install", *put(running, built, "0.1.0"))
    set_up(running)
    good = running.read("/etc/libvirt/qemu.conf")
    running.write("/etc/libvirt/qemu.conf", good + "lock_manager = [\n")
    out = apt(running, "remove", "vmguard", check=False)
    assert "package stays" in out
    assert "install ok installed" in running.run("dpkg", "-s", "vmguard").out
    path = running.image("disk.img")
    running.start(guest("one", [path]))
    assert "in use" in running.start(guest("two", [path]), check=False).out
    running.write("/etc/libvirt/qemu.conf", good)
    running.virsh("destroy", "one")
    apt(running, "purge", "vmguard", "python3-vmguard")
    assert not guarded(running)
    running.start(guest("two", [path]))


def test_removed_where_the_set_up_is_half_gone(running: Machine, built: Built) -> None:
    """Without the record of the set-up the hook would still be there, and refuse once the library is gone."""
    apt(running, "install", *put(running, built, "0.1.0"))
    set_up(running)
    running.run("rm", "/var/lib/vmguard/host.json")
    apt(running, "remove", "vmguard", "python3-vmguard")
    assert not guarded(running)
    running.start(guest("one", [running.image("disk.img")]))


def test_purge_takes_a_hook_that_was_put_back(running: Machine, built: Built) -> None:
    apt(running, "install", *put(running, built, "0.1.0"))
    set_up(running)
    hook = running.read("/etc/libvirt/hooks/qemu.d/50-vmguard")
    apt(running, "remove", "vmguard", "python3-vmguard")
    running.run("mkdir", "-p", "/etc/libvirt/hooks/qemu.d")
    running.write("/etc/libvirt/hooks/qemu.d/50-vmguard", hook)
    running.run("chmod", "755", "/etc/libvirt/hooks/qemu.d/50-vmguard")
    # The package is gone, and so is the set-up: it lets pass, also before the purge.
    running.start(guest("one", [running.image("one.img")]))
    apt(running, "purge", "vmguard")
    assert not guarded(running)
    running.start(guest("two", [running.image("two.img")]))


def test_removed_after_a_power_cut(machine: Machine, built: Built) -> None:
    """No daemon runs, /run is empty: the package goes all the same, and leaves libvirt as it was."""
    machine.start_daemons()
    before = machine.read("/etc/libvirt/qemu.conf")
    apt(machine, "install", *put(machine, built, "0.1.0"))
    set_up(machine)
    machine.run("sh", "-c", f"kill -9 $(pidof sanlock {machine.libvirt}); rm -rf /run/vmguard /run/sanlock")
    apt(machine, "purge", "vmguard", "python3-vmguard")
    assert machine.read("/etc/libvirt/qemu.conf") == before
    assert not guarded(machine)


def test_autopkgtests(running: Machine, built: Built) -> None:
    """debian/tests, as autopkgtest runs them on a machine that has the packages."""
    apt(running, "install", *put(running, built, "0.1.0"))
    folder = os.path.join(machines.ROOT, "packaging/deb/tests")
    for name in ("smoke", "hook"):
        shutil.copy(os.path.join(folder, name), running.disk)
        running.run("env", "AUTOPKGTEST_TMP=/tmp", f"/srv/{name}")
