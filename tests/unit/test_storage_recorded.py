# SPDX-License-Identifier: LGPL-2.1-or-later
"""Identities on recorded hosts: one for all names of a thing, another for every other thing."""

import errno
import json
import os

import pytest

from vmguard.domain import HostPath, NetworkVolume, NvmeNamespace, PciDevice, PoolVolume, ScsiUnit, UsbDevice
from vmguard.errors import Unresolvable
from vmguard.storage import describe, locate, resolve
from vmguard.storage.host import Host
from vmguard.storage.recorded import RecordedFacts

HOSTS = os.path.join(os.path.dirname(__file__), "hosts")


def facts(name):
    return RecordedFacts.load(os.path.join(HOSTS, name + ".json"))


def one(host, location):
    (storage,) = resolve(HostPath(location) if isinstance(location, str) else location, facts(host))
    assert storage.identity.isascii() and " " not in storage.identity
    assert describe(storage)
    return storage


def identities(storages):
    return {storage.identity for storage in storages}


LUN = "lun:naa.600508b1001c8d5f2a7b1c4d5e6f70"
VG = "QdLJu4-zf1V-n2Wc-R0xY-bT8p-Ke3H-sA6mGo"


@pytest.mark.parametrize(
    "path",
    ["/dev/dm-0", "/dev/mapper/data-linear", "/dev/data/linear"],
)
def test_lvm_names_are_one(path):
    storage = one("lvm", path)
    assert storage.identity == f"lvm:{VG}/linear-abcd-efgh-ijkl-mnop-qrst-uvwxyz"
    assert storage.path == path and storage.device == (253, 0)
    assert identities(storage.under) == {LUN + "01"}
    assert storage.others_see_it and not storage.not_writable and not storage.used_by_host


def test_snapshot_and_origin_exclude_each_other():
    origin, snapshot = one("lvm", "/dev/mapper/data-origin"), one("lvm", "/dev/mapper/data-snap--one")
    assert origin.identity != snapshot.identity
    assert origin.identity in identities(snapshot.under)
    assert identities(origin.under) == {LUN + "01"}
    assert not snapshot.not_writable


def test_thin_volumes_share_a_pool():
    first, second = one("lvm", "/dev/mapper/data-thin1"), one("lvm", "/dev/mapper/data-thin2")
    assert first.identity != second.identity
    assert identities(first.one_host) == identities(second.one_host)
    (pool,) = first.one_host
    assert pool.identity.startswith(f"lvm:{VG}/pool0")
    assert identities(pool.under) == {LUN + "01", LUN + "02"}


@pytest.mark.parametrize("name", ["raid1", "cached"])
def test_hidden_volumes_are_looked_through(name):
    storage = one("lvm", f"/dev/mapper/data-{name}")
    assert identities(storage.under) == {LUN + "01", LUN + "02"}
    assert not storage.not_writable and not storage.one_host


@pytest.mark.parametrize(
    "name, instead",
    [
        ("origin-real", "/dev/data/origin"),
        ("snap--one-cow", "/dev/data/snap-one"),
        ("pool0-tpool", None),
        ("pool0", None),
        ("pool0_tdata", None),
        ("raid1_rimage_0", "/dev/data/raid1"),
        ("cpool_cdata", None),
        ("cached_corig", "/dev/data/cached"),
        ("lvmlock", None),
    ],
)
def test_hidden_layers_are_not_writable(name, instead):
    storage = one("lvm", f"/dev/mapper/data-{name}")
    assert storage.not_writable
    assert storage.instead == instead


@pytest.mark.parametrize("at_work", ["sanlock", "dlm"])
def test_shared_group_without_a_copy_of_its_metadata(at_work):
    """A host that has never changed a group has no file about it: the lock manager tells."""
    with open(os.path.join(HOSTS, "lvm.json"), encoding="utf-8") as file:
        record = json.load(file)
    del record["files"]["/etc/lvm/backup/data"]
    if at_work == "dlm":
        del record["links"]["/dev/mapper/data-lvmlock"]
        record["files"]["/sys/kernel/dlm/lvm_data/id"] = "1"
    (storage,) = resolve(HostPath("/dev/data/linear"), RecordedFacts(record))
    assert f"its volume group is shared (lock type {at_work})" in storage.reasons
    record["links"].pop("/dev/mapper/data-lvmlock", None)
    record["files"].pop("/sys/kernel/dlm/lvm_data/id", None)
    (storage,) = resolve(HostPath("/dev/data/linear"), RecordedFacts(record))
    assert not any("lock type" in reason for reason in storage.reasons)


