# SPDX-License-Identifier: LGPL-2.1-or-later
"""A report as JUnit XML: a test case for each definition that was found fault with, and one for each rule left out."""

from typing import Dict, List, TextIO
from xml.sax.saxutils import escape, quoteattr

from vmguard.lint.engine import Report
from vmguard.lint.findings import Finding


def write(report: Report, to: TextIO) -> None:
    """Write the report."""
    by_source: Dict[str, List[Finding]] = {}
    for finding in report.counted:
        by_source.setdefault(finding.source, []).append(finding)
    clean = report.definitions - len(by_source)
    tests = len(by_source) + len(report.skipped) + (1 if clean else 0)
    to.write('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n')
    to.write(f'<testsuite name="vmguard lint" tests="{tests}" failures="{len(by_source)}" errors="0"')
    to.write(f' skipped="{len(report.skipped)}">\n')
    if clean:
        to.write(f'<testcase classname="vmguard.lint" name="{clean} definitions without findings"/>\n')
    for source, findings in by_source.items():
        first = findings[0]
        name = f"{first.domain} ({source})" if first.domain else source
        to.write(f'<testcase classname="vmguard.lint" name={_attribute(name)} file={_attribute(source)}>\n')
        kinds = " ".join(sorted({finding.rule for finding in findings}))
        body = "\n".join(_words(finding) for finding in findings)
        to.write(f'<failure message={_attribute(first.text)} type="{kinds}">{escape(_legal(body))}</failure>\n')
        to.write("</testcase>\n")
    for skip in report.skipped:
        to.write(f'<testcase classname="vmguard.lint" name="{skip.rule} for {skip.definitions} definitions">\n')
        to.write(f"<skipped message={_attribute(skip.why)}/>\n</testcase>\n")
    to.write("</testsuite>\n</testsuites>\n")


def _words(finding: Finding) -> str:
    line = f":{finding.place.line}" if finding.place is not None else ""
    return f"{finding.source}{line}: {finding.severity.value} {finding.rule}: {finding.text}. {finding.remedy}."


def _attribute(text: str) -> str:
    return quoteattr(_legal(text).replace("\n", " "))


def _legal(text: str) -> str:
    """XML 1.0 has no way to write control characters, nor bytes that are no text."""
    return "".join(
        one if one in "\t\n" or (ord(one) >= 0x20 and not 0xD800 <= ord(one) < 0xE000) else "?" for one in text
    )
