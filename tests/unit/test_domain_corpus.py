# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's own test inputs: each is a domain or is refused as one, and nothing in them that names a path is lost."""

import os
import re

import pytest

from vmguard.domain import Domain, HostPath, parse
from vmguard.errors import BadDomain

SOURCE = os.environ.get("LIBVIRT_SOURCE", "")
# The folder of QEMU inputs had the first name up to libvirt 9.9.
INPUTS = (
    "qemuxml2argvdata",
    "qemuxmlconfdata",
    "qemustatusxml2xmldata",
    "qemuxmlactive2xmldata",
    "genericxml2xmlindata",
)
# Expected outputs lie beside the inputs, named after an architecture and a version of QEMU.
OUTPUT = re.compile(r"\.[a-z0-9_]+-[a-z0-9.+]+(\.[a-z]+)*\.xml$")
SOURCES = re.compile(rb"<source [^>]*?(?:file|dev)=['\"](/[^'\"]*)['\"]")


def files():
    found = []
    for folder in INPUTS:
        path = os.path.join(SOURCE, "tests", folder)
        if SOURCE and os.path.isdir(path):
            found += [os.path.join(path, name) for name in os.listdir(path) if name.endswith(".xml")]
    return sorted(found)


FILES = files()

pytestmark = [
    pytest.mark.skipif(not SOURCE, reason="LIBVIRT_SOURCE does not name a source tree of libvirt"),
]


def locations(uses):
    found = set()
    for use in uses:
        found.add(use.location)
        found |= locations(use.backing)
    return found


def test_there_are_files():
    assert len([path for path in FILES if not OUTPUT.search(path)]) > 1000


def test_each_is_a_domain_or_refused():
    domains, refused = 0, []
    for path in FILES:
        with open(path, "rb") as file:
            data = file.read()
        try:
            found = parse(data)
        except BadDomain:
            refused.append(os.path.basename(path))
            continue
        assert isinstance(found, Domain)
        labels = [use.what for use in found.uses]
        assert len(labels) == len(set(labels)), path
        assert all(use.line > 0 for use in found.uses), path
        domains += 1
    # What is refused: deliberately broken ones, and generic inputs that are of no QEMU kind.
    assert domains > 1000
    assert len(refused) < 80, refused


def test_no_disk_source_is_lost():
    checked = 0
    for path in FILES:
        with open(path, "rb") as file:
            data = file.read()
        # A status file has more beside the domain, which is libvirt's own affair.
        domain = data[data.find(b"<domain ") : data.rfind(b"</domain>")]
        if b"<disk" not in domain:
            continue
        try:
            found = parse(data)
        except BadDomain:
            continue
        domain = re.sub(rb"<privateData>.*?</privateData>|<!--.*?-->", b"", domain, flags=re.S)
        named = set(SOURCES.findall(domain))
        known = {one.path for one in locations(found.uses) if isinstance(one, HostPath)}
        lost = {os.fsdecode(name) for name in named} - known
        # Devices of the host that are no storage, and disks that cannot be understood.
        lost = {name for name in lost if not name.startswith(("/dev/vhost", "/dev/input", "/dev/net", "/dev/tap"))}
        assert not lost or found.not_understood, (path, lost)
        checked += 1
    assert checked > 500
