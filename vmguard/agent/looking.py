# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One look at one QEMU: what it has open and what libvirt says that it has, against what is claimed for it.

What is missing is claimed as in `started`, by the same code (surprise.py). What stands in the way does not end anything
here: the want is *contested*, asked for again at each look, and reported. A conflict is *proven* where

* QEMU has the thing open for writing (or has it over the network or as a device, where nothing but the definition shows it),
* and another domain has it, by a lease whose host is alive.

The same domain at the other side of a migration is no conflict. Nor is a host that is silent: it may be dead.

What is given back: a lease whose object is not open, nor named by the live definition, nor under either of them, in two looks
some seconds apart; after the host's page cache of it was written out.
"""

import time

from vmguard import deadline, errand, events, giving, host, hostlock, instance, libvirtstate, membership, overrides
from vmguard._typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple
from vmguard.claims import GUESTS_SHARE_IT, Claim, Mode, Needs, claim_on_itself, claims_on, lies_beneath, needs_of
from vmguard.config import Config, Guarding, load
from vmguard.domain import Access, Domain, HostPath, Use, parse
from vmguard.errors import CannotTell, Error, InUse
from vmguard.guard import admit
from vmguard.host import Process, Qemu
from vmguard.instance import Instance
from vmguard.member import Here, Tolerance, here
from vmguard.openfiles import Findings, Opened, Verdict, claims_of, compare, inspect, open_files
from vmguard.owning import hand_over, is_known, qemu_of, record_of, watch_orphans
from vmguard.report import message
from vmguard.storage.facts import LiveFacts
from vmguard.surprise import claim_more
from vmguard.text import typed
from vmguard.verdict import look

# Seconds until the next look, where something is to come that no event tells.
SOON, LATER = 2.0, 5.0
# What nothing needs for so long is given back: what QEMU has closed it may be about to open in another way. Seconds.
SPARE = 4.0

# What QEMU reaches past the kernel's files shows in the definition alone: network volumes, and devices given whole, which the
# definition names by an address and not by a path.
_UNSEEN = ("pci:", "rbd:", "nbd:", "iscsi:", "gluster:", "net:", "unix:")

# For so long one domain may be on two hosts without being on its way. Seconds.
_MOVES = 30.0
# Between a lease and its note. Seconds.
_NOTED = 1.0

RAN_BEFORE = "it ran before it was guarded"


Told = Tuple[str, str, Dict[str, Any]]


class Seen(NamedTuple):
    """What a look came to. It goes to the daemon as JSON."""

    word: str  # "calm", "waits", "claimed", "adopted", "given back", "conflict", "trouble"
    again: Optional[float] = None  # seconds until the next look; None: when something changes
    # What is to be written down and told, each once: event, text, further data.
    told: Tuple[Told, ...] = ()
    done: Tuple[Told, ...] = ()  # what was done, and is written down already
    conflicts: Tuple[Dict[str, Any], ...] = ()  # the proven ones: identity, path, what, text
    spare: Tuple[str, ...] = ()  # identities that nothing seems to need any more


class _State(NamedTuple):
    """What a QEMU has, as of one moment."""

    findings: Findings  # without what waits for its guest
    # What has to be claimed for all that is open, by identity; in the words of the definition where that names it.
    open: Dict[str, Claim]
    # What the live definition needs; None where that cannot be said.
    defined: Optional[Dict[str, Claim]]

    def missing(self, one: Instance) -> List[Claim]:
        """What is to be claimed, that the instance has not got at all or not strongly enough."""
        found = [self.open.get(claim.identity, claim) for claim in claims_of(self.findings)]
        known = {want.claim.identity for want in one.wants}
        unseen = (self.defined or {}).values()
        found += [one for one in unseen if _unseen(one) and one.identity not in known]
        return found

    def needs(self, identity: str) -> bool:
        return identity in self.open or self.defined is None or identity in self.defined

    def spare(self, one: Instance) -> Tuple[str, ...]:
        """Identities that the instance holds and neither what is open nor the definition needs."""
        if any(finding.verdict is Verdict.UNKNOWN for finding in self.findings.objects):
            return ()
        # What is named by the same path as ever is needed, also where that leads elsewhere by now: to a mount over a folder
        # that another process serves to the guest.
        named = {(claim.what, claim.path) for claim in (self.defined or {}).values()}
        held = (want.claim for want in one.wants if not want.missing and (want.claim.what, want.claim.path) not in named)
        return tuple(one.identity for one in held if not one.identity.startswith("vm:") and not self.needs(one.identity))


def _unseen(claim: Claim) -> bool:
    by_path = claim.path.startswith(("/", "volume "))  # a pool's volume is a file or a device in the end
    return claim.identity.startswith(_UNSEEN) or not (by_path or claim.identity.startswith("vm:"))


def look_at(qemu: Qemu, spare: Sequence[str], contested_for: float, noticed: float) -> Seen:
    """
    Look once, and do what is to be done.

    spare: what looks have found to be needed by nothing for a while. contested_for: seconds since a want was first contested.
    noticed: when what it is for was noticed, by the monotonic clock.
    """
    try:
        config = load()
        if config.store is None or config.mode is Guarding.OFF:
            return Seen("calm", LATER)
        now = [one for one in instance.load_all() if one.boot_id == host.boot_id() and one.state != "intent"]
        record = record_of(qemu, now)
        if record is None:
            return Seen("calm", LATER) if is_known(qemu, now) else _adopt(qemu, config, noticed)
        return _look(record, qemu, config, spare, contested_for, noticed)
    except CannotTell as error:
        return Seen("trouble", LATER, (("not-inspected", message(error), {}),))
    except Error as error:
        return Seen("trouble", LATER, (("alarm", message(error), {}),))


def _look(
    record: Instance, qemu: Qemu, config: Config, spare: Sequence[str], contested_for: float, noticed: float
) -> Seen:
    if record.state == "held":
        return _held(record, config)
    if record.state != "running" or record.frozen:
        return Seen("waits", SOON)
    if instance.pending(record):
        errand.see_to(record)  # unless it is on its way
        return Seen("waits", LATER)
    state = _state(record, qemu)
    if state is None:
        return Seen("calm")
    ripe = set(spare).intersection(state.spare(record))
    waived = _waived(record)
    free = _free(record, here(config)) if waived else []
    if not (state.missing(record) or ripe or free or any(want.contested for want in record.wants)):
        again = LATER if state.spare(record) or waived else None
        return Seen("calm", again, _unknown(state), spare=state.spare(record))
    for want in record.wants:
        if want.claim.identity in ripe and want.claim.mode is Mode.EXCLUSIVE:
            _flush(want.claim)  # not under the host lock: it takes as long as it takes
    with hostlock.held():
        this = here(config)
        one = instance.load(record.id + ".json")
        if one is None or one.state != "running" or instance.pending(one) or one.frozen:
            return Seen("waits", SOON)
        if one.generation != this.generation:
            return Seen("waits", LATER)  # it lost its leases with an earlier membership: the next join sees to it
        state = _state(one, qemu)
        if state is None:
            return Seen("calm")
        return _settle(one, qemu, state, this, ripe, contested_for, noticed)


def _held(record: Instance, config: Config) -> Seen:
    """`started` is to come. One that died or was late will not: a sweep makes good for it."""
    waited = time.time() - record.since > 2 * config.deadline
    if waited or host.process(record.libvirtd.pid) != record.libvirtd:
        with hostlock.held():
            giving.sweep(here(config))
    return Seen("waits", SOON)


def _state(one: Instance, qemu: Qemu) -> Optional[_State]:
    """What QEMU has now; None once it is gone."""
    findings = inspect(one, qemu.process)
    if not host.alive(qemu.process):
        return None
    findings = findings._replace(
        objects=tuple(found for found in findings.objects if found.verdict is not Verdict.DORMANT)
    )
    return _compared(findings, qemu)


def _compared(findings: Findings, qemu: Qemu) -> _State:
    defined = _defined(qemu)
    found = {claim.identity: claim for claim in claims_on(_uses([one.opened for one in findings.objects]))}
    for identity, claim in found.items():
        named = (defined or {}).get(identity)
        # Of what QEMU writes, the definition alone knows that guests share it, and how it is cached.
        if named is not None and (named.mode is claim.mode or (named.why == GUESTS_SHARE_IT and claim.written)):
            found[identity] = named
    return _State(findings, found, defined)


def _uses(opened: Sequence[Opened]) -> List[Tuple[Any, Use]]:
    return [
        (
            storage,
            Use(f"open file {one.path}", HostPath(one.path), Access.WRITE if one.writable else Access.READ),
        )
        for one in opened
        for storage in one.storage
    ]


def _defined(qemu: Qemu) -> Optional[Dict[str, Claim]]:
    """What libvirt's status file says that the guest has; None where it says nothing that can be relied upon."""
    data = libvirtstate.definition(qemu.name, qemu.process.pid)
    if data is None:
        return None
    try:
        domain = parse(data)
        if domain.uuid != qemu.uuid:
            return None
        return {claim.identity: claim for claim in needs_of(domain, LiveFacts()).claims}
    except (OSError, Error):
        return None