def test_volume_whose_partition_is_mounted():
    assert "mounted on /srv/guest" in one("lvm", "/dev/data/guest").used_by_host
    part = one("lvm", "/dev/mapper/data-guest1")
    assert part.identity == f"part:{one('lvm', '/dev/data/guest').identity}/1"
    assert part.used_by_host == "mounted on /srv/guest"


def test_disk_of_a_mounted_bcachefs():
    """Neither mountinfo nor a directory of the filesystem's has the number or the name of its devices."""
    with open(os.path.join(HOSTS, "local.json"), encoding="utf-8") as file:
        record = json.load(file)
    disk = record["links"]["/sys/class/block/sdc"]
    for name in ("bcache0", "dm-0", "dm-1", "drbd0"):
        record["links"].pop(f"{disk}/holders/{name}", None)
    assert resolve(HostPath("/dev/sdc"), RecordedFacts(record))[0].used_by_host is None
    record["links"][disk + "/bcachefs"] = "/sys/fs/bcachefs/3fb1a5d2-90c4-e6b7-12ab-34cd56ef7890/dev-0"
    record["files"]["/sys/fs/bcachefs/3fb1a5d2-90c4-e6b7-12ab-34cd56ef7890/dev-0/label"] = "a"
    record["files"]["/proc/self/mountinfo"] += "98 27 0:60 / /b rw - bcachefs /dev/sdc rw\n"
    (storage,) = resolve(HostPath("/dev/sdc"), RecordedFacts(record))
    assert storage.used_by_host == "a device of a mounted bcachefs"


def test_disk_with_an_active_volume_group():
    assert "active logical volume data/" in one("lvm", "/dev/sdb").used_by_host


def test_multipath_map_leg_and_single_path_are_one():
    whole = one("multipath", "/dev/mapper/mpatha")
    assert whole.identity == LUN + "03" and whole.kind == "mpath" and not whole.not_writable
    assert whole.used_by_host is None  # a partition map alone is no use
    for leg in ("/dev/sdb", "/dev/sdc"):
        storage = one("multipath", leg)
        assert storage.identity == whole.identity
        assert "mpatha" in storage.not_writable and storage.instead == "/dev/mapper/mpatha"
        assert storage.used_by_host is None  # the map is no use of its own: the words above are the ones that help
    elsewhere = one("iscsi", "/dev/sdq")
    assert elsewhere.identity == whole.identity
    assert elsewhere.also == ("iscsi:iqn.2003-01.org.linux-iscsi.san:store1/3",)


def test_partition_of_a_map_and_of_its_leg():
    of_map, of_leg = one("multipath", "/dev/mapper/mpatha-part1"), one("multipath", "/dev/sdb1")
    assert of_map.identity == of_leg.identity == f"part:{LUN}03/1"
    assert not of_map.not_writable and of_leg.not_writable
    assert identities(of_map.under) == {LUN + "03"}


def test_mounted_partition_is_no_use_of_its_neighbour():
    assert one("multipath", "/dev/sdd1").used_by_host == "mounted on /boot"
    assert one("multipath", "/dev/sdd2").used_by_host is None
    assert "mounted on /boot" in one("multipath", "/dev/sdd").used_by_host


def test_iscsi_by_kernel_qemu_unit_and_pool():
    iqn = "iqn.2003-01.org.linux-iscsi.san:Store1"
    kernel = one("iscsi", "/dev/sdq")
    assert one("iscsi", NetworkVolume("iscsi", iqn + "/3", ("192.0.2.1:3260",))).identity in kernel.also
    assert one("iscsi", ScsiUnit("scsi_host9", 0, 0, 3)).identity == kernel.identity
    assert one("iscsi", PoolVolume("san", "unit:0:0:3")).identity == kernel.identity
    assert one("iscsi", PoolVolume("san", "unit:0:0:3", "direct")).identity in kernel.also


def test_a_label_is_no_property():
    """A guest chooses the label of what is on its disk. udev lets all of Unicode pass, with its line ends."""
    label = "E:ID_FS_LABEL=x\u2028E:ID_SERIAL=another\x85S:drbd/by-res/another\n"
    host = Host(RecordedFacts({"files": {"/run/udev/data/b8:0": label + "E:ID_SERIAL=mine\nS:mine\n"}}))
    assert host.udev((8, 0))["ID_SERIAL"] == "mine" and host.links((8, 0)) == ("mine",)
    host = Host(RecordedFacts({"files": {"/run/udev/data/b8:0": label}}))
    assert list(host.udev((8, 0))) == ["ID_FS_LABEL"] and host.links((8, 0)) == ()


