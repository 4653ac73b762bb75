# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Double use: which claims of which guests exclude each other, and what kind of mistake that is.

Whether two claims exclude each other is `holders.excludes`, as for a start. This module only finds the pairs, in time that
grows with the number of claims, and sorts them into rules.
"""

import posixpath
from itertools import chain, islice
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from vmguard.claims import Claim, Mode, lies_beneath
from vmguard.holders import excludes
from vmguard.lint.document import Definition
from vmguard.lint.findings import Other, Place
from vmguard.lint.looking import Looked, is_weak

# The other guests that one finding names; of more it says how many.
SHOWN = 5
# Of a thing that thousands have (a disk under all images of a host), so many are looked at for each of them.
EXAMINED = 200

DUPLICATE_SOURCE = "VMG101"
OTHER_DOMAIN = "VMG102"
ALIAS_PATH = "VMG103"
BACKING_FILE = "VMG104"
OVER_PV = "VMG105"
SNAPSHOT = "VMG106"
PARTITION = "VMG107"
BENEATH = "VMG111"
SHAREABLE = "VMG203"
READER = "VMG205"
IDENTITY = "VMG601"
NVRAM = "VMG602"
TPM = "VMG603"
HOSTDEV = "VMG701"


class Mark(NamedTuple):
    """One claim of one definition, with what is needed to say where it is."""

    claim: Claim
    paper: bool
    direct: bool  # on what the definition names; else on something beneath
    place: Optional[Place]


class Guest(NamedTuple):
    """What other definitions are compared with: all of a definition that is kept while the rest are read."""

    source: str
    host: str
    local: bool
    target: bool
    name: str
    uuid: str
    marks: Tuple[Mark, ...]
    macs: Tuple[Tuple[str, Optional[Place]], ...] = ()
    leases: Tuple["LeaseMark", ...] = ()
    name_place: Optional[Place] = None
    uuid_place: Optional[Place] = None

    @property
    def key(self) -> str:
        """Equal for two definitions of one guest: that each host of a cluster has one is as it should be."""
        return f"{self.uuid} {self.name}" if self.uuid else f"{self.source} {self.name}"


class LeaseMark(NamedTuple):
    """A <lease> of a definition."""

    what: str
    lockspace: str
    key: str
    path: str
    offset: int
    place: Optional[Place]


class Clash(NamedTuple):
    """A claim of a guest, and the claims of others that exclude it."""

    mine: Mark
    others: Tuple[Tuple[Guest, Mark], ...]
    more: int  # how many there are besides
    kind: str  # the code of the rule whose case it is
    weak: bool  # all that is equal is a path, on different hosts


def marks_of(definition: Definition, looked: Looked) -> Tuple[Mark, ...]:
    """All claims of a definition."""
    found: List[Mark] = []
    for part in looked.parts:
        place = definition.place(source_of(definition, part.use.line))
        for claim in part.claims:
            found.append(Mark(claim, not part.live, not lies_beneath(claim), place))
    return tuple(found)


def source_of(definition: Definition, number: int) -> int:
    """The number of a disk's <source>, for the number of the disk; else the number itself."""
    for disk in definition.disks:
        if disk.element.line == number:
            source = disk.element.first("source")
            return source.line if source is not None else number
    return number


