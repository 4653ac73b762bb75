# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a domain needs of which storage objects: Domain -> claims.

Two domains may run at the same time exactly if no identity is claimed by both in modes that exclude each other:

              EXCLUSIVE  SHARED  HOST
    EXCLUSIVE    no        no     no
    SHARED       no        yes    no
    HOST         no        no     on the same host

A domain claims exclusively what its guest may write, and itself; shared what it reads, and everything that lies under
any of it, down to the disks. So whoever owns a lower layer whole excludes all above it, on every host.
"""

from enum import Enum

from vmguard._typing import Dict, Iterable, List, NamedTuple, Optional, Tuple
from vmguard.domain import Access, Domain, HostPath, Location, NetworkVolume, PoolVolume, Use
from vmguard.errors import BadDomain, NamedTwice, Unguardable, Unresolvable, UsedByHost
from vmguard.storage import Storage, chain, resolve
from vmguard.storage.facts import Facts, LiveFacts

# Reasons that are asked for again, by what compares claims with what QEMU does (openfiles.py). They are in the records.
GUESTS_SHARE_IT = "guests share it"
LIES_UNDER = "it lies under "


class Mode(str, Enum):
    """How a storage object is needed. The values are part of the records and notes on disk."""

    EXCLUSIVE = "exclusive"  # the guest may write it: nobody else may have it at all
    SHARED = "shared"  # it is read, or lies under what is written: nobody may have it whole
    HOST = "host"  # any number of guests, all on one host: a thin pool


class Claim(NamedTuple):
    """What a domain needs of one storage object."""

    identity: str
    mode: Mode
    what: str  # the place in the domain: "disk vda", "nvram", "the domain itself"
    path: str  # as the domain names it, or as it was found on the way down
    why: str  # "the guest may write it", "it is a backing file of disk vda", "it lies under disk vda"
    others_see_it: bool = False  # other hosts can reach the same object
    written: bool = False  # the guest writes it, or something that lies on it
    # The guest writes a block device through the page cache of its host: its writes can reach the medium after its end.
    cached: bool = False
    device: str = ""  # major:minor of the block device that the guest itself has, on this host


class Needs(NamedTuple):
    """The claims of a domain, and what could not be looked at yet."""

    claims: Tuple[Claim, ...]
    # Uses whose file does not exist yet: libvirt or QEMU makes it on the way (first nvram, tpm state, logs).
    late: Tuple[Use, ...] = ()


def claim_on_itself(domain: Domain) -> Claim:
    """One uuid runs once, whatever its disks."""
    return Claim(f"vm:{domain.uuid}", Mode.EXCLUSIVE, "the domain itself", domain.name, "one uuid runs once")


def needs_of(domain: Domain, facts: Facts) -> Needs:
    """
    All claims of a domain on this host.

    Raises Refused kinds (UsedByHost, Unguardable, NamedTwice) for what must not be started whoever else runs, and
    CannotTell kinds (BadDomain, Unresolvable) for what could not be found out.
    """
    if not domain.uuid:
        raise BadDomain("it has no uuid")
    if domain.not_understood:
        first = domain.not_understood[0]
        raise BadDomain(f"{first.what}: {first.why}", first.line or None)
    collection = _Collection(facts)
    collection.add(claim_on_itself(domain), root=-1)
    for root, use in enumerate(domain.uses):
        collection.use(use, root)
    return Needs(tuple(collection.claims.values()), tuple(collection.late))


def late_needs(domain: Domain, facts: Facts) -> Needs:
    """Claims of those uses alone that may have been missing when `needs_of` looked."""
    collection = _Collection(facts)
    for root, use in enumerate(domain.uses):
        if use.may_be_missing:
            collection.use(use, root)
    return Needs(tuple(collection.claims.values()), tuple(collection.late))


def lies_beneath(claim: Claim) -> bool:
    """Whether the claim is on something under the storage that its place in the domain names."""
    return claim.why.startswith(LIES_UNDER)


def claims_on(opened: Iterable[Tuple[Storage, Use]]) -> Tuple[Claim, ...]:
    """
    Claims on storage that a running guest has open already, and on what lies under it.

    The files behind an image are open too, each by itself. Nothing is refused here: of two claims on one identity the
    stronger is returned.
    """
    collection = _Present()
    for root, (storage, use) in enumerate(opened):
        collection.claim(storage, use, root)
    return tuple(collection.claims.values())


def path_of(location: Location) -> str:
    """A location in the words of the domain's definition."""
    if isinstance(location, HostPath):
        return location.path
    if isinstance(location, PoolVolume):
        return f"volume {location.volume} of pool {location.pool}"
    if isinstance(location, NetworkVolume):
        return f"{location.protocol}:{location.name}"
    return " ".join(f"{name} {value}" for name, value in location._asdict().items() if value not in ("", 0))


