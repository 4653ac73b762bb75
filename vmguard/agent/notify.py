# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd wants to hear of a service: sd_notify(3)."""

import os
import socket
from typing import Optional


def say(text: str) -> None:
    """One message, as "READY=1". Nothing happens where nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.connect("\0" + path[1:] if path.startswith("@") else path)
            out.send(text.encode())
    except OSError:
        pass


def watchdog() -> Optional[float]:
    """Seconds after which systemd takes us for dead; None where it does not ask."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1e6 if microseconds.isdigit() and mine else None
