# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the guests of this host rely upon, held against the disk.

A lease that has vanished under a guest (its file was removed, an old copy of the store was put in place, somebody wrote over
it) protects nothing any more, and neither sanlock, which keeps it in memory, nor the guest notices.
"""

import time

from vmguard import deadline, hostlock, instance
from vmguard._typing import Iterator, List, NamedTuple, Set, Tuple
from vmguard.claims import Mode
from vmguard.config import Config
from vmguard.errors import Error, LeaseDamaged, LeaseNewer, StoreBroken
from vmguard.instance import Want
from vmguard.leases import Lease, client, slots
from vmguard.member import Here, here
from vmguard.owning import qemu_of
from vmguard.report import message
from vmguard.text import plain

# From QEMU's last descriptor to its end pass milliseconds: sanlock has freed its leases then. Seconds.
_ENDS = 1.0

REMEDY = "stop that guest and start it again, or migrate it: nothing keeps others from its storage until then"


class Vanished(NamedTuple):
    """A lease of a running guest that is not its host's on the disk."""

    domain: str
    uuid: str
    path: str
    identity: str
    text: str


def vanished(config: Config) -> List[Vanished]:
    """
    The leases of running guests that are not on the disk. Reads them all: a fraction of a millisecond each, not under the
    host lock. Raises as `member.here`.
    """
    if not _vanished(here(config)):
        return []
    # A start, an end or a migration may have been under way.
    time.sleep(_ENDS)
    with hostlock.held():
        return _vanished(here(config))


def _vanished(this: Here) -> List[Vanished]:
    found: List[Vanished] = []
    shared: Set[str] = set()
    for one in instance.load_all():
        if one.state not in ("held", "running") or one.generation != this.generation:
            continue  # what was held before this membership is the join's to see to
        for want in one.wants:
            why = "" if want.missing else _why(want, this, shared)
            if why and qemu_of(one) is not None:
                claim = want.claim
                text = f"the lease of {plain(claim.path)} is not on the disk as {plain(one.name)} has it: {why}"
                found.append(Vanished(one.name, one.uuid, claim.path, claim.identity, text))
    return found


def _why(want: Want, this: Here, seen: Set[str]) -> str:
    """What is wrong with the leases of a want, in words; "": nothing. seen: shared ones, which guests have together."""
    identity = want.claim.identity
    ours = (this.host_id, this.generation)
    try:
        if not this.store.has(identity):
            return "its file is gone"
        lease = this.store.lease(identity)
        for what, place, lver in _exclusive(want, lease):
            if slots.owner(place) != (*ours, lver):
                owners = [(one.host_id, one.generation) for one in client.owners(place) if not one.shared]
                if owners:
                    return f"{what} is held by {_named(owners[0], this)}, at version {client.version(place)} instead of {lver}"
                return f"{what} is free there"
        if want.claim.mode is Mode.SHARED and want.ticket is None and identity not in seen:
            seen.add(identity)
            if ours not in [(one.host_id, one.generation) for one in client.owners(lease)]:
                return "this host is not among those that have it"
    except (LeaseDamaged, LeaseNewer):
        return "sanlock cannot read it any more"
    return ""


def _exclusive(want: Want, lease: Lease) -> Iterator[Tuple[str, Lease, int]]:
    """What an instance has for itself of a want, each with the version at which it is held."""
    if want.claim.mode is not Mode.SHARED and want.lver is not None:
        yield "it", lease, want.lver
    if want.ticket is not None:
        yield "its ticket", slots.ticket(lease), want.ticket
    if want.drain is not None:
        yield "its drain mark", slots.drain(lease), want.drain


def _named(owner: Tuple[int, int], this: Here) -> str:
    return "this host" if owner[0] == this.host_id else this.store.host_name(owner[0]) or f"the host with id {owner[0]}"


def tell(config: Config) -> None:
    """For a child of vmguardd: each of them a message, with the text and the data of an event."""
    try:
        for one in vanished(config):
            data = {"domain": one.domain, "uuid": one.uuid, "path": one.path, "identity": one.identity}
            deadline.tell({"text": f"{one.text}. {REMEDY}", "data": data})
    except StoreBroken as error:
        deadline.tell({"text": message(error), "data": {"path": error.path}})
    except Error:
        pass  # a host that is no member is told elsewhere