def _settle(
    one: Instance, qemu: Qemu, state: _State, this: Here, ripe: Set[str], contested_for: float, noticed: float
) -> Seen:
    """Claim, ask again, give back. Under the host lock."""
    over = [want for want in one.wants if want.contested and not state.needs(want.claim.identity)]
    asked = [state.open.get(want.claim.identity, want.claim) for want in one.wants if want.contested and want not in over]
    if over:
        one = one._replace(wants=tuple(want for want in one.wants if want not in over))
        instance.write(one)
    free = [claim for claim in _free(one, this) if state.needs(claim.identity)]
    if free:
        one = _take_free(free, one, qemu, this)
    missing = [claim for claim in state.missing(one) if claim.identity not in {again.identity for again in asked}]
    against: List[Error] = []
    had = {(want.claim.identity, want.claim.mode) for want in one.wants if not want.missing}
    if missing or asked:
        one = claim_more([*missing, *asked], one, qemu.process, this, against)
    told, done = list(_unknown(state)), []
    have = {(want.claim.identity, want.claim.mode) for want in one.wants if not want.missing}
    taken = {identity for identity, _ in have}
    for claim in missing:
        if (claim.identity, claim.mode) in have - had and not lies_beneath(claim):
            done.append(_done("surprise", _claimed(claim), claim, one, noticed))
    for want in over:
        words = f"{qemu.name} does not have {want.claim.path} any more{_to_go_on(qemu)}"
        done.append(_done("conflict-over", words, want.claim._replace(mode=Mode.SHARED), one, noticed, has=False))
    for claim in (*asked, *free):
        if claim.identity in taken:
            done.append(_done("conflict-over", _claimed(claim) + _to_go_on(qemu), claim, one, noticed))
    ripe = ripe.intersection(state.spare(one))
    if ripe:
        done += _give_back(one, ripe, this, noticed)
    conflicts = [_conflict(error, one, state, contested_for, told) for error in against]
    found = tuple(one for one in conflicts if one is not None)
    word = "conflict" if found else "trouble" if against else "given back" if ripe else "claimed"
    again = SOON if against else LATER if _waived(one) else None
    return Seen(word, again, tuple(told), tuple(done), found, state.spare(one))


