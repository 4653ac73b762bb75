# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rpm packages, as far as a machine without Fedora's or RHEL's packages can try them.

What it shows: that they are built, that rpmlint has nothing to say, that rpm puts the files where they belong, runs the
scriptlets beside a real libvirtd of Debian's, replaces and removes. What it does not show: SELinux, their macros, their
dependencies (--nodeps), their Python's folder, dnf.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import machines
import pytest
from conftest import build
from machines import Machine, guest
from test_deb import digests, files, guarded, set_up

import vmguard

Built = Dict[str, List[str]]

pytestmark = pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="rpm is not installed")


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("rpms")
    return {"0.1.0": build("rpm", folder / "old"), "0.1.1": build("rpm", folder / "new", "0.1.1")}


@pytest.fixture(scope="module")
def suite() -> str:
    """One release is enough: rpm is the machine's own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    machines.release("bookworm")
    return "bookworm"


def test_versions_agree() -> None:
    spec = Path(machines.ROOT, "packaging/rpm/vmguard.spec").read_text()
    changelog = Path(machines.ROOT, "packaging/deb/changelog").read_text()
    assert re.search(r"(?m)^Version: +(\S+)$", spec).group(1) == vmguard.__version__  # type: ignore[union-attr]
    assert re.match(r"vmguard \((.*)-\d+\)", changelog).group(1) == vmguard.__version__  # type: ignore[union-attr]


def test_two_builds_are_equal(rpms: Built, tmp_path: Path) -> None:
    assert digests(build("rpm", tmp_path)) == digests(rpms["0.1.0"])


def test_rpmlint(rpms: Built) -> None:
    folder = os.path.join(machines.ROOT, "packaging/rpm")
    words = ["rpmlint", "-c", os.path.join(folder, "rpmlint.toml"), *rpms["0.1.0"], os.path.join(folder, "vmguard.spec")]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert " 0 errors, 0 warnings" in done.stdout, done.stdout


def rpm(machine: Machine, *words: str, check: bool = True) -> str:
    """rpm on that machine: the program of this one, the root of that."""
    unchecked = [] if "--query" in words else ["--nodeps"]
    command = ["rpm", f"--root=/proc/{machine.pid}/root", *unchecked, *words]
    inside = ["nsenter", "-t", str(machine.pid), "-m", "-p", "-u", "-i", "-n", "--", *command]
    done = subprocess.run(inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert not check or not done.returncode, done.stdout
    return done.stdout


def packages(rpms: Built, version: str) -> List[str]:
    return [path for path in rpms[version] if path.endswith(".noarch.rpm")]


def test_installed_updated_downgraded_and_removed(machine: Machine, rpms: Built) -> None:
    machine.start_daemons()
    before = files(machine)
    web = guest("web", [machine.image("web.img")])
    machine.start(web)
    rpm(machine, "--install", *packages(rpms, "0.1.0"))
    assert not guarded(machine)
    set_up(machine)
    copy = guest("copy", ["/srv/web.img"])
    assert "in use" in machine.start(copy, check=False).out
    hook = "/etc/libvirt/hooks/qemu.d/50-vmguard"
    for version, how in (("0.1.1", ["--upgrade"]), ("0.1.0", ["--upgrade", "--oldpackage"])):
        machine.write(hook, machine.read(hook) + "# of another version\n")
        rpm(machine, *how, *packages(rpms, version))
        assert version in rpm(machine, "--query", "vmguard")
        assert guarded(machine) and "another version" not in machine.read(hook)
        assert "in use" in machine.start(copy, check=False).out
    pid = machine.qemu(web)
    assert pid
    out = rpm(machine, "--erase", "vmguard", "python3-vmguard")
    assert "Left to do" in out and not guarded(machine)
    assert machine.qemu(web) == pid
    assert "vmguard" not in machine.start(copy, check=False).out
    # rpm has no purge: the store and sanlock's name for this host stay, and rpm's own database.
    theirs = "/etc/sanlock|/var/lib/(vmguard|rpm)|/root|/usr/share/licenses$"
    assert not {path for path in files(machine) - before if not re.match(theirs, path)}


def test_removal_that_cannot_be(machine: Machine, rpms: Built) -> None:
    machine.start_daemons()
    rpm(machine, "--install", *packages(rpms, "0.1.0"))
    set_up(machine)
    good = machine.read("/etc/libvirt/qemu.conf")
    machine.write("/etc/libvirt/qemu.conf", good + "lock_manager = [\n")
    assert "package stays" in rpm(machine, "--erase", "vmguard", check=False)
    assert guarded(machine) and "vmguard-0" in rpm(machine, "--query", "vmguard")
