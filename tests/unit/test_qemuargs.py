# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the arguments that libvirt hands on unread name."""

import json

import pytest

from vmguard._found import Found
from vmguard._qemuopts import BadOptions, from_json, split, tree
from vmguard.domain import Access, HostPath, NetworkVolume, NvmeNamespace, PciDevice, UsbDevice, parse
from vmguard.qemuargs import read_arguments

WRITE, SHARE, READ = Access.WRITE, Access.SHARE, Access.READ


def read(*words):
    found = Found()
    read_arguments([(word, 0) for word in words], found)
    return found


def triples(*words):
    found = read(*words)
    assert found.not_understood == []
    return [(use.location, use.access, use.format) for use in found.uses]


def path(where, access=WRITE, form="auto"):
    return [(HostPath(where), access, form)]


def net(protocol, name, *hosts, access=WRITE, form="auto"):
    return [(NetworkVolume(protocol, name, hosts), access, form)]


@pytest.mark.parametrize(
    "value, expected",
    [
        ("file=/a,if=virtio,format=raw", path("/a", form=None)),
        ("file=/a,format=qcow2", path("/a", form="qcow2")),
        ("file=/a", path("/a")),
        ("if=none,file=rel.img", path("/rel.img")),
        ("file=/a,,b,format=raw", path("/a,b", form=None)),
        ("file=/a=b", path("/a=b")),
        ("file=/a,file=/b", path("/b")),
        ("file=/a:b", path("/a:b")),
        ("file=/a,readonly=on", path("/a", READ)),
        ("file=/a,readonly", path("/a", READ)),
        ("file=/a,readonly=1", path("/a")),
        ("file=/a,readonly=on,readonly=off", path("/a")),
        ("file=/a,readonly=off,readonly=on", path("/a")),
        ("file=/a,readonly=off,read-only=on", path("/a")),
        ("file=/a,media=disk,media=cdrom", path("/a")),
        ("file=/a,read-only=on", path("/a", READ)),
        ("file=/a,media=cdrom", path("/a", READ)),
        ("file=/a,snapshot=on", path("/a")),
        ("file=/a,file.locking=off", path("/a")),
        ("file.locking=off,file=/a,format=qcow2", path("/a", form="qcow2")),
        ("file.filename=/a,file.driver=file,driver=qcow2", path("/a", form="qcow2")),
        ("file.filename=nbd:x", path("/nbd:x")),
        ("driver=host_device,file=/dev/sda", path("/dev/sda")),
        ("driver=raw,file.driver=host_device,file.filename=/dev/sda", path("/dev/sda", form=None)),
        ("driver=raw,file.driver=qcow2,file.file.driver=file,file.file.filename=/a", path("/a", form="qcow2")),
        ("driver=throttle,file.driver=qcow2,file.file.filename=/a", path("/a", form="qcow2")),
        ("file=file:/a", path("/a")),
        ("file=file:///a", path("/a")),
        ("file=host_device:/dev/sda", path("/dev/sda")),
        ("file=fat:/d", path("/d", READ, None)),
        ("file=fat:floppy:rw:/d", path("/d", WRITE, None)),
        ("file=blkdebug:/conf:/a", path("/a")),
        ('file=json:{"driver":"qcow2",,"file":{"driver":"file",,"filename":"/a"}}', path("/a", form="qcow2")),
        ('file=json:{"driver":"raw",,"file.driver":"file",,"file.filename":"/a"}', path("/a", form=None)),
        ("file=rbd:pool/image:id=admin:mon_host=m", net("rbd", "pool/image")),
        (r"file=rbd:pool/a\:b:id=admin", net("rbd", "pool/a:b")),
        ("file=nbd:host:10809:exportname=e", net("nbd", "e", "host:10809")),
        ("file=nbd:unix:/s:exportname=e", net("nbd", "e", "unix:/s")),
        ("file=nbd://host:10809/e", net("nbd", "e", "host:10809")),
        ("file=nbd+unix:///e?socket=/s", net("nbd", "e", "unix:/s")),
        ("file=iscsi://u%p@host:3260/iqn.x/1", net("iscsi", "iqn.x/1", "host:3260")),
        ("file=gluster+tcp://host/vol/a", net("gluster", "vol/a", "host")),
        ("file=nfs://host/export/a", net("nfs", "/export/a", "host")),
        ("file=ssh://u@host/a", net("ssh", "/a", "host")),
        ("file=https://[::1]:81/a", net("https", "/a", "[::1]:81")),
        ("driver=nbd,host=h,port=1,export=e", net("nbd", "e", "h:1")),
        ("driver=rbd,pool=p,image=i,server.0.host=m,server.0.port=1", net("rbd", "p/i", "m:1")),
        ("file=nvme://0000:01:00.0/2", [(NvmeNamespace("0000:01:00.0", 2), WRITE, "auto")]),
        ("if=none,id=cd,media=cdrom", []),
        ("file=null-co://,format=raw", []),
    ],
)
def test_drive(value, expected):
    assert triples("-drive", value) == expected
    assert triples("--drive", value) == expected


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"driver": "file", "filename": "/a", "node-name": "n"}, path("/a", form=None)),
        ({"driver": "file", "filename": "/a", "read-only": True}, path("/a", READ, None)),
        ({"driver": "qcow2", "file": {"driver": "file", "filename": "/a"}}, path("/a", form="qcow2")),
        ({"driver": "host_device", "filename": "/dev/sda"}, path("/dev/sda", form=None)),
        (
            {"driver": "nbd", "server": {"type": "unix", "path": "/s"}, "export": "e"},
            net("nbd", "e", "unix:/s", form=None),
        ),
        (
            {"driver": "nbd", "server": {"type": "inet", "host": "h", "port": "1"}},
            net("nbd", "", "h:1", form=None),
        ),
        (
            {"driver": "iscsi", "transport": "tcp", "portal": "h:3260", "target": "iqn.x", "lun": 1},
            net("iscsi", "iqn.x/1", "h:3260", form=None),
        ),
        (
            {"driver": "gluster", "volume": "v", "path": "/a", "server": [{"type": "inet", "host": "h", "port": "1"}]},
            net("gluster", "v/a", "h:1", form=None),
        ),
        ({"driver": "nfs", "server": {"type": "inet", "host": "h"}, "path": "/x"}, net("nfs", "/x", "h", form=None)),
        ({"driver": "rbd", "pool": "p", "namespace": "n", "image": "i"}, net("rbd", "p/n/i", form=None)),
        ({"driver": "https", "url": "https://h/a"}, net("https", "/a", "h", form=None)),
        (
            {"driver": "nvme", "device": "0000:01:00.0", "namespace": 1},
            [(NvmeNamespace("0000:01:00.0", 1), WRITE, None)],
        ),
        ({"driver": "vvfat", "dir": "/d", "rw": True}, path("/d", WRITE, None)),
        ({"driver": "null-co"}, []),
        (
            {
                "driver": "quorum",
                "children": [{"driver": "file", "filename": "/a"}, {"driver": "file", "filename": "/b"}],
            },
            path("/a", form=None) + path("/b", form=None),
        ),
        (
            {
                "driver": "blklogwrites",
                "file": {"driver": "file", "filename": "/a"},
                "log": {"driver": "file", "filename": "/l"},
            },
            path("/a", form=None) + path("/l", form=None),
        ),
        (
            {
                "driver": "luks",
                "file": {"driver": "file", "filename": "/a"},
                "header": {"driver": "file", "filename": "/h"},
            },
            path("/a", form="luks"),
        ),
    ],
    ids=lambda value: value.get("driver") if isinstance(value, dict) else None,
)
def test_blockdev(options, expected):
    assert triples("-blockdev", json.dumps(options)) == expected


