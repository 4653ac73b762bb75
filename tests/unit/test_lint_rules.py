# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each rule on a pair of definitions: one that it reports, at that place, and one beside it that it must not."""

import os
import re
import struct
import subprocess
from typing import Any, Callable, Dict, List, NamedTuple, Tuple, Union

import pytest
from linting import MODULES, disk, domain, found, recorded, report

from vmguard.config import Config
from vmguard.lint.leases import read_lease
from vmguard.lint.site import Volume, volumes_of

RAW = "/srv/images/raw.img"


class Pair(NamedTuple):
    """What is put to a rule. Definitions are XML, or (XML, host)."""

    bad: Tuple[Any, ...]
    places: Tuple[str, ...]  # "web1 disk vda", all that the rule says of `bad`
    good: Tuple[Any, ...]
    options: Dict[str, Any]
    good_options: Dict[str, Any]


def pair(bad: Any, places: Any, good: Any, good_options: Any = None, **options: Any) -> Pair:
    def many(one: Any) -> Tuple[Any, ...]:
        return tuple(one) if isinstance(one, list) else (one,)

    return Pair(many(bad), many(places), many(good), options, options if good_options is None else good_options)


OFF: Dict[str, Any] = {"offline": True}


def of(name: str) -> Dict[str, Any]:
    return {"facts": recorded(name)}


def with_inventory(**options: Any) -> Dict[str, Any]:
    return {"inventory": True, **options}


NVRAM = "  <os><type>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>{}</nvram></os>\n"
TPM = "    <tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='dir' path='{}'/></backend></tpm>\n"
NIC = "    <interface type='network'><mac address='{}'/><source network='default'/></interface>\n"
QEMU = "  <qemu:commandline><qemu:arg value='{}'/><qemu:arg value='{}'/></qemu:commandline>\n"
PCI = (
    "    <hostdev mode='subsystem' type='pci' managed='yes'><source>"
    "<address domain='0x0000' bus='0x{}' slot='0x00' function='0x0'/></source></hostdev>\n"
)


def allow(rule: str, reason: str = "", target: str = "vda") -> str:
    words = f" reason='{reason}'" if reason else ""
    return (
        "  <metadata><g:policy xmlns:g='urn:vmguard:policy:1'>"
        f"<g:allow rule='{rule}' target='{target}'{words}/></g:policy></metadata>\n"
    )


def lease(key: str, path: str, offset: Union[int, str] = 0, space: str = "cluster") -> str:
    return (
        f"    <lease>\n      <lockspace>{space}</lockspace>\n      <key>{key}</key>\n"
        f"      <target path='{path}' offset='{offset}'/>\n    </lease>\n"
    )


def tree(folder: str) -> Dict[str, str]:
    """Files to name: images, chains, and a file of leases."""

    def path(name: str) -> str:
        return os.path.join(folder, name)

    def image(name: str, *options: str, form: str = "qcow2") -> str:
        command = ["qemu-img", "create", "-q", "-f", form, *options, path(name)]
        subprocess.run([*command, *([] if "-b" in options else ["1M"])], check=True)
        return path(name)

    names = {"raw": image("raw.img", form="raw"), "own": image("own.img", form="raw"), "qcow2": image("web.qcow2")}
    names["over"] = image("over.qcow2", "-b", names["qcow2"], "-F", "qcow2")
    # qemu-img wants the format in words; older ones did not
    names["unsaid"] = image("unsaid.qcow2", "-b", names["own"], "-F", "raw")
    with open(names["unsaid"], "r+b") as file:
        data = file.read(4096)
        at = data.index(struct.pack(">II", 0xE2792ACA, 3))  # docs/interop/qcow2.txt: backing file format, length 3
        file.seek(at)
        file.write(struct.pack(">II", 0x7FFFFFFF, 3))  # an extension that nobody knows
    names["link"] = path("link.img")
    os.symlink(names["raw"], names["link"])
    names["leases"] = path("leases")
    head = struct.pack("<IIIIQQQQQ", 0x06152010, 0x00060003, 0, 512, 1, 2000, 0, 0, 0)
    with open(names["leases"], "wb") as leases:
        leases.truncate(3 << 20)
        leases.seek(1 << 20)
        leases.write(head + b"cluster".ljust(48, b"\0") + b"web1".ljust(48, b"\0"))
    names["gone"] = path("gone.img")
    names["store"] = path("store")
    os.mkdir(names["store"])
    os.mkdir(names["store"] + "/leases")
    names["lease file"] = names["store"] + "/leases/abc"
    open(names["lease file"], "w").close()
    names["folder"] = folder
    return names


