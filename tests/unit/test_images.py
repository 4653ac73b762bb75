# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is behind an image: as qemu-img writes it, and as somebody who means harm would."""

import json
import os
import random
import shutil
import struct
import subprocess

import pytest

from vmguard.domain import HostPath, NetworkVolume, NvmeNamespace
from vmguard.errors import Unresolvable
from vmguard.storage import chain, filenames
from vmguard.storage.facts import LiveFacts


def follow(path, format_="qcow2"):
    return chain(str(path), format_, LiveFacts())


def qcow2(path, backing=None, format_=None, data=None, version=3, features=None, size=None, **header):
    """A qcow2 header, honest or not."""
    extensions = b""
    if format_:
        extensions += struct.pack(">II", 0xE2792ACA, len(format_)) + format_.encode().ljust(
            (len(format_) + 7) & ~7, b"\0"
        )
    if data:
        extensions += struct.pack(">II", 0x44415441, len(data)) + data.encode().ljust((len(data) + 7) & ~7, b"\0")
    extensions += bytes(8)
    length = 104 if version == 3 else 72
    name = os.fsencode(backing or "")
    offset = length + len(extensions) if name else 0
    bits = features if features is not None else (4 if data else 0)
    head = struct.pack(
        ">4sIQII",
        b"QFI\xfb",
        version,
        header.get("offset", offset),
        size if size is not None else len(name),
        header.get("bits", 16),
    ).ljust(72, b"\0")
    if version == 3:
        head += struct.pack(">QQQII", bits, 0, 0, 4, header.get("length", length))
    with open(path, "wb") as file:
        file.write((head + extensions + name).ljust(header.get("file", 65536), b"\0"))


def raw(path):
    path.write_bytes(bytes(65536))


def paths(layers):
    return [(layer.path, layer.format, layer.role) for layer in layers]


@pytest.mark.parametrize("version", [2, 3])
def test_chain_of_three(tmp_path, version):
    raw(tmp_path / "base")
    qcow2(tmp_path / "middle", "base", "raw", version=version)
    qcow2(tmp_path / "top", str(tmp_path / "middle"), "qcow2", version=version)
    assert paths(follow(tmp_path / "top")) == [
        (str(tmp_path / "middle"), "qcow2", "backing"),
        (str(tmp_path / "base"), "raw", "backing"),
    ]


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
@pytest.mark.parametrize("format_", ["qcow2", "qcow", "qed", "vmdk"])
def test_as_qemu_img_writes_it(tmp_path, format_):
    def create(name, *arguments):
        subprocess.run(["qemu-img", "create", "-q", "-f", format_, *arguments, name], cwd=tmp_path, check=True)

    create("base.img", "-o", "size=1M")
    create("top.img", "-b", "base.img", "-F", format_)
    (layer,) = follow(tmp_path / "top.img", format_)
    assert layer.location == HostPath(str(tmp_path / "base.img")) and layer.role == "backing"
    assert follow(tmp_path / "base.img", format_) == ()


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
@pytest.mark.parametrize(
    "format_, options", [("vdi", ""), ("vpc", ""), ("vpc", "subformat=fixed"), ("vhdx", ""), ("vmdk", ""), ("raw", "")]
)
def test_nothing_behind(tmp_path, format_, options):
    command = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        format_,
        *(["-o", options] if options else []),
        str(tmp_path / "i"),
        "4M",
    ]
    subprocess.run(command, check=True)
    assert follow(tmp_path / "i", format_) == ()


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
@pytest.mark.parametrize(
    "subformat, extents", [("monolithicFlat", 1), ("twoGbMaxExtentSparse", 1), ("twoGbMaxExtentFlat", 1)]
)
def test_vmdk_extents(tmp_path, subformat, extents):
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", str(tmp_path / "d.vmdk"), "8M"],
        check=True,
    )
    layers = follow(tmp_path / "d.vmdk", "vmdk")
    assert [layer.role for layer in layers] == ["extent"] * extents
    assert all(os.path.exists(layer.path) for layer in layers)


def test_data_file(tmp_path):
    raw(tmp_path / "data")
    qcow2(tmp_path / "top", data=str(tmp_path / "data"))
    assert paths(follow(tmp_path / "top")) == [(str(tmp_path / "data"), "raw", "data")]
    qcow2(tmp_path / "relative", data="data")
    assert paths(follow(tmp_path / "relative")) == [(str(tmp_path / "data"), "raw", "data")]


def test_missing_backing_format_is_probed(tmp_path):
    raw(tmp_path / "base")
    qcow2(tmp_path / "middle", "base")
    qcow2(tmp_path / "top", "middle")
    assert [layer.path for layer in follow(tmp_path / "top")] == [str(tmp_path / "middle"), str(tmp_path / "base")]


