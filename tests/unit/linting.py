# SPDX-License-Identifier: LGPL-2.1-or-later
"""Definitions in, findings out: what the tests of lint share."""

import os
import uuid
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from vmguard.lint import engine, registry
from vmguard.lint.document import Origin
from vmguard.lint.findings import Finding
from vmguard.lint.site import Site
from vmguard.storage.facts import Facts, LiveFacts
from vmguard.storage.recorded import RecordedFacts

HOSTS = os.path.join(os.path.dirname(__file__), "hosts")
MODULES = registry.load()


def recorded(name: str) -> RecordedFacts:
    return RecordedFacts.load(os.path.join(HOSTS, name + ".json"))


def disk(path: str, kind: str = "", name: str = "vda", driver: str = "type='raw'", **more: str) -> str:
    """A <disk>. more: device='cdrom', inside='<shareable/>', source='...'."""
    kind = kind or ("block" if path.startswith("/dev/") else "file")
    attribute = {"file": "file", "block": "dev"}[kind]
    return (
        f"    <disk type='{kind}' device='{more.get('device', 'disk')}'>\n      <driver name='qemu' {driver}/>\n"
        f"      <source {attribute}='{path}'/>\n      <target dev='{name}' bus='virtio'/>\n"
        f"      {more.get('inside', '')}\n    </disk>\n"
    )


def domain(name: str, devices: str, outside: str = "", uid: Optional[str] = None) -> str:
    """A definition, with a uuid of its own unless one is given ("" for none)."""
    uid = str(uuid.uuid5(uuid.NAMESPACE_OID, name)) if uid is None else uid
    boot = "" if "<os>" in outside else "  <os><type arch='x86_64'>hvm</type></os>\n"
    identity = f"  <uuid>{uid}</uuid>\n" if uid else ""
    return (
        f"<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n  <name>{name}</name>\n{identity}"
        f"  <memory unit='MiB'>64</memory>\n{boot}{outside}"
        f"  <devices>\n{devices}  </devices>\n</domain>\n"
    )


Given = Union[str, Tuple[str, str], Tuple[str, str, bool]]


def report(
    *definitions: Given,
    facts: Optional[Facts] = None,
    offline: bool = False,
    inventory: Optional[bool] = None,
    **site: Any,
) -> engine.Report:
    """
    Judge definitions: XML, or (XML, host), or (XML, host, local). Each has its number for a source.

    facts: of the host, this one by default.
    """
    sources = []
    for number, given in enumerate(definitions):
        xml, host, local = (given, "", True) if isinstance(given, str) else (*given, False)[:3]  # type: ignore[misc]
        data = xml.encode("utf-8", "surrogateescape")
        sources.append((Origin(f"{number}.xml", host, local and not offline), lambda data=data: data))
    here = Site(
        None if offline else facts or LiveFacts(),
        inventory=len(sources) > 1 if inventory is None else inventory,
        **site,
    )
    return engine.run(sources, here, MODULES)


def found(*definitions: Given, **more: Any) -> List[str]:
    """What is reported, as "VMG101 web1 disk vdb"."""
    return [said(finding) for finding in report(*definitions, **more).counted]


def said(finding: Finding) -> str:
    return f"{finding.rule} {finding.domain} {finding.what}".strip()


def codes(*definitions: Given, **more: Any) -> Dict[str, int]:
    """How often each rule reports."""
    counts: Dict[str, int] = {}
    for finding in report(*definitions, **more).counted:
        counts[finding.rule] = counts.get(finding.rule, 0) + 1
    return counts


def only(findings: Sequence[str], code: str) -> List[str]:
    return [one for one in findings if one.startswith(code)]