def test_a_unit_whose_number_is_none():
    with pytest.raises(Unresolvable):
        resolve(PoolVolume("san", "unit:0:0:\u00b3", "direct"), facts("iscsi"))


@pytest.mark.parametrize("ports", [0x10, 0x30, 0])
def test_a_unit_of_an_array_by_sas(ports):
    """The adapter is one for disks of this machine alone, most often."""
    with open(os.path.join(HOSTS, "local.json"), encoding="utf-8") as file:
        record = json.load(file)
    unit = "/sys/devices/pci0000:00/0000:00:05.0/host4/port-4:0/end_device-4:0/target4:0:0/4:0:0:1"
    record["stat"]["/dev/added"] = {"type": "block", "rdev": "8:48"}
    record["links"]["/sys/dev/block/8:48"] = unit + "/block/sdd"
    record["links"][unit + "/block/sdd/device"] = unit
    record["links"][unit + "/subsystem"] = "/sys/bus/scsi"
    record["files"][unit + "/block/sdd/dev"] = "8:48"
    record["files"]["/sys/class/scsi_host/host4/proc_name"] = "mpt3sas"
    record["files"][unit + "/wwid"] = "naa.600c0ff000123456789abcdef0000001"
    record["files"][unit + "/inquiry"] = {"hex": f"000006125b{ports | 1:02x}1002"}
    (storage,) = resolve(HostPath("/dev/added"), RecordedFacts(record))
    assert storage.identity == "lun:naa.600c0ff000123456789abcdef0000001"
    assert storage.others_see_it is bool(ports)


def test_shared_disk_without_identity():
    with pytest.raises(Unresolvable):
        resolve(HostPath("/dev/sdr"), facts("iscsi"))


def test_nvme_by_device_pci_address_and_generic_node():
    disk = one("local", "/dev/nvme0n1")
    assert disk.identity == "nvme:eui.0025385b71b00f3a" and not disk.others_see_it
    assert one("local", "/dev/ng0n1").identity == disk.identity
    direct = one("local", NvmeNamespace("0000:02:00.0", 1))
    assert direct.identity == disk.identity
    whole = identities(resolve(PciDevice("0000:02:00.0"), facts("local")))
    assert disk.identity in whole
    # once a guest has it, the host sees the controller only: its identity must be claimed all the time
    assert identities(direct.under) < whole
    unbound = one("local", NvmeNamespace("0000:03:00.0", 1))
    assert identities(unbound.under) == identities(resolve(PciDevice("0000:03:00.0"), facts("local")))


def test_a_namespace_is_taken_with_its_controller():
    """libvirt unbinds the host's driver from the controller: what else is on it is gone for the host."""
    with open(os.path.join(HOSTS, "local.json"), encoding="utf-8") as file:
        record = json.load(file)
    for table in (record["files"], record["links"]):
        second = {
            name.replace("n1", "n2"): text.replace("n1", "n2").replace("259:0", "259:1").replace("0f3a", "0f3b")
            for name, text in table.items()
            if isinstance(text, str) and ("nvme0n1" in name or "nvme0c0n1" in name)
        }
        table.update(second)
    for name in ("nvme0n2", "nvme0c0n2"):
        for there in [path for path in record["files"] if f"/{name}/nsid" in path]:
            record["files"][there] = "2\n"
    record["links"]["/sys/dev/block/259:1"] = record["links"]["/sys/class/block/nvme0n2"]
    disk = NvmeNamespace("0000:02:00.0", 1)
    assert resolve(disk, RecordedFacts(record))[0].used_by_host is None
    record["files"]["/proc/self/mountinfo"] += "99 27 259:1 / /home rw - xfs /dev/nvme0n2 rw\n"
    (storage,) = resolve(disk, RecordedFacts(record))
    assert storage.used_by_host == "/dev/nvme0n2, beside it, is mounted on /home"


def with_character(name, number):
    """A host with one character device more."""
    with open(os.path.join(HOSTS, "local.json"), encoding="utf-8") as file:
        record = json.load(file)
    sys = f"/sys/devices/added/{name}"
    record["stat"]["/dev/added"] = {"type": "character", "rdev": number}
    record["links"][f"/sys/dev/char/{number}"] = sys
    record["files"][sys + "/dev"] = number
    return RecordedFacts(record)