def clustered(store: str) -> Dict[str, Any]:
    return {"config": Config(store=store, shared=True, cluster="ab12", host_id=1)}


def web(devices: str, **more: Any) -> str:
    return domain("web1", devices, **more)


def lvm(kind: str = "linear", system: str = "", lock: str = "none", remote: bool = False) -> Dict[str, Any]:
    """The recorded volume group, as lvs would report it."""
    identity = "lvm:QdLJu4-zf1V-n2Wc-R0xY-bT8p-Ke3H-sA6mGo/linear-abcd-efgh-ijkl-mnop-qrst-uvwxyz"
    return {**of("lvm"), "volumes": {identity: Volume("data/linear", system, lock, frozenset((kind,)), remote)}}


def raw(path: str, **more: Any) -> str:
    return disk(path, driver="type='raw' cache='none'", **more)


SHARED = "<shareable/>"
CACHED = "type='raw' cache='writeback'"

CASES: Dict[str, Callable[[Dict[str, str]], Pair]] = {
    "VMG001": lambda t: pair("<domain type='kvm'><name>web1</name><devices></domain>", "", web(raw(t["raw"]))),
    "VMG002": lambda t: pair(web(raw(t["gone"])), "web1 disk vda", web(raw(t["raw"]))),
    "VMG003": lambda t: pair(
        web(raw("/dev/sdb"), outside=allow("VMG301")), "web1",
        web(raw("/dev/sdb"), outside=allow("VMG301", "there is one disk")), **OFF
    ),
    "VMG101": lambda t: pair(
        web(raw(RAW) + raw(RAW, name="vdb")), "web1 disk vdb",
        web(raw(RAW, device="cdrom") + raw(RAW, device="cdrom", name="vdb")), **OFF
    ),
    "VMG102": lambda t: pair(
        [web(raw(RAW)), domain("web2", raw(RAW))], ["web1 disk vda", "web2 disk vda"],
        # one guest, defined on both hosts of a cluster
        [(web(raw(RAW)), "node1"), (web(raw(RAW)), "node2")], **OFF
    ),
    "VMG103": lambda t: pair(
        [web(raw(t["raw"])), domain("web2", raw(t["link"]))], ["web1 disk vda", "web2 disk vda"],
        [web(raw(t["raw"])), domain("web2", raw(t["own"]))]
    ),
    "VMG104": lambda t: pair(
        [web(disk(t["qcow2"], driver="type='qcow2'")), domain("web2", disk(t["over"], driver="type='qcow2'"))],
        ["web1 disk vda", "web2 disk vda, backing file 1"],
        [web(disk(t["qcow2"], driver="type='qcow2'", inside="<readonly/>")),
         domain("web2", disk(t["over"], driver="type='qcow2'"))]
    ),
    "VMG105": lambda t: pair(
        [web(raw("/dev/data/linear")), domain("store", raw("/dev/sdb"))], ["web1 disk vda", "store disk vda"],
        [web(raw("/dev/data/linear")), domain("store", raw("/dev/mapper/data-thin1"))], **of("lvm")
    ),
    "VMG106": lambda t: pair(
        [web(raw("/dev/mapper/data-origin")), domain("backup", raw("/dev/mapper/data-snap--one"))],
        ["web1 disk vda", "backup disk vda"],
        [web(raw("/dev/mapper/data-origin")), domain("backup", raw("/dev/mapper/data-raid1"))], **of("lvm")
    ),
    "VMG107": lambda t: pair(
        [web(raw("/dev/mapper/mpatha")), domain("web2", raw("/dev/mapper/mpatha-part1"))],
        ["web1 disk vda", "web2 disk vda"],
        [web(raw("/dev/sdd2")), domain("web2", raw("/dev/mapper/mpatha-part1"))], **of("multipath")
    ),
    "VMG108": lambda t: pair(
        web(raw("/dev/sdb")), "web1 disk vda", web(raw("/dev/mapper/mpatha")), **of("multipath")
    ),
    "VMG109": lambda t: pair(
        web(raw("/dev/sdd1")), "web1 disk vda", web(raw("/dev/sdd2")), **of("multipath")
    ),
    "VMG110": lambda t: pair(
        web(raw(t["lease file"])), "web1 disk vda", web(raw(t["raw"])), **clustered(t["store"])
    ),
    "VMG111": lambda t: pair(
        [web(raw("/dev/drbd0")), domain("backup", raw("/dev/sdc"))], ["web1 disk vda", "backup disk vda"],
        [web(raw("/dev/drbd0")), domain("backup", raw("/dev/nvme0n1"))], **of("local")
    ),
    "VMG201": lambda t: pair(
        web(disk(RAW, driver="type='qcow2' cache='none'", inside=SHARED)), "web1 disk vda",
        web(raw(RAW, inside=SHARED)), **OFF
    ),
    "VMG202": lambda t: pair(
        web(disk(RAW, driver=CACHED, inside=SHARED)), "web1 disk vda",
        web(disk(RAW, driver="type='raw'", inside=SHARED)), **OFF  # libvirt takes none
    ),
    "VMG203": lambda t: pair(
        [web(raw(RAW, inside=SHARED)), domain("web2", raw(RAW))], ["web1 disk vda", "web2 disk vda"],
        [web(raw(RAW, inside=SHARED)), domain("web2", raw(RAW, inside=SHARED))], **OFF
    ),
    "VMG204": lambda t: pair(
        web(raw(RAW, inside=SHARED)), "web1 disk vda", web(raw(RAW)), **with_inventory(**OFF)
    ),
    "VMG205": lambda t: pair(
        [web(raw(RAW)), domain("rescue", raw(RAW, inside="<readonly/>"))], ["web1 disk vda", "rescue disk vda"],
        [web(raw(RAW, device="cdrom")), domain("rescue", raw(RAW, device="cdrom"))], **OFF
    ),
    "VMG206": lambda t: pair(
        web(raw("/dev/mapper/data-thin1", inside=SHARED)), "web1 disk vda",
        web(raw("/dev/data/linear", inside=SHARED)), **of("lvm")
    ),
    "VMG301": lambda t: pair(
        web(raw("/dev/nvme0n1p2")), "web1 disk vda", web(raw("/dev/disk/by-id/nvme-eui.0025385b9150d6a5-part2")), **OFF
    ),
    "VMG302": lambda t: pair(web(raw("/dev/dm-7")), "web1 disk vda", web(raw("/dev/mapper/vg-web")), **OFF),
    "VMG303": lambda t: pair(
        web(raw("/zpool/a.img")), "web1 disk vda", web(raw("/nfs4/a.img")),
        **{**of("filesystems"), **clustered("/nfs4/a.img")}
    ),
    "VMG304": lambda t: pair(
        web(raw("/dev/data/linear")), "web1 disk vda", web(raw("/dev/data/linear")), lvm(lock="sanlock"), **lvm()
    ),
    "VMG305": lambda t: pair(
        web(raw("/dev/data/linear")), "web1 disk vda", web(raw("/dev/data/linear")),
        {**lvm(system="node1"), **clustered("/"), "system_id": "node1"},
        **{**lvm(system="node2"), **clustered("/"), "system_id": "node1"}
    ),
    "VMG306": lambda t: pair(web(raw("/dev/nbd0")), "web1 disk vda", web(raw("/dev/rbd0")), **of("local")),
    "VMG401": lambda t: pair(
        web(disk(RAW, driver="")), "web1 disk vda", web(disk(RAW, driver="", device="cdrom") + raw(RAW, name="vdb")), **OFF
    ),
    "VMG402": lambda t: pair(
        web(raw(t["qcow2"]) + disk(t["raw"], driver="type='qcow2'", name="vdb")), ["web1 disk vda", "web1 disk vdb"],
        web(raw(t["raw"]) + disk(t["qcow2"], driver="type='qcow2'", name="vdb"))
    ),
    "VMG403": lambda t: pair(
        web(disk(t["unsaid"], driver="type='qcow2'")), "web1 disk vda", web(disk(t["over"], driver="type='qcow2'"))
    ),
    "VMG404": lambda t: pair(
        web(disk("/nfs4/a.img", driver="type='raw'")), "web1 disk vda",
        web(disk("/nfs4/a.img", driver="type='raw' cache='none'") + disk("/gl/dir/a.img", name="vdb")), **of("filesystems")
    ),
    "VMG405": lambda t: pair(
        web(disk(RAW, driver="type='raw' cache='unsafe'")), "web1 disk vda",
        web(disk(RAW, driver="type='raw' cache='unsafe'", inside="<transient/>")), **OFF
    ),
    "VMG501": lambda t: pair(
        web(raw("/a.img")), "web1 disk vda", web(raw("/a.img") + lease("web1", "/leases")), **demanding(),
    ),
    "VMG502": lambda t: pair(
        web(lease("web1", t["leases"], 2 << 20) + lease("other", t["leases"], 1 << 20) + lease("web1", t["leases"], 512)),
        ["web1 lease web1", "web1 lease other", "web1 lease web1"],
        web(lease("web1", t["leases"], 1 << 20))
    ),
    "VMG503": lambda t: pair(
        [web(lease("web", "/l")), domain("web2", lease("web", "/l2"))], ["web1 lease web", "web2 lease web"],
        [web(lease("web", "/l")), domain("web2", lease("web", "/l2", space="other"))], **OFF
    ),
    "VMG504": lambda t: pair(
        web("".join(lease(f"k{n}", "/l", n << 20) for n in range(9))), "web1 lease k8",
        web("".join(lease(f"k{n}", "/l", n << 20) for n in range(8))), **OFF
    ),
    "VMG505": lambda t: pair(
        web("", outside="  <on_lockfailure>restart</on_lockfailure>\n"), "web1",
        web("", outside="  <on_lockfailure>pause</on_lockfailure>\n"), **OFF
    ),
    "VMG506": lambda t: pair(
        web(lease("web1", t["leases"], 1 << 20)), "web1 lease web1", web(lease("web1", "/nfs4/a.img")), of("filesystems")
    ),
    "VMG601": lambda t: pair(
        [web(NIC.format("52:54:00:AA:bb:01")), domain("web2", NIC.format("52:54:00:aa:bb:01"))], ["web1", "web2"],
        [(web(NIC.format("52:54:00:aa:bb:01")), "node1"), (web(NIC.format("52:54:00:aa:bb:01")), "node2"),
         (domain("web2", NIC.format("52:54:00:aa:bb:02")), "node2")], **OFF
    ),
    "VMG602": lambda t: pair(
        [web("", outside=NVRAM.format("/n/web1_VARS.fd")), domain("web2", "", outside=NVRAM.format("/n/web1_VARS.fd"))],
        ["web1 nvram", "web2 nvram"],
        [web("", outside=NVRAM.format("/n/web1_VARS.fd")), domain("web2", "", outside=NVRAM.format("/n/web2_VARS.fd"))], **OFF
    ),
    "VMG603": lambda t: pair(
        [web(TPM.format("/tpm/a")), domain("web2", TPM.format("/tpm/a"))], ["web1 tpm state", "web2 tpm state"],
        [web(TPM.format("/tpm/a")), domain("web2", TPM.format("/tpm/b"))], **OFF
    ),
    "VMG701": lambda t: pair(
        [web(raw("/dev/nvme0n1")), domain("fast", PCI.format("02"))], ["web1 disk vda", "fast hostdev 0"],
        [web(raw("/dev/nvme0n1")), domain("fast", PCI.format("05"))], **of("local")
    ),
    "VMG702": lambda t: pair(
        web("", outside=QEMU.format("-drive", f"file={RAW},if=virtio,format=raw")), "web1 qemu argument 1",
        web("", outside=QEMU.format("-device", "virtio-balloon-pci")), **OFF
    ),
}  # fmt: skip


