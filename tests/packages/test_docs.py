# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The commands of the documentation: each of vmguard's is one that vmguard knows, and those of the first ten minutes and of a move
are carried out, as they stand there.
"""

import argparse
import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Dict, List, NamedTuple

import machines
import pytest
from machines import Machine, guest
from test_deb import apt, put

from vmguard.cli import parser

ROOT = Path(machines.ROOT)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROMPT = re.compile(r"^(?:host|both|node\d)?# (.*)$")


class Command(NamedTuple):
    """One command of a page, with the output that is shown below it."""

    text: str
    output: List[str]


def commands(page: Path) -> List[Command]:
    """The commands in the blocks that show a console."""
    found: List[Command] = []
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.splitlines():
            prompt = PROMPT.match(line)
            if prompt:
                found.append(Command(prompt.group(1).partition("  #")[0].strip(), []))
            elif found and line.strip():
                found[-1].output.append(line)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_vmguard_are_known(page: Path) -> None:
    """In consoles the whole line; in the text, where a command may only be mentioned, its name and its options."""
    for text in (one.text for one in commands(page) if one.text.startswith("vmguard ")):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                parser().parse_args(shlex.split(text.split(" >")[0])[1:])
            except SystemExit:
                pytest.fail(f"{page.name}: {text}: {said.getvalue()}")
    known = next(each for each in parser()._actions if isinstance(each, argparse._SubParsersAction)).choices
    for text in re.findall(r"`(vmguard [a-z][^`]*)`", page.read_text()):
        words = text.split()
        assert words[1] in known, f"{page.name}: {text}"
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in known[words[1]]._option_string_actions or words[1] == "store", f"{page.name}: {text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def carry_out(machine: Machine, page: Path, status: Dict[str, List[int]], only: str = "") -> None:
    """Each command in order. One that shows an error must end with it; of the others, status says more than 0."""
    for one in commands(page):
        if only and not one.text.startswith(only):
            continue
        done = machine.run("sh", "-c", f"cd /srv; {one.text.replace('apt ', 'apt-get -q -y ')}", check=False)
        fails = any(line.startswith("error:") for line in one.output)
        allowed = next((codes for begin, codes in status.items() if one.text.startswith(begin)), [0])
        assert (done.status != 0) if fails else (done.status in allowed), f"{one.text}: {done.status}\n{done.out}"
        assert "Traceback" not in done.out
        for piece in re.split(r"\.\.\.|\n", "\n".join(one.output)):
            assert " ".join(piece.split()) in " ".join(done.out.split()), f"{one.text}: {piece!r} is not in\n{done.out}"


@pytest.fixture(scope="module")
def suite() -> str:
    machines.release("bookworm")
    return "bookworm"


# No systemd and no watchdog in a chroot: doctor says that the one cannot be seen, and warns of the other.
DOCTOR = {"vmguard doctor": [0, 1, 3]}


def test_the_first_ten_minutes(machine: Machine, built: Dict[str, List[str]]) -> None:
    machine.start_daemons()
    put(machine, built, "0.1.0")
    web = guest("web", [machine.image("web.img")])
    machine.start(web)
    pid = machine.qemu(web)
    # `check` and `explain` say what a start would do: that it would be refused is their status 1.
    carry_out(machine, ROOT / "docs/getting-started.md", {**DOCTOR, "vmguard check": [1], "vmguard explain": [1]})
    assert machine.qemu(web) == pid


@pytest.mark.parametrize("manager", ["sanlock", "lockd"])
def test_moving(machine: Machine, built: Dict[str, List[str]], manager: str) -> None:
    """A guest that another guard has runs on, gets its leases, and is guarded; back again, the old settings are there."""
    machine.write("/etc/libvirt/qemu.conf", machine.read("/etc/libvirt/qemu.conf") + f'lock_manager = "{manager}"\n')
    machine.run("mkdir", "-p", "/srv/by-path", "/srv/leases")
    before = 'auto_disk_leases = 1\ndisk_lease_dir = "/srv/by-path"\nhost_id = 1\nio_timeout = 1\nuser = "root"\ngroup = "root"\n'
    machine.write("/etc/libvirt/qemu-sanlock.conf", before)
    if manager == "lockd":
        machine.run("virtlockd", "-d")
    machine.start_daemons()
    web = guest("web", [machine.image("web.img")])
    machine.start(web)
    pid = machine.qemu(web)
    apt(machine, "install", *put(machine, built, "0.1.0"))
    carry_out(machine, ROOT / "docs/moving.md", {**DOCTOR, "vmguard lint": [0, 1]}, only="vmguard")
    if manager == "sanlock":
        machine.run("sh", "-c", "kill $(pidof libvirtd); while pidof libvirtd; do sleep 0.1; done")
        machine.start_libvirt()
    assert machine.qemu(web) == pid
    copy = guest("copy", ["/srv/web.img"])
    refused = machine.start(copy, check=False)
    assert "vmguard" in refused.out and "in use" in refused.out, refused
    # Through the end of the guest that both guards knew, and a start under the new one alone.
    machine.virsh("destroy", "web")
    machine.start(web)
    assert "in use" in machine.start(copy, check=False).out
    machine.run("vmguard", "setup", "--remove", "--keep-guests", "--yes")
    assert machine.read("/etc/libvirt/qemu-sanlock.conf") == before
    assert f'lock_manager = "{manager}"' in machine.read("/etc/libvirt/qemu.conf")
