# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Facts for a look at many domains at once: what the host was asked is not asked again.

For lint and the like, never for a start: what changes on the host in the meantime is not seen.
"""

from typing import Dict, Tuple

from vmguard.storage.facts import READ_LIMIT, Facts, Stat
from vmguard.storage.host import Host

# Answers that are kept: of what describes the host, not of disk images, of which there may be many thousands.
_KEPT = ("/proc/", "/sys/", "/run/udev/", "/run/libvirt/", "/etc/")


class OneLook:
    """Passes questions on and remembers what describes the host."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._read: Dict[Tuple[str, int, int], bytes] = {}
        self.host = Host(self)
        self.host.kept = {}

    def lease_store(self) -> str:
        return self.facts.lease_store()

    def stat(self, path: str) -> Stat:
        return self.facts.stat(path)

    def realpath(self, path: str) -> str:
        return self.facts.realpath(path)

    def read(self, path: str, limit: int = READ_LIMIT, offset: int = 0) -> bytes:
        if not path.startswith(_KEPT):
            return self.facts.read(path, limit, offset)
        key = (path, limit, offset)
        if key not in self._read:
            self._read[key] = self.facts.read(path, limit, offset)
        return self._read[key]

    def names(self, path: str) -> Tuple[str, ...]:
        return self.facts.names(path)

    def ioctl(self, path: str, request: int, argument: bytes) -> bytes:
        return self.facts.ioctl(path, request, argument)

    def filesystem_id(self, path: str) -> int:
        return self.facts.filesystem_id(path)
