# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever bytes come in: a domain, or BadDomain. Whatever arguments: uses, or a word that they are not understood."""

from xml.sax.saxutils import quoteattr

import pytest

from vmguard._found import Found
from vmguard._qemuopts import split
from vmguard.domain import Access, Domain, HostPath, parse
from vmguard.errors import BadDomain
from vmguard.qemuargs import read_arguments

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

bounded = settings(max_examples=200, deadline=2000)

# Characters that XML allows and that its parser gives back unchanged from an attribute.
TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufffe\uffff"), max_size=30)
WORDS = (
    "file", "block", "dir", "network", "volume", "nvme", "vhostuser", "raw", "qcow2", "cdrom", "lun", "floppy", "pci",
    "usb", "scsi", "mdev", "scsi_host", "mount", "emulator", "passthrough", "random", "egd", "dev", "pipe", "iscsi",
    "rbd", "nbd", "unix", "optional", "yes", "no", "0", "1", "0x1f", "99999999999", "-1", "/a", "a", "", "efi",
    "pflash", "active-commit", "serial",
)  # fmt: skip
TAGS = (
    "disk", "source", "target", "driver", "backingStore", "dataStore", "mirror", "format", "readonly", "shareable",
    "hostdev", "address", "adapter", "host", "filesystem", "memory", "path", "serial", "console", "channel", "log",
    "tpm", "backend", "device", "rng", "rom", "lease", "key", "interface", "vendor", "product", "audio", "pstore",
    "warp", "snapshot", "smartcard", "database", "redirdev", "shmem", "emulator", "devices", "nvram", "loader", "os",
    "varstore",
)  # fmt: skip
KEYS = (
    "type", "device", "file", "dev", "dir", "name", "protocol", "pool", "volume", "path", "model", "mode",
    "startupPolicy", "id", "bus", "slot", "function", "domain", "unit", "port", "socket", "transport", "namespace",
    "fdgroup", "format", "job", "readonly", "firmware", "access", "logFile", "template",
)  # fmt: skip

values = st.one_of(st.sampled_from(WORDS), TEXT)


def written(tag, attributes, children, text):
    inside = "".join(children) + text
    return f"<{tag}{''.join(f' {key}={quoteattr(value)}' for key, value in attributes.items())}>{inside}</{tag}>"


elements = st.recursive(
    st.builds(
        written,
        st.sampled_from(TAGS),
        st.dictionaries(st.sampled_from(KEYS), values, max_size=4),
        st.just(()),
        st.sampled_from(("", "/p", "p")),
    ),
    lambda inner: st.builds(
        written,
        st.sampled_from(TAGS),
        st.dictionaries(st.sampled_from(KEYS), values, max_size=4),
        st.lists(inner, max_size=4),
        st.just(""),
    ),
    max_leaves=12,
)


@bounded
@given(st.binary(max_size=300))
def test_any_bytes(data):
    with pytest.raises(BadDomain):
        parse(data)


@bounded
@given(st.lists(elements, max_size=4), st.lists(elements, max_size=4))
def test_any_elements(devices, others):
    data = (
        f"<domain type='kvm'><name>x</name>{''.join(others)}<devices>{''.join(devices)}</devices></domain>"
    ).encode()
    found = parse(data)
    assert isinstance(found, Domain)
    labels = [use.what for use in found.uses]
    assert len(labels) == len(set(labels))
    hash(found)


@bounded
@given(st.binary(min_size=1, max_size=8), st.integers(0, 400), st.integers(0, 8))
def test_damaged_files(noise, at, gone):
    whole = (
        b"<domain type='kvm'><name>x</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809"
        b"</uuid><os><type>hvm</type></os><devices>"
        b"<disk type='file'><source file='/a'/><target dev='vda'/><backingStore type='block'><format type='raw'/>"
        b"<source dev='/b'/></backingStore></disk><hostdev type='pci'><source><address bus='1'/></source></hostdev>"
        b"</devices></domain>"
    )
    try:
        assert isinstance(parse(whole[:at] + noise + whole[at + gone :]), Domain)
    except BadDomain:
        pass


@bounded
@given(TEXT.filter(lambda text: text and not text.isspace()))
def test_a_path_comes_through_unchanged(text):
    disk = f"<disk><source file={quoteattr('/' + text)}/></disk>"
    data = f"<domain type='kvm'><name>x</name><devices>{disk}</devices></domain>"
    (use,) = parse(data.encode()).uses
    assert (use.location, use.access) == (HostPath("/" + text), Access.WRITE)


OPTIONS = (
    "-drive", "-blockdev", "-device", "-object", "-chardev", "-hda", "-cdrom", "-serial", "-fsdev", "-machine",
    "-set", "-global", "-append", "-unknown", "-S", "-snapshot", "--drive", "-tpmdev", "-trace", "-readconfig",
    "-acpitable", "-fw_cfg", "-", "",
)  # fmt: skip
PIECES = (
    "file", "file=", "driver=", "format=", "qcow2", "raw", "json:", "{", "}", '"', ":", ",", ",,", "=", ".", "/",
    "/a", "nbd:", "nbd://", "iscsi://", "rbd:", "host", "blkverify:", "fat:rw:", "filename", "node-name=", "n",
    "backing=", "data-file.", "read-only=on", "on", "no", "memory-backend-file", "mem-path=", "share=on", "vfio-pci",
    "host=", "01:00.0", "usb-host", "[", "]", "//", "?", "%",
)  # fmt: skip
arguments = st.one_of(
    st.sampled_from(OPTIONS), st.lists(st.sampled_from(PIECES), max_size=10).map("".join), st.text(max_size=20)
)


@bounded
@given(st.lists(arguments, max_size=8))
def test_any_arguments(words):
    found = Found()
    read_arguments([(word, 1) for word in words], found)
    labels = [use.what for use in found.uses]
    assert len(labels) == len(set(labels))


@bounded
@given(st.text(min_size=1, max_size=30).filter(lambda text: "\x00" not in text))
def test_a_file_name_survives_its_commas(text):
    value = "/" + text
    found = Found()
    read_arguments([("-drive", 0), ("format=raw,file=" + value.replace(",", ",,"), 0)], found)
    assert [use.location for use in found.uses] == [HostPath(value)]
    assert split(value.replace(",", ",,")) == [value]
