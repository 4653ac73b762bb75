# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Instances: one record for every start of a guest, on disk before anything is taken for it.

Leases are given back by record, never by the XML of the `release` hook: that one shows hot-plugged and pivoted disks,
and after a refused `prepare` it names disks that are somebody else's. A record is a JSON file under /run/vmguard/instances,
written whole (temporary file, rename); decisions are made on it only under the host lock.

States of a record:

    intent   what will be taken is known, some of it may have been. Found under the host lock, its maker is dead.
    held     `prepare` said yes. Every lease is an orphan of this host; a QEMU may or may not exist.
    running  `started` found the QEMU; exclusive leases are QEMU's own (owner "qemu") or stay orphans (owner "host").
    over     QEMU is gone, or never came. Some of it may be given back; what is not, the next sweep gives.
    draining QEMU is gone, all is given back but the drain marks: the page cache is being written out.
"""

import os

from vmguard import events, paths
from vmguard._light import dumps, loads
from vmguard._typing import Any, Dict, List, NamedTuple, Optional, Tuple
from vmguard.claims import LIES_UNDER, Claim, Mode
from vmguard.errors import RecordBroken
from vmguard.host import Process

FORMAT = 1


class Want(NamedTuple):
    """One lease that the instance needs, or would have needed."""

    claim: Claim
    # The version at which this instance holds it: the token that shows that nobody had it in between. None for a lease
    # that is shared with other instances of this host, and before it is acquired.
    lver: Optional[int] = None
    # True: the guest runs without this lease (audit mode, override); the reason is in the event log.
    missing: bool = False
    # The version of the ticket that stands in for the lease while that is still the source's: a guest that migrated in.
    ticket: Optional[int] = None
    # The version at which the source has the lease meanwhile.
    source_lver: Optional[int] = None
    # The version of the drain mark, for what the guest writes through the page cache of this host.
    drain: Optional[int] = None
    # The same path is another storage object at the source: it must be one that the migration copies into.
    other_disk: bool = False
    drains: bool = False  # it is such a thing, whether the mark is held already or still the source's
    # Missing because it could not be had, of a guest that runs: the agent asks for it again and again.
    contested: bool = False


class Instance(NamedTuple):
    """One start of a guest on this host."""

    id: str
    uuid: str
    name: str
    boot_id: str
    libvirtd: Process
    state: str
    wants: Tuple[Want, ...]
    since: float  # seconds since the epoch
    host_id: int = 0
    generation: int = 0  # of this host in the lockspace when the leases were taken: later, all orphans of then are gone
    owner: str = "host"  # who has the exclusive leases: "host" (orphans) or "qemu"
    qemu: Optional[Process] = None
    note: str = ""  # "audit", or the reason of the override it was started by
    frozen: bool = False  # stopped by a join until its leases are certain
    coming: str = ""  # "migrate", "restore": it does not begin its life here
    source: Optional[Tuple[int, int]] = None  # host id and generation that it migrates from, where that holds leases
    image: Optional[Tuple[str, float]] = None  # the saved state it is restored from: its mark, and when it was written


def new_id(uuid: str) -> str:
    """A name for one start: the domain's uuid and 32 random bits, safe as a file name whatever the uuid field held."""
    clean = "".join(c for c in uuid if c in "0123456789abcdef-")
    return f"{clean}.{os.urandom(4).hex()}"


def beside_another(one: Instance) -> bool:
    """
    Whether it is an intent beside the record of a guest that runs already, or is about to, for what it has come to have
    besides: it may have written that before there was a lease.
    """
    return one.id.count(".") > 1


def directory() -> str:
    return os.path.join(paths.RUN, "instances")


def _path(instance_id: str) -> str:
    return os.path.join(directory(), instance_id + ".json")


def _plain(instance: Instance) -> Dict[str, Any]:
    record: Dict[str, Any] = instance._asdict()
    record["format"] = FORMAT
    record["libvirtd"] = list(instance.libvirtd)
    record["qemu"] = list(instance.qemu) if instance.qemu else None
    record["source"] = list(instance.source) if instance.source else None
    record["image"] = list(instance.image) if instance.image else None
    record["wants"] = [_plain_want(want) for want in instance.wants]
    return record


def _plain_want(want: Want) -> Dict[str, Any]:
    record: Dict[str, Any] = want._asdict()
    record["claim"] = want.claim._asdict()
    return record


# Members that a later version added are passed over: what it must not be read without, it gives another format.
def _known(record: Dict[str, Any], fields: Tuple[str, ...]) -> Dict[str, Any]:
    return {name: record[name] for name in fields if name in record}


def _want(record: Dict[str, Any]) -> Want:
    claim = _known(record["claim"], Claim._fields)
    claim["mode"] = Mode(claim["mode"])
    return Want(**dict(_known(record, Want._fields), claim=Claim(**claim)))


