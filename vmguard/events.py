# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What vmguard did and found, one JSON object a line in /var/log/vmguard/events.jsonl, and an entry with fields of its own in
the journal (a line in the system log where there is none).

Nothing here may fail: a full disk must not decide whether a guest starts.
"""

import os
import time

from vmguard import paths
from vmguard._light import dumps
from vmguard._typing import Any, List
from vmguard.text import lines

# Of this size a file is put aside, and so many of them are kept: a year of a busy host, some hundred bytes an event.
MAX_BYTES = 16 * 1024 * 1024
KEPT = 4

JOURNAL = "/run/systemd/journal/socket"

# What is as it should be. Everything else is a warning.
CALM = frozenset(
    ("info", "held", "released", "handover", "given-back", "adopted", "gc", "conflict-over", "watching", "rejoined")
)


def path() -> str:
    """The file that events go to."""
    return os.path.join(paths.LOG, "events.jsonl")


def files() -> List[str]:
    """All files that there are, the oldest first."""
    older = [f"{path()}.{number}" for number in range(KEPT, 0, -1)]
    return [one for one in (*older, path()) if os.path.exists(one)]


def record(event: str, text: str = "", **data: Any) -> None:
    """
    Write down one event.

    event: a short fixed word ("refused", "overridden", "would-refuse", "unguarded", "bug"); text: for people.
    """
    entry = {"time": time.time(), "host": os.uname().nodename, "event": event, **data, "text": text}
    try:
        os.makedirs(paths.LOG, mode=0o750, exist_ok=True)
        fd = _open()
        try:
            os.write(fd, dumps(entry, anything=True).encode() + b"\n")  # one write: lines of two hooks do not mix
            if os.fstat(fd).st_size > MAX_BYTES:
                _rotate(fd)
        finally:
            os.close(fd)
    except OSError:
        pass
    _tell_system(entry)


def _open() -> int:
    """The file that events go to. Nobody puts it aside while we write: whoever follows it would have gone on to the next."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    fd = os.open(path(), flags, 0o640)
    for _ in range(2):
        if _stays(fd):
            break
        os.close(fd)
        fd = os.open(path(), flags, 0o640)
    return fd


def _stays(fd: int) -> bool:
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.fstat(fd).st_ino == os.stat(path()).st_ino
    except OSError:
        return False  # it is just being put aside


def _rotate(fd: int) -> None:
    """Put the file aside, if nobody else just does, or writes to it."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    if os.fstat(fd).st_ino != os.stat(path()).st_ino:
        return
    for number in range(KEPT - 1, 0, -1):
        try:
            os.rename(f"{path()}.{number}", f"{path()}.{number + 1}")
        except FileNotFoundError:
            pass
    os.rename(path(), path() + ".1")


def _line(entry: Any) -> str:
    """What has happened, and to whom."""
    text, domain = entry["text"], entry.get("domain") or ""
    whose = f"{domain}: " if text and domain and domain not in text else ""
    return lines(f"{entry['event']}: {whose}{text or domain}")


def _tell_system(entry: Any) -> None:
    calm = entry["event"] in CALM
    try:
        _tell_journal(entry, 6 if calm else 4)  # LOG_INFO, LOG_WARNING
    except BlockingIOError:
        pass  # it does not keep up, or has stopped: syslog would wait for it
    except (OSError, ValueError, ImportError):
        import syslog  # few systems are without a journal

        try:
            syslog.openlog("vmguard", syslog.LOG_PID, syslog.LOG_DAEMON)
            syslog.syslog(syslog.LOG_INFO if calm else syslog.LOG_WARNING, _line(entry)[:1000])
        except (OSError, ValueError):
            pass


def _tell_journal(entry: Any, priority: int) -> None:
    """The journal's native protocol: a datagram of fields, see systemd.journal-fields(7). Raises OSError."""
    if not os.path.exists(JOURNAL):
        raise FileNotFoundError(JOURNAL)
    # `socket` itself takes as long to load as half of the hook's work.
    from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

    fields = [("MESSAGE", _line(entry)), ("PRIORITY", str(priority))]
    fields += [("SYSLOG_IDENTIFIER", "vmguard"), ("SYSLOG_FACILITY", "3")]
    for key, value in entry.items():
        if key not in ("time", "host", "text"):
            text = value if isinstance(value, str) else dumps(value, anything=True)
            fields.append(("VMGUARD_" + key.upper(), text))
    data = b""
    for name, text in fields:
        raw = text.encode("utf-8", "backslashreplace")[:16384]
        # With its length before it a value may hold line ends.
        data += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
    out = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        out.setblocking(False)
        out.sendto(data, JOURNAL)
    finally:
        out.close()