def demanding(plugin: Any = "auto_disk_leases = 0\nrequire_lease_for_disks = 1\n") -> Dict[str, Any]:
    """A host whose libvirt wants a lease for every disk. plugin: qemu-sanlock.conf; None for none."""
    from vmguard.storage.recorded import RecordedFacts

    files = {"/etc/libvirt/qemu.conf": 'lock_manager = "sanlock"\n', "/etc/libvirt/qemu-sanlock.conf": plugin}
    return {"facts": RecordedFacts({"files": {path: text for path, text in files.items() if text is not None}})}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    return tree(str(tmp_path_factory.mktemp("lint")))


def test_every_rule_has_a_pair() -> None:
    assert set(CASES) == set(MODULES)


@pytest.mark.parametrize("code", CASES)
def test_it_is_reported(code: str, names: Dict[str, str]) -> None:
    case = CASES[code](names)
    said = [one[7:] for one in found(*case.bad, **case.options) if one.startswith(code)]
    assert said == list(case.places)


@pytest.mark.parametrize("code", CASES)
def test_its_neighbour_is_not(code: str, names: Dict[str, str]) -> None:
    case = CASES[code](names)
    judged = report(*case.good, **case.good_options)
    assert [one for one in judged.counted if one.rule == code] == []
    assert code not in [skip.rule for skip in judged.skipped], "it was not looked at"


