# SPDX-License-Identifier: LGPL-2.1-or-later
"""The leases themselves as a disk."""

from typing import Iterator

from vmguard.errors import Unguardable
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.store import writes_store
from vmguard.lint.subject import Subject

RULE = Rule(
    "VMG110", "is-lease-storage", Severity.ERROR, Needs.CLUSTER, deny=True, title="a disk is the storage of the leases"
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """A file in the store, a device under it, or the volume where lvmlockd keeps its locks."""
    for part in one.parts:
        if writes_store(one, part, site) or _is_lvmlock(part.error):
            yield one.about(
                RULE,
                part,
                f"{part.use.what} is storage of the leases: a guest that writes it takes the protection of all",
                "give the guest another disk",
            )


def _is_lvmlock(error: object) -> bool:
    return isinstance(error, Unguardable) and error.why.startswith("it holds the locks of the volume group")
