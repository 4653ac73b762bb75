# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every place where a domain names storage, and the ways in which its XML may be hostile."""

import sys

import pytest

from vmguard import domain
from vmguard._xml import MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS
from vmguard.domain import (
    Access,
    HostPath,
    NetworkVolume,
    NvmeNamespace,
    PciDevice,
    PoolVolume,
    ScsiUnit,
    UsbDevice,
    Use,
    parse,
)
from vmguard.errors import BadDomain

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
WRITE, SHARE, READ = Access.WRITE, Access.SHARE, Access.READ


def xml(devices="", rest="", os="", kind="kvm", name="guest", uuid=f"<uuid>{UUID}</uuid>"):
    return (
        f"<domain type='{kind}'>\n<name>{name}</name>{uuid}<os><type>hvm</type>{os}</os>{rest}"
        f"<devices>{devices}</devices></domain>"
    ).encode()


def uses(devices="", **kwargs):
    found = parse(xml(devices, **kwargs))
    assert found.not_understood == ()
    return {use.what: use for use in found.uses}


def only(devices="", **kwargs):
    found = uses(devices, **kwargs)
    assert len(found) == 1, found
    return next(iter(found.values()))


def disk(source, attributes="type='file'", more="", target="<target dev='vda'/>"):
    return f"<disk {attributes}>{source}{target}{more}</disk>"


PCI = "<address domain='0x0001' bus='0x02' slot='0x1f' function='0x7'/>"


