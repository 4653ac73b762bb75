# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One lock per host around {record the intent, acquire, count, give back}.

A flock: it goes with the process, so a killed hook leaves none behind. It is taken blocking: whoever calls runs under a
deadline (deadline.py), and is killed when that passes.
"""

import fcntl
import os
from contextlib import contextmanager

from vmguard import paths
from vmguard._typing import Iterator
from vmguard.errors import RecordBroken


@contextmanager
def held() -> Iterator[None]:
    """Hold this host's lock. Raises RecordBroken where /run/vmguard cannot be made."""
    path = os.path.join(paths.RUN, "lock")
    try:
        os.makedirs(paths.RUN, mode=0o755, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RecordBroken(path, error.strerror or str(error)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
