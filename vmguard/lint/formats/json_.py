# SPDX-License-Identifier: LGPL-2.1-or-later
"""A report as one JSON document. docs/lint.schema.json describes it; `version` grows when a key changes its meaning."""

import json
from typing import Any, Dict, Optional, TextIO

from vmguard import __version__
from vmguard.lint.engine import Report, tally
from vmguard.lint.findings import Finding, Place, Rule

VERSION = 1


def write(report: Report, to: TextIO) -> None:
    """Write the report."""
    json.dump(document(report), to, indent=1)
    to.write("\n")


def document(report: Report) -> Dict[str, Any]:
    """The report as plain data."""
    rules = {rule.code: rule for rule in report.rules}
    return {
        "version": VERSION,
        "tool": {"name": "vmguard", "version": __version__},
        "summary": {
            "definitions": report.definitions,
            "compared": report.compared,
            "disks": report.disks,
            **tally(report),
        },
        "findings": [_finding(finding, rules.get(finding.rule)) for finding in report.findings],
        "skipped": [skip._asdict() for skip in report.skipped],
        "rules": [_rule(rule) for rule in report.rules],
    }


def _rule(rule: Rule) -> Dict[str, Any]:
    return {**rule._asdict(), "severity": rule.severity.value, "needs": rule.needs.value}


def _finding(finding: Finding, rule: Optional[Rule]) -> Dict[str, Any]:
    return {
        "rule": finding.rule,
        "slug": rule.slug if rule is not None else "",
        "severity": finding.severity.value,
        "source": finding.source,
        "host": finding.host,
        "domain": finding.domain,
        "what": finding.what,
        "text": finding.text,
        "why": finding.why,
        "remedy": finding.remedy,
        "place": _place(finding.place),
        "others": [other._asdict() for other in finding.others],
        "more_others": finding.more_others,
        "unread": finding.unread,
        "suppressed": finding.suppressed,
    }


def _place(place: Optional[Place]) -> Optional[Dict[str, Any]]:
    if place is None:
        return None
    return {"line": place.line, "column": place.column, "end_column": place.end, "element": place.element}