@pytest.mark.parametrize(
    "device, what, location, access",
    [
        pytest.param(disk("<source file='/a'/>"), "disk vda", HostPath("/a"), WRITE, id="file"),
        pytest.param(disk("<source file='/a'/>", ""), "disk vda", HostPath("/a"), WRITE, id="file-without-type"),
        pytest.param(disk("<source file='a b'/>"), "disk vda", HostPath("/a b"), WRITE, id="relative"),
        pytest.param(
            disk("<source dev='/dev/v/l'/>", "type='block'"), "disk vda", HostPath("/dev/v/l"), WRITE, id="block"
        ),
        pytest.param(
            disk("<source dev='/dev/sda'/>", "type='block' device='lun'"),
            "disk vda",
            HostPath("/dev/sda"),
            WRITE,
            id="lun",
        ),
        pytest.param(disk("<source dir='/d'/>", "type='dir'"), "disk vda", HostPath("/d"), WRITE, id="dir"),
        pytest.param(disk("<source file='/a'/>", more="<readonly/>"), "disk vda", HostPath("/a"), READ, id="readonly"),
        pytest.param(
            disk("<source file='/a'/>", more="<shareable/>"), "disk vda", HostPath("/a"), SHARE, id="shareable"
        ),
        pytest.param(
            disk("<source file='/a'/>", more="<transient/>"), "disk vda", HostPath("/a"), WRITE, id="transient"
        ),
        pytest.param(
            disk("<source file='/a'/>", more="<transient shareBacking='yes'/>"),
            "disk vda",
            HostPath("/a"),
            READ,
            id="base-of-transient-disks",
        ),
        pytest.param(
            disk("<source file='/a.TRANSIENT-web1'/>", more="<transient shareBacking='yes'/>"),
            "disk vda",
            HostPath("/a.TRANSIENT-web1"),
            WRITE,
            id="overlay-of-a-transient-disk",
        ),
        pytest.param(
            disk("<source file='/a'/>", more="<shareable/><readonly/>"), "disk vda", HostPath("/a"), READ, id="both"
        ),
        pytest.param(
            disk("<source file='/a'/>", "type='file' device='cdrom'"), "disk vda", HostPath("/a"), READ, id="cdrom"
        ),
        pytest.param(
            disk("<source file='/a'/>", "type='file' device='floppy'"), "disk vda", HostPath("/a"), WRITE, id="floppy"
        ),
        pytest.param(
            disk("<source pool='p' volume='v' mode='direct'/>", "type='volume'"),
            "disk vda",
            PoolVolume("p", "v", "direct"),
            WRITE,
            id="volume",
        ),
        pytest.param(
            disk(f"<source type='pci' namespace='2'>{PCI}</source>", "type='nvme'"),
            "disk vda",
            NvmeNamespace("0001:02:1f.7", 2),
            WRITE,
            id="nvme",
        ),
        pytest.param(
            disk(
                "<source protocol='rbd' name='p/i'><host name='m1' port='6789'/><host name='::1' port='1'/>"
                "<snapshot name='s'/></source>",
                "type='network'",
            ),
            "disk vda",
            NetworkVolume("rbd", "p/i@s", ("m1:6789", "[::1]:1")),
            WRITE,
            id="rbd-snapshot",
        ),
        pytest.param(
            disk("<source protocol='nbd'><host transport='unix' socket='/s'/></source>", "type='network'"),
            "disk vda",
            NetworkVolume("nbd", "", ("unix:/s",)),
            WRITE,
            id="nbd-unix",
        ),
        pytest.param(
            f"<hostdev type='pci'><source>{PCI}</source></hostdev>",
            "hostdev 0",
            PciDevice("0001:02:1f.7"),
            WRITE,
            id="pci",
        ),
        pytest.param(
            "<hostdev type='pci'><source><address bus='10' slot='010' function='0'/></source></hostdev>",
            "hostdev 0",
            PciDevice("0000:0a:08.0"),
            WRITE,
            id="pci-decimal-and-octal",
        ),
        pytest.param(
            f"<interface type='hostdev'><source>{PCI}</source></interface>",
            "interface 0",
            PciDevice("0001:02:1f.7"),
            WRITE,
            id="interface",
        ),
        pytest.param(
            "<hostdev type='scsi'><source><adapter name='scsi_host3'/>"
            "<address bus='0' target='1' unit='2'/></source></hostdev>",
            "hostdev 0",
            ScsiUnit("scsi_host3", 0, 1, 2),
            WRITE,
            id="scsi",
        ),
        pytest.param(
            "<hostdev type='scsi'><source><adapter name='scsi_host3'/><address bus='0' target='1' unit='2'/></source>"
            "<shareable/></hostdev>",
            "hostdev 0",
            ScsiUnit("scsi_host3", 0, 1, 2),
            SHARE,
            id="scsi-shareable",
        ),
        pytest.param(
            "<hostdev type='scsi'><source protocol='iscsi' name='iqn.x/1'>"
            "<host name='h' port='3260'/></source><readonly/>"
            "</hostdev>",
            "hostdev 0",
            NetworkVolume("iscsi", "iqn.x/1", ("h:3260",)),
            READ,
            id="scsi-iscsi",
        ),
        pytest.param(
            "<hostdev type='usb'><source><vendor id='0x046D'/>"
            "<product id='0xc534'/><address bus='2' device='3'/></source></hostdev>",
            "hostdev 0",
            UsbDevice(2, 3, "0x046d", "0xc534"),
            WRITE,
            id="usb",
        ),
        pytest.param(
            "<filesystem type='mount'><source dir='/srv'/><target dir='t'/></filesystem>",
            "filesystem 0",
            HostPath("/srv"),
            SHARE,
            id="filesystem",
        ),
        pytest.param(
            "<filesystem><source dir='/srv'/><readonly/></filesystem>",
            "filesystem 0",
            HostPath("/srv"),
            READ,
            id="filesystem-ro",
        ),
        pytest.param(
            "<filesystem type='block'><source dev='/dev/v/l'/></filesystem>",
            "filesystem 0",
            HostPath("/dev/v/l"),
            WRITE,
            id="filesystem-block",
        ),
        pytest.param(
            "<memory model='nvdimm' access='shared'><source><path>/n</path></source></memory>",
            "memory 0",
            HostPath("/n"),
            WRITE,
            id="nvdimm",
        ),
        pytest.param(
            "<memory model='nvdimm' access='private'><source><path>/n</path></source></memory>",
            "memory 0",
            HostPath("/n"),
            READ,
            id="nvdimm-private",
        ),
        pytest.param(
            "<memory model='virtio-pmem' access='private'><source><path>/n</path></source></memory>",
            "memory 0",
            HostPath("/n"),
            WRITE,
            id="pmem-never-private",
        ),
        pytest.param(
            "<pstore backend='acpi-erst'><path>/p</path></pstore>", "pstore", HostPath("/p"), WRITE, id="pstore"
        ),
        pytest.param(
            "<serial type='file'><source path='/l'/></serial>", "serial 0", HostPath("/l"), WRITE, id="serial-file"
        ),
        pytest.param(
            "<parallel type='dev'><source path='/l'/></parallel>", "parallel 0", HostPath("/l"), WRITE, id="dev"
        ),
        pytest.param(
            "<channel type='file'><source path='/l'/></channel>", "channel 0", HostPath("/l"), WRITE, id="channel"
        ),
        pytest.param(
            "<console type='file'><source path='/l'/></console>", "console 0", HostPath("/l"), WRITE, id="console"
        ),
        pytest.param("<serial type='pty'><log file='/l'/></serial>", "serial 0, log", HostPath("/l"), WRITE, id="log"),
        pytest.param("<audio id='1' type='file' path='/w'/>", "audio 0", HostPath("/w"), WRITE, id="audio"),
        pytest.param(
            "<tpm><backend type='emulator'/></tpm>",
            "tpm state",
            HostPath(f"/var/lib/libvirt/swtpm/{UUID}"),
            WRITE,
            id="tpm-default",
        ),
        pytest.param(
            "<tpm><backend type='emulator'><source type='file' path='/t'/></backend></tpm>",
            "tpm state",
            HostPath("/t"),
            WRITE,
            id="tpm-source",
        ),
        pytest.param(
            "<tpm><backend type='passthrough'><device path='/dev/sda'/></backend></tpm>",
            "tpm",
            HostPath("/dev/sda"),
            WRITE,
            id="tpm-that-is-none",
        ),
        pytest.param(
            "<rng model='virtio'><backend model='random'>/r</backend></rng>", "rng 0", HostPath("/r"), READ, id="rng"
        ),
        pytest.param(
            "<rng model='virtio'><backend model='egd' type='file'><source path='/r'/></backend></rng>",
            "rng 0",
            HostPath("/r"),
            WRITE,
            id="rng-egd-file",
        ),
        pytest.param(
            "<interface type='user'><rom file='/r'/></interface>", "interface 0, rom", HostPath("/r"), READ, id="rom"
        ),
        pytest.param(
            "<interface type='user'><backend type='passt' logFile='/p'/></interface>",
            "interface 0, log",
            HostPath("/p"),
            WRITE,
            id="passt-log",
        ),
        pytest.param(
            "<lease><lockspace>ls</lockspace><key>k1</key><target path='/leases'/></lease>",
            "lease k1",
            HostPath("/leases"),
            SHARE,
            id="lease",
        ),
        pytest.param(
            "<smartcard mode='host-certificates'><database>/db</database></smartcard>",
            "smartcard 0, database",
            HostPath("/db"),
            READ,
            id="smartcard",
        ),
    ],
)
def test_device(device, what, location, access):
    use = only(device)
    assert (use.what, use.location, use.access) == (what, location, access)
    assert use.line == 2