class _Collection:
    """Claims by identity; the root number tells two places of a domain from two ways to one thing within a place."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.claims: Dict[str, Claim] = {}
        self.late: List[Use] = []
        self._roots: Dict[str, int] = {}
        self._direct: Dict[str, bool] = {}

    def use(self, use: Use, root: int) -> None:
        """Claim one place of the domain, and all that lies behind and under it."""
        try:
            objects = resolve(use.location, self.facts)
        except Unresolvable as error:
            if use.may_be_missing and error.missing:
                self.late.append(use)
                return
            raise Unresolvable(error.path, error.why, use.what, missing=error.missing) from error
        for storage in objects:
            self.storage(storage, use, root)
        for backing in use.backing:
            self.use(backing, root)
        if use.format is not None and not use.chain_ends:
            for storage in objects:
                self.chain(storage, use, root)

    def chain(self, storage: Storage, use: Use, root: int) -> None:
        """
        Claim what lies behind an image, by its own headers. What the XML says of it was claimed as well: where they
        differ, QEMU may open either.
        """
        path = use.location.path if isinstance(use.location, HostPath) else storage.path
        if not path.startswith("/"):
            return  # over the network: only what the XML names can be known here
        try:
            # "auto": the definition leaves it to QEMU to look at the header, so that is what is done here.
            layers = chain(path, "" if use.format == "auto" else use.format or "raw", self.facts)
        except Unresolvable as error:
            raise Unresolvable(error.path, error.why, use.what) from error
        for number, layer in enumerate(layers, 1):
            backing = layer.role == "backing"
            behind = Use(
                what=f"{use.what}, {'backing file' if backing else layer.role + ' file'} {number}",
                location=layer.location,
                access=Access.READ if backing else use.access,
                line=use.line,
            )
            self.use(behind, root)

    def storage(self, storage: Storage, use: Use, root: int) -> None:
        writes = use.access is not Access.READ
        path = path_of(use.location)
        # First what can be named instead: a layer of LVM's is in use by the volume above it, too.
        # A directory that is shared keeps nobody out: its name need not be the same everywhere.
        keeps_out = use.access is Access.WRITE or storage.kind != "directory"
        if writes and keeps_out and storage.not_writable:
            raise Unguardable(use.what, path, storage.not_writable, storage.instead)
        if writes and storage.used_by_host:
            raise UsedByHost(use.what, path, storage.used_by_host)
        self.claim(storage, use, root)

    def claim(self, storage: Storage, use: Use, root: int) -> None:
        writes = use.access is not Access.READ
        alone = use.access is Access.WRITE
        claim = Claim(
            storage.identity,
            Mode.EXCLUSIVE if alone else Mode.SHARED,
            use.what,
            path_of(use.location),
            "the guest may write it" if alone else "the guest reads it" if not writes else GUESTS_SHARE_IT,
            storage.others_see_it,
            writes,
            alone and use.host_cached and storage.device is not None,
            "{}:{}".format(*storage.device) if storage.device is not None else "",
        )
        self.add(claim, root)
        for identity in storage.also:
            self.add(claim._replace(identity=identity, cached=False, device=""), root)  # one mark for one cache
        self.beneath(storage, claim, root)

    def beneath(self, storage: Storage, above: Claim, root: int) -> None:
        for mode, layers in ((Mode.SHARED, storage.under), (Mode.HOST, storage.one_host)):
            for layer in layers:
                claim = Claim(
                    layer.identity,
                    mode,
                    above.what,
                    layer.path,
                    LIES_UNDER + above.what,
                    layer.others_see_it,
                    above.written,
                )
                self.add(claim, root, direct=False)
                for identity in layer.also:
                    self.add(claim._replace(identity=identity), root, direct=False)
                self.beneath(layer, claim, root)

    def add(self, claim: Claim, root: int, direct: bool = True) -> None:
        """
        Take a claim in. One that is there already is kept if it says as much; two that exclude each other are refused:
        a guest that writes one thing by two names destroys it as well as two guests would.
        """
        known: Optional[Claim] = self.claims.get(claim.identity)
        if known is None:
            self.claims[claim.identity] = claim
            self._roots[claim.identity] = root
            self._direct[claim.identity] = direct
            return
        same_place = self._roots[claim.identity] == root and self._direct[claim.identity] == direct
        # Of one place the XML may say more than the image's header: a backing file that a commit writes.
        if Mode.EXCLUSIVE in (known.mode, claim.mode) and not (same_place and known.mode is Mode.EXCLUSIVE):
            raise NamedTwice(known, claim)
        if claim.mode is Mode.HOST and known.mode is Mode.SHARED:
            self.claims[claim.identity] = claim  # this host alone, which includes being one of its readers


_STRENGTH = {Mode.SHARED: 0, Mode.HOST: 1, Mode.EXCLUSIVE: 2}


class _Present(_Collection):
    """Claims on what is in use already: it is too late to refuse anything."""

    def __init__(self) -> None:
        super().__init__(LiveFacts())  # never asked: the storage was found before

    def add(self, claim: Claim, root: int, direct: bool = True) -> None:
        known = self.claims.get(claim.identity)
        if known is None or _STRENGTH[known.mode] < _STRENGTH[claim.mode]:
            self.claims[claim.identity] = claim
