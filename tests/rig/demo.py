# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What vmguard does, shown: two throw-away hosts on this machine, real libvirtd, QEMU and sanlock, real guests.

Run by `make demo`. Every line with a tick was seen just now; the first that is not as it should be ends the demo.
"""

import os
import re
import sys
import time
from typing import Callable, List

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import hosts  # noqa: E402
from clusters import Guarded  # noqa: E402
from conftest import Images, portrait  # noqa: E402
from guests import Disk, Guest, guest, power_off_after, reset_after, witness  # noqa: E402
from hosts import Host, eventually  # noqa: E402

BOLD, GREEN, NORMAL = ("\033[1m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def say(text: str) -> None:
    print(f"\n{BOLD}{text}{NORMAL}", flush=True)


def tick(text: str) -> None:
    print(f"  {GREEN}✓{NORMAL} {text}", flush=True)


def shell(host: Host, text: str) -> None:
    print(f"  {host}# {text}", flush=True)


def quote(words: str) -> None:
    print("".join(f"      {line}\n" for line in words.splitlines()), end="", flush=True)


def refusal(node1: Host, node2: Host, images: Images) -> None:
    say("The same disk on a second host")
    disk = images.raw("web.img")
    shell(node1, "virsh start web1")
    web1, web2 = guest("web1", [disk]), guest("web2", [disk])
    node1.start(web1)
    before = portrait(disk)
    shell(node2, "virsh start web2")
    quote(node2.refused(web2))
    tick("refused in libvirt's prepare hook")
    assert not node2.ever_spawned(web2)
    tick("QEMU was never started there")
    assert portrait(disk) == before
    tick("the image's owner, mode, times and bytes are what they were")
    name = "Büro \"Nord\"\n2 " + "x" * 180
    words = node2.refused(guest(name, [disk]))
    assert len(words.splitlines()) == 4 and "Büro" in words
    tick("a name of 200 characters with quotes, umlauts and a line end: refused as readably")
    node1.destroy(web1)


def aliases(node1: Host, node2: Host, images: Images) -> None:
    say("The same, by other names")
    disk = images.raw("db.img")
    db = guest("db", [disk])
    node1.start(db)
    folder = os.path.dirname(disk)

    def try_path(how: str, host: Host, path: str, kind: str = "file") -> None:
        words = host.refused(guest("copy", [Disk(path, kind)]))
        assert '"db"' in words, words
        tick(f"{how}: refused")

    os.symlink(disk, f"{folder}/symlink.img")
    try_path("a symlink", node2, f"{folder}/symlink.img")
    os.link(disk, f"{folder}/hardlink.img")
    try_path("a hard link", node2, f"{folder}/hardlink.img")
    open(f"{folder}/bound.img", "w").close()
    node2.run("mount", "--bind", disk, f"{folder}/bound.img")
    try_path("a bind mount", node2, f"{folder}/bound.img")
    node2.run("umount", f"{folder}/bound.img")
    try_path("// and ..", node2, f"{folder}/..//{os.path.basename(folder)}/db.img")
    try_path("a loop device on the file", node2, node2.cluster.loop(disk), "block")
    try_path("a clone on the same host", node1, disk)
    words = node2.refused(guest("db-copy", [images.raw("own.img")], uuid=db.uuid))
    assert '"db"' in words
    tick("another name and another disk, with the same uuid: refused")
    words = node2.refused(guest("copy", arguments=["-drive", f"if=none,id=x,format=raw,file={disk}"]))
    assert '"db"' in words
    tick("named only in <qemu:commandline>: refused")
    overlay = images.qcow2("overlay.qcow2", backing=disk)
    words = node2.refused(guest("copy", [Disk(overlay, format="qcow2")]))
    assert '"db"' in words
    tick("an overlay whose base it is: refused")
    node1.destroy(db)
    top = guest("top", [Disk(overlay, format="qcow2")])
    node2.start(top)
    assert '"top"' in node1.refused(db)
    tick("and the reverse, the base while the overlay runs: refused")
    node2.destroy(top)


def allowed(node1: Host, node2: Host, images: Images) -> None:
    say("What is meant to be shared")
    running: List[Callable[[], float]] = []

    def start(host: Host, one: Guest) -> None:
        host.start(one)
        running.append(lambda: host.destroy(one))

    base = images.raw("base.img")
    for number in range(2):
        for host in (node1, node2):
            overlay = images.qcow2(f"{host}-{number}.qcow2", backing=base)
            start(host, guest(f"guest-{host}-{number}", [Disk(overlay, format="qcow2")]))
    tick("four guests on one read-only base, two on each host")
    both = images.raw("shared.img")
    for host in (node1, node2):
        start(host, guest(f"member-{host}", [Disk(both, shareable=True, driver="cache='none'")]))
    tick("a <shareable/> disk, in a guest on each host")
    for stop in running:
        stop()
    disk = images.raw("moves.img")
    one = guest("moves", [disk])
    node1.start(one)
    node1.destroy(one)
    began = time.monotonic()
    node2.start(one)
    tick(f"stopped on one host, started on the other at once ({time.monotonic() - began:.2f} s)")
    node2.destroy(one)
    many = guest("many", [images.raw(f"{number}.img", size=1 << 20) for number in range(24)])
    node1.start(many)
    tick("24 disks (libvirt's own plugin ends at 8)")
    node1.destroy(many)


def sleepers(node1: Host, node2: Host, images: Images) -> None:
    say("Guests that do not run are still guarded")
    disk = images.raw("sleeper.img")
    one, other = guest("sleeper", [disk]), guest("copy", [disk])
    node1.start(one)
    node1.virsh("suspend", one.uuid)
    node2.refused(other)
    tick("suspended: the other host is refused")
    node1.destroy(one)
    node1.start(one, "--paused")
    node2.refused(other)
    tick("started --paused: refused")
    node1.destroy(one)
    io_error(node1, node2, images)
    rebooting = images.raw("rebooting.img", power_off_after(9))
    one = guest("rebooting", [rebooting], on_poweroff="restart")
    listener = node1.spawn("virsh", "-q", "event", "--event", "reboot", "--loop", "--timeout", "4")
    node1.start(one)
    pid = node1.qemu_pid(one)
    out, _ = listener.communicate()
    assert out.count("event 'reboot'") >= 2 and node1.qemu_pid(one) == pid, out
    node2.refused(guest("copy", [rebooting]))
    tick("on_poweroff=restart: it goes on, with its leases")
    node1.destroy(one)
    resetting = images.raw("resetting.img", reset_after(5))
    one = guest("resetting", [resetting])
    node1.start(one)
    node2.refused(guest("copy", [resetting]))
    tick("a guest that resets itself: it goes on, with its leases")
    node1.kill9(one)
    began = time.monotonic()
    eventually(lambda: not node2.try_start(guest("copy", [resetting])).status, "the disk is free")
    tick(f"kill -9 of its QEMU: the disk is free at once ({time.monotonic() - began:.2f} s with the start)")


def io_error(node1: Host, node2: Host, images: Images) -> None:
    """A guest that QEMU stopped because its filesystem is full."""
    small = images.raw("small.fs", size=4 << 20)
    node1.run("mkfs.ext4", "-q", "-F", small)
    device, place = node1.cluster.loop(small), images.path("small")
    os.mkdir(place)
    for host in (node1, node2):
        host.run("mount", device, place)
    try:
        disk = f"{place}/web.img"
        with open(node1.path(disk), "wb") as file:
            file.write(witness(mark=1))
            file.truncate(2 << 20)  # sparse: the guest writes into a hole
        node1.shell(f"cat /dev/zero >{place}/filler 2>/dev/null; chmod 666 {disk}; sync")
        one = guest("full", [disk])
        node1.start(one)
        eventually(lambda: node1.state(one) == "paused", "QEMU stopped the guest")
        node2.refused(guest("copy", [disk]))
        tick("stopped by QEMU on an I/O error: refused")
        node1.destroy(one)
    finally:
        for host in (node1, node2):
            host.run("umount", place)


def main() -> int:
    """Exit status 0 if all was seen."""
    if os.geteuid():
        print("make demo needs root: it makes hosts in namespaces")
        return 1
    hosts.sweep()
    began = time.monotonic()
    say("Two hosts: libvirtd, QEMU and sanlock on each, one shared folder")
    cluster = Guarded("demo", hosts=2)
    try:
        cluster.boot()
        node1, node2 = cluster.hosts
        shell(node1, f"vmguard setup --yes --store {cluster.store} --host-id 1 --io-timeout {hosts.IO_TIMEOUT}")
        for part in (refusal, aliases, allowed, sleepers):
            part(node1, node2, Images(cluster, os.path.join(cluster.shared, re.sub("_", "-", part.__name__))))
            for host in cluster.hosts:
                host.remove_all_guests()
        say("vmguard status")
        quote(node1.vmguard("status", check=False).out)
    finally:
        cluster.destroy()
    say(f"All of it seen in {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