class Index:
    """The claims of many guests, by identity and mode."""

    def __init__(self) -> None:
        self._by_identity: Dict[str, Dict[Mode, List[Tuple[Guest, Mark]]]] = {}

    def add(self, guest: Guest) -> None:
        """Take a guest in."""
        for mark in guest.marks:
            modes = self._by_identity.setdefault(mark.claim.identity, {})
            modes.setdefault(mark.claim.mode, []).append((guest, mark))

    def remove(self, guest: Guest) -> None:
        """Forget a guest, which was added."""
        for mark in guest.marks:
            held = self._by_identity.get(mark.claim.identity, {}).get(mark.claim.mode)
            if held is not None:
                held[:] = [entry for entry in held if entry[0] is not guest]

    def clashes(self, guest: Guest) -> Iterator[Clash]:
        """What other guests claim that excludes a claim of this one: each place and kind once."""
        seen: Set[Tuple[str, str]] = set()
        for mark in guest.marks:
            modes = self._by_identity.get(mark.claim.identity, {})
            against = [held for mode, held in modes.items() if held and excludes(mark.claim.mode, mode)]
            if not against:
                continue
            found: Dict[str, List[Tuple[Guest, Mark]]] = {}
            known: Set[str] = {guest.key}
            # Of one that is defined on several hosts, the definition first that is sure to mean the same thing.
            examined = islice(chain.from_iterable(against), EXAMINED)
            for other, theirs in sorted(examined, key=lambda entry: _weak(guest, mark, *entry)):
                if other.key not in known:
                    known.add(other.key)
                    found.setdefault(kind(mark, theirs, guest.marks, other.marks), []).append((other, theirs))
            unseen = max(0, sum(map(len, against)) - EXAMINED)
            for which, others in found.items():
                if (mark.claim.what, which) not in seen:
                    seen.add((mark.claim.what, which))
                    weak = all(_weak(guest, mark, other, theirs) for other, theirs in others)
                    shown = tuple(others[:SHOWN])
                    yield Clash(mark, shown, len(others) - len(shown) + unseen, which, weak)

    def users(self, identity: str) -> int:
        """How many different guests have a claim on it."""
        modes = self._by_identity.get(identity, {})
        return len({guest.key for held in modes.values() for guest, _ in held})


def other_of(guest: Guest, mark: Mark) -> Other:
    """How a finding names another guest."""
    line = mark.place.line if mark.place is not None else 0
    return Other(guest.name, guest.host, mark.claim.what, mark.claim.path, guest.source, line)


def kind(mine: Mark, theirs: Mark, my_marks: Tuple[Mark, ...], their_marks: Tuple[Mark, ...]) -> str:
    """The code of the rule that two claims which exclude each other are a case of."""
    one, two = mine.claim, theirs.claim
    labels = (one.what, two.what)
    if not (mine.direct and theirs.direct):
        upper, marks = (mine, my_marks) if not mine.direct else (theirs, their_marks)
        return _layers(one.identity, labels, upper, marks)
    if any(label.startswith("hostdev") for label in labels):
        return HOSTDEV
    if any(", backing file" in label for label in labels):
        return BACKING_FILE
    if labels[0].startswith("nvram") and labels[1].startswith("nvram"):
        return NVRAM
    if labels[0].startswith("tpm state") and labels[1].startswith("tpm state"):
        return TPM
    for claim in (one, two):
        if claim.mode is not Mode.EXCLUSIVE:
            return SHAREABLE if claim.written else READER
    return OTHER_DOMAIN if posixpath.normpath(one.path) == posixpath.normpath(two.path) else ALIAS_PATH


def _layers(identity: str, labels: Tuple[str, str], upper: Mark, marks: Tuple[Mark, ...]) -> str:
    """Somebody has a lower layer whole, and `upper` is of something that lies on it."""
    if any(label.startswith("hostdev") for label in labels) or identity.startswith("pci:"):
        return HOSTDEV
    above = [mark.claim.identity for mark in marks if mark.direct and mark.claim.what == upper.claim.what]
    if any(one.startswith("lvm:") for one in above):
        return SNAPSHOT if identity.startswith("lvm:") else OVER_PV
    return PARTITION if any(one.startswith("part:") for one in above) else BENEATH


def _weak(guest: Guest, mine: Mark, other: Guest, theirs: Mark) -> bool:
    # one whose host is not known may be of the same
    elsewhere = bool(guest.host and other.host) and guest.host != other.host
    return elsewhere and (mine.paper or theirs.paper) and is_weak(mine.claim)