@pytest.mark.parametrize("code", CASES)
def test_it_says_where_and_what_to_do(code: str, names: Dict[str, str]) -> None:
    case = CASES[code](names)
    for finding in report(*case.bad, **case.options).counted:
        if finding.rule != code:
            continue
        assert finding.text[0] not in " .", finding
        assert not finding.text.endswith("."), finding
        assert finding.remedy and not finding.remedy.endswith(".")
        assert finding.place is not None, finding
        assert finding.place.text.strip() and finding.place.end > finding.place.column
        if finding.place.element:
            # the tag that is underlined is the element that is named
            marked = finding.place.text[finding.place.column - 1 : finding.place.end - 1]
            tag = finding.place.element.rpartition("/")[2].partition("[")[0]
            assert re.match(rf"<(\w+:)?{tag}\b", marked), finding


def test_a_lease_beside_a_store_that_hosts_share(names: Dict[str, str]) -> None:
    """Whatever the filesystem is, its administrator has said that others have it: as for disks (VMG303)."""
    one = web(lease("web1", names["leases"], 1 << 20) + raw(names["raw"]))
    assert found(one) == ["VMG506 web1 lease web1"]
    assert found(one, **clustered(names["store"])) == []


def test_a_lease_that_cannot_be_looked_at() -> None:
    """As without root: sanlock's files are its own. It may be in order."""
    from vmguard.storage.recorded import RecordedFacts

    files = {"/leases": {"error": "EACCES"}}
    (finding,) = [
        one
        for one in report(web(lease("web1", "/leases")), facts=RecordedFacts({"files": files})).findings
        if one.rule == "VMG502"
    ]
    assert finding.unread
    (finding,) = [one for one in report(web(lease("web1", "/nowhere/leases"))).findings if one.rule == "VMG502"]
    assert not finding.unread