@pytest.mark.parametrize(
    "os, expected",
    [
        pytest.param("<kernel>/k</kernel>", {"kernel": ("/k", READ)}, id="kernel"),
        pytest.param("<initrd>/i</initrd>", {"initrd": ("/i", READ)}, id="initrd"),
        pytest.param("<dtb>/d</dtb>", {"dtb": ("/d", READ)}, id="dtb"),
        pytest.param("<shim>/s</shim>", {"shim": ("/s", READ)}, id="shim"),
        pytest.param("<acpi><table type='slic'>/t</table></acpi>", {"acpi table": ("/t", READ)}, id="acpi"),
        pytest.param("<loader>/l</loader>", {"loader": ("/l", READ)}, id="rom"),
        pytest.param("<loader type='pflash' readonly='no'>/l</loader>", {"loader": ("/l", WRITE)}, id="pflash-written"),
        pytest.param("<loader type='pflash'>/l</loader>", {"loader": ("/l", WRITE)}, id="pflash-unsaid"),
        pytest.param(
            "<loader type='pflash' readonly='yes'>/l</loader><nvram template='/t'>/n</nvram>",
            {"loader": ("/l", READ), "nvram": ("/n", WRITE), "nvram template": ("/t", READ)},
            id="nvram",
        ),
        pytest.param(
            "<loader type='pflash' readonly='yes'>/l</loader>",
            {"loader": ("/l", READ), "nvram": ("/var/lib/libvirt/qemu/nvram/guest_VARS.fd", WRITE)},
            id="nvram-default",
        ),
        pytest.param(
            "<loader type='pflash' readonly='yes' stateless='yes'>/l</loader>", {"loader": ("/l", READ)}, id="stateless"
        ),
        pytest.param(
            "<nvram type='block'><source dev='/dev/v/n'/></nvram>", {"nvram": ("/dev/v/n", WRITE)}, id="nvram-source"
        ),
        pytest.param(
            "<varstore template='/t' path='/v'/>",
            {"varstore template": ("/t", READ), "varstore": ("/v", WRITE)},
            id="varstore",
        ),
        pytest.param(
            "<varstore/>", {"varstore": ("/var/lib/libvirt/qemu/varstore/guest.json", WRITE)}, id="varstore-default"
        ),
    ],
)
def test_boot(os, expected):
    found = uses(os=os)
    assert {what: (use.location.path, use.access) for what, use in found.items()} == expected


