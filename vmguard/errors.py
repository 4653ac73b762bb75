# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What can go wrong, as data.

One tree. Where an error is raised it carries facts and no prose; `report.sentence` alone turns it into words for a person.
The four branches say what the caller may conclude:

    Refused      checked, and the answer is no: starting the guest would endanger data
    CannotTell   could not be checked: in `prepare` and `start` that is a refusal too, in other words
    Misconfigured  this host's set-up is wrong: nothing can be guarded until it is mended
    BadRequest   what the user asked of a command makes no sense
"""

from vmguard._typing import TYPE_CHECKING, Dict, NamedTuple, Optional, Sequence

if TYPE_CHECKING:
    from vmguard.claims import Claim


class Error(Exception):
    """Base of everything that vmguard raises on purpose. Anything else that escapes is a bug, and is logged with its trace."""


class Holder(NamedTuple):
    """
    Who has a lease, as far as it is known. Every field but host_id may be unknown: a note counts only if it
    matches the lease.
    """

    host_id: int
    host: Optional[str] = None  # the host's own name
    domain: Optional[str] = None
    uuid: Optional[str] = None
    path: Optional[str] = None  # the path by which that domain names it
    since: Optional[float] = None  # seconds since the epoch
    shared: bool = False
    alive: Optional[bool] = None  # None: sanlock cannot say yet
    here: bool = False  # it is this very host
    slot: str = "lease"  # which of the leases of the storage object: "lease", "ticket", "drain"


class Refused(Error):
    """A start was checked and would endanger data."""


class InUse(Refused):
    """Another guest, here or elsewhere, holds what this claim needs."""

    def __init__(self, claim: "Claim", holders: Sequence[Holder]) -> None:
        super().__init__(claim, holders)
        self.claim = claim
        self.holders = tuple(holders)


class UsedByHost(Refused):
    """The host itself uses the device: it is mounted, swapped to, or a part of a md, dm or LVM device that is active."""

    def __init__(self, what: str, path: str, how: str) -> None:
        super().__init__(what, path, how)
        self.what = what  # "disk vda"
        self.path = path
        self.how = how  # "mounted on /srv"


class Unguardable(Refused):
    """
    Writing this storage cannot be guarded: it has no identity that is equal on every host, or is a part of something
    that must not be written directly (a multipath leg, a hidden LVM layer).
    """

    def __init__(self, what: str, path: str, why: str, instead: Optional[str] = None) -> None:
        super().__init__(what, path, why, instead)
        self.what = what
        self.path = path
        self.why = why  # a clause: "it is one path of the multipath map mpatha"
        self.instead = instead  # what to name in its place: "/dev/mapper/mpatha"


class NamedTwice(Refused):
    """One domain names one storage object twice, and writes it."""

    def __init__(self, first: "Claim", second: "Claim") -> None:
        super().__init__(first, second)
        self.first = first
        self.second = second


class LocalStore(Refused):
    """The lease store is seen by this host only, the storage by others too: a lease would guard nothing."""

    def __init__(self, claim: "Claim", store: str) -> None:
        super().__init__(claim, store)
        self.claim = claim
        self.store = store


class NoWatchdog(Refused):
    """
    QEMU cannot own its leases (libvirt's sanlock plugin is not loaded), and no watchdog stands in: a guest that loses
    its leases would run on.
    """


class LeaseLost(Refused):
    """Between `prepare` and now the lease was not held all the time: its version changed, or it is gone."""

    def __init__(self, claim: "Claim", expected: Optional[int], found: Optional[int]) -> None:
        super().__init__(claim, expected, found)
        self.claim = claim
        self.expected = expected
        self.found = found


class NotComing(Refused):
    """A guest that was taken for one that migrates in is being started here."""


class WrongDisk(Refused):
    """
    A guest migrates in onto a storage object that is not the one it has at its source, and nothing is copied into it.
    """

    def __init__(self, claim: "Claim", source: str) -> None:
        super().__init__(claim, source)
        self.claim = claim
        self.source = source  # the name of the host that it comes from


class StateStale(Refused):
    """A saved state is to be restored onto a disk that was written since."""

    def __init__(self, claim: "Claim", writer: Holder, how: str) -> None:
        super().__init__(claim, writer, how)
        self.claim = claim
        self.writer = writer
        # "other": another guest wrote. "since": the guest itself, started after the state was saved. "again": this very
        # state was restored before, and what it had on its disks is gone by that.
        self.how = how


class CannotTell(Error):
    """Could not be checked."""


class BadDomain(CannotTell):
    """The domain XML cannot be read or understood."""

    def __init__(self, why: str, line: Optional[int] = None) -> None:
        super().__init__(why, line)
        self.why = why
        self.line = line


class Unresolvable(CannotTell):
    """What a path, volume or address is could not be found out."""

    def __init__(self, path: str, why: str, what: str = "", missing: bool = False) -> None:
        super().__init__(path, why, what, missing)
        self.path = path
        self.why = why  # a clause: "there is no such file"
        self.what = what  # "disk vda", where the caller knows it
        self.missing = missing  # there is nothing at that path (and not: it could not be looked at)


class SanlockFailed(CannotTell):
    """A call to sanlock failed in a way that is no answer to the question who has a lease."""

    def __init__(self, call: str, code: int, about: str = "") -> None:
        super().__init__(call, code, about)
        self.call = call  # "acquire"
        self.code = code  # as libsanlock returns it: negative errno, or a SANLK_ code below -200
        self.about = about  # identity or path


class SanlockDown(CannotTell):
    """The sanlock daemon does not answer."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class NotJoined(CannotTell):
    """This host is not a member of the lockspace (or is just joining it)."""

    def __init__(self, lockspace: str, joining: bool) -> None:
        super().__init__(lockspace, joining)
        self.lockspace = lockspace
        self.joining = joining


class Unexplained(CannotTell):
    """sanlock on this host holds a lease for which there is no record, while QEMUs without a record run."""

    def __init__(self, claim: "Claim") -> None:
        super().__init__(claim)
        self.claim = claim


class StateUnproven(CannotTell):
    """Nothing shows that nobody has written a disk since a state of its guest was saved."""

    def __init__(self, claim: "Claim", saved: float) -> None:
        super().__init__(claim, saved)
        self.claim = claim
        self.saved = saved  # seconds since the epoch; 0.0: not known


class LeaseDamaged(CannotTell):
    """A lease file is truncated, garbage or half made."""

    def __init__(self, path: str, identity: str, code: int) -> None:
        super().__init__(path, identity, code)
        self.path = path
        self.identity = identity
        self.code = code


class LeaseNewer(CannotTell):
    """A lease, or the lockspace, has a format that the sanlock of this host does not know yet. It is whole, and may be held."""

    def __init__(self, path: str, identity: str) -> None:
        super().__init__(path, identity)
        self.path = path
        self.identity = identity


class StoreBroken(CannotTell):
    """The lease store is missing, is not the one this host belongs to, is full or cannot be written."""

    def __init__(self, path: str, why: str, remedy: str = "") -> None:
        super().__init__(path, why, remedy)
        self.path = path
        self.why = why
        self.remedy = remedy


class StoreMoved(StoreBroken):
    """Another lease store has taken the place of this one."""

    def __init__(self, path: str, to: str) -> None:
        super().__init__(path, f"{to} has taken its place", f"run `vmguard setup --store {to}` on this host")
        self.args = (path, to)
        self.to = to


class RecordBroken(CannotTell):
    """A record under /run/vmguard cannot be read or written."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why


class Late(CannotTell):
    """The answer did not come in time."""

    def __init__(self, seconds: float, doing: str, tolerated: str = "") -> None:
        super().__init__(seconds, doing, tolerated)
        self.seconds = seconds
        self.doing = doing  # the step it was at
        self.tolerated = tolerated  # why the start is to go through all the same: an override


class Misconfigured(Error):
    """The configuration or set-up of this host is wrong."""

    def __init__(self, where: str, why: str, remedy: str = "") -> None:
        super().__init__(where, why, remedy)
        self.where = where  # "/etc/vmguard/vmguard.conf, [store] path"
        self.why = why
        self.remedy = remedy


class HostIdTaken(Misconfigured):
    """Another machine has this host id in the store, or a live host renews it."""

    def __init__(self, host_id: int, store: str, by: str, live: bool) -> None:
        super().__init__(store, by)
        self.host_id = host_id
        self.store = store
        self.by = by
        self.live = live


class BadRequest(Error):
    """A command was given something it cannot act on."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why, remedy)
        self.why = why
        self.remedy = remedy


class NotYet(BadRequest):
    """A command cannot do it at this moment: the same, asked again later, makes sense."""


def about(error: Error) -> Dict[str, str]:
    """What an error is about, for the log, where it is looked for by any name: the storage, and the domain in the way."""
    claim: Optional[Claim] = getattr(error, "claim", None) or getattr(error, "second", None)
    found: Dict[str, Optional[str]] = {}
    if claim is not None and not claim.identity.startswith("vm:"):
        found.update(path=claim.path, identity=claim.identity)
    elif isinstance(error, (UsedByHost, Unguardable, Unresolvable)):
        found.update(path=error.path)
    holders: Sequence[Holder] = getattr(error, "holders", ())
    if holders:
        found.update(holder=holders[0].domain, holder_uuid=holders[0].uuid)
    return {key: value for key, value in found.items() if value}