def test_blockdev_keys():
    expected = path("/a,b", form="qcow2")
    assert triples("-blockdev", "qcow2,node-name=n,file.driver=file,file.filename=/a,,b") == expected


def test_nodes_are_read_where_they_are_used():
    found = read(
        "-blockdev", "driver=file,node-name=base,filename=/base",
        "-blockdev", "driver=file,node-name=top,filename=/top",
        "-blockdev", "driver=raw,node-name=basefmt,file=base",
        "-blockdev", "driver=qcow2,node-name=fmt,file=top,backing=basefmt",
        "-device", "virtio-blk-pci,drive=fmt",
    )  # fmt: skip
    assert found.not_understood == []
    (use,) = found.uses
    assert (use.what, use.location, use.access, use.format) == ("qemu argument 7", HostPath("/top"), WRITE, "qcow2")
    assert use.chain_ends
    (base,) = use.backing
    assert (base.location, base.access, base.format) == (HostPath("/base"), READ, None)


def test_no_node_hides_behind_a_word_that_is_no_reference():
    found = read("-blockdev", "file,node-name=unmap,filename=/a", "-blockdev", "null-co,node-name=n,discard=unmap")
    assert [use.location for use in found.uses] == [HostPath("/a")]


def test_a_ring_of_nodes_is_no_hiding_place():
    found = read("-blockdev", "raw,node-name=a,file=b", "-blockdev", "raw,node-name=b,file=a")
    assert found.uses == [] and len(found.not_understood) == 2