def test_firmware_that_libvirt_chooses_has_variables():
    data = xml().replace(b"<os>", b"<os firmware='efi'>")
    (use,) = parse(data).uses
    assert (use.what, use.location.path) == ("nvram", "/var/lib/libvirt/qemu/nvram/guest_VARS.fd")
    assert use.may_be_missing


def test_sysinfo_files():
    use = only(rest="<sysinfo type='fwcfg'><entry name='opt/x' file='/f'/></sysinfo>")
    assert (use.what, use.location.path, use.access) == ("fw_cfg opt/x", "/f", READ)


@pytest.mark.parametrize(
    "declared, form", [("raw", None), ("aio", None), ("qcow2", "qcow2"), ("vmdk", "vmdk"), ("new", "new")]
)
def test_format(declared, form):
    assert only(disk("<source file='/a'/>", more=f"<driver type='{declared}'/>")).format == form


def test_backing_chain_with_data_files():
    use = only(
        disk(
            "<source file='/top'><dataStore type='block'>"
            "<format type='raw'/><source dev='/dev/d0'/></dataStore></source>",
            more="<driver type='qcow2'/><backingStore type='block'><format type='qcow2'/><source dev='/dev/b1'>"
            "<dataStore type='file'><source file='/d1'/></dataStore></source>"
            "<backingStore type='file'><format type='raw'/>"
            "<source file='/b2'/><backingStore/></backingStore></backingStore>",
        )
    )
    first, data = use.backing
    assert (data.what, data.location.path, data.access) == ("disk vda, data file", "/dev/d0", WRITE)
    assert (first.what, first.location.path, first.access, first.format) == (
        "disk vda, backing file 1", "/dev/b1", READ, "qcow2",
    )  # fmt: skip
    second, first_data = first.backing
    assert (first_data.location.path, first_data.access) == ("/d1", READ)
    assert (second.what, second.location.path, second.format, second.backing) == (
        "disk vda, backing file 2", "/b2", None, (),
    )  # fmt: skip
    assert (use.chain_ends, first.chain_ends, second.chain_ends) == (False, False, True)


def test_chain_that_ends_at_once():
    use = only(disk("<source file='/a'/>", more="<driver type='qcow2'/><backingStore/>"))
    assert use.chain_ends and use.backing == ()


def test_a_chain_as_deep_as_libvirt_allows():
    # libvirt's own limit is 200.
    opening = "<backingStore type='file'><format type='qcow2'/><source file='/b'/>"
    use = only(disk("<source file='/a'/>", more=opening * 200 + "<backingStore/>" + "</backingStore>" * 200))
    depth = 0
    while use.backing:
        (use,) = use.backing
        depth += 1
    assert depth == 200 and use.chain_ends and use.what == "disk vda, backing file 200"


@pytest.mark.parametrize(
    "mirror",
    [
        "<mirror file='/m' format='qcow2'/>",
        "<mirror type='file' file='/old' format='raw' job='copy'><format type='qcow2'/><source file='/m'/></mirror>",
    ],
    ids=["old", "new"],
)
def test_mirror_is_written(mirror):
    found = uses(disk("<source file='/a'/>", more="<readonly/>" + mirror))
    assert found["disk vda, mirror"][1:4] == (HostPath("/m"), WRITE, "qcow2")
    assert found["disk vda"].access is READ


