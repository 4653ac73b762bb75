# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the readers of a domain found so far, and the rules of paths and numbers that all of them share."""

import os

from vmguard._light import re
from vmguard._typing import Dict, List, Optional
from vmguard.domain import HostPath, NotUnderstood, Use

# C's strtoul with base 0, which libvirt uses for addresses: 0x is hexadecimal, a leading 0 octal.
_NUMBER = re.compile(r"[ \t\n]*\+?(?:(0[xX])([0-9a-fA-F]+)|(0[0-7]+)|([0-9]+))\Z")
_PCI = re.compile(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})\.([0-7])\Z")


class Found:
    """Collects uses under labels that are unique in the domain."""

    def __init__(self) -> None:
        self.uses: List[Use] = []
        self.not_understood: List[NotUnderstood] = []
        self.remarks: List[NotUnderstood] = []
        # Whether QEMU has CAP_SYS_RAWIO. With that a guest sends any SCSI command, to a unit that is opened to read as well.
        self.rawio = False
        self._seen: Dict[str, int] = {}

    def use(self, use: Use) -> None:
        """Add one, under a label that no other has."""
        self.uses.append(self._unique(use))

    def puzzle(self, what: str, why: str, line: int = 0) -> None:
        """Note something that may name storage and cannot be read."""
        self.not_understood.append(NotUnderstood(what, why, line))

    def remark(self, what: str, why: str, line: int = 0) -> None:
        """Note something that names no storage and is worth a word."""
        self.remarks.append(NotUnderstood(what, why, line))

    def _unique(self, use: Use) -> Use:
        # From the inside out without recursion: a chain may be as deep as XML may be nested.
        label = use.what
        count = self._seen.get(label, 0) + 1
        while count > 1 and f"{label} ({count})" in self._seen:
            count += 1
        self._seen[label] = count
        if count == 1:
            return use
        self._seen.setdefault(f"{label} ({count})", 1)
        return relabel(use, label, f"{label} ({count})")


def relabel(use: Use, old: str, new: str) -> Use:
    """The same use, and what is behind it, with another beginning of its label."""
    if not use.what.startswith(old):
        return use
    spine = [use]
    while spine[-1].backing:
        spine.append(spine[-1].backing[0])
    done: Optional[Use] = None
    for link in reversed(spine):
        rest = tuple(relabel(other, old, new) for other in link.backing[1:])
        behind = rest if done is None else (done, *rest)
        done = link._replace(what=new + link.what[len(old) :], backing=behind)
    assert done is not None
    return done


def host_path(path: str) -> HostPath:
    """
    A path as QEMU opens it. A relative one counts from /: libvirt starts QEMU as a daemon, and / is where that works.
    """
    return HostPath(path if path.startswith("/") else "/" + path)


def number(text: Optional[str], default: Optional[int] = None) -> Optional[int]:
    """A number as libvirt reads it; default if there is none, None if it is not one."""
    if text is None:
        return default
    match = _NUMBER.match(text)
    if match is None or len(text) > 64:
        return None
    _, hexadecimal, octal, decimal = match.groups()
    if hexadecimal:
        return int(hexadecimal, 16)
    return int(octal, 8) if octal else int(decimal)


def pci_address(text: str) -> Optional[str]:
    """A PCI address in full ("0000:01:00.0") from any form of it ("1:0.0"), None if it is not one."""
    match = _PCI.match(text)
    if match is None:
        return None
    domain, bus, slot, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(slot, 16):02x}.{function}"


def is_memory(path: str) -> bool:
    """Whether a path is in memory (shm, huge pages): no storage, and each QEMU has a file of its own."""
    return os.path.normpath(path).startswith(("/dev/shm/", "/dev/hugepages")) or os.path.normpath(path) == "/dev/shm"
