# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What libvirt last wrote down about a running domain, in its status file: to be had without asking libvirt, which hooks must
not do, and also while it is down.
"""

import os

from vmguard._typing import NamedTuple, Optional, Tuple
from vmguard._xml import Element, read
from vmguard.errors import BadDomain

STATUS = "/run/libvirt/qemu"  # virDomainObjSave; the same for libvirtd and virtqemud
SAVES = "/var/lib/libvirt/qemu/save"  # qemuDomainManagedSavePath


class State(NamedTuple):
    """State and reason in libvirt's own words (virDomainState and its reasons)."""

    state: str
    reason: str
    jobs: bool = False  # block jobs run, which do not need the guest's processors

    @property
    def has_come(self) -> bool:
        """Whether a guest that migrates in has done so: libvirt lets it run here, or leaves it paused as it was asked."""
        return (self.state, self.reason) not in (("paused", "migration"), ("paused", "starting up")) and self.state in (
            "running",
            "paused",
        )

    @property
    def needs_source(self) -> bool:
        """Whether memory of it is still at its source."""
        return "post-copy" in self.reason or "postcopy" in self.reason


def has_managed_save(name: str) -> bool:
    """Whether a domain would go on from a saved state."""
    return os.path.exists(os.path.join(SAVES, name + ".save"))


def file_of(name: str) -> Optional[str]:
    """
    The status file of a domain of this name; None for what is no domain's name.

    Names are read from the arguments of processes, which any user can choose: none leads out of the folder.
    """
    return os.path.join(STATUS, name + ".xml") if name and "/" not in name else None


def _document(name: str) -> Optional[Tuple[bytes, Element]]:
    path = file_of(name)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            data = file.read()
        root = read(data)
    except (OSError, BadDomain):
        return None
    return (data, root) if root.tag == "domstatus" else None


def of(name: str, pid: int) -> Optional[State]:
    """The state of the domain of this name whose QEMU has this pid; None where the file is missing or of another."""
    found = _document(name)
    if found is None or found[1].get("pid") != str(pid):
        return None
    jobs = found[1].first("blockjobs")
    busy = jobs is not None and jobs.get("active") == "yes"
    return State(found[1].get("state") or "", found[1].get("reason") or "", busy)


def definition(name: str, pid: int) -> Optional[bytes]:
    """The status file of the domain of this name whose QEMU has this pid, whole; None where it is missing or of another."""
    found = _document(name)
    return found[0] if found is not None and found[1].get("pid") == str(pid) else None


def pid_of(name: str, uuid: str) -> Optional[int]:
    """The QEMU that libvirt has for this domain; None where libvirt has not written that down."""
    found = _document(name)
    if found is None:
        return None
    domain = found[1].first("domain")
    its = domain.first("uuid") if domain is not None else None
    pid = found[1].get("pid") or ""
    return int(pid) if its is not None and its.text.strip().lower() == uuid and pid.isdecimal() else None
