# SPDX-License-Identifier: LGPL-2.1-or-later
"""
libvirt's arguments in, exit status and words out.

Called by the hook script as `python3 -I -m vmguard.hook LIBVIRTD-PID NAME OPERATION ...` with the domain XML on standard
input. Exit status:

    0  go on (migrate, restore: with the XML on standard output)
    1  refuse (prepare, start, migrate, restore): the words are on standard error, and are what `virsh start` prints
    3  end the guest that has just started (started): its leases are not certain

Everything else that happens in `started`, `release` and `reconnect` is written down and ends in 0: our own fault never
kills a running guest.
"""

import os
import sys
import time

from vmguard import deadline, events, guard, host
from vmguard._typing import Callable, Dict, List
from vmguard._xml import MAX_BYTES
from vmguard.config import load
from vmguard.domain import who
from vmguard.errors import Error, Late, Misconfigured, Refused, about
from vmguard.report import bug_words, of_running, of_tolerated, sentence

REFUSE = 1
END_GUEST = 3

# Nobody calls these again.
LATER = ("started", "release")

Operation = Callable[[bytes, host.Process], None]
Filter = Callable[[bytes, host.Process], bytes]

OPERATIONS: Dict[str, Operation] = {
    "prepare": guard.prepare,
    "start": guard.start,
    "started": guard.started,
    "release": guard.release,
    "reconnect": guard.reconnect,
}

# Their standard output is the XML that libvirt goes on with; empty, it is the one that it gave.
FILTERS: Dict[str, Filter] = {"migrate": guard.migrate, "restore": guard.restore}


def _whose(name: str, xml: bytes) -> Dict[str, str]:
    """The domain, for the log. One whose definition cannot be understood has a name at least: libvirt's."""
    try:
        return {"domain": name, "uuid": who(xml)[1]}
    except Error:
        return {"domain": name}


def status_of(operation: str, error: Error) -> int:
    """What an error means for libvirt: a refusal before the guest runs; afterwards only proof ends it."""
    if operation in ("prepare", "start", *FILTERS):
        return REFUSE
    if operation == "started" and isinstance(error, Refused):
        return END_GUEST
    return 0


def answer(operation: str, name: str, xml: bytes, libvirtd: int) -> deadline.Outcome:
    """Do it. Every error that vmguard raises on purpose becomes a status and words here."""
    try:
        caller = host.process(libvirtd)
        if caller is None:
            raise Late(0, "starting: libvirt has gone")
        if os.geteuid() != 0:
            guard.unprivileged(operation, xml)
        elif operation in FILTERS:
            return 0, FILTERS[operation](xml, caller).decode("utf-8", "surrogateescape")
        else:
            OPERATIONS[operation](xml, caller)
        return 0, ""
    except Error as error:
        status = status_of(operation, error)
        text = sentence(error, name) if status else of_running(error, name)
        event = {REFUSE: "refused", END_GUEST: "ended"}.get(status, "alarm")
        took = round(time.clock_gettime(time.CLOCK_BOOTTIME) - host.began(), 3)
        data = {"operation": operation, "error": type(error).__name__, "took": took, **about(error)}
        events.record(event, text, **_whose(name, xml), **data)
        if operation in LATER and not status:
            guard.leave_to_errand(name, operation == "started")
        return status, text


def outcome_of(operation: str, name: str, xml: bytes, libvirtd: int) -> deadline.Outcome:
    """The outcome, whatever happens to the process that works it out."""
    try:
        seconds = load().deadline
    except Misconfigured:
        seconds = 20  # the default; the child meets the same error, and says it
    try:
        return deadline.run(seconds, lambda: answer(operation, name, xml, libvirtd))
    except Late as error:
        status = 0 if error.tolerated else status_of(operation, error)
        text = sentence(error, name) if status else of_running(error, name)
        whose = _whose(name, xml)
        events.record("refused" if status else "late", text, **whose, operation=operation, reason=error.tolerated)
        if operation in LATER:
            guard.leave_to_errand(name, operation == "started")
        return status, text
    except deadline.Bug as bug:
        events.record("bug", str(bug), **_whose(name, xml), operation=operation)
        return status_of(operation, Error()), bug_words(name)


def main(arguments: List[str]) -> int:
    """The hook's process. Standard output is for the filters alone: libvirt takes it for XML."""
    libvirtd, name, operation = int(arguments[0]), arguments[1], arguments[2]
    if operation not in OPERATIONS and operation not in FILTERS:
        return 0
    xml = sys.stdin.buffer.read(MAX_BYTES + 1)
    status, text = outcome_of(operation, name, xml, libvirtd)
    if status and guard.only_watches():
        events.record("would-refuse", of_tolerated(text, name), **_whose(name, xml), operation=operation)
        return 0
    if status:
        os.write(2, (text + "\n").encode("utf-8", "backslashreplace"))
    elif text:
        with open(1, "wb", closefd=False) as out:
            out.write(text.encode("utf-8", "surrogateescape"))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