def test_directory_of_the_name_as_given(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in "ab":
        raw(tmp_path / folder / "base")
    qcow2(tmp_path / "a" / "top", "base", "raw")
    os.symlink("../a/top", tmp_path / "b" / "link")
    assert follow(tmp_path / "b" / "link")[0].path == str(tmp_path / "b" / "base")


def test_cycle_and_depth(tmp_path):
    qcow2(tmp_path / "a", "b", "qcow2")
    qcow2(tmp_path / "b", "a", "qcow2")
    qcow2(tmp_path / "self", "self", "qcow2")
    for name in ("a", "self"):
        with pytest.raises(Unresolvable, match="comes back"):
            follow(tmp_path / name)
    for number in range(205):
        qcow2(tmp_path / f"l{number}", f"l{number + 1}", "raw" if number == 204 else "qcow2", file=512, bits=9)
    raw(tmp_path / "l205")
    with pytest.raises(Unresolvable, match="layers"):
        follow(tmp_path / "l0")
    assert len(follow(tmp_path / "l100")) == 105


@pytest.mark.parametrize(
    "change",
    [
        {"backing": "b", "size": 1024},
        {"backing": "b", "size": 0xFFFFFFFF},
        {"backing": "b", "offset": 1 << 63},
        {"backing": "b", "offset": 1 << 40},
        {"backing": "b\0c"},
        {"bits": 64},
        {"bits": 0},
        {"length": 4},
        {"length": 1 << 30},
        {"features": 4},
        {"features": 1 << 40},
        {"version": 4},
        {"file": 60},
    ],
    ids=str,
)
def test_hostile_qcow2(tmp_path, change):
    qcow2(tmp_path / "i", **change)
    if "file" in change:
        os.truncate(tmp_path / "i", change["file"])
    with pytest.raises(Unresolvable):
        follow(tmp_path / "i")


@pytest.mark.parametrize("format_", ["qcow2", "qcow", "qed", "vmdk", "vhdx", "vpc"])
@pytest.mark.parametrize("content", [b"", b"short", bytes(65536)], ids=["empty", "short", "zeros"])
def test_declared_but_not_so(tmp_path, format_, content):
    (tmp_path / "i").write_bytes(content)
    with pytest.raises(Unresolvable):
        follow(tmp_path / "i", format_)


def test_unknown_format(tmp_path):
    raw(tmp_path / "i")
    with pytest.raises(Unresolvable):
        follow(tmp_path / "i", "surprise")


@pytest.mark.parametrize(
    "magic", [b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\1", b"QED\0", b"KDMV", b"conectix", b"vhdxfile"]
)
def test_noise_never_escapes(tmp_path, magic):
    noise = random.Random(magic)
    for format_ in ("qcow2", "qcow", "qed", "vmdk", "vpc", "vhdx"):
        for _ in range(40):
            (tmp_path / "i").write_bytes(magic + noise.randbytes(noise.choice([8, 60, 600, 4096])))
            try:
                follow(tmp_path / "i", format_)
            except Unresolvable as error:
                assert error.why


@pytest.mark.parametrize(
    "name, location",
    [
        ("rel/x", HostPath("/d/rel/x")),
        ("/abs", HostPath("/abs")),
        ("file:x", HostPath("/d/x")),
        ("a/b:c", HostPath("/d/a/b:c")),
        ("nbd://h:1234/e%20x", NetworkVolume("nbd", "e x", ("h:1234",))),
        ("nbd+unix:///e?socket=/run/s", NetworkVolume("nbd", "e", ("unix:/run/s",))),
        ("nbd:h:1234:exportname=e", NetworkVolume("nbd", "e", ("h:1234",))),
        ("rbd:pool/image:id=admin:conf=/c", NetworkVolume("rbd", "pool/image")),
        ("iscsi://u%pw@h/iqn.x/2", NetworkVolume("iscsi", "iqn.x/2", ("h",))),
        ("gluster+tcp://h/vol/a/b", NetworkVolume("gluster", "vol/a/b", ("h",))),
        ("nvme://0000:01:00.0/1", NvmeNamespace("0000:01:00.0", 1)),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/x"}}', HostPath("/x")),
        ('json:{"file.filename":"x"}', HostPath("/d/x")),
        ('json:{"file":{"driver":"rbd","pool":"p","image":"i"}}', NetworkVolume("rbd", "p/i")),
        (
            'json:{"driver":"raw","file.driver":"nbd","file.server.type":"inet","file.server.host":"h","file.server.port":"1","file.export":"e"}',
            NetworkVolume("nbd", "e", ("h:1",)),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_file_names(name, location):
    assert filenames.parse(name, "/d").location == location


@pytest.mark.parametrize(
    "name",
    ["", "a\0b", "surprise:x", "json:", "json:[]", "json:{", 'json:{"file":"node0"}', "json:" + "[" * 100000, "nvme://x",
     "json:" + '{"file":' * 900 + "{}" + "}" * 900, 'json:{"driver":"quorum"}', 'json:{"a":1,"a.b":2}',
     'json:{"driver":"nvme","namespace":"\u00b3"}', 'json:{"driver":"nbd","filename":"nbd://h/\\ud800"}'],
    ids=lambda name: name[:20],
)  # fmt: skip
def test_file_names_not_understood(name):
    with pytest.raises(Unresolvable):
        filenames.parse(name, "/d")


def test_backing_given_by_the_name(tmp_path):
    raw(tmp_path / "other")
    qcow2(tmp_path / "base", "header-says-this", "raw")
    inner = {"driver": "raw", "file": {"driver": "file", "filename": str(tmp_path / "other")}}
    value = {"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp_path / "base")}, "backing": inner}
    qcow2(tmp_path / "top", "json:" + json.dumps(value))
    assert [layer.path for layer in follow(tmp_path / "top")] == [str(tmp_path / "base"), str(tmp_path / "other")]
    value["backing"] = None
    qcow2(tmp_path / "top", "json:" + json.dumps(value))
    assert [layer.path for layer in follow(tmp_path / "top")] == [str(tmp_path / "base")]


def test_image_behind_the_network_cannot_be_followed(tmp_path):
    qcow2(tmp_path / "a", "nbd://h/e", "raw")
    assert follow(tmp_path / "a")[0].location == NetworkVolume("nbd", "e", ("h",))
    qcow2(tmp_path / "b", "nbd://h/e", "qcow2")
    with pytest.raises(Unresolvable):
        follow(tmp_path / "b")
