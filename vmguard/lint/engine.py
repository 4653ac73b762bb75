# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A run of lint: definitions in, a report out.

Each definition is read and judged by itself first, by as many processes as there are processors; what others have to know
of it is kept (a `Guest`). Then those are compared. Both grow with the number of definitions, and no faster.
"""

import gc
import multiprocessing
import os
from collections import Counter
from types import ModuleType
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from vmguard.lint.document import Allow, Origin
from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Place, Rule, Severity
from vmguard.lint.rules import vmg001_unreadable_domain as unreadable
from vmguard.lint.site import Site
from vmguard.lint.sources import Reader, Source
from vmguard.lint.subject import Meeting, Subject
from vmguard.lint.suppressions import judge as judge_allows

# So many definitions go to another process at a time: some milliseconds of work beside half a one for the handing over.
_CHUNK = 50
# Below this many, starting processes costs more than it saves.
_FEW = 200

Progress = Callable[[int, int], None]


class AllowAt(NamedTuple):
    """An <allow>, and its place."""

    allow: Allow
    place: Optional[Place]


class Judged(NamedTuple):
    """One definition after its own rules."""

    origin: Origin
    guest: Optional[Guest]  # None where it could not be read
    findings: Tuple[Finding, ...]
    allows: Tuple[AllowAt, ...]
    skipped: Tuple[Tuple[str, str], ...]  # (code of a rule, why it could not be applied)
    disks: int

    @property
    def counts(self) -> bool:
        """Whether what was found is reported. Of what is only compared with it is not, unless there is nothing to compare."""
        return self.origin.target or self.guest is None


class Skip(NamedTuple):
    """A rule that was not applied everywhere."""

    rule: str
    why: str
    definitions: int


class Report(NamedTuple):
    """What a run found."""

    findings: Tuple[Finding, ...]
    definitions: int  # that were judged
    compared: int  # that were only compared with
    disks: int
    skipped: Tuple[Skip, ...]
    rules: Tuple[Rule, ...]  # all that were asked for
    guests: Tuple[Guest, ...]

    @property
    def counted(self) -> List[Finding]:
        """The findings that no definition allows."""
        return [finding for finding in self.findings if finding.suppressed is None]

    @property
    def unread(self) -> bool:
        """Whether something could not be checked that should have been."""
        return any(finding.unread for finding in self.findings)


def judge(xml: bytes, origin: Origin, site: Site, modules: Dict[str, ModuleType]) -> Judged:
    """One definition by itself: with it go all rules that have a `check`."""
    one = Subject(xml, origin, site)
    if one.domain is None:
        # Whatever rules are asked for: it passes none of them.
        unread = tuple(_signed(finding, origin, "") for finding in unreadable.check(one, site))
        return Judged(origin, None, unread, (), (), 0)
    findings: List[Finding] = []
    skipped: List[Tuple[str, str]] = []
    for code, module in modules.items():
        why = _not_for(module, one, site)
        if why:
            skipped.append((code, why))
            continue
        check = getattr(module, "check", None)
        if check is not None:
            findings += [_signed(finding, one.origin, one.name) for finding in check(one, site)]
    allows = tuple(AllowAt(allow, one.place(allow.number)) for allow in one.allowed())
    if not origin.target:
        findings, skipped = [], []
    return Judged(origin, one.guest(), tuple(findings), allows, tuple(skipped), len(one.disks))


def _not_for(module: ModuleType, one: Subject, site: Site) -> str:
    rule: Rule = module.RULE
    if rule.needs is Needs.INVENTORY and hasattr(module, "check"):
        return ""  # its part within one domain needs no others
    extra = getattr(module, "missing", None)
    return site.missing(rule.needs, one.origin.local) or (extra(one, site) if extra is not None else "")


def compare(judged: Judged, meeting: Meeting, site: Site, modules: Dict[str, ModuleType]) -> List[Finding]:
    """One definition among all of the meeting: with it go all rules that have a `compare`."""
    guest = judged.guest
    if guest is None or not site.inventory:
        return []
    found: List[Finding] = []
    for module in modules.values():
        rule = getattr(module, "compare", None)
        if rule is not None:
            found += [_signed(finding, judged.origin, guest.name) for finding in rule(guest, meeting)]
    return found


def _signed(finding: Finding, origin: Origin, name: str) -> Finding:
    return finding._replace(source=origin.source, host=origin.host, domain=name)


def run(
    sources: Sequence[Source],
    site: Site,
    modules: Dict[str, ModuleType],
    progress: Optional[Progress] = None,
    processes: int = 0,
) -> Report:
    """
    Judge all definitions.

    progress: called with (done, of how many). processes: 0 for as many as there are processors.
    """
    meeting = Meeting()
    all_judged: List[Judged] = []
    # Nothing here has cycles worth a look, and there are millions of small objects.
    collecting = gc.isenabled()
    gc.disable()
    try:
        for judged in _each(sources, site, modules, processes):
            all_judged.append(judged)
            if judged.guest is not None:
                meeting.add(judged.guest)
            if progress is not None:
                progress(len(all_judged), len(sources))
        findings: List[Finding] = []
        for judged in all_judged:
            if judged.counts:
                found = [*judged.findings, *compare(judged, meeting, site, modules)]
                findings += finish(judged, found, site, modules)
    finally:
        if collecting:
            gc.enable()
    return Report(
        tuple(findings),
        sum(one.counts for one in all_judged),
        sum(not one.counts for one in all_judged),
        sum(one.disks for one in all_judged if one.origin.target),
        tuple(_skips(all_judged, site, modules)),
        tuple(module.RULE for module in modules.values()),
        tuple(one.guest for one in all_judged if one.guest is not None),
    )


def finish(judged: Judged, found: List[Finding], site: Site, modules: Dict[str, ModuleType]) -> List[Finding]:
    """All findings of a definition, in the order of its lines; those that it allows are marked."""
    ran = {code for code, module in modules.items() if site.inventory or not hasattr(module, "compare")}
    ran -= {code for code, _ in judged.skipped}
    if any(one.unread for one in found):
        ran = set()  # what is allowed may be about what could not be found out
    found = judge_allows(judged.allows, found, ran, "VMG003" in modules, judged.origin, judged.guest)
    return sorted(found, key=lambda one: (one.place.line if one.place else 0, one.severity.rank, one.rule))


def _skips(all_judged: List[Judged], site: Site, modules: Dict[str, ModuleType]) -> Iterator[Skip]:
    counts: Counter[Tuple[str, str]] = Counter()
    for judged in all_judged:
        if judged.origin.target:
            counts.update(judged.skipped)
            if not site.inventory and judged.guest is not None:
                why = site.missing(Needs.INVENTORY, True)
                done = {code for code, _ in judged.skipped}
                counts.update(
                    (code, why) for code, one in modules.items() if hasattr(one, "compare") and code not in done
                )
    for (code, why), count in sorted(counts.items()):
        yield Skip(code, why, count)


# -- many processes ----------------------------------------------------------------------------------------------------

_task: Optional[Tuple[Sequence[Source], Site, Dict[str, ModuleType]]] = None  # what the children of a fork find


def _each(sources: Sequence[Source], site: Site, modules: Dict[str, ModuleType], processes: int) -> Iterator[Judged]:
    global _task
    processes = processes or len(os.sched_getaffinity(0))
    if processes < 2 or len(sources) < _FEW:
        for origin, read in sources:
            judged = judge_source(origin, read, site, modules)
            if judged is not None:
                yield judged
        return
    _task = (sources, site, modules)
    try:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            starts = range(0, len(sources), _CHUNK)
            for part in pool.imap(_some, starts):
                yield from part
    finally:
        _task = None


def _some(start: int) -> List[Judged]:
    assert _task is not None
    sources, site, modules = _task
    found = (judge_source(origin, read, site, modules) for origin, read in sources[start : start + _CHUNK])
    return [judged for judged in found if judged is not None]


def judge_source(origin: Origin, read: Reader, site: Site, modules: Dict[str, ModuleType]) -> Optional[Judged]:
    """The same, of a definition that is still to be read. None for a file that holds none."""
    try:
        xml = read()
        return judge(xml, origin, site, modules) if xml is not None else None
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        finding = Finding(
            "VMG001", Severity.ERROR, "", f"the definition cannot be read: {why}", "make it readable, or leave it out",
            unread=True,
        )  # fmt: skip
        return Judged(origin, None, (_signed(finding, origin, ""),), (), (), 0)


def worst(findings: Iterable[Finding]) -> Optional[Severity]:
    """The worst severity among findings, None for none."""
    return min((finding.severity for finding in findings), key=lambda one: one.rank, default=None)


def tally(report: Report) -> Dict[str, int]:
    """How many findings of each kind there are."""
    counts = Counter(finding.severity for finding in report.counted)
    return {
        "errors": counts[Severity.ERROR],
        "warnings": counts[Severity.WARNING],
        "notices": counts[Severity.NOTICE],
        "suppressed": len(report.findings) - len(report.counted),
        "unread": sum(finding.unread for finding in report.counted),
    }
