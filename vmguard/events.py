# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What vmguard did and found, one JSON object a line in /var/log/vmguard/events.jsonl, and a line in the system log.

Nothing here may fail: a full disk must not decide whether a guest starts.
"""

import os
import time

from vmguard import paths
from vmguard._light import dumps
from vmguard._typing import Any


def path() -> str:
    """The file that events go to."""
    return os.path.join(paths.LOG, "events.jsonl")


def record(event: str, text: str = "", **data: Any) -> None:
    """
    Write down one event.

    event: a short fixed word ("refused", "overridden", "would-refuse", "unguarded", "bug"); text: for people.
    """
    entry = {"time": time.time(), "host": os.uname().nodename, "event": event, **data, "text": text}
    try:
        os.makedirs(paths.LOG, mode=0o750, exist_ok=True)
        fd = os.open(path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.write(fd, dumps(entry, anything=True).encode() + b"\n")  # one write: lines of two hooks do not mix
        finally:
            os.close(fd)
    except OSError:
        pass
    import syslog  # few calls of the hook have anything to tell

    try:
        syslog.openlog("vmguard", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_WARNING if event != "info" else syslog.LOG_INFO, f"{event}: {text}"[:1000])
    except (OSError, ValueError):
        pass