def test_persistent_memory_is_storage():
    """A device of it, which an NVDIMM of a guest has by its path, is a character device."""
    (first,) = resolve(HostPath("/dev/added"), with_character("dax0.0", "252:0"))
    (second,) = resolve(HostPath("/dev/added"), with_character("dax0.1", "252:1"))
    assert first.identity != second.identity and not first.not_writable
    assert resolve(HostPath("/dev/added"), with_character("ttyS0", "4:64")) == ()


def test_a_raw_device_is_a_disk_that_is_not_known():
    with pytest.raises(Unresolvable):
        resolve(HostPath("/dev/added"), with_character("raw1", "162:1"))


def test_pci_device_without_storage():
    assert resolve(PciDevice("0000:05:00.0"), facts("local")) == ()
    with pytest.raises(Unresolvable):
        resolve(PciDevice("0000:06:00.0"), facts("local"))


def test_a_usb_device_that_is_not_plugged_in_is_missing():
    """libvirt leaves it out of the guest, if the definition says that it is optional."""
    with pytest.raises(Unresolvable) as caught:
        resolve(UsbDevice(vendor="0x1234", product="0x5678"), facts("local"))
    assert caught.value.missing


def test_local_kinds():
    md = one("local", "/dev/md0")
    assert md.identity == "md:3fb1a5d290c4e6b712ab34cd56ef7890" and md.used_by_host == "mounted on /srv"
    assert {beneath.kind for beneath in md.under} == {"partition"}
    drbd = one("local", "/dev/drbd0")
    assert drbd.identity == "drbd:vm-disks/0" and drbd.others_see_it
    assert identities(drbd.under) == {one("local", "/dev/sdc").identity}
    assert one("local", "/dev/sdc").identity.startswith("local:")
    assert "swap" in one("local", "/dev/sdb").used_by_host
    assert one("local", "/dev/bcache0").identity.startswith("dev:")


def recorded(name, parent="/sys/devices/virtual", bus=""):
    """A host with one block device of that name more."""
    with open(os.path.join(HOSTS, "local.json"), encoding="utf-8") as file:
        record = json.load(file)
    sys = f"{parent}/block/{name}"
    record["stat"]["/dev/added"] = {"type": "block", "rdev": "240:0"}
    record["links"]["/sys/dev/block/240:0"] = sys
    record["files"][sys + "/dev"] = "240:0"
    if bus:
        record["links"][sys + "/device"] = parent
        record["links"][parent + "/subsystem"] = "/sys/bus/" + bus
        record["directories"]["/sys/bus/" + bus] = []
    return RecordedFacts(record)


@pytest.mark.parametrize("name", ["etherd!e1.2", "ublkb0", "scinia", "emcpowera", "rnbd0"])
def test_a_kind_that_is_not_known_may_be_everyones(name):
    (storage,) = resolve(HostPath("/dev/added"), recorded(name))
    assert storage.not_writable


@pytest.mark.parametrize(
    "added",
    [
        pytest.param(("zd16",), id="zvol"),
        pytest.param(("fioa", "/sys/devices/pci0000:00/0000:00:1c.0", "pci"), id="card"),
        pytest.param(("ram0",), id="memory"),
    ],
)
def test_what_this_host_alone_has_is_written(added):
    (storage,) = resolve(HostPath("/dev/added"), recorded(*added))
    assert storage.identity.startswith("dev:") and not storage.not_writable and not storage.others_see_it


@pytest.mark.parametrize("path", ["/dev/drbd1", "/dev/nbd1"])
def test_what_the_kernel_does_not_tell(path):
    with pytest.raises(Unresolvable):
        resolve(HostPath(path), facts("local"))


def test_krbd_is_the_image():
    kernel = one("local", "/dev/rbd0")
    assert kernel.identity == one("local", NetworkVolume("rbd", "vms/web1", ("mon2:6789", "mon1:6789"))).identity
    assert kernel.identity == "rbd:vms/web1" and kernel.others_see_it


def test_kernel_nbd_is_for_reading():
    assert one("local", "/dev/nbd0").not_writable


def test_luks_without_its_name():
    assert one("local", "/dev/mapper/luks-a").identity == "dm:CRYPT-LUKS2-5f4dcc3b5aa765d61d8327deb882cf99"


