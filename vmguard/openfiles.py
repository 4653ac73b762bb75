# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a QEMU really has open, against what its instance claims.

Claims come from the domain's definition, before QEMU exists. Between that look and QEMU's open() a symbolic link can be
swapped; and hot-plug, snapshots and media changes come later. So once QEMU runs, the kernel is asked what was opened in
the end.

What counts as storage is decided in _procfiles.py; whatever else QEMU can write is a surprise, if it is not claimed.

An incoming QEMU opens its images for reading, takes no locks on them, and opens them anew for writing when the guest
arrives: what it will write shows only then. That is what `active` tells.
"""

from enum import Enum

from vmguard import host
from vmguard._procfiles import Opened, open_files, was_started_incoming
from vmguard._typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple
from vmguard.claims import GUESTS_SHARE_IT, LIES_UNDER, Claim, Mode, claims_on
from vmguard.domain import Access, HostPath, Use
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.storage import Storage

__all__ = ["Finding", "Findings", "Opened", "Verdict", "claims_of", "compare", "inspect", "open_files"]


class Verdict(str, Enum):
    """How one open object stands to the claims. The values are part of what `vmguard verify --json` prints."""

    CLAIMED = "claimed"
    LEASELESS = "leaseless"  # claimed, but let pass without its lease: audit mode, override
    DORMANT = "dormant"  # unclaimed, in a QEMU whose guest has not arrived: opened for reading so far
    READ = "read"  # unclaimed, and only read
    WRITTEN = "written"  # opened for writing, and unclaimed or only claimed shared: the surprise that counts
    OPAQUE = "opaque"  # a device given to the guest whole: what is behind it cannot be seen from here
    UNKNOWN = "unknown"  # what it is could not be found out


class Finding(NamedTuple):
    """One open object, compared."""

    opened: Opened
    verdict: Verdict
    claim: Optional[Claim] = None  # the one that covers it, or falls short of it


class Findings(NamedTuple):
    """All that QEMU has open, and what is claimed and not open."""

    objects: Tuple[Finding, ...] = ()
    # Claims on disks and on what is written that QEMU has not open: an ejected medium, a directory of virtiofsd. Beside a
    # surprise it may be what the surprise stands in place of.
    not_open: Tuple[Claim, ...] = ()

    def surprises(self) -> Tuple[Finding, ...]:
        """What needs a claim that the instance has not got."""
        return tuple(one for one in self.objects if one.verdict in (Verdict.WRITTEN, Verdict.READ, Verdict.DORMANT))


def inspect(instance: Instance, qemu: Process) -> Findings:
    """
    What this QEMU has open, compared with the claims of its instance. Takes and changes nothing.

    Nothing is found once QEMU is gone. Of an incoming QEMU whose guest has not arrived it shows less (DORMANT): look
    again after that. Raises Unresolvable if the kernel does not let us look.
    """
    found = compare(open_files(qemu.pid), instance, incoming=was_started_incoming(qemu.pid))
    return found if host.alive(qemu) else Findings()


def claims_of(findings: Findings) -> Tuple[Claim, ...]:
    """
    What has to be claimed so that all that is open is: exclusively what is opened for writing, shared what is read or
    waits for its guest, and what lies under either.

    Among them may be an identity that the instance has in a weaker mode (it is then written though claimed shared).
    """
    needed = []
    for one in findings.surprises():
        access = Access.WRITE if one.verdict is Verdict.WRITTEN else Access.READ
        what = f"open file {one.opened.path}"
        needed += [(storage, Use(what, HostPath(one.opened.path), access)) for storage in one.opened.storage]
    return claims_on(needed)


# -- comparing ---------------------------------------------------------------------------------------------------------


def compare(opened: Sequence[Opened], instance: Instance, incoming: bool = False) -> Findings:
    """
    Hold what is open against the claims of an instance. A pure function.

    incoming: QEMU was started to receive a guest.
    """
    wants: Dict[str, Want] = {want.claim.identity: want for want in instance.wants}
    objects: List[Finding] = []
    seen: Set[str] = set()
    given: List[str] = []  # directories that the guest was given: what it opens below them is its own choice
    for one in opened:
        mine = [wants[identity] for storage in one.storage for identity in _names(storage) if identity in wants]
        seen.update(want.claim.identity for want in mine)
        if one.kind == "directory":
            given += [one.path.rstrip("/") + "/"] if mine else []
    for one in opened:
        finding = _judge(one, wants, incoming)
        if finding.claim is None and (one.no_storage or one.kind == "directory" or _below(one, given)):
            continue
        objects.append(finding)
    return Findings(tuple(objects), _not_open(instance, seen))


def _names(storage: Storage) -> Tuple[str, ...]:
    return (storage.identity, *storage.also)


def _below(one: Opened, given: Sequence[str]) -> bool:
    return one.kind == "file" and any(one.path.startswith(directory) for directory in given)


def _judge(one: Opened, wants: Dict[str, Want], incoming: bool) -> Finding:
    if not one.storage:
        return Finding(one, Verdict.UNKNOWN if one.unknown else Verdict.OPAQUE)
    worst: Optional[Finding] = None
    for storage in one.storage:
        finding = _judge_one(one, [wants[name] for name in _names(storage) if name in wants], incoming)
        if worst is None or _GRAVITY.index(finding.verdict) > _GRAVITY.index(worst.verdict):
            worst = finding
    assert worst is not None
    return worst


_GRAVITY = (Verdict.CLAIMED, Verdict.LEASELESS, Verdict.READ, Verdict.DORMANT, Verdict.WRITTEN)


def _judge_one(one: Opened, wants: List[Want], incoming: bool) -> Finding:
    enough = [want for want in wants if _suffices(want.claim, one.writable)]
    for want in sorted(enough, key=lambda want: want.missing):
        return Finding(one, Verdict.LEASELESS if want.missing else Verdict.CLAIMED, want.claim)
    claim = wants[0].claim if wants else None
    if one.writable:
        return Finding(one, Verdict.WRITTEN, claim)
    return Finding(one, Verdict.DORMANT if incoming and not one.active else Verdict.READ, claim)


def _suffices(claim: Claim, writable: bool) -> bool:
    if not writable or claim.mode is Mode.EXCLUSIVE:
        return True
    return claim.mode is Mode.SHARED and claim.written and claim.why == GUESTS_SHARE_IT


_NEVER_OPEN = ("vm:", "pci:", "rbd:", "nbd:", "iscsi:", "gluster:", "net:", "unix:")


def _not_open(instance: Instance, seen: Set[str]) -> Tuple[Claim, ...]:
    """
    Claims on places of the domain none of whose objects is open. One place may have claims by several names.

    What is read once at the start (kernels) is not asked for, nor what QEMU reaches over the network.
    """
    places: Dict[Tuple[str, str], List[Claim]] = {}
    for want in instance.wants:
        claim = want.claim
        if not claim.why.startswith(LIES_UNDER) and (claim.written or claim.what.startswith("disk")):
            places.setdefault((claim.what, claim.path), []).append(claim)
    return tuple(
        claims[0]
        for claims in places.values()
        if not any(claim.identity in seen or claim.identity.startswith(_NEVER_OPEN) for claim in claims)
    )
