# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who has a lease, in words: the owners on disk, made readable by the notes beside the lease. Reads only."""

from vmguard._typing import Dict, Iterable, Iterator, List, Optional, Tuple
from vmguard.claims import Claim, Mode
from vmguard.errors import CannotTell, Holder
from vmguard.instance import Instance, Want
from vmguard.leases import HostState, Note, Owner, client
from vmguard.leases.store import Store


def excludes(one: Mode, other: Mode) -> bool:
    """Whether two instances of one host may not have these two modes of one identity at the same time."""
    return one is not other or one is Mode.EXCLUSIVE


def local(claim: Claim, instances: Iterable[Instance], host_id: int) -> List[Holder]:
    """The instances of this host that stand against the claim."""
    found = []
    for instance in instances:
        if instance.state == "draining":
            continue  # its guest is gone, and its page cache is ours
        want = _wanted(claim.identity, instance)
        if want is not None and excludes(claim.mode, want.claim.mode):
            found.append(
                Holder(
                    host_id=host_id,
                    host=None,  # this one
                    domain=instance.name,
                    uuid=instance.uuid,
                    path=want.claim.path,
                    since=instance.since,
                    shared=want.claim.mode is not Mode.EXCLUSIVE,
                    alive=True,
                    here=True,
                )
            )
    return found


def _wanted(identity: str, instance: Instance) -> Optional[Want]:
    for want in instance.wants:
        if want.claim.identity == identity and not want.missing:
            return want
    return None


def gone(owner: Owner, states: Dict[int, HostState]) -> bool:
    """
    Whether an entry of a lease's owners is what a host left behind when it went. A silent host is not gone; nor is one
    that has joined anew since it was looked at: its state is that of an earlier membership.
    """
    state = states.get(owner.host_id)
    if state is None or state.generation < owner.generation:
        return False
    return state.generation > owner.generation or state.state in ("dead", "free")


def anywhere(identity: str, store: Store, states: Dict[int, HostState], slot: str = "lease") -> List[Holder]:
    """
    Who has the lease of this identity on disk, or another slot of it, on any host.

    states: the members of the lockspace by host id. Empty when nobody has it (any more). Raises CannotTell kinds when
    the lease cannot be read.
    """
    lease = store.slot(identity, slot)
    if slot == "lease":
        notes = store.notes(identity)
    else:
        note = store.note(identity, slot)
        notes = (note,) if note is not None else ()
    version = client.version(lease)
    found = []
    for owner in client.owners(lease):
        state = states.get(owner.host_id)
        if gone(owner, states):
            continue
        alive = {"live": True, "fail": False}.get(state.state) if state is not None else None
        note = matching(owner, version, notes)
        if note is None:
            name = store.host_name(owner.host_id)
            found.append(Holder(owner.host_id, host=name, shared=owner.shared, alive=alive, slot=slot))
        else:
            found.append(
                Holder(
                    host_id=owner.host_id,
                    host=note.host,
                    domain=note.domain,
                    uuid=note.uuid,
                    path=note.path,
                    since=note.since,
                    shared=note.mode != Mode.EXCLUSIVE.value,
                    alive=alive,
                    slot=slot,
                )
            )
    return found


def matching(owner: Owner, version: int, notes: Tuple[Note, ...]) -> Optional[Note]:
    """The note that speaks of this owner; one of another time or generation says nothing."""
    for note in notes:
        if (note.host_id, note.generation) != (owner.host_id, owner.generation):
            continue
        if (note.mode == Mode.SHARED.value) == owner.shared and (owner.shared or note.lver == version):
            return note
    return None


def everywhere(store: Store, states: Dict[int, HostState]) -> Iterator[Tuple[str, Holder]]:
    """Every identity for which there is a note, with those who have its lease now. What cannot be read is left out."""
    for identity in store.noted():
        for holder in try_anywhere(identity, store, states):
            yield identity, holder


def try_anywhere(identity: str, store: Store, states: Dict[int, HostState], slot: str = "lease") -> List[Holder]:
    """The same for a sentence: what cannot be read is left out of it."""
    try:
        return anywhere(identity, store, states, slot)
    except CannotTell:
        return []
