# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU has something open that it has no lease for: a link was swapped after the look, an argument was not understood, a file
descriptor was passed.

What can be claimed now is, and is written down. A second writer that is proven ends the guest that came later.
"""

from vmguard import events, instance
from vmguard._typing import TYPE_CHECKING, Iterable, List, Optional, Sequence
from vmguard.claims import Claim, Mode
from vmguard.errors import CannotTell, Error, Holder, InUse, WrongDisk
from vmguard.giving import sweep
from vmguard.holders import anywhere, local
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.member import Here, Tolerance
from vmguard.owning import hand_over
from vmguard.report import of_running
from vmguard.taking import take, wants_of

if TYPE_CHECKING:
    from vmguard._procfiles import Opened


def look(one: Instance, qemu: Process, this: Here) -> Instance:
    """
    Compare what QEMU has open with what the instance has leases for, and claim the rest. Under the host lock.

    Raises InUse where it writes what somebody else has, WrongDisk where a guest migrates onto a disk that is not its own.
    What cannot be looked at is written down, and no reason to end a guest.
    """
    # The resolvers are not needed for anything else in `started`.
    from vmguard.openfiles import Verdict, claims_of, inspect

    try:
        findings = inspect(one, qemu)
    except CannotTell as error:
        events.record("not-inspected", of_running(error, one.name), domain=one.name, uuid=one.uuid)
        return one
    _see_copying(one, [finding.opened for finding in findings.objects if finding.opened.active], this)
    # What waits for its guest shows when that has arrived: we look again then.
    findings = findings._replace(
        objects=tuple(found for found in findings.objects if found.verdict is not Verdict.DORMANT)
    )
    if not findings.surprises():
        return one
    events.record(
        "surprise",
        "it has open what its definition does not say: "
        + ", ".join(found.opened.path for found in findings.surprises()),
        domain=one.name,
        uuid=one.uuid,
        instance=one.id,
    )
    now = claim_more(claims_of(findings), one, qemu, this)
    instance.tell_held(now, tuple(want for want in now.wants if want not in one.wants))
    return now


def claim_more(
    claims: Iterable[Claim], one: Instance, qemu: Process, this: Here, against: Optional[List[Error]] = None
) -> Instance:
    """
    Claim what a running guest has open besides what it was started with, and give it to its QEMU. Under the host lock.

    Raises InUse where it writes what somebody else has. against: what stands in the way is put there instead, of
    whatever kind; such a want is marked as contested, for whoever looks next to ask for it again.
    """
    others = [other for other in sweep(this) if other.id != one.id]
    for claim in claims:
        one = _claim(claim, one, others, this, against)
    return hand_over(one, qemu, this)


def _see_copying(one: Instance, active: Sequence["Opened"], this: Here) -> None:
    """A disk that is another one at the source must be one that QEMU writes already: the copy."""
    written = {name for opened in active for storage in opened.storage for name in (storage.identity, *storage.also)}
    for want in one.wants:
        if want.other_disk and want.claim.identity not in written:
            source = this.store.host_name(one.source[0]) if one.source is not None else None
            raise WrongDisk(want.claim, source or "?")


def _claim(
    claim: Claim, one: Instance, others: Sequence[Instance], this: Here, against: Optional[List[Error]]
) -> Instance:
    known = [want for want in one.wants if want.claim.identity == claim.identity and not want.missing]
    if known and (known[0].claim.mode is not Mode.SHARED or claim.mode is not Mode.EXCLUSIVE):
        return one
    holders = local(claim, others, this.host_id)
    extra = one._replace(
        id=one.id + ".found", wants=wants_of((claim,), this), state="intent", coming="", qemu=None, owner="host"
    )
    try:
        if known and not holders:
            holders = [other for other in anywhere(claim.identity, this.store, this.states) if not _ours(other, this)]
        if holders:
            raise InUse(claim, holders)
        instance.write(extra)
        # What is read by us alone here, and turns out to be written, is never given up for that: until it is written down
        # the record says that it is shared, which is what we have or less than that.
        (taken,) = take(extra, others, this, Tolerance(), stronger=bool(known)).wants
    except Error as error:
        if against is not None:
            against.append(error)
        elif isinstance(error, InUse) and claim.mode is Mode.EXCLUSIVE:
            raise
        else:
            # What it only reads does no damage to anybody but itself.
            events.record("alarm", of_running(error, one.name), domain=one.name, uuid=one.uuid, identity=claim.identity)
        return _with(Want(claim, missing=True, contested=against is not None), one)
    one = _with(taken, one)
    instance.forget(extra)
    if claim.device:
        from vmguard import marks  # few guests come to have such a thing

        marks.put(one, (taken,))
    return one


def _ours(holder: Holder, this: Here) -> bool:
    return holder.host_id == this.host_id


def _with(want: Want, one: Instance) -> Instance:
    """The instance with this want. One that is missing stands beside a weaker one that is there."""
    left = tuple(
        other
        for other in one.wants
        if other.claim.identity != want.claim.identity or (want.missing and not other.missing)
    )
    if want in one.wants and len(left) == len(one.wants) - 1:
        return one
    one = one._replace(wants=(*left, want))
    instance.write(one)
    return one