def _waived(one: Instance) -> List[Claim]:
    """What a guest was started without: an override, or audit mode, has let it pass."""
    return [want.claim for want in one.wants if want.missing and not want.contested]


def _free(one: Instance, this: Here) -> List[Claim]:
    """
    What of that nobody else has any more. It is taken then: the word that let the guest pass was about its start, and not about
    the next guest that wants the disk.
    """
    return [claim for claim in _waived(one) if look(claim, this).objection is None]


def _take_free(free: List[Claim], one: Instance, qemu: Qemu, this: Here) -> Instance:
    """Where somebody was quicker, it goes on without it, as it was let pass: that is no conflict."""
    one = claim_more(free, one, qemu.process, this, [])
    wants = tuple(want._replace(contested=False) if want.claim in free else want for want in one.wants)
    if wants != one.wants:
        one = one._replace(wants=wants)
        instance.write(one)
    return one


def _done(event: str, text: str, claim: Claim, one: Instance, noticed: float, has: bool = True) -> Told:
    """Write down what was done: here, because the daemon may die before it hears of it."""
    data: Dict[str, Any] = {"path": claim.path, "identity": claim.identity, "instance": one.id}
    if has:
        data["mode"] = claim.mode.value
    after = round(time.monotonic() - noticed, 3)
    events.record(event, text, domain=one.name, uuid=one.uuid, by="vmguardd", after=after, **data)
    return event, text, data


