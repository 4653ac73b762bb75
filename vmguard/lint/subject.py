# SPDX-License-Identifier: LGPL-2.1-or-later
"""What rules are given: one definition that was looked at, and the definitions it meets."""

from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from vmguard.claims import Claim, lies_beneath
from vmguard.domain import Use
from vmguard.lint import looking
from vmguard.lint.document import Definition, Disk, Origin
from vmguard.lint.doubles import (
    DUPLICATE_SOURCE,
    NVRAM,
    OTHER_DOMAIN,
    TPM,
    Clash,
    Guest,
    Index,
    LeaseMark,
    Mark,
    kind,
    marks_of,
    other_of,
    source_of,
)
from vmguard.lint.findings import Finding, Other, Place, Rule, Severity
from vmguard.lint.looking import Looked, Part
from vmguard.lint.site import Site
from vmguard.storage import Storage
from vmguard.text import quoted


class Twice(NamedTuple):
    """Two places of one domain that exclude each other."""

    first: Mark
    second: Mark
    kind: str


class Subject(Definition):
    """A definition, looked at on a host. One that cannot be read has no parts."""

    def __init__(self, xml: bytes, origin: Origin, site: Site) -> None:
        super().__init__(xml, origin)
        self.parts: Tuple[Part, ...] = ()
        self.marks: Tuple[Mark, ...] = ()
        self.twice: Tuple[Twice, ...] = ()
        self._storages: Dict[str, Tuple[Storage, ...]] = {}  # by label: one element may name several things
        if self.domain is not None:
            looked = looking.look(self.domain, site.facts, origin.host, origin.local, site.shared_files())
            self.parts = looked.parts
            self.marks = marks_of(self, looked)
            self.twice = tuple(_twice(self, looked))

    def storages(self, use: Optional[Use], site: Site) -> Tuple[Storage, ...]:
        """What a use is on this host; nothing where that could not be found out."""
        if use is None or site.facts is None or not self.origin.local:
            return ()
        if use.what not in self._storages:
            self._storages[use.what] = looking.storages(use, site.facts)
        return self._storages[use.what]

    def about(self, rule: Rule, part: Part, text: str, remedy: str, unread: bool = False) -> Finding:
        """A finding about one use, at the place where its source is named."""
        return self.finding(rule, part.use.what, source_of(self, part.use.line), text, remedy, unread=unread)

    def live_disks(self, site: Site) -> Iterator[Tuple[Disk, Storage]]:
        """The disks that were found on this host, with what they are."""
        for disk in self.disks:
            for storage in self.storages(disk.use, site):
                yield disk, storage

    def guest(self) -> Guest:
        """What other definitions are compared with."""
        assert self.domain is not None and self.root is not None
        name, uuid = self.root.first("name"), self.root.first("uuid")
        return Guest(
            self.origin.source,
            self.origin.host,
            self.origin.local,
            self.origin.target,
            self.domain.name,
            self.domain.uuid,
            self.marks,
            tuple(self._macs()),
            tuple(self.leases()),
            self.place(name.line) if name is not None else None,
            self.place(uuid.line) if uuid is not None else None,
        )

    def _macs(self) -> Iterator[Tuple[str, Optional[Place]]]:
        for devices in self.root.all("devices") if self.root is not None else ():
            for interface in devices.all("interface"):
                mac = interface.first("mac")
                address = (mac.get("address") or "").lower() if mac is not None else ""
                if mac is not None and address:
                    yield address, self.place(mac.line)

    def leases(self) -> Iterator[LeaseMark]:
        """The <lease> elements."""
        for devices in self.root.all("devices") if self.root is not None else ():
            for lease in devices.all("lease"):
                key, space, target = lease.first("key"), lease.first("lockspace"), lease.first("target")
                text = key.text.strip() if key is not None else ""
                offset = (target.get("offset") or "0") if target is not None else "0"
                yield LeaseMark(
                    f"lease {text or '?'}",
                    space.text.strip() if space is not None else "",
                    text,
                    (target.get("path") or "") if target is not None else "",
                    _offset(offset),
                    self.place(target.line if target is not None else lease.line),
                )


