# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the guard would claim for a definition: each of its uses by itself, so that one that cannot be claimed does not hide
the others.

The claims are those of `claims.needs_of`, which decides a start; nothing here decides anything. Where the guard would
not get as far as a claim (the file is not there, the definition is another host's), the same function makes one on paper.
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

from vmguard.claims import Claim, Mode, lies_beneath, needs_of, path_of
from vmguard.domain import Access, Domain, PciDevice, ScsiUnit, UsbDevice, Use
from vmguard.errors import Error, NamedTwice, Unguardable, Unresolvable, UsedByHost
from vmguard.lint.paper import PaperFacts, worldwide
from vmguard.storage import Storage, resolve
from vmguard.storage.facts import Facts

# Things that a host has plugged in: an address of one host says nothing on another.
_PLUGGED = (PciDevice, ScsiUnit, UsbDevice)

# Stands in where a definition has no uuid yet: libvirt makes one up when it is defined.
_ANY_UUID = "00000000-0000-4000-8000-000000000000"


class Part(NamedTuple):
    """One use of a domain, looked at."""

    use: Use
    claims: Tuple[Claim, ...]  # without the domain's own
    live: bool  # it was found on this host; else its claims are on paper
    here_only: bool = False  # on paper: this host has something else under that path, which no other host sees
    error: Optional[Error] = None  # what the guard would say of it
    late: bool = False  # it does not exist yet, and need not


class Looked(NamedTuple):
    """A domain, looked at."""

    parts: Tuple[Part, ...]
    twice: Tuple[NamedTwice, ...]  # what it names twice, each by the guard's own word


def look(domain: Domain, facts: Optional[Facts], host: str, local: bool, shared: str = "") -> Looked:
    """
    Look at all uses of a domain.

    facts: of this host, None where it is not to be looked at. host: whose definition it is. local: it is this host's.
    shared: what the identities of files begin with that other hosts are known to see, whatever their filesystem is.
    """
    domain = domain._replace(not_understood=(), uuid=domain.uuid or _ANY_UUID)
    parts = tuple(_part(domain, use, facts, host, local, shared) for use in domain.uses)
    within = tuple(part.error for part in parts if isinstance(part.error, NamedTwice))
    live = tuple(_twice(domain, [part for part in parts if part.live], facts)) if facts is not None else ()
    paper = tuple(_twice(_on_paper(domain), [part for part in parts if not part.live], PaperFacts()))
    return Looked(parts, (*within, *live, *paper))


def storages(use: Use, facts: Facts) -> Tuple[Storage, ...]:
    """What a use is on this host; nothing where that cannot be found out (of which its Part has the reason)."""
    try:
        return resolve(use.location, facts)
    except Error:
        return ()


def _part(domain: Domain, use: Use, facts: Optional[Facts], host: str, local: bool, shared: str) -> Part:
    if facts is None:
        return _paper(domain, use)
    try:
        needs = needs_of(domain._replace(uses=(use,)), facts)
    except (UsedByHost, Unguardable) as error:
        if not local:
            return _paper(domain, use)
        return Part(use, _refused(domain, use, facts), True, error=error)
    except Error as error:
        found = _paper(domain, use)
        return found._replace(error=error) if local else found
    claims = tuple(claim for claim in needs.claims if not claim.identity.startswith("vm:"))
    if not local and not all(_seen(claim, shared) for claim in claims if not lies_beneath(claim)):
        return _paper(domain, use, host)._replace(here_only=True)
    if needs.late:
        return _paper(domain, use)._replace(late=True)
    return Part(use, claims, True)


def _seen(claim: Claim, shared: str) -> bool:
    return claim.others_see_it or bool(shared) and claim.identity.startswith(shared)


def _refused(domain: Domain, use: Use, facts: Facts) -> Tuple[Claim, ...]:
    """What a use that is refused for itself would have claimed: as if it were read, but alone."""
    try:
        needs = needs_of(domain._replace(uses=(use._replace(access=Access.READ),)), facts)
    except Error:
        return ()
    alone = Mode.EXCLUSIVE if use.access is Access.WRITE else Mode.SHARED
    return tuple(
        claim if lies_beneath(claim) or ", backing file" in claim.what else claim._replace(mode=alone, written=True)
        for claim in needs.claims
        if not claim.identity.startswith("vm:")
    )


def _paper(domain: Domain, use: Use, host: str = "") -> Part:
    if isinstance(use.location, _PLUGGED):
        return Part(use, (), False)
    try:
        needs = needs_of(_on_paper(domain._replace(uses=(use,))), PaperFacts(host))
    except Error:
        return Part(use, (), False)
    return Part(use, tuple(claim for claim in needs.claims if not claim.identity.startswith("vm:")), False)


def _on_paper(domain: Domain) -> Domain:
    """Without headers to read, a chain is what the XML says of it."""
    return domain._replace(uses=tuple(use._replace(chain_ends=True, backing=_ended(use)) for use in domain.uses))


def _ended(use: Use) -> Tuple[Use, ...]:
    return tuple(one._replace(chain_ends=True, backing=_ended(one)) for one in use.backing)


def _twice(domain: Domain, parts: List[Part], facts: Facts) -> List[NamedTwice]:
    """Each pair of places that the guard would refuse for naming one thing: asked of it until it finds no more."""
    found: List[NamedTwice] = []
    uses = _suspects(parts)
    while len(uses) > 1:
        try:
            needs_of(domain._replace(uses=tuple(uses)), facts)
            break
        except NamedTwice as error:
            found.append(error)
            owner = owner_of(error.second.what, uses)
            if owner is None:
                break
            uses.remove(owner)
        except Error:
            break  # its part says so
    return found


def _suspects(parts: List[Part]) -> List[Use]:
    """The uses that have an identity in common of which one claims it alone: the guard need not be asked of others."""
    alone: Dict[str, int] = {}
    claimed: Dict[str, List[int]] = {}
    for number, part in enumerate(parts):
        for claim in part.claims:
            claimed.setdefault(claim.identity, []).append(number)
            if claim.mode is Mode.EXCLUSIVE:
                alone[claim.identity] = number
    wanted = {number for identity in alone for number in claimed[identity] if len(set(claimed[identity])) > 1}
    return [part.use for number, part in enumerate(parts) if number in wanted]


def owner_of(what: str, uses: List[Use]) -> Optional[Use]:
    """The use whose label begins the label of a claim: "disk vda" for "disk vda, backing file 1"."""
    found = [use for use in uses if what == use.what or what.startswith(use.what + ",")]
    return max(found, key=lambda use: len(use.what)) if found else None


def is_weak(claim: Claim) -> bool:
    """Whether two hosts that name one path may still mean two things by it (of claims on paper)."""
    return claim.identity.startswith("file:") and not worldwide(claim.path)


def is_leg(storage: Storage) -> bool:
    """Whether it is one path of a multipath map, or lies on one. In the words of disks.py."""
    return "one path of the multipath map" in (storage.not_writable or "")


def unresolved(part: Part) -> Optional[Unresolvable]:
    """Why it could not be found out what a use is, if that is so."""
    return part.error if isinstance(part.error, Unresolvable) else None


def header_trouble(part: Part) -> Optional[Unresolvable]:
    """The same, if all that is wrong is that the image itself is of another format than declared."""
    error = unresolved(part)
    if error is None or error.path != path_of(part.use.location):
        return None
    return error if error.why.startswith("it is declared ") else None
