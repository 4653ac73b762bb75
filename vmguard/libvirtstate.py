# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What libvirt last wrote down about a running domain, in its status file: to be had without asking libvirt, which hooks must
not do, and also while it is down.
"""

import os

from vmguard._typing import NamedTuple, Optional
from vmguard._xml import read
from vmguard.errors import BadDomain

STATUS = "/run/libvirt/qemu"  # virDomainObjSave; the same for libvirtd and virtqemud


class State(NamedTuple):
    """State and reason in libvirt's own words (virDomainState and its reasons)."""

    state: str
    reason: str

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


def of(name: str, pid: int) -> Optional[State]:
    """The state of the domain of this name whose QEMU has this pid; None where the file is missing or of another."""
    try:
        with open(os.path.join(STATUS, name + ".xml"), "rb") as file:
            root = read(file.read())
    except (OSError, BadDomain):
        return None
    if root.tag != "domstatus" or root.get("pid") != str(pid):
        return None
    return State(root.get("state") or "", root.get("reason") or "")