def _offset(text: str) -> int:
    """-1 for what is none, or lies beyond the end of every file."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    return number if number < 1 << 63 else -1


def _twice(one: Subject, looked: Looked) -> Iterator[Twice]:
    for error in looked.twice:
        first, second = _mark(one, error.first), _mark(one, error.second)
        which = kind(first, second, one.marks, one.marks)
        # these are between domains
        yield Twice(first, second, DUPLICATE_SOURCE if which in (OTHER_DOMAIN, NVRAM, TPM) else which)


def _mark(one: Subject, claim: Claim) -> Mark:
    owner = looking.owner_of(claim.what, [part.use for part in one.parts])
    place = one.place(source_of(one, owner.line)) if owner is not None else None
    live = any(part.live for part in one.parts if part.use is owner)
    return Mark(claim, not live, not lies_beneath(claim), place)


class Meeting:
    """All definitions of a run, by what they may have in common."""

    def __init__(self) -> None:
        self.index = Index()
        self.names: Dict[str, List[Guest]] = {}
        self.uuids: Dict[str, List[Guest]] = {}
        self.macs: Dict[str, List[Guest]] = {}
        self.lease_keys: Dict[Tuple[str, str], List[Tuple[Guest, LeaseMark]]] = {}
        self.lease_places: Dict[Tuple[str, int], List[Tuple[Guest, LeaseMark]]] = {}
        self._clashes: Tuple[Optional[Guest], List[Clash]] = (None, [])

    def add(self, guest: Guest) -> None:
        """Take a guest in."""
        self._clashes = (None, [])
        self.index.add(guest)
        self.names.setdefault(guest.name, []).append(guest)
        if guest.uuid:
            self.uuids.setdefault(guest.uuid, []).append(guest)
        for mac in {mac for mac, _ in guest.macs}:
            self.macs.setdefault(mac, []).append(guest)
        for lease in guest.leases:
            self.lease_keys.setdefault((lease.lockspace, lease.key), []).append((guest, lease))
            self.lease_places.setdefault((lease.path, lease.offset), []).append((guest, lease))

    def remove(self, guest: Guest) -> None:
        """Forget a guest, which was added."""
        self._clashes = (None, [])
        self.index.remove(guest)
        for held in (
            self.names.get(guest.name),
            self.uuids.get(guest.uuid),
            *(self.macs.get(mac) for mac, _ in guest.macs),
        ):
            if held is not None and guest in held:
                held[:] = [one for one in held if one is not guest]
        for lease in guest.leases:
            for table in (
                self.lease_keys.get((lease.lockspace, lease.key)),
                self.lease_places.get((lease.path, lease.offset)),
            ):
                if table is not None:
                    table[:] = [entry for entry in table if entry[0] is not guest]

    def clashes(self, guest: Guest) -> List[Clash]:
        """The double uses of a guest. Found once for all rules that ask."""
        if self._clashes[0] is not guest:
            self._clashes = (guest, list(self.index.clashes(guest)))
        return self._clashes[1]


def others_of(rest: List[Guest], guest: Guest) -> List[Guest]:
    """Those that are not the same guest: a definition of it on another host is no other."""
    seen = {guest.key}
    found = []
    for other in rest:
        if other.key not in seen:
            seen.add(other.key)
            found.append(other)
    return found


# -- what the rules of double use have in common -----------------------------------------------------------------------


def with_itself(rule: Rule, one: Subject, text: str, remedy: str) -> Iterator[Finding]:
    """The findings of a rule among the places of one domain. `text` has {mine} and {theirs}, for the two places."""
    for twice in one.twice:
        if twice.kind == rule.code:
            mine, theirs = twice.second, twice.first
            line = theirs.place.line if theirs.place is not None else 0
            yield Finding(
                rule.code,
                rule.severity,
                mine.claim.what,
                _words(text, mine, theirs),
                remedy,
                mine.place,
                _how(mine, theirs),
                (Other(one.name, one.origin.host, theirs.claim.what, theirs.claim.path, one.origin.source, line),),
            )


def with_others(rule: Rule, guest: Guest, meeting: Meeting, text: str, remedy: str) -> Iterator[Finding]:
    """The findings of a rule among a guest and others. `text` as above; the others are listed below it."""
    for clash in meeting.clashes(guest):
        if clash.kind != rule.code:
            continue
        other, theirs = clash.others[0]
        why = _how(clash.mine, theirs)
        severity = rule.severity
        if clash.weak:
            severity = max(rule.severity, Severity.WARNING, key=lambda one: one.rank)
            why = (
                "the definitions are of different hosts, and nothing shows whether the path leads to one thing on both"
            )
        yield Finding(
            rule.code,
            severity,
            clash.mine.claim.what,
            _words(text, clash.mine, theirs, other),
            remedy,
            clash.mine.place,
            why,
            tuple(other_of(other, theirs) for other, theirs in clash.others),
            clash.more,
        )


def _words(text: str, mine: Mark, theirs: Mark, other: Optional[Guest] = None) -> str:
    whose = f"{theirs.claim.what} of {quoted(other.name)}" if other is not None else theirs.claim.what
    return text.format(mine=mine.claim.what, theirs=whose)


def _how(mine: Mark, theirs: Mark) -> str:
    """How two paths come to be one thing, where they do not show it."""
    if mine.direct and theirs.direct:
        if mine.claim.path == theirs.claim.path or mine.paper:
            return ""
        return f"both paths lead to {mine.claim.identity}"
    if mine.direct:
        return f"{theirs.claim.path} lies under {theirs.claim.what}"
    return f"{mine.claim.path} lies under {mine.claim.what}"
