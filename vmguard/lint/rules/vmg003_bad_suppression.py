# SPDX-License-Identifier: LGPL-2.1-or-later
"""An <allow> that allows nothing. What it finds comes from suppressions.py: it must see all other findings first."""

from vmguard.lint.findings import Needs, Rule, Severity

RULE = Rule(
    "VMG003",
    "bad-suppression",
    Severity.WARNING,
    Needs.XML,
    title="an <allow> has no reason, no rule, or nothing to allow",
)
