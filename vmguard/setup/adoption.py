# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Guests that ran before this host was guarded: their leases, as libvirt's restart would get them, without a restart.

libvirt calls the hook for running guests only when its daemon starts (`reconnect`). Here the same is done with what libvirt
says of each guest now.
"""

from typing import List, Optional

from vmguard import deadline, events, guard, host, instance, libvirtstate
from vmguard.config import load
from vmguard.errors import Error, Misconfigured
from vmguard.report import message
from vmguard.setup import daemons
from vmguard.setup.plan import Change, Plan

URI = "qemu:///system"


def unguarded() -> List[host.Qemu]:
    """The QEMUs of this host's libvirt that have no record. Not those of a container, or that somebody runs by hand."""
    boot = host.boot_id()
    known = {one.uuid for one in instance.load_all() if one.boot_id == boot}
    return [qemu for qemu in host.qemu_processes() if qemu.uuid not in known and _of_libvirt(qemu)]


def _of_libvirt(qemu: host.Qemu) -> bool:
    return libvirtstate.pid_of(qemu.name, qemu.uuid) == qemu.process.pid


def add_to(plan: Plan) -> None:
    """Plan that running guests get their leases. What cannot be taken is for `left`; it ends no guest and no setup."""
    names = ", ".join(sorted(qemu.name for qemu in unguarded()))
    if names:
        plan.changes.append(
            Change("guests that run already", names, "without leases", "with their leases (they run on)", lambda: take(plan.left))
        )


def take(left: List[str]) -> None:
    """Take the leases of running guests that have none. What could not be taken is added to `left`, as sentences."""
    running = daemons.find(daemons.LIBVIRT)
    libvirtd = host.process(running[0].pid) if running else None
    for qemu in unguarded():
        why = "libvirt does not answer" if libvirtd is None else _adopt(qemu, libvirtd)
        if why:
            left.append(f"{qemu.name} runs without its leases: {why}. `vmguard verify {qemu.name}` shows what it has open.")


def _adopt(qemu: host.Qemu, libvirtd: host.Process) -> str:
    """Take the leases of one guest. "", or why it has none."""
    xml = _definition(qemu.uuid)
    if xml is None:
        return "" if not host.alive(qemu.process) else "libvirt does not know it"

    def ask() -> deadline.Outcome:
        try:
            guard.reconnect(xml, libvirtd)
        except Error as error:
            return 1, _in_short(error)
        return 0, ""

    try:
        return deadline.run(load().deadline, ask)[1]
    except Error as error:
        return _in_short(error)
    except deadline.Bug as bug:
        events.record("bug", str(bug), domain=qemu.name, operation="setup")
        return f"an error in vmguard itself, {events.path()} has the trace"


def _in_short(error: Error) -> str:
    """The first line of what it means, as a clause."""
    return message(error).splitlines()[0].partition(": ")[2].rstrip(".")


def _definition(uuid: str) -> Optional[bytes]:
    try:
        import libvirt
    except ImportError:
        raise Misconfigured("python3-libvirt", "it is not installed", "install it, or restart libvirt's daemon") from None
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.openReadOnly(URI)
        try:
            return str(connection.lookupByUUIDString(uuid).XMLDesc(0)).encode("utf-8", "surrogateescape")
        finally:
            connection.close()
    except libvirt.libvirtError:
        return None
