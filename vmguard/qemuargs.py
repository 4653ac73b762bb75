# SPDX-License-Identifier: LGPL-2.1-or-later
"""
<qemu:commandline>: arguments for QEMU that libvirt hands on unread. What they name is read here.

The tables below know the options of QEMU 4.2 to 10.1. Whatever is not in them and may name storage is said to be not
understood.
"""

from vmguard._boot import QEMU_NAMESPACE
from vmguard._chardevs import pipe_uses
from vmguard._found import Found, host_path
from vmguard._qemublock import PROBED, Graph, named_file
from vmguard._qemuopts import BadOptions, Tree, text_of, tree
from vmguard._qemureaders import OPTIONED, Argument, read_file, written
from vmguard._typing import Dict, List, Tuple
from vmguard._xml import Element
from vmguard.domain import Access, Use

_SWITCHES = frozenset((
    "S", "async-teardown", "daemonize", "enable-fips", "enable-kvm", "enable-sync-profile", "full-screen", "h", "help",
    "mem-prealloc", "no-acpi", "no-fd-bootchk", "no-hpet", "no-kvm", "no-quit", "no-reboot", "no-shutdown",
    "no-user-config", "nodefaults", "nodefconfig", "nographic", "old-param", "only-migratable", "portrait", "preconfig",
    "s", "semihosting", "singlestep", "snapshot", "usb", "version", "win2k-hack", "xen-attach", "xen-domid-restrict",
))  # fmt: skip

# Options whose value names nothing that a guest could write and keep: a file at most that QEMU reads at its start.
_HARMLESS = frozenset((
    "L", "accel", "action", "append", "audio", "boot", "compat", "cpu", "d", "dfilter", "display", "echr", "enable-qmp",
    "g", "iscsi", "k", "m", "msg", "name", "net", "netdev", "nic", "numa", "option-rom", "overcommit",
    "perfmap", "prom-env", "realtime", "rotate", "rtc", "run-with", "runas", "sandbox", "seed", "semihosting-config",
    "smp", "soundhw", "spice", "tb-size", "uuid", "vga", "vnc", "watchdog", "watchdog-action", "xen-domid", "mon",
    "add-fd", "jitdump", "balloon", "machine-none", "bt",
))  # fmt: skip

# Worth a word, though they name no storage.
_REMARKABLE = {
    "chroot": "QEMU changes its root directory after it has opened its disks",
    "incoming": "the guest waits for the state of another",
    "loadvm": "the guest begins with a state inside of its disks",
    "plugin": "it puts other code into QEMU",
    "snapshot": "QEMU writes to temporary files until it is told to commit",
    "add-fd": "a file descriptor is handed over",
}

# An argument that belongs to no option is the first disk.
_DISKS = dict.fromkeys(("", "fda", "fdb", "hda", "hdb", "hdc", "hdd", "mtdblock", "pflash", "sd"), Access.WRITE)
_DISKS["cdrom"] = Access.READ
_READ_FILES = frozenset(("bios", "dtb", "initrd", "kernel", "shim"))
_WRITTEN_FILES = frozenset(("D", "dump-vmstate", "pidfile", "writeconfig"))
_CHARDEVS = frozenset(("debugcon", "gdb", "monitor", "parallel", "qmp", "qmp-pretty", "serial", "virtioconsole"))
_KNOWN = frozenset((
    *_HARMLESS, *_REMARKABLE, *filter(None, _DISKS), *_READ_FILES, *_WRITTEN_FILES, *_CHARDEVS, *OPTIONED,
))  # fmt: skip


def read_commandline(root: Element, found: Found) -> None:
    """Everything that <qemu:commandline> names."""
    words: List[Tuple[str, int]] = []
    for commandline in root.all("commandline", QEMU_NAMESPACE):
        for arg in commandline.all("arg", QEMU_NAMESPACE):
            value = arg.get("value")
            if value is None:
                found.puzzle("qemu argument", "it has no value", arg.line)
            else:
                words.append((value, arg.line))
    read_arguments(words, found)


