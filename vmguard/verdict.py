# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a start would do, without doing it: the same claims, the same order, leases only read.

The answer is of this moment. Only `guard.prepare`, which takes the leases, can promise anything.
"""

from vmguard import host, instance
from vmguard._typing import List, NamedTuple, Optional, Tuple
from vmguard.claims import Claim, Mode, Needs, claim_on_itself, needs_of
from vmguard.config import load
from vmguard.domain import Domain, Use
from vmguard.errors import Error, Holder, InUse
from vmguard.holders import anywhere, excludes, local
from vmguard.leases.store import lease_name
from vmguard.member import Here, check_store_reaches, here
from vmguard.storage.facts import LiveFacts
from vmguard.taking import beside, mode_of


class Look(NamedTuple):
    """One claim, and who stands where."""

    claim: Claim
    lease: str  # its name, "" where there is no store
    holders: Tuple[Holder, ...]
    objection: Optional[Error] = None


class Verdict(NamedTuple):
    """All that was found. The start would be refused if there is any objection."""

    domain: Domain
    looks: Tuple[Look, ...]
    objections: Tuple[Error, ...]
    late: Tuple[Use, ...]  # made by libvirt on the way, looked at then
    guarded: bool  # False: this host was not set up, or is switched off


def verdict_of(domain: Domain) -> Verdict:
    """What `prepare` would say now. Raises Misconfigured; everything else is among the objections."""
    config = load()
    objections: List[Error] = []
    try:
        needs = needs_of(domain, LiveFacts())
    except Error as error:
        objections.append(error)
        needs = Needs((claim_on_itself(domain),))
    if config.store is None or config.mode == "off":
        looks = tuple(Look(claim, "", ()) for claim in needs.claims)
        return Verdict(domain, looks, tuple(objections), needs.late, guarded=False)
    try:
        this = here(config)
    except Error as error:
        looks = tuple(Look(claim, "", ()) for claim in needs.claims)
        return Verdict(domain, looks, (*objections, error), needs.late, guarded=True)
    found = tuple(look(claim, this) for claim in needs.claims)
    objections += _said_once([look.objection for look in found if look.objection is not None], domain)
    return Verdict(domain, found, tuple(objections), needs.late, guarded=True)


def _said_once(found: List[Error], domain: Domain) -> List[Error]:
    """Where the domain itself runs already, that it has its own disks goes without saying."""

    def is_its_own(error: Error) -> bool:
        return isinstance(error, InUse) and all(holder.uuid == domain.uuid for holder in error.holders)

    itself = [one for one in found if isinstance(one, InUse) and one.claim.identity.startswith("vm:") and is_its_own(one)]
    return [one for one in found if not itself or one in itself or not is_its_own(one)]


def look(claim: Claim, this: Here) -> Look:
    """Who stands where about one claim, and whether anybody stands against it."""
    name = lease_name(claim.identity)
    holders: List[Holder] = []
    try:
        check_store_reaches(claim, this)
        running = [one for one in instance.load_all() if one.boot_id == host.boot_id()]
        holders = local(claim, running, this.host_id)
        if not holders and this.store.has(claim.identity):
            holders = anywhere(claim.identity, this.store, this.states)
            holders += beside(claim, this.store.lease(claim.identity), this)
    except Error as error:
        return Look(claim, name, tuple(holders), error)
    against = [holder for holder in holders if _is_against(holder, claim, this)]
    return Look(claim, name, tuple(holders), InUse(claim, against) if against else None)


def _is_against(holder: Holder, claim: Claim, this: Here) -> bool:
    if holder.here or holder.slot != "lease":
        return True
    if holder.host_id == this.host_id and holder.shared and claim.mode is not Mode.EXCLUSIVE:
        return False  # this host has it already, for other guests of its own
    return excludes(claim.mode, mode_of(holder))
