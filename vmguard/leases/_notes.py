# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Notes and host records as bytes. What comes in was written by other hosts, of other versions, or by chance: it is
checked.
"""

from vmguard._light import dumps, loads
from vmguard._typing import Any, Dict, NamedTuple, Optional, Tuple
from vmguard.claims import Mode
from vmguard.leases import Note, Writer
from vmguard.leases.slots import SUFFIXES
from vmguard.text import encodable

FORMAT = 1

# bytes of a note or record: the longest path of Linux several times over
LIMIT = 64 * 1024


class HostRecord(NamedTuple):
    """Which machine has a host id."""

    host_id: int
    machine: str  # host.HostKey.machine; empty: the record cannot be read, so whose it is is unknown
    host: str
    boot: str = ""  # the boot in which it joined last; empty: never
    time: float = 0.0  # seconds since the epoch, of the claim or the last join


def members(data: bytes) -> Optional[Dict[str, Any]]:
    """The object in a JSON text; None for anything else."""
    try:
        found = loads(data.decode("utf-8"))
    except (ValueError, RecursionError):  # ValueError: of decoding and of JSON
        return None
    return found if isinstance(found, dict) else None


def text(content: Dict[str, Any]) -> bytes:
    """As JSON in one line. Names that are no Unicode become escapes, and come back as they were."""
    return dumps(content).encode("ascii") + b"\n"


def number(found: Any) -> Optional[float]:
    """A number that is one: JSON as Python reads it has infinity and the like too."""
    if isinstance(found, (int, float)) and not isinstance(found, bool) and abs(found) < 1 << 53:
        return float(found)
    return None


def encode_note(note: Note) -> bytes:
    """A note as it is stored."""
    content: Dict[str, Any] = note._asdict()
    content["writer"] = note.writer._asdict() if note.writer is not None else None
    return text(content)


_STRINGS = ("identity", "mode", "host", "domain", "uuid", "path", "instance", "slot")
_NUMBERS = ("host_id", "generation", "lver")
_MODES = frozenset(mode.value for mode in Mode)


def decode_note(data: bytes) -> Optional[Note]:
    """The note in a file, if it is one. Members that a later version added are passed over."""
    found = members(data)
    if found is None or found.get("format") != FORMAT:
        return None
    strings: Dict[str, Any] = {name: found.get(name, "") for name in _STRINGS}
    strings["slot"] = strings["slot"] or "lease"
    numbers: Dict[str, Any] = {name: found.get(name) for name in _NUMBERS}
    since = number(found.get("since"))
    if not all(isinstance(value, str) and encodable(value) for value in strings.values()) or since is None:
        return None
    if not all(type(value) is int and 0 <= value < 1 << 64 for value in numbers.values()):
        return None
    if strings["mode"] not in _MODES or strings["slot"] not in SUFFIXES:
        return None
    restored = found.get("restored")
    marks = tuple(str(mark) for mark in restored) if isinstance(restored, list) else ()
    return Note(
        **strings,
        **numbers,
        since=since,
        writer=_writer(found.get("writer")),
        restored=marks,
        disks=_pairs(found.get("disks")),
    )


def _pairs(found: Any) -> Tuple[Tuple[str, str], ...]:
    """Pairs of strings, as far as they are such."""
    if not isinstance(found, list):
        return ()
    pairs = (pair for pair in found if isinstance(pair, list) and len(pair) == 2)
    return tuple((one, other) for one, other in pairs if isinstance(one, str) and isinstance(other, str))


def _writer(found: Any) -> Optional[Writer]:
    """The writer that a note names; None for anything that is not quite one: it is then unknown who wrote."""
    if not isinstance(found, dict):
        return None
    uuid, domain, host = (found.get(name) for name in ("uuid", "domain", "host"))
    lver, since = found.get("lver"), number(found.get("since"))
    if not (isinstance(uuid, str) and isinstance(domain, str) and isinstance(host, str)):
        return None
    return Writer(lver, uuid, domain, host, since) if type(lver) is int and since is not None else None


def encode_host(record: HostRecord) -> bytes:
    """A host record as it is stored."""
    return text({"format": FORMAT, **record._asdict()})


def decode_host(data: Optional[bytes], host_id: int) -> HostRecord:
    """The record of a host id. One that cannot be read says that the id is taken, and no more."""
    found = members(data) if data is not None else None
    if found is not None and found.get("host_id") == host_id:
        machine, name, boot, moment = (found.get(key) for key in ("machine", "host", "boot", "time"))
        if isinstance(machine, str) and isinstance(name, str):
            return HostRecord(
                host_id,
                machine,
                name,
                boot if isinstance(boot, str) else "",
                number(moment) or 0.0,
            )
    return HostRecord(host_id, "", "")
