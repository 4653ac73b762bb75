# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU has something open that it has no lease for: a link was swapped after the look, an argument was not understood, a file
descriptor was passed.

What can be claimed now is, and is written down. A second writer that is proven ends the guest that came later.
"""

from vmguard import events, instance
from vmguard._typing import TYPE_CHECKING, List, Sequence
from vmguard.claims import Claim, Mode
from vmguard.errors import CannotTell, Error, InUse, WrongDisk
from vmguard.giving import give_back
from vmguard.holders import local
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.leases import client
from vmguard.member import Here, Tolerance
from vmguard.owning import hand_over
from vmguard.report import sentence
from vmguard.taking import has, take, wants_of

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
        events.record("not-inspected", sentence(error, one.name), domain=one.name, uuid=one.uuid)
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
    others = [other for other in instance.load_all() if other.id != one.id]
    for claim in claims_of(findings):
        one = _claim(claim, one, others, this)
    return hand_over(one, qemu, this)


def _see_copying(one: Instance, active: Sequence["Opened"], this: Here) -> None:
    """A disk that is another one at the source must be one that QEMU writes already: the copy."""
    written = {name for opened in active for storage in opened.storage for name in (storage.identity, *storage.also)}
    for want in one.wants:
        if want.other_disk and want.claim.identity not in written:
            source = this.store.host_name(one.source[0]) if one.source is not None else None
            raise WrongDisk(want.claim, source or "?")


def _claim(claim: Claim, one: Instance, others: Sequence[Instance], this: Here) -> Instance:
    known = [want for want in one.wants if want.claim.identity == claim.identity and not want.missing]
    if known and (known[0].claim.mode is not Mode.SHARED or claim.mode is not Mode.EXCLUSIVE):
        return one
    holders = local(claim, others, this.host_id)
    try:
        if holders:
            raise InUse(claim, holders)
        if known and not any(has(other, claim.identity, this) for other in others):
            # It is read by us alone here, and turns out to be written.
            with client.Connection() as connection:
                give_back(this.store.lease(claim.identity), True, claim, this, connection)
        extra = one._replace(
            id=one.id + ".found", wants=wants_of((claim,), this), state="intent", coming="", qemu=None, owner="host"
        )
        instance.write(extra)
        taken: List[Want] = list(take(extra, others, this, Tolerance()).wants)
    except Error as error:
        if isinstance(error, InUse) and claim.mode is Mode.EXCLUSIVE:
            raise
        # What it only reads does no damage to anybody but itself.
        events.record("alarm", sentence(error, one.name), domain=one.name, uuid=one.uuid, identity=claim.identity)
        taken = [Want(claim, missing=True)]
        known = []
    left = tuple(want for want in one.wants if not (known and want.claim.identity == claim.identity))
    one = one._replace(wants=(*left, *taken))
    instance.write(one)
    if not taken[0].missing:
        instance.forget(extra)
    return one
