# SPDX-License-Identifier: LGPL-2.1-or-later
"""Actions that sanlock does not know."""

from typing import Iterator

from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject

RULE = Rule(
    "VMG505", "lockfailure-action", Severity.ERROR, Needs.XML, title="on_lockfailure asks for what sanlock cannot do"
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """libvirt refuses the start with the plugin."""
    element = one.root.first("on_lockfailure") if one.root is not None else None
    action = element.text.strip() if element is not None else ""
    if element is not None and action in ("restart", "ignore"):
        yield one.finding(
            RULE,
            "",
            element.line,
            f"on_lockfailure is {action}, which libvirt's sanlock plugin does not support: the guest will not start",
            "say poweroff or pause, or take the element out",
        )