def test_a_commit_writes_the_backing_file():
    use = only(
        disk(
            "<source file='/a'/>",
            more="<driver type='qcow2'/><backingStore type='file'>"
            "<format type='raw'/><source file='/b'/></backingStore>"
            "<mirror type='file' job='active-commit'><format type='raw'/><source file='/b'/></mirror>",
        )
    )
    assert use.backing[0].access is WRITE


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(disk("", "type='file' device='cdrom'"), id="cdrom-empty"),
        pytest.param(disk("<source startupPolicy='optional'/>", "type='block' device='cdrom'"), id="cdrom-no-path"),
        pytest.param(disk("<source file=''/>", "type='file' device='cdrom'"), id="cdrom-bogus-path"),
        pytest.param("<serial type='pty'><source path='/dev/pts/3'/></serial>", id="pty"),
        pytest.param("<channel type='unix'><source mode='bind' path='/s'/></channel>", id="unix"),
        pytest.param("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>", id="urandom"),
        pytest.param("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", id="tpm"),
        pytest.param("<input type='evdev'><source dev='/dev/input/event1'/></input>", id="evdev"),
        pytest.param("<hostdev type='mdev' model='vfio-pci'><source><address uuid='x'/></source></hostdev>", id="mdev"),
        pytest.param("<shmem name='s'/>", id="shmem"),
        pytest.param(
            "<controller type='scsi'/><memballoon model='virtio'/><video/><sound model='ich9'/>", id="harmless"
        ),
        pytest.param("<filesystem><source socket='/s'/></filesystem>", id="external-virtiofsd"),
        pytest.param("<x:disk xmlns:x='urn:x'><source file='/a'/></x:disk>", id="foreign-namespace"),
    ],
)
def test_no_storage(device):
    assert uses(device) == {}


@pytest.mark.parametrize(
    "device, what",
    [
        pytest.param(disk("<source type='unix' path='/s'/>", "type='vhostuser'"), "disk vda", id="vhostuser"),
        pytest.param(disk("<source dev='/dev/vhost-vdpa-0'/>", "type='vhostvdpa'"), "disk vda", id="vhostvdpa"),
        pytest.param(disk("<source blob='/s'/>", "type='blob'"), "disk vda", id="unknown-type"),
        pytest.param(disk("<source file='/a'/>", "type='block'"), "disk vda", id="path-of-another-type"),
        pytest.param(disk("<source file='/a' fdgroup='g'/>"), "disk vda", id="fdgroup"),
        pytest.param(disk("<source pool='p'/>", "type='volume'"), "disk vda", id="half-a-volume"),
        pytest.param(disk("<source protocol='rbd'/>", "type='network'"), "disk vda", id="rbd-without-name"),
        pytest.param(disk("<source type='pci' namespace='x'/>", "type='nvme'"), "disk vda", id="bad-nvme"),
        pytest.param(
            "<hostdev type='pci'><source><address bus='0x100'/></source></hostdev>", "hostdev 0", id="bad-pci"
        ),
        pytest.param("<hostdev type='pci'/>", "hostdev 0", id="no-source"),
        pytest.param("<hostdev type='scsi_host'><source wwpn='naa.5'/></hostdev>", "hostdev 0", id="vhost-scsi"),
        pytest.param(
            "<hostdev type='mdev' model='vfio-ccw'><source><address uuid='x'/></source></hostdev>",
            "hostdev 0",
            id="channel-device",
        ),
        pytest.param("<hostdev type='scsi'><source/></hostdev>", "hostdev 0", id="bad-scsi"),
        pytest.param("<hostdev type='usb'><source/></hostdev>", "hostdev 0", id="bad-usb"),
        pytest.param("<hostdev type='warp'><source/></hostdev>", "hostdev 0", id="unknown-hostdev"),
        pytest.param("<hostdev mode='capabilities' type='storage'><source/></hostdev>", "hostdev 0", id="capabilities"),
        pytest.param("<tpm><backend type='warp'/></tpm>", "tpm", id="unknown-tpm"),
        pytest.param("<warp><source at='/w'/></warp>", "device <warp>", id="unknown-device"),
        pytest.param("<filesystem type='warp'><source at='/w'/></filesystem>", "filesystem 0", id="unknown-filesystem"),
    ],
)
def test_not_understood_is_said(device, what):
    found = parse(xml(device))
    assert [one.what for one in found.not_understood] == [what]
    assert found.not_understood[0].line == 2


def test_only_the_unknown_that_names_a_path_is_a_riddle():
    found = parse(xml("<warp speed='9'/>"))
    assert found.not_understood == () and [one.what for one in found.remarks] == ["device <warp>"]


def test_first_console_is_the_first_serial_port():
    twice = "<source path='/l'/><target port='0'/>"
    console = "<console type='file'><source path='/l'/><target type='serial' port='0'/></console>"
    assert list(uses(f"<serial type='file'>{twice}</serial>{console}")) == ["serial 0"]
    assert list(uses(f"{console}<serial type='file'>{twice}</serial>")) == ["serial 0"]