@pytest.mark.parametrize("offset", [str(1 << 80), str(1 << 63), "1" * 5000], ids=["huge", "one-too-many", "thousands-of-digits"])
def test_a_lease_beyond_the_end_of_every_file(offset: str, names: Dict[str, str]) -> None:
    assert "VMG502 web1 lease web1" in found(web(lease("web1", names["leases"], offset)))


def test_a_guest_that_shares_the_store_writes_it_as_well(names: Dict[str, str]) -> None:
    """As a shareable disk, or as a folder; a <lease> in there is sanlock's to write."""
    folder = f"    <filesystem type='mount'><source dir='{names['store']}'/><target dir='x'/></filesystem>\n"
    devices = raw(names["lease file"], inside=SHARED) + folder + lease("web1", names["lease file"])
    said = found(web(devices), **clustered(names["store"]))
    assert [one for one in said if one.startswith("VMG110")] == ["VMG110 web1 disk vda", "VMG110 web1 filesystem 0"]


def test_a_store_that_is_a_device() -> None:
    """The guard calls it in use by the host, whoever writes there."""
    facts = recorded("lvm")
    facts.lease_store = lambda: "/dev/data/linear"  # type: ignore[method-assign]
    site = {"facts": facts, "config": Config(store="/dev/data/linear", shared=True, cluster="ab12", host_id=1)}
    assert found(web(raw("/dev/data/linear")), **site) == ["VMG110 web1 disk vda"]
    assert found(web(raw("/dev/data/linear", inside=SHARED)), **site) == ["VMG110 web1 disk vda"]
    assert "VMG109 web1 lease web1" in found(web(lease("web1", "/dev/data/linear")), **site)