def _instance(record: Dict[str, Any]) -> Instance:
    if record.pop("format") != FORMAT:
        raise ValueError("it was written by another version of vmguard")
    record["libvirtd"] = Process(*record["libvirtd"])
    record["qemu"] = Process(*record["qemu"]) if record["qemu"] else None
    for name in ("source", "image"):
        record[name] = tuple(record[name]) if record.get(name) else None
    record["wants"] = tuple(_want(want) for want in record["wants"])
    return Instance(**_known(record, Instance._fields))


def pending(instance: Instance) -> bool:
    """Whether something is still to come from the host that the instance migrated from."""
    return any(want.ticket is not None or (want.drains and want.drain is None) for want in instance.wants)


# More than fit on a machine of libvirt.
_DISKS_NAMED = 100


def account(instance: Instance) -> Dict[str, Any]:
    """Who has what, for the log: the domain, and what its guest itself reads or writes. Not what lies under that."""
    disks = [
        {"path": want.claim.path, "identity": want.claim.identity, "mode": Mode(want.claim.mode).value}
        for want in instance.wants
        if not want.missing and not want.claim.why.startswith(LIES_UNDER) and not want.claim.identity.startswith("vm:")
    ]
    return {
        "domain": instance.name,
        "uuid": instance.uuid,
        "instance": instance.id,
        "coming": instance.coming,
        "boot": instance.boot_id,
        "disks": disks[:_DISKS_NAMED],
    }


def tell_held(instance: Instance, wants: Tuple[Want, ...]) -> None:
    """Write down what a guest has come to have since its start, as `held` does of the start."""
    account_ = account(instance._replace(wants=wants))
    if account_["disks"]:
        events.record("held", **account_)


def write(instance: Instance) -> None:
    """
    Put the record in place, whole or not at all.

    Names of domains and paths may hold bytes that are no UTF-8 (surrogate escapes): JSON escapes them.
    Raises RecordBroken where /run cannot be written: nothing may be taken then.
    """
    target = _path(instance.id)
    temporary = f"{target}.{os.getpid()}.tmp"
    try:
        os.makedirs(directory(), mode=0o755, exist_ok=True)
        with open(temporary, "w", encoding="ascii") as file:
            file.write(dumps(_plain(instance)))
        os.rename(temporary, target)
    except OSError as error:
        raise RecordBroken(target, error.strerror or str(error)) from error


def forget(instance: Instance) -> None:
    """Remove the record. What it wanted must have been given back."""
    for path in (_path(instance.id), late_marker(instance), _begun_marker(instance)):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RecordBroken(path, error.strerror or str(error)) from error


def names() -> List[str]:
    """The file names of all records, readable or not."""
    try:
        return sorted(entry for entry in os.listdir(directory()) if entry.endswith(".json"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordBroken(directory(), error.strerror or str(error)) from error


def load(name: str) -> Optional[Instance]:
    """One record; None if it has gone. Raises RecordBroken if it cannot be read."""
    path = os.path.join(directory(), name)
    try:
        with open(path, encoding="ascii") as file:
            return _instance(loads(file.read()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordBroken(path, str(error)) from error


def load_all() -> List[Instance]:
    """
    Every record of this host.

    Raises RecordBroken for one that cannot be read: what it holds is unknown, so nothing can be decided beside it.
    """
    found = (load(name) for name in names())
    return [one for one in found if one is not None]


# -- what is left for `start`: the hook script looks only whether this folder has entries ------------------------------


def late_marker(instance: Instance) -> str:
    return os.path.join(paths.RUN, "late", instance.id)


def mark_late(instance: Instance) -> None:
    """Let the `start` hook run for this instance: something it names did not exist yet."""
    path = late_marker(instance)
    try:
        _touch(path)
    except OSError as error:
        raise RecordBroken(path, error.strerror or str(error)) from error


def is_late(instance: Instance) -> bool:
    return os.path.exists(late_marker(instance))


def unmark_late(instance: Instance) -> None:
    try:
        os.unlink(late_marker(instance))
    except OSError:
        pass  # costs one needless look at the next `start`, nothing else


# -- a guest that came here, and runs though its `started` came to nothing ---------------------------------------------


def _begun_marker(instance: Instance) -> str:
    return os.path.join(paths.RUN, "begun", instance.id)


def mark_begun(instance: Instance) -> None:
    """Remember that libvirt lets its guest run. No part of the record, which is for who has the host lock. Never fails."""
    try:
        _touch(_begun_marker(instance))
    except OSError:
        pass  # an errand may come in time to write it into the notes


def has_begun(instance: Instance) -> bool:
    return os.path.exists(_begun_marker(instance))


def _touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