def test_other_consoles_count():
    found = uses(
        "<serial type='file'><source path='/l'/></serial>"
        "<console type='file'><source path='/l'/><target type='serial'/></console>"
        "<console type='file'><source path='/c'/><target type='virtio'/></console>"
    )
    assert {use.location.path for use in found.values()} == {"/l", "/c"}


def test_pipe_may_be_any_of_three():
    found = uses("<serial type='pipe'><source path='/p'/></serial>")
    assert {use.location.path for use in found.values()} == {"/p", "/p.in", "/p.out"}
    assert all(use.access is WRITE and use.may_be_missing for use in found.values())


@pytest.mark.parametrize(
    "device",
    [
        disk("<source dev='/dev/sda'/>", "type='block' device='lun'", more="<readonly/>"),
        "<hostdev type='scsi'><source><adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/></source>"
        "<readonly/></hostdev>",
    ],
    ids=["lun", "hostdev"],
)
def test_a_unit_is_written_by_whoever_sends_it_any_command(device):
    raw = "<hostdev type='scsi' rawio='yes'><source protocol='iscsi' name='iqn.x/1'/></hostdev>"
    assert only(device).access is READ
    assert {use.access for use in uses(device + raw).values()} == {WRITE}
    (image, _) = uses(disk("<source file='/a'/>", more="<readonly/>") + raw).values()
    assert image.access is READ


@pytest.mark.parametrize("policy, missing", [("optional", True), ("requisite", True), ("mandatory", False)])
def test_startup_policy(policy, missing):
    use = only(disk(f"<source file='/a' startupPolicy='{policy}'/>", "type='file' device='cdrom'"))
    assert use.may_be_missing is missing


def test_labels_are_unique():
    same = disk(
        "<source file='/a'/>", more="<backingStore type='file'><format type='raw'/><source file='/b'/></backingStore>"
    )
    found = parse(xml(same * 3))
    assert [use.what for use in found.uses] == ["disk vda", "disk vda (2)", "disk vda (3)"]
    assert [use.backing[0].what for use in found.uses][1] == "disk vda (2), backing file 1"


def test_several_devices_elements_count():
    data = xml(disk("<source file='/a'/>")).replace(
        b"</domain>", b"<devices><disk><source file='/b'/><target dev='vdb'/></disk></devices></domain>"
    )
    assert [use.location.path for use in parse(data).uses] == ["/a", "/b"]


def test_an_attribute_in_a_namespace_is_read_as_libvirt_reads_it():
    use = only(disk("<source xmlns:x='urn:x' x:file='/a'/>"))
    assert use.location == HostPath("/a")


def test_a_comment_does_not_split_a_path():
    assert only(os="<kernel>/k<!-- - -->/l<![CDATA[&]]></kernel>").location == HostPath("/k/l&")


def test_overrides():
    found = parse(
        xml(
            rest="<q:override xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:device alias='a'><q:frontend>"
            "<q:property name='drive' type='string' value='other'/>"
            "<q:property name='x' type='string' value='/dev/sda'/>"
            "<q:property name='y' type='bool' value='true'/></q:frontend></q:device></q:override>"
        )
    )
    assert [one.what for one in found.not_understood] == ["qemu override drive", "qemu override x"]
    assert [one.what for one in found.remarks] == ["qemu override y"]


@pytest.mark.parametrize("name", ["a b", 'it\'s "q"', "Größe", "two\nlines", "x" * 255, " lead", "日本語", "a&amp;b"])
def test_names_are_kept(name):
    assert parse(xml(name=name)).name == name.replace("&amp;", "&")


@pytest.mark.parametrize(
    "written", [UUID, UUID.upper(), UUID.replace("-", ""), f"  {UUID}\n"], ids=["plain", "upper", "bare", "blanks"]
)
def test_uuid(written):
    assert parse(xml(uuid=f"<uuid>{written}</uuid>")).uuid == UUID


def test_without_uuid():
    found = parse(xml("<tpm><backend type='emulator'/></tpm>", uuid=""))
    assert found.uuid == "" and found.uses == ()
    assert [one.what for one in found.remarks] == ["tpm state"]


def test_status_file():
    data = b"<domstatus state='running'>" + xml(disk("<source file='/a'/>")) + b"</domstatus>"
    assert parse(data).name == "guest"