@pytest.mark.parametrize("name, beneath", [("mine", "/dev/sdc"), ("plain", "/dev/rbd0")])
def test_map_without_uuid_counts_as_what_lies_beneath(name, beneath):
    assert one("local", beneath).identity in one("local", f"/dev/mapper/{name}").also


@pytest.mark.parametrize(
    "path, identity, shared",
    [
        ("/images/a.img", "file:7c6e8a10-12d3-44b5-9d0a-3b5f6c7d8e9f/1000", True),
        ("/nfs4/a.img", "file:nfs-1122334455667788:123456789abcdef/1000", True),
        ("/ceph/a.img", "file:cephfs-b3acfc0d-575f-41d3-9c91-0e7ed3dbb3fa/1004", True),
        ("/gl/dir/a.img", "file:gluster-vol1/1003", True),
        ("/lus/a.img", "file:lustre-scratch/1013", True),
        ("/o2/a.img", "file:0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0/1014", True),
        ("/srv/b.img", "file:11111111-2222-3333-4444-555555555555/1016", False),
    ],
)
def test_files(path, identity, shared):
    storage = one("filesystems", path)
    assert storage.identity == identity
    assert storage.others_see_it is shared and not storage.not_writable


def test_nfs_of_both_versions_is_one():
    third, fourth = one("filesystems", "/nfs3/a.img"), one("filesystems", "/nfs4/a.img")
    assert third.identity in fourth.also


def test_gluster_mounted_and_by_qemu():
    volume = one("filesystems", NetworkVolume("gluster", "vol1/dir//a.img"))
    assert volume.identity in one("filesystems", "/gl/dir/a.img").also


@pytest.mark.parametrize("source", ["gl2:vol1", "gl2:/vol1", "[2001:db8::2]:/vol1", "2001:db8::2:/vol1", "2001:db8::2:vol1"])
def test_a_gluster_volume_is_one_by_all_servers(source):
    with open(os.path.join(HOSTS, "filesystems.json"), encoding="utf-8") as file:
        record = json.load(file)
    record["files"]["/proc/self/mountinfo"] = record["files"]["/proc/self/mountinfo"].replace("gl1:/vol1", source)
    (storage,) = resolve(HostPath("/gl/dir/a.img"), RecordedFacts(record))
    known = one("filesystems", "/gl/dir/a.img")
    assert (storage.identity, storage.also) == (known.identity, known.also)


@pytest.mark.parametrize("path", ["oldceph", "host", "ntfs", "ssh", "zpool", "srv/nfs", "alias"])
def test_files_that_cannot_be_guarded(path):
    assert one("filesystems", f"/{path}/a.img").not_writable


def test_bind_mount_of_an_export_is_the_export():
    assert one("filesystems", "/alias/a.img").identity == one("filesystems", "/srv/nfs/a.img").identity


@pytest.mark.parametrize("option, served", [("crossmnt", True), ("nocrossmnt", False)])
def test_what_is_mounted_below_an_export_is_exported_with_it(option, served):
    with open(os.path.join(HOSTS, "filesystems.json"), encoding="utf-8") as file:
        record = json.load(file)
    record["files"]["/run/udev/data/b254:1"] = "E:ID_FS_UUID=22222222-2222-3333-4444-555555555555\n"
    record["files"]["/var/lib/nfs/etab"] = f"/srv\t192.0.2.0/24(rw,sync,{option},secure)\n"
    for number, point in (("90", "/srv/images"), ("91", "/elsewhere")):
        record["files"]["/proc/self/mountinfo"] += f"{number} 27 254:1 / {point} rw - ext4 /dev/vdb1 rw\n"
        record["stat"][point + "/a.img"] = {
            "type": "file", "device": "254:1", "inode": 7, "mount": int(number), "size": 1,
        }  # fmt: skip
    record["stat"]["/srv"] = {"type": "directory", "device": "8:2", "inode": 2, "mount": 27}
    for path in ("/srv/images/a.img", "/elsewhere/a.img"):
        (storage,) = resolve(HostPath(path), RecordedFacts(record))
        assert ("serves /srv by NFS" in (storage.not_writable or "")) is served, storage


@pytest.mark.parametrize("path", ["/nfs0/a.img", "/auto/a.img", "/nothing", "relative", "", "/a\0b", "/" + "x" * 5000])
def test_unresolvable(path):
    with pytest.raises(Unresolvable) as caught:
        resolve(HostPath(path), facts("filesystems"))
    assert caught.value.missing is (path == "/nothing")


