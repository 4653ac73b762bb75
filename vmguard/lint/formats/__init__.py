# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The forms of a report. Each module has `write(report, to)`, where `to` is a text file.

    text    for people
    json    for programs; docs/lint.schema.json describes it
    sarif   SARIF 2.1.0, for code scanning
    junit   JUnit XML, for CI servers
    github  annotations of GitHub Actions
"""

import importlib
from typing import Protocol, TextIO

from vmguard.lint.engine import Report

NAMES = ("text", "json", "sarif", "junit", "github")


class Writer(Protocol):
    """A module of this package."""

    def write(self, report: Report, to: TextIO) -> None:
        """Write the report."""


def writer(name: str) -> Writer:
    """The module of a format."""
    module: Writer = importlib.import_module(f"vmguard.lint.formats.{name}_")
    return module