@pytest.mark.parametrize(
    "devices, outside, said",
    [
        pytest.param("    <serial type='dev'><source path='/dev/sdb'/></serial>\n", "", "VMG108 web1 serial 0", id="serial-port"),
        pytest.param("    <serial type='pipe'><source path='/dev/sdb'/></serial>\n", "", "VMG108 web1 serial 0", id="pipe"),
        pytest.param(
            "", QEMU.format("-drive", "file=/dev/sdb1,format=raw,if=virtio"), "VMG108 web1 qemu argument 1", id="argument"
        ),
        pytest.param(
            "    <disk type='block'><driver type='qcow2'/><source dev='/dev/sdd2'><dataStore type='block'>"
            "<source dev='/dev/sdb'/></dataStore></source><target dev='vda'/><backingStore/></disk>\n",
            "", "VMG306 web1 disk vda", id="data-of-an-image",
        ),
    ],
)  # fmt: skip
def test_a_leg_that_is_no_disk(devices: str, outside: str, said: str) -> None:
    """The guard refuses each of them."""
    assert said in found(web(devices, outside=outside), **of("multipath"))


def test_no_image_of_its_format_wherever_it_is_named(names: Dict[str, str]) -> None:
    """The guard refuses each of them, whatever the device is."""
    nvram = NVRAM.replace("<nvram>", "<nvram format='qcow2'>").replace("/usr/share/OVMF/OVMF_CODE.fd", names["own"])
    drive = QEMU.format("-drive", f"file={names['raw']},format=qcow2,if=virtio")
    cdrom = disk(names["raw"], driver="type='qcow2'", device="cdrom")
    assert found(web(cdrom)) == ["VMG402 web1 disk vda"]
    assert found(web("", outside=nvram.format(names["raw"]))) == ["VMG402 web1 nvram"]
    assert "VMG402 web1 qemu argument 1" in found(web("", outside=drive))


def test_one_path_written_in_two_ways(names: Dict[str, str]) -> None:
    """It takes no look at the host to see that: VMG101, not VMG103."""
    twice = raw("/srv//images/./raw.img") + raw(RAW, name="vdb")
    assert found(web(twice), **OFF) == ["VMG101 web1 disk vdb"]
    assert found(web(raw(names["folder"] + "//raw.img") + raw(names["raw"], name="vdb"))) == ["VMG101 web1 disk vdb"]