def _to_go_on(qemu: Qemu) -> str:
    """What is left to be done when a conflict is over: nobody but an administrator lets a guest go on."""
    if host.stopped(qemu.process):
        return f"; its process is stopped: kill -CONT {qemu.process.pid}"
    state = libvirtstate.of(qemu.name, qemu.process.pid)
    return f"; it is paused: virsh resume {typed(qemu.name)}" if state is not None and state.state == "paused" else ""


def _claimed(claim: Claim) -> str:
    return f"{_named(claim)}: claimed while the guest runs"


def _named(claim: Claim) -> str:
    return claim.what if claim.what.endswith(claim.path) else f"{claim.what}, {claim.path}"


def _unknown(state: _State) -> Tuple[Told, ...]:
    return tuple(
        ("unidentified", f"{found.opened.path} cannot be identified: {found.opened.unknown}", {})
        for found in state.findings.objects
        if found.verdict is Verdict.UNKNOWN
    )


def _conflict(
    error: Error, one: Instance, state: _State, contested_for: float, told: List[Told]
) -> Optional[Dict[str, Any]]:
    """A conflict, if it is a proven one; else what stands in the way is told."""
    if not isinstance(error, InUse):
        told.append(("alarm", message(error), {}))
        return None
    claim = error.claim
    others = [holder for holder in error.holders if holder.uuid != one.uuid or not one.uuid]  # two without any are not one
    if not others:
        if contested_for < _MOVES:
            return None  # the other side of a migration
        others = list(error.holders)
    shown = state.open.get(claim.identity)
    written = shown.written if shown is not None else claim.written and _unseen(claim)
    data = {"path": claim.path, "identity": claim.identity, "what": claim.what}
    # A note follows its lease within a moment: until then it might be the domain itself.
    known = [one for one in others if (one.alive or one.here) and (one.uuid or contested_for > _NOTED)]
    # Started by an administrator's word, while there was no sanlock to write it down with: not to be undone by us.
    by_word = one.note == RAN_BEFORE and overrides.started_by(one.uuid)
    if not written or not known or by_word:
        told.append(("alarm", message(error), data))
        return None
    first = known[0]
    by = f'"{first.domain}"' if first.domain else "somebody"
    where = "this host" if first.here else first.host or f"the host with id {first.host_id}"
    text = f"{_named(claim)}: it is written here, and {by} on {where} has it"
    started_with = any(
        want.claim.what == claim.what and not want.contested and not want.missing for want in one.wants
    )
    whose = {"holder": first.domain or "", "holder_uuid": first.uuid or ""}
    return {**data, **whose, "text": text, "plugged": not started_with and one.note != RAN_BEFORE}


# -- giving back what nothing needs ------------------------------------------------------------------------------------


def _flush(claim: Claim) -> None:
    try:
        giving.flush(claim.path)
    except OSError as error:
        why = f"{claim.path} was not written out: {error.strerror}"
        events.record("not-drained", why, identity=claim.identity)


def _give_back(one: Instance, spare: Set[str], this: Here, noticed: float) -> List[Told]:
    """
    Give leases of a running guest back. Under the host lock.

    By way of an intent: killed anywhere, the next sweep finds that record, and gives back by it.
    """
    wants = tuple(want for want in one.wants if want.claim.identity in spare and not want.missing)
    intent = one._replace(id=one.id + ".back", wants=wants, state="intent", coming="")
    instance.write(intent)
    instance.write(one._replace(wants=tuple(want for want in one.wants if want not in wants)))
    done = []
    for want in wants:
        words = f"{_named(want.claim)}: the guest does not have it any more"
        if not lies_beneath(want.claim):
            done.append(_done("given-back", words, want.claim, one, noticed, has=False))
    giving.end(intent, this)
    return done


