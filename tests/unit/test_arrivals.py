# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may pass for a guest that migrates in or is restored, and who may not (attack A1)."""

import json
import os
import time
from pathlib import Path
from typing import Callable

import pytest

from vmguard import arrivals, host, paths
from vmguard.domain import ARRIVAL_NAMESPACE, parse
from vmguard.errors import BadDomain
from vmguard.host import Process

UUID = "8e2c408b-26d6-436c-97f8-d8d303ae64f6"
XML = f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web ü</name>
  <uuid>{UUID}</uuid>
  <description>a &gt; b, "&lt;/domain&gt;" <![CDATA[</metadata>]]></description>
  <metadata><x:a xmlns:x="urn:x">keep  me</x:a></metadata>
  <devices/>
</domain>
""".encode()


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(arrivals, "DEFINITIONS", str(tmp_path / "definitions"))
    (tmp_path / "definitions").mkdir()
    return tmp_path


@pytest.fixture
def libvirtd() -> Process:
    found = host.process(os.getpid())
    assert found is not None
    return found


def test_an_announced_guest_arrives_once(libvirtd: Process) -> None:
    domain = parse(arrivals.announce("migrate", XML, libvirtd))
    assert arrivals.take(domain, libvirtd) == arrivals.Arrival("migrate")
    assert arrivals.take(domain, libvirtd) is None, "its mark is used up"


def test_without_an_announcement_nobody_arrives(libvirtd: Process) -> None:
    assert arrivals.take(parse(XML), libvirtd) is None
    marked = arrivals.announce("migrate", XML, libvirtd)
    assert arrivals.take(parse(XML), libvirtd) is None, "a start of the same domain beside it"
    assert arrivals.take(parse(marked), libvirtd) is not None


def test_after_an_offline_migration_a_start_is_a_start(libvirtd: Process, folders: Path) -> None:
    """`migrate --offline` calls nothing but `migrate`, and the definition keeps the nonce."""
    marked = arrivals.announce("migrate", XML, libvirtd)
    (folders / "definitions" / "web ü.xml").write_bytes(marked)
    assert arrivals.take(parse(marked), libvirtd) is None


SPOILED = [
    lambda mark: mark.update(uuid="8e2c408b-26d6-436c-97f8-d8d303ae64f7"),
    lambda mark: mark.update(libvirtd=[mark["libvirtd"][0], mark["libvirtd"][1] - 1]),
    lambda mark: mark.update(time=time.clock_gettime(time.CLOCK_BOOTTIME) - arrivals.VALID_SECONDS - 1),
    lambda mark: mark.update(time=time.clock_gettime(time.CLOCK_BOOTTIME) + 5),
]


@pytest.mark.parametrize("spoil", SPOILED, ids="uuid libvirtd old of-another-boot".split())
def test_a_mark_of_something_else_counts_for_nothing(libvirtd: Process, spoil: Callable[[dict], None]) -> None:
    marked = arrivals.announce("migrate", XML, libvirtd)
    domain = parse(marked)
    path = os.path.join(paths.RUN, "arrivals", domain.arrival)
    with open(path) as file:
        mark = json.load(file)
    spoil(mark)
    with open(path, "w") as file:
        json.dump(mark, file)
    assert arrivals.take(domain, libvirtd) is None


@pytest.mark.parametrize("nonce", ["../../etc/passwd", "", "A" * 32, "0" * 31, "0" * 32])
def test_a_nonce_from_outside_leads_nowhere(libvirtd: Process, nonce: str) -> None:
    xml = XML.replace(b"<metadata>", f"<metadata><arrival xmlns='{ARRIVAL_NAMESPACE}' nonce='{nonce}'/>".encode())
    assert parse(xml).arrival == nonce
    assert arrivals.take(parse(xml), libvirtd) is None


def test_all_but_the_nonce_stays_as_it_was(libvirtd: Process) -> None:
    once = arrivals.announce("migrate", XML, libvirtd)
    mark = f'<vmguard:arrival xmlns:vmguard="{ARRIVAL_NAMESPACE}" nonce="{parse(once).arrival}"/>'.encode()
    assert once.replace(mark, b"") == XML
    twice = arrivals.announce("migrate", once, libvirtd)
    assert parse(twice).arrival != parse(once).arrival
    assert len(twice) == len(once), "the old one went"


BODIES = {
    "no metadata": b"<name>a</name>",
    "empty metadata": b"<metadata/><name>a</name>",
    "metadata with blanks": b"<name>a</name><metadata >\n</metadata >",
    "metadata in a device": b"<name>a</name><devices><metadata/></devices>",
    "two": b"<metadata><a xmlns='urn:a'/></metadata><name>a</name><metadata/>",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_wherever_metadata_is(libvirtd: Process, body: bytes) -> None:
    xml = b"<domain type='kvm'>" + body + f"<uuid>{UUID}</uuid></domain>".encode()
    marked = arrivals.announce("migrate", arrivals.announce("migrate", xml, libvirtd), libvirtd)
    assert arrivals.take(parse(marked), libvirtd) is not None
    assert marked.count(b"nonce") == 1


@pytest.mark.parametrize("xml", [b"", b"<domain/>", b"<domain type='kvm'>", b"<domain type='kvm'/>"])
def test_what_is_no_domain_does_not_come(libvirtd: Process, xml: bytes) -> None:
    with pytest.raises(BadDomain):
        arrivals.announce("migrate", xml, libvirtd)


def saved_state(path: Path, memory: bytes) -> None:
    path.write_bytes(b"LibvirtQemudSave" + b"\2\0\0\0" * 8 + XML + b"\0" + memory)


def test_the_state_is_found_among_the_open_files_of_libvirt(libvirtd: Process, folders: Path) -> None:
    saved_state(folders / "one.save", b"1" * 200_000)
    saved_state(folders / "copy.save", b"1" * 200_000)
    saved_state(folders / "two.save", b"1" * 199_999 + b"2")
    marks = []
    for name in ("one", "copy", "two"):
        with open(folders / f"{name}.save", "rb") as file:
            file.seek(1000)
            arrival = arrivals.take(parse(arrivals.announce("restore", XML, libvirtd)), libvirtd)
            assert file.tell() == 1000, "libvirt reads on where it was"
        assert arrival is not None and arrival.kind == "restore" and arrival.image is not None
        assert arrival.image.saved == os.stat(folders / f"{name}.save").st_mtime
        marks.append(arrival.image.mark)
    assert marks[0] == marks[1] != marks[2]


def test_a_state_that_cannot_be_seen_is_none(libvirtd: Process, folders: Path) -> None:
    other = folders / "other.save"
    other.write_bytes(b"LibvirtQemudSave" + XML.replace(UUID.encode(), b"0" * 36))
    with open(other, "rb"):
        arrival = arrivals.take(parse(arrivals.announce("restore", XML, libvirtd)), libvirtd)
    assert arrival == arrivals.Arrival("restore", None)