def test_firmware_variables_that_are_their_own_template() -> None:
    """VMG602 is between domains."""
    nvram = NVRAM.replace("<nvram>", "<nvram template='/n/vars.fd'>").format("/n/vars.fd")
    assert found(web("", outside=nvram), **OFF) == ["VMG101 web1 nvram"]
    assert found(web(TPM.format("/tpm/a") * 2), **OFF) == ["VMG101 web1 tpm state (2)"]


@pytest.mark.parametrize(
    "plugin, wants",
    [
        pytest.param(None, True, id="no-file"),
        pytest.param("# require_lease_for_disks = 1\n", True, id="as-installed"),
        pytest.param("require_lease_for_disks = 0\n", False, id="not-required"),
        pytest.param("auto_disk_leases = 1\nhost_id = 1\n", False, id="automatic"),
        pytest.param({"error": "EACCES"}, False, id="not-known"),
    ],
)
def test_what_libvirts_plugin_wants(plugin: Any, wants: bool) -> None:
    """libvirt's sanlock.conf: without automatic leases, require_lease_for_disks is on by default."""
    said = found(web(raw("/a.img")), **demanding(plugin))
    assert [one for one in said if one.startswith("VMG501")] == (["VMG501 web1 disk vda"] if wants else [])


def test_libvirts_plugin_does_not_hear_of_network_disks() -> None:
    ceph = (
        "    <disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='pool/web'>"
        "<host name='mon1'/></source><target dev='vda'/></disk>\n"
    )
    assert found(web(ceph), **demanding()) == []


def test_lvs_is_read() -> None:
    """The form of lvm2 2.03, with a volume of two segments and a snapshot."""
    row = {
        "vg_uuid": "QdLJu4-zf1V-n2Wc-R0xY-bT8p-Ke3H-sA6mGo", "lv_uuid": "linear-abcd-efgh-ijkl-mnop-qrst-uvwxyz",
        "vg_name": "data", "lv_name": "linear", "vg_systemid": "", "vg_lock_type": "none", "segtype": "linear", "origin": "",
        "lv_active_remotely": "",
    }  # fmt: skip
    snapshot = {**row, "lv_uuid": "snapon", "lv_name": "[snap]", "origin": "linear"}
    rows: List[Dict[str, str]] = [row, {**row, "segtype": "striped"}, snapshot]
    volumes = volumes_of({"report": [{"lv": rows}]})
    linear = volumes["lvm:QdLJu4-zf1V-n2Wc-R0xY-bT8p-Ke3H-sA6mGo/linear-abcd-efgh-ijkl-mnop-qrst-uvwxyz"]
    assert linear == Volume("data/linear", "", "none", frozenset(("linear", "striped")), False)
    assert volumes["lvm:QdLJu4-zf1V-n2Wc-R0xY-bT8p-Ke3H-sA6mGo/snapon"].kinds == {"linear", "snapshot"}
    with pytest.raises(ValueError):
        volumes_of({"report": []})


def test_a_lease_of_sanlock_is_read(tmp_path: Any) -> None:
    """One that sanlock itself has made."""
    sanlock = pytest.importorskip("sanlock")
    path = str(tmp_path / "lease")
    with open(path, "wb") as file:
        file.truncate(4 << 20)
    try:
        sanlock.write_resource(b"space", b"name", [(path, 1 << 20)])
    except sanlock.SanlockException:
        done = subprocess.run(["sanlock", "direct", "init", "-r", f"space:name:{path}:{1 << 20}"], capture_output=True)
        if done.returncode:
            pytest.skip(f"sanlock cannot write here: {done.stderr!r}")
    with open(path, "rb") as file:
        file.seek(1 << 20)
        assert read_lease(file.read(512)) == ("space", "name")
        file.seek(0)
        assert read_lease(file.read(512)) is None
