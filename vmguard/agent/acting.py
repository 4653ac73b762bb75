# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is done about a proven conflict, by the administrator's choice: a process of its own, because it asks libvirt, and libvirt
may hang.

    pause    the guest stops where it is; nothing of it is lost, and `virsh resume` lets it go on. A block job would go on
             to write all the same: one that writes what another guest has is aborted. Where libvirt does not answer, the
             guest's process is stopped (SIGSTOP).
    detach   what was plugged is taken away: a medium is ejected, a copy is aborted, a disk is unplugged. A guest that does not
             let go of it, or was started with that disk, is paused.
"""

import json
import os
import signal
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from vmguard import host, libvirtstate
from vmguard._xml import Element, read
from vmguard.host import Process

URI = "qemu:///system"

# A guest that works lets go of a disk within a second or two. Meanwhile it may write.
_LETS_GO = 2.0  # seconds
# libvirt waits 30 s for a job that is under way: too long beside a second writer.
_PATIENCE = 5  # seconds


def main(arguments: Sequence[str]) -> int:
    """What was done is the last line of the output."""
    policy, uuid, name, pid, start = arguments
    qemu = Process(int(pid), int(start))
    conflicts = json.loads(sys.stdin.read())
    print((_detach if policy == "detach" else _pause)(uuid, name, qemu, conflicts))
    return 0


def _domain(uuid: str) -> Any:
    """The domain, by libvirt. Raises what libvirt raises."""
    import libvirt

    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt.open(URI).lookupByUUIDString(uuid)


def _in_child(work: Callable[[], str], seconds: float) -> Optional[str]:
    """
    What work() says, in a child that may hang in libvirt: no signal interrupts that. None where it fails or takes longer.

    libvirt is loaded in children alone: one that has it cannot be forked.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(send, work().encode("utf-8", "backslashreplace")[:4096])
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error}\n".encode("utf-8", "backslashreplace"))
        finally:
            os._exit(1)
    os.close(send)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.read(receive, 4096).decode() if status == 0 else None
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return None


def _pause(uuid: str, name: str, qemu: Process, conflicts: List[Dict[str, Any]], why: str = "") -> str:
    paths = [one["path"] for one in conflicts]
    # By its uuid libvirt would pause its own guest, which may be another process than this one.
    if libvirtstate.of(name, qemu.pid) is not None:
        done = _in_child(lambda: _suspend(_domain(uuid), paths), _PATIENCE)
        if done is not None:
            return f"{done}{why}"
    state = libvirtstate.of(name, qemu.pid)
    if state is not None and state.state == "paused" and not state.jobs:
        return f"paused{why}"  # somebody else was quicker
    if host.alive(qemu):
        os.kill(qemu.pid, signal.SIGSTOP)
    return f"stopped its process {qemu.pid}, because libvirt did not pause it (kill -CONT lets it go on){why}"


def _suspend(domain: Any, paths: Sequence[str]) -> str:
    """Stop the guest, and what writes one of these without its processors. What was done. Raises what libvirt raises."""
    domain.suspend()
    disks = _disks(domain)
    ended = [what for path in paths for what in _end_jobs(domain, disks, path)]
    return ", ".join(dict.fromkeys(["paused", *ended]))


def _end_jobs(domain: Any, disks: Sequence[Element], path: str) -> List[str]:
    """Abort the jobs that write to this path, or may: where a commit or a backup writes to, the definition does not say."""
    import libvirt

    named = [disk for disk in disks if _leads_to(disk.first("source"), path)]
    copied = [disk for disk in disks if _leads_to(_mirror(disk), path)]
    done = []
    for dev in map(_dev, copied or named or disks):
        job = domain.blockJobInfo(dev, 0)
        # What a disk is copied from is only read; but a pull writes into it.
        if job and (not named or copied or job["type"] == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL):
            domain.blockJobAbort(dev, 0)
            done.append(f"aborted the block job of {dev}")
    if not (copied or named) and _is_backed_up(domain):
        domain.abortJob()
        done.append("aborted its backup")
    return done


