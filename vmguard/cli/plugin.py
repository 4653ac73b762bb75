# SPDX-License-Identifier: LGPL-2.1-or-later
"""
check_vmguard: the state of this host in one line, by the conventions of the monitoring plugins, for Icinga and Nagios.

    OK 0, WARNING 1, CRITICAL 2, UNKNOWN 3; then performance data; further lines say more.
"""

import argparse
import re
import sys
import time
from typing import Any, Dict, List, NoReturn, Optional, Sequence, Tuple

from vmguard import __version__, deadline
from vmguard.audit import history
from vmguard.cli import status
from vmguard.errors import Error, Late
from vmguard.report import brief, message
from vmguard.text import plain

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")

_RANGE = re.compile(r"(@?)(?:(~|-?[0-9.]+):)?(-?[0-9.]*)\Z")


class Range:
    """A range as the plugins' guidelines write it: outside of it (with @ inside) is an alert. Raises ValueError."""

    def __init__(self, text: str) -> None:
        found = _RANGE.match(text)
        if found is None or not text.strip("@"):
            raise ValueError(f"{text!r} is no range")
        self.text = text
        self._inside = bool(found.group(1))
        low = found.group(2)
        self._low = float("-inf") if low == "~" else float(low) if low else 0.0
        self._high = float(found.group(3)) if found.group(3) else float("inf")
        if self._low > self._high:
            raise ValueError(f"{text!r} is no range")

    def alerts(self, value: float) -> bool:
        return (self._low <= value <= self._high) == self._inside


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"VMGUARD UNKNOWN - {message}")
        sys.exit(UNKNOWN)


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = _Parser(
        prog="check_vmguard",
        description="Whether the disks of this host's guests are guarded. To be run as root.",
        epilog="Ranges are those of the monitoring plugins: 10 alerts outside of 0 to 10, 10: below 10, @10:20 from 10 to 20.",
    )
    top.add_argument("-V", "--version", action="version", version=f"check_vmguard {__version__}")
    top.add_argument("-t", "--timeout", metavar="SECONDS", type=int, default=30, help="after so long it is UNKNOWN (30)")
    top.add_argument(
        "-w", "--warning", metavar="RANGE", default="", help="seconds since the last renewal (3 io_timeouts)"
    )
    top.add_argument("-c", "--critical", metavar="RANGE", default="", help="the same (6 io_timeouts)")
    top.add_argument("--refusals-warning", metavar="RANGE", default="", help="refusals within the last hour")
    top.add_argument("--refusals-critical", metavar="RANGE", default="", help="the same")
    top.add_argument("--no-agent", action="store_true", help="this host runs without vmguardd")
    top.add_argument("-v", "--verbose", action="count", default=0, help="further lines: all that is worth a word")
    return top


def main(arguments: Optional[List[str]] = None) -> int:
    """The plugin. Whatever happens, it says a line and ends with one of the four."""
    options = parser().parse_args(arguments)
    try:
        ranges = {
            name: Range(text) if text else None
            for name, text in vars(options).items()
            if name in ("warning", "critical", "refusals_warning", "refusals_critical")
        }
    except ValueError as error:
        return _unknown(str(error))

    try:
        # In a child: no signal interrupts a call to a sanlock that has stopped, or a look at a store that went away.
        level, text = deadline.run(options.timeout, lambda: _looked(ranges, options))
    except Late:
        return _unknown(f"no answer within {options.timeout} seconds")
    except OSError as error:
        return _unknown(f"no process can be started: {error.strerror}")
    except deadline.Bug as bug:
        return _unknown(f"an error in vmguard itself: {str(bug).strip().splitlines()[-1]}")
    print(text)
    return level


def _looked(ranges: Dict[str, Optional[Range]], options: argparse.Namespace) -> deadline.Outcome:
    try:
        report, unknown = status.report_of()
        hour = history.read(history.Wanted(since=time.time() - 3600))
        refusals = sum(event["event"] == "refused" for event in hour)
        return _judge(report, unknown, refusals, ranges, options)
    except Error as error:
        return UNKNOWN, _text(UNKNOWN, [message(error).splitlines()[0]], [], message(error).splitlines()[1:])


def _judge(
    report: Dict[str, Any],
    unknown: Sequence[Error],
    refusals: int,
    ranges: Dict[str, Optional[Range]],
    options: argparse.Namespace,
) -> deadline.Outcome:
    found: List[Tuple[int, str]] = [(UNKNOWN, brief(error)) for error in unknown]
    silent = {*map(message, unknown)}
    for warning in report["warnings"]:
        if warning not in silent:
            found.append((CRITICAL if warning in report["critical"] else WARNING, warning.splitlines()[0]))
    if not options.no_agent and not report["agent"]["watching"]:
        found.append((WARNING, "vmguardd does not run"))
    space = report.get("lockspace", {})
    unit = space.get("io_timeout", 10)
    age = space.get("renewed_ago")
    warning_at = ranges["warning"] or Range(f"{3 * unit}")
    critical_at = ranges["critical"] or Range(f"{6 * unit}")
    if age is not None:
        text = f"the lockspace was renewed {age} s ago"
        found += _by_range(age, warning_at, critical_at, text)
    text = f"{refusals} refusals within the last hour"
    found += _by_range(refusals, ranges["refusals_warning"], ranges["refusals_critical"], text)
    guests, leases = len(report["guests"]), sum(one["leases"] for one in report["instances"])
    performance = [
        f"guests={guests};;;0",
        f"leases={leases};;;0",
        _data("refusals", refusals, "", ranges["refusals_warning"], ranges["refusals_critical"]),
    ]
    if age is not None:
        performance.append(_data("renewal", age, "s", warning_at, critical_at))
    # While sanlock or the store do not answer every start is refused: that is worse than what is worth a word.
    order = (CRITICAL, UNKNOWN, WARNING, OK)
    worst = next(level for level in order if level is OK or any(one == level for one, _ in found))
    lines = [text for level in order for one, text in found if one == level]
    first = [text for one, text in found if one == worst] or [f"{guests} guests, {leases} leases"]
    rest = [text for text in lines if text not in first]
    return worst, _text(worst, first, performance, [*rest, *(report["notes"] if options.verbose else [])])


def _by_range(value: float, warning: Optional[Range], critical: Optional[Range], text: str) -> List[Tuple[int, str]]:
    if critical is not None and critical.alerts(value):
        return [(CRITICAL, text)]
    return [(WARNING, text)] if warning is not None and warning.alerts(value) else []


def _data(name: str, value: int, unit: str, warning: Optional[Range], critical: Optional[Range]) -> str:
    limits = (one.text if one is not None else "" for one in (warning, critical))
    return f"{name}={value}{unit};{';'.join(limits)};0"


def _text(level: int, first: Sequence[str], performance: Sequence[str], rest: Sequence[str]) -> str:
    def clean(text: str) -> str:
        return plain(text.replace("\n", " ")).replace("|", "/")  # a bar begins the performance data

    more = f" (and {len(first) - 1} more)" if len(first) > 1 else ""
    data = f" | {' '.join(performance)}" if performance else ""
    lines = [f"VMGUARD {WORDS[level]} - {clean(first[0])}{more}{data}", *map(clean, [*first[1:], *rest])]
    return "\n".join(lines)


def _unknown(why: str) -> int:
    print(_text(UNKNOWN, [why], [], []))
    return UNKNOWN


if __name__ == "__main__":
    sys.exit(main())