def read_arguments(words: List[Tuple[str, int]], found: Found) -> None:
    """What QEMU's arguments name. Each word comes with its line in the XML, 0 if there is none."""
    arguments = _arguments(words, found)
    graph = _graph(arguments)
    read: List[Tuple[Argument, List[Use]]] = []
    for argument in arguments:
        try:
            read.append((argument, _read(argument, graph, found)))
        except BadOptions as error:
            found.puzzle(f"{argument.what} (-{argument.option})", str(error), argument.line)
    for argument, uses in read:
        # A node that another one refers to was read there, in the light of what it is used for.
        if not _is_taken(argument, graph):
            for use in uses:
                found.use(use._replace(line=argument.line))


def _arguments(words: List[Tuple[str, int]], found: Found) -> List[Argument]:
    arguments = []
    position = 0
    while position < len(words):
        word, line = words[position]
        position += 1
        order = position
        if not word.startswith("-") or word == "-":
            arguments.append(Argument(order, "", word, line))
            continue
        option = word[2:] if word.startswith("--") else word[1:]
        if option in _SWITCHES:
            arguments.append(Argument(order, option, "", line))
        elif option in _KNOWN:
            if position < len(words):
                arguments.append(Argument(order, option, words[position][0], line))
                position += 1
            else:
                found.remark(f"qemu argument {order} (-{option})", "its value is missing", line)
        else:
            position = _unknown(words, position, order, option, found)
    return arguments


def _unknown(words: List[Tuple[str, int]], position: int, order: int, option: str, found: Found) -> int:
    what, line = f"qemu argument {order} (-{option})", words[order - 1][1]
    value = words[position][0] if position < len(words) else ""
    taken = bool(value) and not value.startswith("-")
    if "/" in option or (taken and "/" in value):
        found.puzzle(what, "this option is not known, and may name a file", line)
    else:
        found.remark(what, "this option is not known", line)
    return position + 1 if taken else position


def _graph(arguments: List[Argument]) -> Graph:
    nodes: Dict[str, Tree] = {}
    for argument in arguments:
        if argument.option == "blockdev":
            try:
                options = tree(argument.value, "driver")
            except BadOptions:
                continue  # Said when its turn comes.
            nodes.setdefault(text_of(options, "node-name") or "", options)
    nodes.pop("", None)
    return Graph(nodes)


def _is_taken(argument: Argument, graph: Graph) -> bool:
    if argument.option != "blockdev":
        return False
    options = tree(argument.value, "driver")
    name = text_of(options, "node-name") or ""
    return name in graph.taken and graph.nodes[name] == options


def _read(argument: Argument, graph: Graph, found: Found) -> List[Use]:
    option, value, what = argument.option, argument.value, argument.what
    if option in _REMARKABLE:
        found.remark(f"{what} (-{option})", _REMARKABLE[option], argument.line)
    if option in _DISKS:
        return named_file(value, what, _DISKS[option], PROBED, graph) if value else []
    if option in _READ_FILES:
        return read_file(value, what)
    if option in _WRITTEN_FILES:
        return [written(value, what)]
    if option in _CHARDEVS:
        return _redirected(value, what)
    if option in OPTIONED:
        implied, reader = OPTIONED[option]
        return reader(tree(value, implied), argument, graph, found)
    return []


def _redirected(value: str, what: str) -> List[Use]:
    """The old notation of character devices: -serial file:/x."""
    while value.startswith("mon:"):
        value = value[4:]
    kind, colon, rest = value.partition(":")
    if value.startswith("/"):
        return [Use(what, host_path(value), Access.WRITE)]
    if not colon:
        return []
    if kind == "file":
        return [written(rest, what)]
    if kind == "pipe":
        return pipe_uses(what, rest)
    if kind in ("chardev", "con", "fdset", "tcp", "telnet", "udp", "unix", "vc", "websocket", "tn3270"):
        return []
    if "/" in rest:
        raise BadOptions(f"its kind '{kind}' is not known")
    return []