def _is_backed_up(domain: Any) -> bool:
    import libvirt

    try:
        return bool(domain.backupGetXMLDesc(0))
    except libvirt.libvirtError:
        return False


def _detach(uuid: str, name: str, qemu: Process, conflicts: List[Dict[str, Any]]) -> str:
    if not all(one["plugged"] for one in conflicts):
        return _pause(uuid, name, qemu, conflicts, ": it was started with that disk")
    if libvirtstate.of(name, qemu.pid) is None:
        return _pause(uuid, name, qemu, conflicts, ": it is no guest of libvirt's")
    done = _in_child(lambda: _take_all_away(uuid, [one["path"] for one in conflicts]), _PATIENCE)
    if not done:
        return _pause(uuid, name, qemu, conflicts, ": it could not be taken away")
    end = time.monotonic() + _LETS_GO
    while time.monotonic() < end:
        if not any(_has_open(qemu, one["path"]) for one in conflicts):
            return done
        time.sleep(0.02)
    return _pause(uuid, name, qemu, conflicts, ": it does not let go of it")


def _take_all_away(uuid: str, paths: Sequence[str]) -> str:
    import libvirt

    domain = _domain(uuid)
    done = [_take_away(domain, path, libvirt) for path in paths]
    return ", ".join(one for one in done if one is not None) if None not in done else ""


def _has_open(qemu: Process, path: str) -> bool:
    folder = f"{host.PROC}/{qemu.pid}/fd"
    try:
        wanted = os.stat(path)
        for entry in os.listdir(folder):
            try:
                found = os.stat(f"{folder}/{entry}")
            except OSError:
                continue
            if (found.st_rdev, found.st_dev, found.st_ino) == (wanted.st_rdev, wanted.st_dev, wanted.st_ino):
                return True
            if wanted.st_rdev and found.st_rdev == wanted.st_rdev:
                return True
    except OSError:
        pass
    return False


def _take_away(domain: Any, path: str, libvirt: Any) -> Optional[str]:
    """Eject, abort or unplug what has this path; what was done. None if nothing of the domain has it."""
    for disk in _disks(domain):
        dev = _dev(disk)
        if _leads_to(_mirror(disk), path):
            domain.blockJobAbort(dev, 0)
            return f"aborted the copy of {dev}"
        if not _leads_to(disk.first("source"), path):
            continue
        target = disk.first("target")
        bus = (target.get("bus") if target is not None else "") or ""
        if disk.get("device") in ("cdrom", "floppy"):
            kind = disk.get("device")
            xml = f"<disk type='file' device='{kind}'><target dev='{dev}' bus='{bus}'/></disk>"
            domain.updateDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)
            return f"ejected {dev}"
        # By its alias: that does not wait for the guest, so that it can be paused if it does not comply.
        alias = disk.first("alias")
        domain.detachDeviceAlias((alias.get("name") if alias is not None else "") or "", libvirt.VIR_DOMAIN_AFFECT_LIVE)
        return f"detached {dev}"
    return None


def _disks(domain: Any) -> List[Element]:
    devices = read(domain.XMLDesc(0).encode("utf-8", "surrogateescape")).first("devices")
    return list(devices.all("disk")) if devices is not None else []


def _dev(disk: Element) -> str:
    target = disk.first("target")
    return (target.get("dev") if target is not None else "") or ""


def _mirror(disk: Element) -> Optional[Element]:
    """What a block job copies the disk to, or commits it into."""
    mirror = disk.first("mirror")
    return mirror.first("source") if mirror is not None else None


def _leads_to(source: Optional[Element], path: str) -> bool:
    if source is None:
        return False
    named = source.get("file") or source.get("dev") or ""
    if named == path:
        return True
    try:
        return bool(named) and os.path.samefile(named, path)
    except OSError:
        return False
