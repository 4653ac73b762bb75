# SPDX-License-Identifier: LGPL-2.1-or-later
"""The script that libvirt calls. libvirt passes over one that is missing or not executable without a word."""

import os
import stat

from vmguard.doctor.check import Findings, check, ok, unknown, wrong
from vmguard.doctor.look import Look, said
from vmguard.errors import Misconfigured
from vmguard.setup import daemons, hookfile, libvirtside, others
from vmguard.setup.plan import contents

SETUP = "vmguard setup"


def _path() -> str:
    return hookfile.target(daemons.libvirt_version())


def _put(look: Look) -> None:
    hookfile.put(_path())
    for daemon in look.libvirt():  # while it was not there, a daemon may have looked and have found none
        libvirtside.tell(daemon)


@check("hook", mend=_put)
def in_place(look: Look) -> Findings:
    """It is there, of this version, root's, and executable."""
    if look.config() is None:
        return
    path = _path()
    there = contents(path)
    if there is None:
        yield wrong(f"{path} is not there: libvirt starts guests without asking", SETUP, mendable=True)
    elif not hookfile.is_ours(there):
        if b"50-vmguard" in there or hookfile.source().encode() in there:
            yield ok(f"{path} belongs to somebody else, and calls vmguard's")
            return
        yield wrong(f"{path} is not vmguard's", f"have it run {hookfile.source()}, and end with its exit status")
    elif not os.stat(path).st_mode & 0o111 or os.stat(path).st_uid:
        yield wrong(f"{path} is not executable, or not root's: libvirt passes over it", SETUP, mendable=True)
    elif there != hookfile.script():
        yield wrong(f"{path} is that of another version", SETUP, mendable=True)
    elif os.statvfs(path).f_flag & os.ST_NOEXEC:
        yield wrong(f"{path} lies on a filesystem that is mounted noexec: libvirt passes over it", "mount it with exec")
    else:
        yield ok(f"{path} is of this version, and executable")


def _tell(look: Look) -> None:
    for daemon in look.libvirt():
        if not libvirtside.has_seen_hook(daemon):
            libvirtside.tell(daemon)


@check("hook-seen", mend=_tell)
def seen(look: Look) -> Findings:
    """libvirt's daemon looks for hooks when it starts and when it is reloaded, and never again."""
    if look.config() is None or contents(_path()) is None:
        return
    for daemon in look.libvirt():
        if libvirtside.has_seen_hook(daemon):
            yield ok(f"{daemon.name} (process {daemon.pid}) has looked for hooks since it is there")
        else:
            fix = f"systemctl reload {daemon.unit}" if daemon.unit else f"kill -HUP {daemon.pid}"
            yield wrong(f"{daemon.name} has not looked for hooks since the hook is there: it calls none", fix, mendable=True)


@check("hook-alone")
def alone(look: Look) -> Findings:
    """A second copy runs too: libvirt runs every executable file in qemu.d, hidden ones and backups among them."""
    folder, found = os.path.join(others.LIBVIRT, "hooks", "qemu.d"), []
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for path in [os.path.join(others.LIBVIRT, "hooks", "qemu"), *(os.path.join(folder, name) for name in sorted(names))]:
        if path != _path() and os.path.isfile(path) and os.access(path, os.X_OK):
            if hookfile.is_ours(contents(path) or b""):
                found.append(path)
    for path in found:
        yield wrong(f"{path} is a copy of vmguard's hook, and runs beside it", f"rm {path}")
    if not found and look.config() is not None:
        yield ok("no copy of it runs beside it")


@check("hook-library")
def library(look: Look) -> Findings:
    """What the hook loads, loads: as the hook does it, in a process of its own."""
    if look.config() is None:
        return
    try:
        where = hookfile.library()
        text = (contents(_path()) or hookfile.script()).decode("utf-8", "replace")
    except Misconfigured as error:
        yield wrong(f"{error.where}: {error.why}", "install the package vmguard again")
        return
    named = next((line[9:-1] for line in text.splitlines() if line.startswith("library='")), "") or where
    code = "import sys; sys.path.insert(0, sys.argv[1]); import vmguard.hook; print(vmguard.__version__)"
    answer = said(["/usr/bin/python3", "-I", "-S", "-c", code, named])
    if answer is None:
        yield wrong(f"the library in {named} does not load: every start is refused", "install the package vmguard again")
    elif named != where:
        yield wrong(f"the hook uses the library in {named}, this command that in {where}", SETUP)
    else:
        mode = os.stat(os.path.join(where, "vmguard")).st_mode
        if mode & (stat.S_IWOTH | stat.S_IWGRP):
            yield unknown(f"{where}/vmguard can be written by others than root", f"chmod -R go-w {where}/vmguard")
        yield ok(f"the library in {named} loads (version {answer.strip()})")
