# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain names outside of <devices>: firmware and its variables, kernels, tables, and the QEMU namespace."""

from vmguard._disks import image_format, read_image
from vmguard._found import Found, host_path
from vmguard._typing import Optional
from vmguard._xml import Element
from vmguard.domain import Access, HostPath, Use

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

# Where the system's libvirtd makes the variables of firmware that names no place for them (localstatedir=/var).
NVRAM = "/var/lib/libvirt/qemu/nvram"
VARSTORE = "/var/lib/libvirt/qemu/varstore"

# Properties by which a device finds its host end: an override of one puts something else there.
_TELLING = frozenset((
    "blockdev", "chardev", "drive", "file", "filename", "fsdev", "host", "memdev", "path", "sysfsdev", "vhostdev",
    "wwpn",
))  # fmt: skip


def read_boot(root: Element, name: str, found: Found) -> None:
    """<os>, and the other elements beside <devices> that name files."""
    boot = root.first("os")
    if boot is not None:
        for tag in ("kernel", "initrd", "dtb", "shim"):
            _text(boot.first(tag), tag, found)
        _text(boot.find("acpi", "table"), "acpi table", found)
        loader = boot.first("loader")
        _loader(loader, found)
        if boot.first("varstore") is not None:
            _varstore(boot, name, found)
        else:
            _nvram(boot, loader, name, found)
    for sysinfo in root.all("sysinfo"):
        for entry in sysinfo.all("entry"):
            path = entry.get("file")
            if path:
                found.use(
                    Use(f"fw_cfg {entry.get('name') or ''}".strip(), host_path(path), Access.READ, line=entry.line)
                )
    backing = root.find("memoryBacking", "source")
    if backing is not None and backing.get("type") == "file":
        found.remark("memory", "it is backed by files of QEMU's own, which are no storage", backing.line)


def _text(element: Optional[Element], what: str, found: Found) -> None:
    if element is not None and element.text:
        found.use(Use(what, host_path(element.text), Access.READ, line=element.line))


def _loader(loader: Optional[Element], found: Found) -> None:
    if loader is None or not loader.text:
        return
    # A rom is never written; a pflash without a word on readonly is opened for writing.
    written = loader.get("readonly") == "no" or (loader.get("type") == "pflash" and loader.get("readonly") != "yes")
    access = Access.WRITE if written else Access.READ
    found.use(Use("loader", host_path(loader.text), access, image_format(loader.get("format")), line=loader.line))


def _nvram(boot: Element, loader: Optional[Element], name: str, found: Found) -> None:
    nvram = boot.first("nvram")
    form = nvram.get("format") if nvram is not None else None
    if nvram is not None:
        template = nvram.get("template")
        if template:
            found.use(Use("nvram template", host_path(template), Access.READ, line=nvram.line))
        kind, source = nvram.get("type"), nvram.first("source")
        if kind is not None:
            use = read_image(nvram, kind, source, "nvram", Access.WRITE, form, found) if source is not None else None
            if use is not None:
                found.use(use._replace(may_be_missing=True))
            elif source is None:
                found.puzzle("nvram", "it has no source", nvram.line)
            return
        if nvram.text:
            location = host_path(nvram.text)
            found.use(Use("nvram", location, Access.WRITE, image_format(form), may_be_missing=True, line=nvram.line))
            return
    if _makes_nvram(boot, loader, nvram):
        if form is None and loader is not None:
            form = loader.get("format")
        suffix = "qcow2" if form == "qcow2" else "fd"
        location = HostPath(f"{NVRAM}/{name}_VARS.{suffix}")
        found.use(Use("nvram", location, Access.WRITE, image_format(form), may_be_missing=True, line=boot.line))


def _makes_nvram(boot: Element, loader: Optional[Element], nvram: Optional[Element]) -> bool:
    """Whether libvirt gives the guest a file for its firmware's variables at a place of its own choice."""
    if loader is not None and loader.get("stateless") == "yes":
        return False
    if nvram is not None or boot.get("firmware") == "efi":
        return True
    # A loader that is written has its variables inside.
    return loader is not None and loader.get("type") == "pflash" and loader.get("readonly") == "yes"


def _varstore(boot: Element, name: str, found: Found) -> None:
    varstore = boot.first("varstore")
    if varstore is None:
        return
    template = varstore.get("template")
    if template:
        found.use(Use("varstore template", host_path(template), Access.READ, line=varstore.line))
    location = host_path(varstore.get("path") or f"{VARSTORE}/{name}.json")
    found.use(Use("varstore", location, Access.WRITE, may_be_missing=True, line=varstore.line))


def read_overrides(root: Element, found: Found) -> None:
    """<qemu:override> and <qemu:env>: what they change is QEMU's, and only a few of them can lead to other storage."""
    for override in root.all("override", QEMU_NAMESPACE):
        for prop in (element for element in override.walk() if element.tag == "property"):
            name, value = prop.get("name") or "", prop.get("value") or ""
            what = f"qemu override {name}"
            if name in _TELLING or name.startswith("x-block") or "/" in value:
                found.puzzle(what, "it may lead a device to other storage", prop.line)
            else:
                found.remark(what, "a property is set behind libvirt's back", prop.line)
    for commandline in root.all("commandline", QEMU_NAMESPACE):
        for env in commandline.all("env", QEMU_NAMESPACE):
            name = env.get("name") or ""
            if name.startswith("LD_"):
                found.puzzle(f"qemu environment {name}", "it puts other code into QEMU", env.line)
            else:
                found.remark(f"qemu environment {name}", "a variable is set behind libvirt's back", env.line)
