# SPDX-License-Identifier: LGPL-2.1-or-later
"""What qemu-sanlock.conf demands."""

from typing import Iterator

from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject

RULE = Rule(
    "VMG501",
    "missing-lease",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="libvirt's sanlock plugin wants a lease, and the definition has none",
)

# virDomainLockManagerAddImage of libvirt's domain_lock.c: of others the plugin never hears. Which of them a volume is, its
# pool says.
_LOCKED = ("file", "block", "dir", "volume")


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """What the plugin says at the start: disks that are written, and no <lease>."""
    if not site.demands_leases() or list(one.leases()):
        return
    for disk in one.disks:
        if disk.written and not disk.shareable and disk.kind in _LOCKED:
            yield one.finding(
                RULE,
                disk.what,
                disk.element.line,
                f"{disk.what} is written, and the definition has no <lease>: libvirt will not start it",
                "add a <lease>, or set require_lease_for_disks = 0 in /etc/libvirt/qemu-sanlock.conf and let vmguard guard",
            )
            return
