# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A report as SARIF 2.1.0 (OASIS).

All rules are declared, not only those that found something: alerts of a rule that finds nothing any more are closed then.
"""

import json
import os
from typing import Any, Dict, List, TextIO
from urllib.parse import quote

from vmguard import __version__
from vmguard.lint import registry
from vmguard.lint.engine import Report
from vmguard.lint.findings import Finding, Rule, Severity

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTICE: "note"}


def write(report: Report, to: TextIO) -> None:
    """Write the report."""
    json.dump(document(report), to, indent=1)
    to.write("\n")


def document(report: Report) -> Dict[str, Any]:
    """The report as plain data."""
    numbers = {rule.code: number for number, rule in enumerate(report.rules)}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "vmguard lint",
                        "semanticVersion": __version__,
                        "rules": [_rule(rule) for rule in report.rules],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "invocations": [
                    {
                        "executionSuccessful": not report.unread,
                        "toolConfigurationNotifications": [
                            {
                                "level": "note",
                                "message": {"text": f"{skip.rule} was not applied to {skip.definitions}: {skip.why}"},
                                "associatedRule": {"id": skip.rule},
                            }
                            for skip in report.skipped
                        ],
                    }
                ],
                "results": [_result(finding, numbers) for finding in report.findings],
            }
        ],
    }


def _rule(rule: Rule) -> Dict[str, Any]:
    found = registry.find(rule.code)
    text = registry.page(found) if found is not None else rule.title
    return {
        "id": rule.code,
        "name": rule.slug,
        "shortDescription": {"text": rule.title},
        "help": {"text": text, "markdown": text},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        "properties": {"needs": rule.needs.value, "deny": rule.deny},
    }


def _result(finding: Finding, numbers: Dict[str, int]) -> Dict[str, Any]:
    text = f"{finding.domain}: {finding.text}." if finding.domain else f"{finding.text}."
    result: Dict[str, Any] = {
        "ruleId": finding.rule,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{text} {finding.remedy}."},
        "locations": [_location(finding)],
    }
    if finding.rule in numbers:
        result["ruleIndex"] = numbers[finding.rule]
    related: List[Dict[str, Any]] = []
    for other in finding.others:
        physical: Dict[str, Any] = {"artifactLocation": {"uri": _uri(other.source)}}
        if other.line:
            physical["region"] = {"startLine": other.line}
        words = f"{other.domain}{' on ' + other.host if other.host else ''}, {other.what}: {other.path}"
        related.append({"physicalLocation": physical, "message": {"text": words}})
    if related:
        result["relatedLocations"] = related
    if finding.suppressed is not None:
        result["suppressions"] = [{"kind": "inSource", "justification": finding.suppressed}]
    return result


def _location(finding: Finding) -> Dict[str, Any]:
    physical: Dict[str, Any] = {"artifactLocation": {"uri": _uri(finding.source)}}
    location: Dict[str, Any] = {"physicalLocation": physical}
    if finding.place is not None:
        place = finding.place
        physical["region"] = {"startLine": place.line, "startColumn": place.column, "endColumn": place.end}
        if place.element:
            location["logicalLocations"] = [{"fullyQualifiedName": place.element, "kind": "element"}]
    return location


def _uri(source: str) -> str:
    """A file below the current folder by its relative path, which is what code scanning goes by."""
    if os.path.isabs(source):
        below = os.path.relpath(source)
        if below.startswith(".."):
            return "file://" + quote(os.fsencode(source))
        source = below
    return quote(os.fsencode(source), safe="/")
