# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Moving a cluster from one store to another, of the same kind or the other one.

Two stores in use by two hosts protect nothing. So nobody may hold anything while it is done, and there is one moment at
which the old store ceases to be one:

    1. The new store is made, with the hosts of the old one. It says whose place it is to take, and cannot be opened.
    2. The old store is marked as moved. Nobody opens it any more, a hook that is just beginning included.
    3. Whether somebody was in it nevertheless: then the mark is taken away again. If not, it is set for good.
    4. This host leaves the old lockspace and joins the new one; what the old notes know is carried over.
    5. The new store is in use.

Before 2 the old store is valid, and a death changes nothing. After it the new one is, and every refusal says how to finish
it: the same command, again. A host that missed all this finds the mark, and is told where to go.
"""

import os
import time

from vmguard import events, host, hostlock, instance
from vmguard._typing import Callable, Dict, List, NamedTuple, Optional, Tuple
from vmguard.config import Config, load
from vmguard.errors import BadRequest, LeaseDamaged, LeaseNewer, Misconfigured, NotJoined, StoreBroken, StoreMoved
from vmguard.giving import sweep
from vmguard.leases import Note, client, lockspace, slots
from vmguard.leases._cluster import Elsewhere
from vmguard.leases.lockspace import Entry
from vmguard.leases.store import Store, exists, is_device
from vmguard.member import here
from vmguard.owning import qemu_of
from vmguard.setup import others, place

Say = Callable[[str], None]


class Converted(NamedTuple):
    """What a conversion did."""

    old: str
    new: str
    carried: int  # storage objects whose last writer, or used-up saved states, the new store knows
    lost: int  # of which nothing was known: a state of their guests that was saved before is refused


def convert(path: str, say: Say, shared: bool = False) -> Converted:
    """
    Move the leases of this host's cluster to another store, or finish doing so. say: told what is done, as it begins.
    shared: other hosts see that place, whatever it looks like.

    Raises BadRequest while anybody holds anything, or may; StoreBroken, SanlockDown, SanlockFailed, Misconfigured.
    """
    config = load()
    if config.store is None or config.host_id is None:
        raise Misconfigured("/etc/vmguard", "this host was not set up", "run `vmguard setup`")
    path = os.path.normpath(os.path.abspath(path))
    old = Store.look(config.store)
    if old.cluster != config.cluster:
        raise StoreBroken(old.path, f"it is the store of another cluster ({old.cluster}, not {config.cluster})")
    if path == old.path:
        raise BadRequest(f"{path} is the store that this host has", "name another one")
    new = _new(path, old, config, say, shared)
    if new.facts.instead_of is None:
        return Converted(old.path, new.path, 0, 0)  # finished, but for the configuration of this host
    new.carry(old.hosts_known())
    with hostlock.held():
        dead: Optional[Dead] = None
        marked = old.facts.moved is None
        if marked:
            _see_room(old, new)
            dead = _see_nobody_has_anything(old, config, say)
            old.mark_moved(Elsewhere(new.path, new.cluster))
            say(f"{old.path} is marked as moved")
        try:
            _see_nobody_has_anything(old, config, say, dead)
        except BadRequest:
            # A mark of somebody else's is his to take away: he may have found that nobody has anything, and be carrying over.
            if marked:
                old.mark_in_use()
            raise
        if Store.look(path).facts.instead_of is None:
            return Converted(old.path, new.path, 0, 0)  # somebody else has just finished it
        # Whoever set the mark may be about to take it away: from here on he is told that it has changed.
        old.mark_moved(Elsewhere(new.path, new.cluster))
        lockspace.leave(old, config.host_id)
        say(f"joining {new.path}")
        lockspace.join(new, config.host_id, host.key())
        carried, lost = _carry(old, new)
        os.sync()
        if Store.look(old.path).facts.moved != (new.path, new.cluster):
            lockspace.leave(new, config.host_id)
            raise BadRequest(
                f"{old.path} is in use again: another conversion found somebody in it",
                "see that no other one runs, and run this again",
            )
        new.mark_in_use(converted=time.time())
    events.record("converted", f"the leases have moved from {old.path} to {new.path}", carried=carried, lost=lost)
    return Converted(old.path, new.path, carried, lost)


def _new(path: str, old: Store, config: Config, say: Say, shared: bool) -> Store:
    """The new store, made or half made. Raises BadRequest where there is another one."""
    moved = old.facts.moved
    if moved is not None and moved.path != path:
        raise StoreMoved(old.path, moved.path)
    if exists(path):
        new = Store.look(path)
        if moved is not None and new.cluster != moved.cluster:
            raise StoreBroken(path, f"it is not the store to which {old.path} was moved, but another one")
        if moved is None and (new.facts.instead_of is None or new.facts.instead_of.cluster != old.cluster):
            raise BadRequest(f"there is a store at {path} already", "name an empty place")
        return new
    if moved is not None:
        raise StoreBroken(path, f"{old.path} was moved there, and there is no store: not mounted, not active?")
    too_high = [record for record in old.hosts_known() if is_device(path) and record.host_id > 200]
    if too_high:
        raise BadRequest(
            f"{too_high[0].host or 'a host'} has the host id {too_high[0].host_id}, and a device has room for 200",
            "give it a lower one: `vmguard setup --host-id N` there",
        )
    _see_place(path, config.shared and not shared)
    with hostlock.held():
        _see_nobody_has_anything(old, config, say)
    say(f"making {path}")
    new = Store.create(path, old.io_timeout, Elsewhere(old.path, old.cluster))
    if new.facts.instead_of is None or new.facts.instead_of.cluster != old.cluster:
        raise BadRequest(f"somebody else has just made a store at {path}", "name an empty place")
    return new


def _see_place(path: str, for_others: bool) -> None:
    """
    What `vmguard setup` sees to before it makes a store: afterwards it would refuse what cannot be taken back any more.

    for_others: they must see it, too. Raises BadRequest, Unresolvable.
    """
    if is_device(path):
        device = place.device(path)
        place.see_unused(device)
        seen = device.others_see_it
    else:
        seen = place.seen_by_others(place.look(path, others.MOUNTINFO, others.FSTAB))
    if for_others and not seen:
        raise BadRequest(
            f"other hosts do not see {path}, as far as vmguard knows",
            "name a directory or device that all hosts share; if this is one: `--shared yes`",
        )


Dead = Dict[int, int]  # host ids, each with the generation that is certainly dead


def _see_nobody_has_anything(old: Store, config: Config, say: Say, dead: Optional[Dead] = None) -> Dead:
    """
    Raises BadRequest where a guest of this host needs its leases, or another host is in the lockspace, alive or not
    certainly dead. Under the host lock.

    dead: what is known already. Returns what is known now.
    """
    assert config.host_id is not None
    left: List[instance.Instance] = []
    if old.facts.moved is None:
        try:
            this = here(config)
            left = sweep(this)
            dead = {one.host_id: one.generation for one in this.states.values() if one.state in ("dead", "free")}
        except NotJoined:
            pass
    left += [one for one in instance.load_all() if one not in left and qemu_of(one) is not None]
    if left:
        names = ", ".join(sorted({one.name for one in left}))
        raise BadRequest(f"guests on this host need their leases: {names}", "stop them first")
    if client.locks(old.lockspace):
        raise BadRequest("this host still holds leases", "run `vmguard gc`, which says for whom")
    # Under our id, where it is not we who are in, may be the machine of which this one is a clone.
    own = config.host_id if lockspace.state(old, config.host_id) == "joined" else None
    others = [one for one in lockspace.entries(old) if one.host_id != own]
    others = [one for one in others if (dead or {}).get(one.host_id, -1) < one.generation]
    if others and dead is None:
        watched = others
        others = _alive(watched, old, say)
        dead = {one.host_id: one.generation for one in watched}
    if others:
        names = ", ".join(old.host_name(one.host_id) or f"host {one.host_id}" for one in others)
        raise BadRequest(
            f"still in the lockspace, or not certainly dead: {names}", "stop the guests there, and run `vmguard leave`"
        )
    return dead or {}


def _alive(others: List[Entry], old: Store, say: Say) -> List[Entry]:
    """Those of which it is not certain that they are dead, by whether they renew: for one who is no member."""
    seconds = lockspace.surely_dead(old.io_timeout)
    names = ", ".join(old.host_name(one.host_id) or f"host {one.host_id}" for one in others)
    say(f"watching for {seconds} s whether {names} is alive")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = [one for one in lockspace.entries(old) if one.host_id in {other.host_id for other in others}]
        moved = [one for one in now if one not in others]
        if moved:
            return moved
        if not now:
            return []
        time.sleep(0.5)
    return []


def _see_room(old: Store, new: Store) -> None:
    """Raises BadRequest where the new store has no room for the leases of the old one, and some more."""
    wanted = len(old.lease_names()) * 9 // 8 + 1
    room = new.room()
    if room is not None:
        has, each = room[1], 4
    else:
        disk = os.statvfs(new.path)
        has, each = len(new.lease_names()) + disk.f_bavail * disk.f_frsize // slots.FILE_BYTES, 3
    if has < wanted:
        raise BadRequest(
            f"{new.path} has room for the leases of {has} storage objects, and needs it for {wanted}",
            f"make it larger ({each} MiB for each), and run this again; or name another place",
        )


def _carry(old: Store, new: Store) -> Tuple[int, int]:
    """Carry over who wrote last, where that is certain, and which saved states are used up. How many, and how many not."""
    carried = lost = 0
    there = set(new.lease_names())
    for name in old.lease_names():
        note = _known(old, name)
        if note is None:
            # An earlier attempt may have carried over what is no longer true.
            if name in there:
                new.forget(name)
            lost += 1
            continue
        new.ensure(note.identity)
        # Of version 0, which nobody ever holds: the first who does finds it before his own.
        new.write_note(note._replace(host_id=0, generation=0, lver=0, instance="", disks=()))
        carried += 1
    return carried, lost


def _known(old: Store, name: str) -> Optional[Note]:
    """The note of a lease, with its writer only if that is certain; None where it says nothing that holds in another store."""
    try:
        identity = old.identity_of(name)
        note = old.note(identity) if identity is not None else None
        if note is None:
            return None
        try:
            certain = note.lver == client.version(old.lease_of_name(name))
        except (LeaseDamaged, LeaseNewer):
            certain = False
    except StoreBroken:
        Store.look(old.path)  # raises where it is the store, and not this lease alone
        return None
    if not certain:
        note = note._replace(writer=None)
    return note if note.writer is not None or note.restored else None
