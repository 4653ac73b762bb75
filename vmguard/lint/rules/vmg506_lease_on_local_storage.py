# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lease on local storage."""

from typing import Iterator

from vmguard.domain import HostPath
from vmguard.errors import Error
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.storage import resolve
from vmguard.text import plain

RULE = Rule(
    "VMG506", "lease-on-local-storage", Severity.ERROR, Needs.HOST, title="a <lease> lies where only this host sees it"
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Such a lease protects from two guests on one host, and from nothing else."""
    if site.facts is None or (site.config is not None and site.config.single_host):
        return
    shared = site.shared_files()
    for lease in one.leases():
        try:
            found = resolve(HostPath(lease.path), site.facts)
        except Error:
            continue  # VMG502 says so
        seen = [storage.others_see_it or bool(shared) and storage.identity.startswith(shared) for storage in found]
        if seen and not any(seen):
            yield Finding(
                RULE.code,
                RULE.severity,
                lease.what,
                f"{plain(lease.what)} lies in {plain(lease.path)}, which only this host sees: other hosts have no part in it",
                "put it on storage that all hosts share",
                lease.place,
            )
