# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a disk is where the leases are."""

from typing import Iterable, Iterator

from vmguard.domain import Access, HostPath
from vmguard.lint.looking import Part
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.storage import Storage
from vmguard.storage.host import inside


def writes_store(one: Subject, part: Part, site: Site) -> bool:
    """Whether the guest may write where the leases are. Of a <lease> it is sanlock that writes."""
    return (
        part.use.access is not Access.READ and not part.use.what.startswith("lease ") and _on_store(one, part, site)
    )


def _on_store(one: Subject, part: Part, site: Site) -> bool:
    """A file of the store, the store itself, or a device under its filesystem."""
    store = site.store()
    if not store or site.config is None or site.config.store is None or site.facts is None:
        return False
    beneath = {identity for storage in _all(store) for identity in (storage.identity, *storage.also)}
    if any(beneath & {storage.identity, *storage.also} for storage in one.storages(part.use, site)):
        return True
    if not isinstance(part.use.location, HostPath):
        return False
    try:
        return inside(site.facts.realpath(part.use.location.path), site.facts.realpath(site.config.store))
    except (OSError, ValueError):
        return False


def _all(storages: Iterable[Storage]) -> Iterator[Storage]:
    for storage in storages:
        yield storage
        yield from _all(storage.under)
        yield from _all(storage.one_host)