def test_what_an_automounter_mounts_on_the_way():
    """Another disk of the same guest was looked at before, and the mounts with it."""
    with open(os.path.join(HOSTS, "filesystems.json"), encoding="utf-8") as file:
        record = json.load(file)
    host = Host(RecordedFacts(record))
    assert host.mounts()
    late = json.loads(json.dumps(record))
    late["files"]["/proc/self/mountinfo"] += "99 27 0:48 / /auto rw - nfs4 nas:/export rw\n"
    late["stat"]["/auto/a.img"].update(device="0:48", mount=99)
    host.facts = RecordedFacts(late)
    (storage,) = locate.path(host, "/auto/a.img")
    assert storage.identity == "file:nfs-1122334455667788:123456789abcdef/1009"


def test_layers_beneath_a_cluster_file():
    (volume,) = one("filesystems", "/images/a.img").under
    assert volume.kind == "lvm" and identities(volume.under) == {LUN + "01"}


@pytest.mark.parametrize("volume", [NetworkVolume("rbd", "p/\ud800"), NetworkVolume("nbd", "e", ("\udc00:1",))])
def test_network_names_that_are_no_text(volume):
    """As options in JSON may have them."""
    with pytest.raises(Unresolvable):
        resolve(volume, facts("local"))


@pytest.mark.parametrize(
    "volume",
    [
        NetworkVolume("http", "/x.iso", ("mirror",)),
        NetworkVolume("nbd", "a", ("localhost:10809",)),
        NetworkVolume("nbd", "a", ("unix:/run/nbd.sock",)),
        NetworkVolume("ssh", "/x", ("h",)),
        NetworkVolume("rbd", "vms/web1@before"),
        NetworkVolume("something", "x"),
    ],
    ids=lambda volume: f"{volume.protocol}-{volume.name}",
)
def test_network_volumes_for_reading(volume):
    assert one("local", volume).not_writable


def test_network_names_are_equal_whatever_the_form():
    first = one("local", NetworkVolume("nbd", "disk 1", ("NAS.example.:10809",)))
    assert first.identity == one("local", NetworkVolume("nbd", "disk 1", ("nas.example",))).identity
    assert not first.not_writable


def test_machine_key_hidden_from_a_user_is_no_other_key():
    host = facts("local")
    assert resolve(PciDevice("0000:03:00.0"), host)
    host._files["/sys/class/dmi/id/product_uuid"] = {"error": "EACCES"}
    with pytest.raises(Unresolvable):
        resolve(PciDevice("0000:03:00.0"), host)


class Failing:
    """Facts of which one answer, the nth, is an error."""

    def __init__(self, facts, at, code):
        self.facts, self.left, self.code = facts, at, code

    def __getattr__(self, name):
        def ask(path, *arguments):
            self.left -= 1
            if self.left == 0:
                raise OSError(self.code, os.strerror(self.code), path)
            return getattr(self.facts, name)(path, *arguments)

        return ask

    def lease_store(self):
        return self.facts.lease_store()


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOENT, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "host, path",
    [
        ("lvm", "/dev/mapper/data-snap--one"),
        ("lvm", "/dev/mapper/data-thin1"),
        ("multipath", "/dev/mapper/mpatha-part1"),
        ("local", "/dev/md0"),
        ("local", "/dev/drbd0"),
        ("filesystems", "/nfs4/a.img"),
        ("filesystems", "/images/a.img"),
        ("zfs-2.1", "/tank/vm/a.img"),
        ("zfs-2.3", "/dev/zd0"),
    ],
)
def test_any_question_may_fail(host, path, code):
    recorded = facts(host)
    whole = one(host, path)
    for at in range(1, 2000):
        failing = Failing(recorded, at, code)
        try:
            (storage,) = resolve(HostPath(path), failing)
        except Unresolvable as error:
            assert error.why
            continue
        if failing.left > 0:
            break  # more questions than were asked
        # What went unanswered may cost a layer or a reason, never make it something else that may be written.
        assert storage.identity == whole.identity or storage.not_writable or storage.identity.startswith(OTHER_NAMES)
    else:
        raise AssertionError("it asks without end")


# a disk that seems to have no name of its own is named by the machine; a RAID without its uuid too
OTHER_NAMES = ("local:", "dev:", "part:local:")