@pytest.mark.parametrize("kind", ["kvm", "qemu", "hvf"])
def test_kinds_of_qemu(kind):
    assert parse(xml(kind=kind)).name == "guest"


DEEP = b"<a>" * (MAX_DEPTH + 1) + b"</a>" * (MAX_DEPTH + 1)
ENTITIES = b"<!DOCTYPE domain [<!ENTITY a 'b'>]>"


@pytest.mark.parametrize(
    "data, why",
    [
        pytest.param(b"", "not well-formed", id="empty"),
        pytest.param(b"<domain", "not well-formed", id="torn"),
        pytest.param(xml()[:-3], "not well-formed", id="torn-end"),
        pytest.param(xml().replace(b"guest", b"gu\x00est"), "not well-formed", id="nul"),
        pytest.param(xml().replace(b"guest", b"gu\xffest"), "not well-formed", id="not-utf8"),
        pytest.param(b"<?xml version='1.0' encoding='warp'?>" + xml(), "", id="unknown-encoding"),
        pytest.param(b"<?xml version='1.0' encoding='idna'?>" + xml(), "", id="odd-codec"),
        pytest.param(b"<?xml version='1.0' encoding='rot13'?>" + xml(), "", id="codec-of-text"),
        pytest.param(b"<?xml version='1.0' encoding='utf-32'?>" + xml(), "", id="wide-codec"),
        pytest.param(ENTITIES + xml(name="&a;"), "document type", id="entity"),
        pytest.param(b"<!DOCTYPE domain SYSTEM 'file:///etc/passwd'>" + xml(), "document type", id="external"),
        pytest.param(xml(name="&undefined;"), "not well-formed", id="undefined-entity"),
        pytest.param(xml(rest="x" * MAX_BYTES), "4 MiB", id="large"),
        pytest.param(DEEP, "too deep", id="deep"),
        pytest.param(b"<domain>" + b"<a/>" * MAX_ELEMENTS + b"</domain>", "too many", id="many"),
        pytest.param(b"<network><name>x</name></network>", "not a <domain>", id="network"),
        pytest.param(b"<domainsnapshot>" + xml() + b"</domainsnapshot>", "not a <domain>", id="snapshot"),
        pytest.param(b"<domstatus/>", "without a domain", id="status-only"),
        pytest.param(xml().replace(b"<domain ", b"<domain xmlns='urn:x' "), "not a <domain>", id="other-namespace"),
        pytest.param(xml(kind="lxc"), "not run by QEMU", id="lxc"),
        pytest.param(xml(kind="xen"), "not run by QEMU", id="xen"),
        pytest.param(b"<domain><name>x</name></domain>", "not run by QEMU", id="no-kind"),
        pytest.param(xml(name=""), "no name", id="no-name"),
        pytest.param(xml(name="../x"), "slash", id="slash"),
        pytest.param(xml(uuid="<uuid>c7a5</uuid>"), "malformed", id="short-uuid"),
        pytest.param(xml(uuid="<uuid>c7a5fdbd-edaf-9455-926a-d65c16db180z</uuid>"), "malformed", id="bad-uuid"),
        pytest.param(xml(uuid="<uuid>" + "٣" * 32 + "</uuid>"), "malformed", id="uuid-of-other-digits"),
    ],
)
def test_refused(data, why):
    with pytest.raises(BadDomain) as caught:
        parse(data)
    assert why in caught.value.why


def test_a_refusal_knows_its_line():
    with pytest.raises(BadDomain) as caught:
        parse(b"<domain type='kvm'>\n<name>x</name>\n<uuid>y</uuid></domain>")
    assert caught.value.line == 3


def test_types_stay_a_contract():
    assert Use._fields == (
        "what", "location", "access", "format", "backing", "chain_ends", "may_be_missing", "host_cached", "line",
    )  # fmt: skip
    assert domain.Domain._fields == ("name", "uuid", "uses", "not_understood", "remarks", "arrival")


def test_nothing_slow_is_imported():
    import subprocess

    program = (
        "import sys; from vmguard.domain import parse; import vmguard.qemuargs;"
        "parse(b'<domain type=\"kvm\"><name>x</name><devices/></domain>');"
        "slow = {'dataclasses', 'argparse', 'lxml', 'subprocess', 'pathlib', 'logging', 'tempfile', 'shutil',"
        " 'inspect', 'asyncio', 'urllib.parse'}; print(sorted(slow & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
