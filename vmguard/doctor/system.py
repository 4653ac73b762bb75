# SPDX-License-Identifier: LGPL-2.1-or-later
"""Denials of AppArmor and SELinux, versions, room for records."""

import os
import re
import sys
from typing import List

import vmguard
from vmguard import paths
from vmguard.doctor.check import Findings, check, doubtful, ok, unknown, wrong
from vmguard.doctor.look import Look
from vmguard.errors import Misconfigured
from vmguard.leases import _library

# A line of the kernel's or auditd's log about us, libvirt's hooks or sanlock.
_DENIED = re.compile(r'apparmor="DENIED"|avc:\s+denied')
_OURS = re.compile(r"vmguard|/etc/libvirt/hooks/|sanlock|wdmd")
# Bytes from the end of auditd's log.
_TAIL = 1 << 20


@check("denials")
def denials(look: Look) -> Findings:
    """AppArmor and SELinux let hook and sanlock do what they do."""
    kernel = look.said("journalctl", "-k", "-b", "-q", "--no-pager", "-o", "cat", "-n", "20000")
    audited = look.read("/var/log/audit/audit.log")
    if kernel is None and audited is None:
        kernel = look.said("dmesg")
    if kernel is None and audited is None:
        yield unknown("the kernel's log cannot be read: whether something was denied is not known")
        return
    lines = (kernel or "").splitlines() + _of_this_boot(look, (audited or "")[-_TAIL:].splitlines())
    found = [line for line in lines if _DENIED.search(line) and _OURS.search(line)]
    if not found:
        yield ok("no denial of AppArmor's or SELinux' names hook, vmguard or sanlock")
        return
    # SELinux writes these where it is permissive, and lets it happen.
    denied = [line for line in found if " permissive=1" not in line]
    last = " ".join((denied or found)[-1].split())[:200]
    if "avc:" in last:
        booleans = "virt_use_sanlock=1, and sanlock_use_nfs=1 or sanlock_use_fusefs=1 for a store there"
        fix = f"restorecon -R /etc/libvirt/hooks; setsebool -P {booleans}"
    else:
        fix = "allow it in /etc/apparmor.d/local/usr.sbin.libvirtd, then systemctl reload apparmor"
    if denied:
        yield wrong(f"{len(denied)} denials in the log, the last: {last}", fix)
    else:
        yield doubtful(f"SELinux is permissive; enforcing it would have denied {len(found)} times, the last: {last}", fix)


def _of_this_boot(look: Look, lines: List[str]) -> List[str]:
    """Of auditd's log, which has those of earlier boots too. What was mended since is no news."""
    booted = re.search(r"(?m)^btime (\d+)", look.read("/proc/stat") or "")
    times = [re.search(r"audit\((\d+)", line) for line in lines]
    since = int(booted.group(1)) if booted else 0
    return [line for line, time in zip(lines, times) if time and int(time.group(1)) >= since]


@check("versions")
def versions(look: Look) -> Findings:
    """What has been tried together."""
    try:
        _library.library()
    except Misconfigured as error:
        yield wrong(f"{error.where}: {error.why}", "install libsanlock-client1 (Debian) or sanlock-lib (Fedora, RHEL)")
        return
    found = look.sanlock()
    daemon = found.daemon.version if found else "not running"
    python = ".".join(map(str, sys.version_info[:2]))
    text = f"vmguard {vmguard.__version__}, sanlock {daemon}, Python {python}"
    number = re.match(r"(\d+)\.(\d+)", daemon)
    if number and (int(number.group(1)), int(number.group(2))) < (3, 8):
        yield doubtful(f"{text}: sanlock before 3.8 was never tried", "update sanlock")
    else:
        yield ok(text)


@check("records")
def records(_: Look) -> Findings:
    """There is room for the records of running guests, and for the log of what was found."""
    wanting = []
    for folder, needed in ((paths.RUN, 1 << 20), (paths.LOG, 1 << 20)):
        there = folder
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        room = os.statvfs(there)
        if room.f_bavail * room.f_frsize < needed:
            wanting.append(there)
        elif not os.access(there, os.W_OK):
            wanting.append(there)
    for folder in wanting:
        says = f"{folder} is full, or cannot be written: starts are refused, or leave no trace"
        yield wrong(says, f"make room: df -h {folder}")
    if not wanting:
        yield ok(f"{paths.RUN} and {paths.LOG} can be written")
