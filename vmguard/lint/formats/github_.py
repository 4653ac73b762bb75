# SPDX-License-Identifier: LGPL-2.1-or-later
"""A report as workflow commands of GitHub Actions: each finding becomes an annotation of its line."""

import os
from typing import TextIO

from vmguard.lint.engine import Report
from vmguard.lint.findings import Finding


def write(report: Report, to: TextIO) -> None:
    """Write the report."""
    slugs = {rule.code: rule.slug for rule in report.rules}
    for finding in report.counted:
        where = f"file={_property(_relative(finding.source))}"
        if finding.place is not None:
            where += f",line={finding.place.line},col={finding.place.column},endColumn={finding.place.end}"
        title = _property(f"{finding.rule} {slugs.get(finding.rule, '')}".strip())
        to.write(f"::{finding.severity.value} {where},title={title}::{_data(_words(finding))}\n")
    for skip in report.skipped:
        to.write(f"::debug::{skip.rule} was not applied to {skip.definitions} definitions: {_data(skip.why)}\n")


def _words(finding: Finding) -> str:
    lines = [f"{finding.domain}: {finding.text}" if finding.domain else finding.text]
    lines += [f"with {other.domain}, {other.what}, {other.path} ({other.source})" for other in finding.others]
    return "\n".join([*lines, f"do: {finding.remedy}"])


def _relative(source: str) -> str:
    return os.path.relpath(source) if os.path.isabs(source) else source


def _data(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
