# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A check, what it finds, and how they are run.

Each check runs in a process of its own, with an end: a daemon that hangs, storage that went away or an error in a check costs
that check and no other.
"""

from enum import IntEnum
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

from vmguard import deadline, events
from vmguard._light import dumps, loads
from vmguard.doctor.look import Look
from vmguard.errors import Error, Late
from vmguard.report import brief, message

# Seconds for one check. A store on a filesystem that recovers from a dead host answers in some seconds.
PATIENCE = 15.0


class Severity(IntEnum):
    """How bad it is; the worst one is the exit status of `vmguard doctor`, which monitoring systems understand."""

    OK = 0
    WARNING = 1  # it guards, and something will make it worse: a watchdog that is none
    ERROR = 2  # something is not guarded, or cannot start
    UNKNOWN = 3  # could not be found out


class Finding(NamedTuple):
    """What one check saw."""

    check: str
    severity: Severity
    says: str  # one line
    fix: str = ""  # one line: a command, or what to change where
    mendable: bool = False  # `--fix` does it


Findings = Iterator[Finding]


class Check(NamedTuple):
    """One check, by its name."""

    name: str
    look: Callable[[Look], Findings]
    mend: Optional[Callable[[Look], None]]


_checks: Dict[str, Check] = {}


def check(
    name: str, mend: Optional[Callable[[Look], None]] = None
) -> Callable[[Callable[[Look], Findings]], Callable[[Look], Findings]]:
    """Make a function a check of this name. `mend` puts right what it found, without harm to anybody."""

    def add(function: Callable[[Look], Findings]) -> Callable[[Look], Findings]:
        _checks[name] = Check(name, function, mend)
        return function

    return add


def checks() -> List[Check]:
    """All of them, in the order in which they are told."""
    return list(_checks.values())


def ok(says: str) -> Finding:
    """All is well, and by what that is known."""
    return Finding("", Severity.OK, says)


def wrong(says: str, fix: str, mendable: bool = False) -> Finding:
    """Something is not guarded."""
    return Finding("", Severity.ERROR, says, fix, mendable)


def doubtful(says: str, fix: str, mendable: bool = False) -> Finding:
    """It guards, with a weakness."""
    return Finding("", Severity.WARNING, says, fix, mendable)


def unknown(says: str, fix: str = "") -> Finding:
    """It could not be found out."""
    return Finding("", Severity.UNKNOWN, says, fix)


def run(one: Check, look: Look) -> List[Finding]:
    """What a check finds here, within its time, whatever happens to it."""

    def work() -> deadline.Outcome:
        return 0, dumps([[int(each.severity), each.says, each.fix, each.mendable] for each in _found(one, look)])

    try:
        text = deadline.run(PATIENCE, work)[1]
    except Late:
        says = f"there was no answer within {PATIENCE:.0f} seconds"
        return [Finding(one.name, Severity.UNKNOWN, says, "see which of sanlock, libvirt and the store hangs")]
    except deadline.Bug as bug:
        events.record("bug", str(bug), check=one.name)
        return [Finding(one.name, Severity.UNKNOWN, f"an error in vmguard itself; {events.path()} has the trace")]
    return [Finding(one.name, Severity(number), says, fix, mendable) for number, says, fix, mendable in loads(text)]


def _found(one: Check, look: Look) -> List[Finding]:
    found: List[Finding] = []
    try:
        found.extend(one.look(look))
    except Error as error:
        said = message(error).splitlines()
        fix = next((line.partition(":")[2].strip() for line in said if line.lstrip().startswith("do:")), "")
        found.append(unknown(brief(error), fix))
    except OSError as error:
        found.append(unknown(f"{error.filename or one.name}: {error.strerror or error}"))
    return found


def examine(look: Look) -> List[Finding]:
    """Every check, in order."""
    found: List[Finding] = []
    for one in checks():
        here = run(one, look)
        look.sanlock_hangs |= one.name == "sanlock" and any(each.severity is Severity.UNKNOWN for each in here)
        found += here
    return found


def mend(findings: List[Finding], look: Look) -> List[str]:
    """
    Mend what can be mended of these, each check once, and say what could not be.

    What is mended is mended as setup does it; no guest is touched and no daemon is restarted.
    """
    failed = []
    for name in dict.fromkeys(finding.check for finding in findings if finding.mendable):
        cure = _checks[name].mend
        assert cure is not None, f"{name} says that it can be mended"
        try:
            cure(look)
        except Error as error:
            failed.append(f"{name}: {brief(error)}")
        except OSError as error:
            failed.append(f"{name}: {error.filename or ''} {error.strerror or error}")
    return failed