# -- guests that nobody has claimed for --------------------------------------------------------------------------------


def _adopt(qemu: Qemu, config: Config, noticed: float) -> Seen:
    """Take leases for a QEMU without a record: its hook was missing, or it ran before there was a guard."""
    with hostlock.held():
        this = here(config)
        others = giving.sweep(this)
        if record_of(qemu, [one for one in others if one.state != "intent"]) is not None:
            return Seen("waits", 0.0)
        nothing = Instance("", qemu.uuid, qemu.name, "", qemu.process, "", (), 0)
        findings = compare(open_files(qemu.process.pid), nothing, qemu.incoming)
        if not host.alive(qemu.process):
            return Seen("calm")
        if any(found.verdict is Verdict.DORMANT for found in findings.objects):
            return Seen("waits", SOON)  # its guest has not arrived: its source has what it needs
        state = _compared(findings, qemu)
        claims = {**(state.defined or {}), **state.open}
        domain = Domain(qemu.name, qemu.uuid, ())
        # Any user can start a process with these arguments: what it has open is in use all the same; the domain is not.
        if qemu.uuid and (state.defined is not None or host.owner(qemu.process.pid) == 0):
            claims.setdefault(f"vm:{qemu.uuid}", claim_on_itself(domain))
        tolerance = Tolerance(RAN_BEFORE)
        watch_orphans(this, qemu.process)
        one = admit(domain, Needs(tuple(claims.values())), None, others, this, Process(0, 0), tolerance)
        # What could not be had is asked for again.
        one = one._replace(wants=tuple(want._replace(contested=want.missing) for want in one.wants))
        instance.write(one)
        hand_over(one, qemu.process, this)
    text = f"{qemu.name} ran without leases, and has them now"
    after = round(time.monotonic() - noticed, 3)
    events.record("adopted", text, domain=one.name, uuid=one.uuid, by="vmguardd", after=after, instance=one.id)
    return Seen("adopted", 0.0 if tolerance.objections else None, done=(("adopted", text, {}),))


def sweep() -> None:
    """
    Clean up after guests that have ended: their `release` may have died, or never been called. For a child: tells whether
    something is left to be given back.
    """
    try:
        config = load()
        if config.store is not None and config.mode is not Guarding.OFF and _any_dead():
            with hostlock.held():
                giving.sweep(here(config))
        deadline.tell({"left": _any_dead()})
    except Error:
        deadline.tell({"left": True})  # a hook call meets the same, and has somebody to tell it to


def _any_dead() -> bool:
    boot = host.boot_id()
    return any(one.boot_id == boot and _is_dead(one) for one in instance.load_all())


def _is_dead(one: Instance) -> bool:
    """Whether nobody will go on with it, as far as can be seen without the host lock: under that alone an intent is."""
    if one.state == "intent":
        return True
    if one.state == "held" and host.process(one.libvirtd.pid) == one.libvirtd:
        return False  # its start may be under way
    return qemu_of(one) is None


def tell_whether_lost(config: Config) -> None:
    """For a child: whether this host ought to be a member of the lockspace, and is none."""
    try:
        deadline.tell({"lost": membership.lost(config)})
    except Error:
        pass  # a join would come no further


def as_message(qemu: Qemu, seen: Seen) -> Dict[str, Any]:
    """What goes to the daemon."""
    return {"pid": qemu.process.pid, "start": qemu.process.start, "seen": list(seen)}


def from_message(line: Dict[str, Any]) -> Tuple[Process, Seen]:
    """The reverse."""
    word, again, told, done, conflicts, spare = line["seen"]
    told, done = (tuple((event, text, data) for event, text, data in some) for some in (told, done))
    return Process(line["pid"], line["start"]), Seen(word, again, told, done, tuple(conflicts), tuple(spare))
