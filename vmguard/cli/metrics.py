# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard metrics`: figures of this host, for the textfile collector of Prometheus' node exporter."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from vmguard import __version__, deadline, paths
from vmguard.audit.history import new_lines, parsed
from vmguard.cli import status
from vmguard.errors import BadRequest, Late

# Seconds; a start waits for the hook. The deadline is 20 by default.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)

# sanlock and the store answer within that, or count as silent. Seconds; systemd ends us after 25.
_PATIENCE = 10.0

# What is counted, by the word of the event.
COUNTED = {
    "refused": ("vmguard_refusals_total", "Starts that were refused."),
    "would-refuse": ("vmguard_tolerated_total", "Starts that were let pass in audit mode, and would have been refused."),
    "overridden": ("vmguard_overrides_total", "Objections that an administrator's override let pass."),
    "handover": ("vmguard_handovers_total", "Guests that have migrated here and have got their leases."),
    "conflict": ("vmguard_conflicts_total", "Conflicts that were proven while a guest ran."),
    "contained": ("vmguard_contained_total", "Guests that vmguardd has paused, or taken a disk from."),
    "alarm": ("vmguard_alarms_total", "Things that need an administrator."),
    "bug": ("vmguard_bugs_total", "Errors of vmguard itself."),
}


def add(commands: Any) -> None:
    """The subcommand."""
    metrics = commands.add_parser(
        "metrics",
        help="figures for Prometheus' node exporter",
        description="Print figures of this host in the text format of Prometheus, for the textfile collector of the node"
        " exporter. Exit status 3 if something could not be found out; what could is printed all the same.",
    )
    metrics.add_argument("--output", metavar="FILE", help="write them there, whole or not at all")
    metrics.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 0, or 3 where something could not be found out."""
    report, unknown = _report()
    text = page(report, unknown, _counts(), _latency(report))
    if not options.output:
        sys.stdout.write(text)
        return 3 if unknown else 0
    temporary = f"{options.output}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.rename(temporary, options.output)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)  # it is called otherwise each time
        raise BadRequest(f"{options.output}: {error.strerror}") from error
    return 3 if unknown else 0


def _report() -> Tuple[Dict[str, Any], bool]:
    """
    What `vmguard status` knows, and whether that is not all. A store that hangs, or a sanlock that has stopped, is one of the
    figures: it must not keep the others back.
    """

    def ask() -> deadline.Outcome:
        report, unknown = status.report_of()
        return bool(unknown), json.dumps(report, default=str)

    alone, _ = status.report_of(ask=False)
    try:
        unknown, text = deadline.run(_PATIENCE, ask)
        return json.loads(text), bool(unknown)
    except Late:
        return alone, True


class Counts(NamedTuple):
    """What has been counted since the host was started."""

    events: Dict[str, int]
    hook: List[int]  # calls of prepare by bucket, the last for all above
    hook_seconds: float


def _counts() -> Counts:
    """
    Count what was written down since the last time. The counts begin anew with each boot: /run is empty then.
    """
    path = os.path.join(paths.RUN, "metrics.json")
    counts, where = Counts({}, [0] * (len(BUCKETS) + 1), 0.0), (0, 0)
    try:
        with open(path, encoding="ascii") as file:
            kept = json.load(file)
        if len(kept["hook"]) == len(counts.hook):  # else another version has other buckets
            counts = Counts(kept["events"], kept["hook"], kept["hook_seconds"])
            where = (kept["inode"], kept["offset"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    # The first time the files tell of earlier boots, too.
    began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) if where == (0, 0) else 0.0
    try:
        lines, where = new_lines(where)
    except OSError:
        lines = []
    seconds = counts.hook_seconds
    for event in parsed(lines):
        if event["time"] < began:
            continue
        counts.events[event["event"]] = counts.events.get(event["event"], 0) + 1
        took = event.get("took")
        if isinstance(took, (int, float)) and event.get("operation", "prepare") == "prepare":
            counts.hook[next((n for n, limit in enumerate(BUCKETS) if took <= limit), len(BUCKETS))] += 1
            seconds += took
    counts = counts._replace(hook_seconds=round(seconds, 3))
    temporary = f"{path}.{os.getpid()}.tmp"  # an administrator may ask while the timer does
    try:
        with open(temporary, "w", encoding="ascii") as file:
            json.dump({**counts._asdict(), "inode": where[0], "offset": where[1]}, file)
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)  # /run is full, or this is not root: it counts from the same place again
    return counts


def _latency(report: Dict[str, Any]) -> Optional[Tuple[float, float]]:
    """Seconds that reading and writing took at the last renewal of the lockspace, as sanlock remembers them."""
    name = report.get("lockspace", {}).get("name")
    program = shutil.which("sanlock", path="/usr/sbin:/sbin:/usr/bin")
    if not name or program is None:
        return None
    try:
        done = subprocess.run(
            [program, "client", "renewal", "-s", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    for line in reversed(done.stdout.decode("ascii", "replace").splitlines()):
        words = dict(word.partition("=")[::2] for word in line.split())
        if words.get("read_ms", "").isdigit() and words.get("write_ms", "").isdigit():
            return int(words["read_ms"]) / 1000, int(words["write_ms"]) / 1000
    return None


# -- the page ----------------------------------------------------------------------------------------------------------


class _Page:
    def __init__(self) -> None:
        self.lines: List[str] = []

    def add(self, name: str, kind: str, help_: str, values: Iterable[Tuple[Dict[str, str], float]]) -> None:
        self.lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
        self.lines += [f"{name}{_labels(labels)} {value:.15g}" for labels, value in values]

    def one(self, name: str, kind: str, help_: str, value: float) -> None:
        self.add(name, kind, help_, [({}, value)])


def _labels(labels: Dict[str, str]) -> str:
    def quoted(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{key}="{quoted(value)}"' for key, value in labels.items()) + "}" if labels else ""


def page(report: Dict[str, Any], unknown: bool, counts: Counts, latency: Optional[Tuple[float, float]]) -> str:
    """All figures as text."""
    out = _Page()
    out.add("vmguard_info", "gauge", "Version and mode.", [({"version": __version__, "mode": report["mode"]}, 1)])
    out.one("vmguard_known", "gauge", "Whether sanlock and the store have answered.", not unknown)
    out.one("vmguard_warnings", "gauge", "Lines that vmguard status warns with.", len(report["warnings"]))
    out.one("vmguard_agent_watching", "gauge", "Whether vmguardd is at work.", report["agent"]["watching"])
    out.one("vmguard_guests", "gauge", "QEMUs that run.", len(report["guests"]))
    bare = sum(not one["guarded"] for one in report["guests"])
    out.one("vmguard_guests_unguarded", "gauge", "QEMUs that run without a record.", bare)
    states = [one["state"] for one in report["instances"]]
    out.add(
        "vmguard_instances",
        "gauge",
        "Starts that are written down.",
        [({"state": state}, states.count(state)) for state in ("intent", "held", "running", "over", "draining")],
    )
    out.one("vmguard_leases", "gauge", "Leases of the guests of this host.", sum(one["leases"] for one in report["instances"]))
    lacking = sum(len(one["without_lease"]) for one in report["instances"])
    out.one("vmguard_leases_missing", "gauge", "Leases that guests of this host run without.", lacking)
    contested = sum(len(one["contested"]) for one in report["instances"])
    out.one("vmguard_leases_contested", "gauge", "Of these, such as somebody else may have.", contested)
    space = report.get("lockspace", {})
    out.one("vmguard_lockspace_joined", "gauge", "Whether this host is a member.", space.get("state") == "joined")
    if "renewed_ago" in space:
        help_ = "Since the last renewal; after 8 io_timeouts the leases are lost."
        out.one("vmguard_lockspace_renewal_age_seconds", "gauge", help_, space["renewed_ago"])
        out.one("vmguard_lockspace_io_timeout_seconds", "gauge", "sanlock's unit of time.", space["io_timeout"])
    if latency is not None:
        help_ = "What the last renewal took."
        values = [({"operation": name}, value) for name, value in zip(("read", "write"), latency)]
        out.add("vmguard_lockspace_renewal_latency_seconds", "gauge", help_, values)
    members = [one["state"] for one in report.get("hosts", ())]
    found = [({"state": state}, members.count(state)) for state in sorted(set(members))]
    out.add("vmguard_hosts", "gauge", "Hosts of the store, as sanlock sees them.", found)
    for event, (name, help_) in COUNTED.items():
        out.one(name, "counter", help_, counts.events.get(event, 0))
    name = "vmguard_hook_prepare_seconds"
    out.lines += [f"# HELP {name} What the hook took before a start.", f"# TYPE {name} histogram"]
    total = 0
    for limit, count in zip((*BUCKETS, None), counts.hook):
        total += count
        out.lines.append(f'{name}_bucket{{le="{"+Inf" if limit is None else f"{limit:g}"}"}} {total}')
    out.lines += [f"{name}_sum {counts.hook_seconds:.15g}", f"{name}_count {total}"]
    return "\n".join(out.lines) + "\n"
