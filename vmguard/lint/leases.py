# SPDX-License-Identifier: LGPL-2.1-or-later
"""What sanlock writes at the head of a lease."""

import struct
from typing import Optional, Tuple

ALIGN = 1 << 20  # bytes; sanlock_rv.h and sanlock.h: leases are 1 MiB apart at least, 8 MiB on sectors of 4096

_MAGIC = 0x06152010  # PAXOS_DISK_MAGIC of sanlock's ondisk.h: a resource; a lockspace has another
_NAMES = 56  # struct leader_record: four numbers of 32 bits and five of 64 come first
_LENGTH = 48  # SANLK_NAME_LEN


def read_lease(head: bytes) -> Optional[Tuple[str, str]]:
    """Lockspace and name of the lease that begins there, None if none does."""
    if len(head) < _NAMES + 2 * _LENGTH or struct.unpack_from("<I", head)[0] != _MAGIC:
        return None
    names = (head[_NAMES : _NAMES + _LENGTH], head[_NAMES + _LENGTH : _NAMES + 2 * _LENGTH])
    space, name = (one.split(b"\0")[0].decode("ascii", "replace") for one in names)
    return space, name