def test_many_ways_to_one_node_come_to_an_end():
    words = []
    for order in range(60):
        words += ["-blockdev", f"blkverify,node-name=n{order},test=n{order + 1},raw=n{order + 1}"]
    words += ["-blockdev", "file,node-name=n60,filename=/a"]
    assert read(*words).not_understood


def test_data_file_is_written():
    value = {"driver": "qcow2", "file": {"driver": "file", "filename": "/a"}, "backing": None,
             "data-file": {"driver": "file", "filename": "/d"}}  # fmt: skip
    (use,) = read("-blockdev", json.dumps(value)).uses
    assert use.chain_ends
    assert [(one.location, one.access) for one in use.backing] == [(HostPath("/d"), WRITE)]


@pytest.mark.parametrize(
    "words, expected",
    [
        (("-hda", "/a,b"), path("/a,b")),
        (("-hdd", "/a"), path("/a")),
        (("-cdrom", "/a"), path("/a", READ)),
        (("-fda", "fat:rw:/d"), path("/d", WRITE, None)),
        (("-mtdblock", "/a"), path("/a")),
        (("-pflash", "/a"), path("/a")),
        (("-sd", "/a"), path("/a")),
        (("/a",), path("/a")),
        (("-S", "/a"), path("/a")),
        (("-snapshot", "/a"), path("/a")),
        (("-append", "-drive", "/a"), path("/a")),
        (("-append", "root=/dev/vda"), []),
        (("-hda", ""), []),
        (("-kernel", "/k"), path("/k", READ, None)),
        (("-initrd", "/k"), path("/k", READ, None)),
        (("-dtb", "/k"), path("/k", READ, None)),
        (("-bios", "/k"), path("/k", READ, None)),
        (("-bios", "bios.bin"), []),
        (("-M", "q35,kernel=/k"), path("/k", READ, None)),
        (("-machine", "pc,dumpdtb=/k"), path("/k", WRITE, None)),
        (("-acpitable", "file=/t"), path("/t", READ, None)),
        (("-acpitable", "sig=A,data=/t:/u"), path("/t", READ, None) + path("/u", READ, None)),
        (("-smbios", "file=/t"), path("/t", READ, None)),
        (("-fw_cfg", "name=opt/x,file=/t"), path("/t", READ, None)),
        (("-fw_cfg", "opt/x,file=/t"), path("/t", READ, None)),
        (("-fw_cfg", "opt/x,string=/t"), []),
        (("-D", "/l"), path("/l", WRITE, None)),
        (("-pidfile", "/l"), path("/l", WRITE, None)),
        (("-trace", "ev*,file=/l"), path("/l", WRITE, None)),
        (("-icount", "shift=7,rr=record,rrfile=/l"), path("/l", WRITE, None)),
        (("-audiodev", "wav,id=a,path=/l"), path("/l", WRITE, None)),
        (("-tpmdev", "passthrough,id=t,path=/dev/sda"), path("/dev/sda", WRITE, None)),
        (("-serial", "file:/l"), path("/l", WRITE, None)),
        (("-serial", "mon:file:/l"), path("/l", WRITE, None)),
        (("-serial", "/dev/sda"), path("/dev/sda", WRITE, None)),
        (("-parallel", "/dev/sda"), path("/dev/sda", WRITE, None)),
        (("-monitor", "file:/l"), path("/l", WRITE, None)),
        (("-qmp", "unix:/s,server=on"), []),
        (("-debugcon", "file:/l"), path("/l", WRITE, None)),
        (("-serial", "stdio"), []),
        (("-chardev", "file,id=c,path=/l"), path("/l", WRITE, None)),
        (("-chardev", "file,id=c,path=/l,input-path=/i"), path("/l", WRITE, None) + path("/i", READ, None)),
        (("-chardev", "null,id=c,logfile=/l"), path("/l", WRITE, None)),
        (("-chardev", "serial,id=c,path=/dev/sda"), path("/dev/sda", WRITE, None)),
        (("-chardev", "socket,id=c,path=/s"), []),
        (("-object", "memory-backend-file,id=m,mem-path=/m,share=on,size=1M"), path("/m", WRITE, None)),
        (("-object", "memory-backend-file,id=m,mem-path=/m,share=on,readonly=on"), path("/m", READ, None)),
        (("-object", "memory-backend-file,id=m,mem-path=/m,size=1M"), path("/m", READ, None)),
        (
            ("-object", '{"qom-type":"memory-backend-file","id":"m","mem-path":"/m","share":true}'),
            path("/m", WRITE, None),
        ),
        (("-object", "memory-backend-file,id=m,mem-path=/dev/hugepages,share=on"), []),
        (
            ("-object", "memory-backend-file,id=m,mem-path=/dev/shm/../sda,share=on"),
            path("/dev/shm/../sda", WRITE, None),
        ),
        (("-object", "secret,id=s,file=/k"), path("/k", READ, None)),
        (("-object", "filter-dump,id=f,netdev=n,file=/p"), path("/p", WRITE, None)),
        (("-object", "iothread,id=i"), []),
        (("-mem-path", "/m"), path("/m", READ, None)),
        (("-virtfs", "local,path=/d,mount_tag=t,security_model=none"), path("/d", SHARE, None)),
        (("-fsdev", "local,id=f,path=/d,security_model=none,readonly=on"), path("/d", READ, None)),
        (("-device", "vfio-pci,host=01:00.0"), [(PciDevice("0000:01:00.0"), WRITE, None)]),
        (("-device", '{"driver":"vfio-pci","host":"0000:01:00.0"}'), [(PciDevice("0000:01:00.0"), WRITE, None)]),
        (
            ("-device", "vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:01:00.0"),
            [(PciDevice("0000:01:00.0"), WRITE, None)],
        ),
        (("-device", "vfio-pci,sysfsdev=/sys/bus/mdev/devices/x"), []),
        (("-device", "usb-host,hostbus=1,hostaddr=2"), [(UsbDevice(1, 2), WRITE, None)]),
        (("-device", "usb-host,hostdevice=/dev/bus/usb/001/010"), [(UsbDevice(1, 10), WRITE, None)]),
        (("-device", "usb-host,vendorid=0x46d,productid=0xc534"), [(UsbDevice(0, 0, "0x046d", "0xc534"), WRITE, None)]),
        (("-device", "usb-mtp,rootdir=/d"), path("/d", SHARE, None)),
        (("-device", "loader,file=/k"), path("/k", READ, None)),
        (("-device", "virtio-net-pci,netdev=n,romfile=/r"), path("/r", READ, None)),
        (("-device", "virtio-blk-pci,drive=d,serial=/x"), []),
        (("-device", "ivshmem-plain,memdev=m"), []),
        (("-netdev", "tap,id=n,script=/etc/qemu-ifup"), []),
        (("-global", "isa-fdc.driveA=d"), []),
        (("-set", "device.x.prop=1"), []),
        (("-incoming", "defer"), []),
        (("-unknown", "parameter"), []),
        (("-unknown", "-hda", "/a"), path("/a")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_arguments(words, expected):
    assert triples(*words) == expected


@pytest.mark.parametrize(
    "words",
    [
        ("-readconfig", "/c"),
        ("-set", "drive.d.file=/a"),
        ("-set", "blockdev.d.x=y"),
        ("-global", "x.y=/dev/sda"),
        ("-unknown", "/a"),
        ("-unknown=/a",),
        ("-drive", "file=warp:/a"),
        ("-drive", "file=json:{'driver':'file'}"),
        ("-drive", "file=json:[1]"),
        ("-drive", 'file=json:{"driver":"file",,"driver":"null-co"}'),
        ("-drive", "file=" + "json:" + '{"a":' * 100_000),
        ("-drive", "file=blkdebug:/conf"),
        ("-drive", "file=iscsi:target"),
        ("-drive", "driver=nvme,device=x,namespace=1"),
        ("-drive", "file=nbd://host:port/e"),
        ("-drive", "file.foo=/a"),
        ("-drive", ".".join(["file"] * 200) + "=x"),
        ("-blockdev", "node-name=x"),
        ("-blockdev", "warp,filename=/a"),
        ("-blockdev", "virtio-blk-vhost-user,path=/s"),
        ("-blockdev", "qcow2,node-name=x"),
        ("-blockdev", "{"),
        ("-device", "vhost-scsi-pci,wwpn=naa.5"),
        ("-device", "vhost-user-blk-pci,chardev=c"),
        ("-device", "vhost-vdpa-device,vhostdev=/dev/vhost-vdpa-0"),
        ("-device", "vfio-ccw,sysfsdev=/sys/bus/mdev/devices/x"),
        ("-device", '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/s"}}'),
        ("-device", "vfio-pci,host=x"),
        ("-device", "usb-host,hostport=1"),
        ("-device", "warp,file=/a"),
        ("-object", "warp,path=/a"),
        ("-chardev", "warp,id=c,path=/a"),
        ("-serial", "warp:/a"),
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_not_understood_is_said(words):
    found = read(*words)
    assert found.uses == []
    assert len(found.not_understood) == 1
    assert found.not_understood[0].what.startswith("qemu argument 1 (-")


@pytest.mark.parametrize("option", ["incoming", "loadvm", "plugin", "chroot", "add-fd"])
def test_worth_a_word(option):
    found = read(f"-{option}", "x")
    assert found.uses == [] and found.not_understood == []
    assert [one.what for one in found.remarks] == [f"qemu argument 1 (-{option})"]


def test_pipe():
    found = read("-chardev", "pipe,id=c,path=/p")
    assert {use.location.path for use in found.uses} == {"/p", "/p.in", "/p.out"}


def test_in_a_domain():
    data = b"""<domain type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><name>g</name>
    <q:commandline><q:arg value='-drive'/>
    <q:arg value='file=/a,format=raw'/>
    <q:env name='LD_PRELOAD' value='/x.so'/><q:env name='A' value='1'/></q:commandline>
    <commandline><arg value='-hda'/><arg value='/not-in-the-namespace'/></commandline>
    <commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-hdb'/><arg value='/b'/></commandline>
    </domain>"""
    found = parse(data)
    assert [(use.what, use.location.path, use.line) for use in found.uses] == [
        ("qemu argument 1", "/a", 2),
        ("qemu argument 3", "/b", 6),
    ]
    assert [one.what for one in found.not_understood] == ["qemu environment LD_PRELOAD"]
    assert [one.what for one in found.remarks] == ["qemu environment A"]


def test_an_argument_without_a_value_is_not_passed_over():
    data = b"""<domain type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><name>g</name>
    <q:commandline><q:arg/></q:commandline></domain>"""
    assert parse(data).not_understood[0].line == 2


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a,b", ["a", "b"]),
        ("a,,b", ["a,b"]),
        ("a,,,b", ["a,", "b"]),
        ("a,,,,b", ["a,,b"]),
        ("", [""]),
        ("a,", ["a", ""]),
    ],
)
def test_commas(text, parts):
    assert split(text) == parts


def test_dotted_keys():
    assert tree("a=1,b.c=2,b.d.0=3,b=4") == {"a": "1", "b": {"c": "2", "d": {"0": "3"}, "": "4"}}
    assert from_json('{"b": {"c": [true, null]}, "b.e": 1}') == {"b": {"c": {"0": "on", "1": ""}, "e": "1"}}


def test_json_that_is_too_deep():
    with pytest.raises(BadOptions):
        from_json('{"a":' * 500 + "1" + "}" * 500)
