# SPDX-License-Identifier: LGPL-2.1-or-later
"""More than eight leases."""

from typing import Iterator

from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject

RULE = Rule(
    "VMG504", "too-many-leases", Severity.ERROR, Needs.XML, title="a domain has more leases than libvirt's plugin takes"
)


# SANLK_MAX_RESOURCES of sanlock_resource.h, which lock_driver_sanlock.c takes for its limit.
_MOST = 8


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """By the number of <lease> elements."""
    leases = list(one.leases())
    if len(leases) > _MOST:
        yield Finding(
            RULE.code,
            RULE.severity,
            leases[_MOST].what,
            f"it has {len(leases)} leases, and libvirt's sanlock plugin takes {_MOST}: it will not start",
            "leave the leases to vmguard, which has no such limit, or put disks together",
            leases[_MOST].place,
        )
