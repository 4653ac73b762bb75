# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the guard costs on the data path: a guest writes to its disk, on a logical volume and in a file on GFS2, each with and
without vmguard (`mode = off`). Prints a table for docs/benchmarks.md.

The guest is a boot sector: through the BIOS and virtio it writes one request after the other, from the first sector of 16 MiB to
the last, over and over. QEMU counts its requests, bytes, and the time from a request's arrival to its end; two looks at these
counters, some seconds apart, are a measurement. Rounds alternate, so that what else the machine does meets all alike.

    python3 tests/cluster/bench.py [ROUNDS] [SECONDS]
"""

import os
import statistics
import struct
import sys
from typing import Dict, List, NamedTuple, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "rig")]

from guarded import MOUNT, Guarded  # noqa: E402
from guests import Disk, Guest, MiB, boot_sector, guest  # noqa: E402
from hosts import eventually  # noqa: E402
from nodes import Node, sweep  # noqa: E402

FIRST, LAST = 2048, 2048 + 16 * MiB // 512  # sectors
SECTORS = 64  # a request: 32 KiB
OFF = "/etc/vmguard/vmguard.conf.d/99-bench.conf"


def writer() -> bytes:
    """Write SECTORS after the last ones, for ever."""
    code = b"\xfa\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0\xbc\x00\x7c\xfb"  # cli; ax=ds=es=ss=0; sp=0x7c00; sti
    loop = len(code)
    lba = 0x7C00 + 64 + 8  # in the packet, at 64
    code += b"\xbe" + struct.pack("<H", 0x7C00 + 64)  # mov si, packet
    code += b"\xb2\x80\xb8\x00\x43\xcd\x13"  # mov dl, 0x80; mov ax, 0x4300; int 0x13
    code += b"\x66\x83\x06" + struct.pack("<Hb", lba, SECTORS)  # add dword [lba], SECTORS
    code += b"\x66\x81\x3e" + struct.pack("<HI", lba, LAST)  # cmp dword [lba], LAST
    code += b"\x72" + struct.pack("b", loop - len(code) - 2)  # jb loop
    code += b"\x66\xc7\x06" + struct.pack("<HI", lba, FIRST)  # mov dword [lba], FIRST
    code += b"\xeb" + struct.pack("b", loop - len(code) - 2)  # jmp loop
    packet = struct.pack("<BBHHHQ", 16, 0, SECTORS, 0, 0x2000, FIRST)  # from 0x2000:0
    return boot_sector(code.ljust(64, b"\0") + packet)


class Counters(NamedTuple):
    """QEMU's, of the disk vda."""

    requests: int
    bytes: int
    nanoseconds: int


def counters(node: Node, it: Guest) -> Counters:
    lines = node.virsh("domblkstat", it.uuid, "vda").out.splitlines()
    found = {words[1]: int(words[2]) for words in map(str.split, lines) if len(words) == 3}
    return Counters(found["wr_req"], found["wr_bytes"], found["wr_total_times"])


def measure(node: Node, path: str, seconds: float) -> Tuple[float, float]:
    """MiB a second, and milliseconds a request."""
    it = guest("bench", [Disk(path, "block" if path.startswith("/dev/") else "file", driver="cache='none' io='threads'")])
    node.start(it)
    eventually(lambda: counters(node, it).requests > 50, "it writes", within=120, every=0.5)
    # The time stands with the counters, in the node's own clock: what asking takes is not measured.
    look = f"virsh domblkstat {it.uuid} vda; cat /proc/uptime"
    script = f"{look}; sleep {seconds}; {look}"
    looks: List[Dict[str, float]] = [{}]
    for words in map(str.split, node.shell(script, within=seconds + 60).out.splitlines()):
        if len(words) == 3:
            looks[-1][words[1]] = float(words[2])
        elif len(words) == 2:
            looks[-1]["uptime"] = float(words[0])
            looks.append({})
    node.destroy(it)
    eventually(lambda: not node.leftovers(), "the leases are back", within=60, every=0.5)
    gained = {key: looks[1][key] - looks[0][key] for key in looks[0]}
    return gained["wr_bytes"] / MiB / gained["uptime"], gained["wr_total_times"] / 1e6 / gained["wr_req"]


def guarding(node: Node, on: bool) -> None:
    if on:
        node.run("rm", "-f", OFF)
    else:
        node.write(OFF, "[guard]\nmode = off\n")


def main(words: List[str]) -> int:
    rounds, seconds = int(words[0]) if words else 7, float(words[1]) if words[1:] else 10.0
    sweep()
    keep = os.environ.get("VMGUARD_CLUSTER_KEEP") == "1"
    cluster = Guarded("kept" if keep else "bench", kept=keep)
    found: Dict[Tuple[str, bool], List[Tuple[float, float]]] = {}
    try:
        cluster.prepare()
        node = cluster.hosts[0]
        image = f"{MOUNT}/images/bench.img"
        volume = cluster.volume("bench", 24, b"")
        for path in (image, volume.path):
            # No write has to find room for itself.
            node.shell(f"dd if=/dev/zero of={path} bs=1M count=24 oflag=direct")
            node.run("dd", f"of={path}", "conv=notrunc,fsync", "bs=512", "status=none", stdin=writer())
        measure(node, volume.path, 1)  # the first is slower than the rest
        for number in range(rounds):
            for name, path in (("volume", volume.path), ("file on GFS2", image)):
                for on in (True, False) if number % 2 else (False, True):
                    guarding(node, on)
                    rate, latency = measure(node, path, seconds)
                    print(f"{number}: {name}, {'guarded' if on else 'bare'}: {rate:.2f} MiB/s, {latency:.2f} ms", flush=True)
                    found.setdefault((name, on), []).append((rate, latency))
    finally:
        for node in cluster.hosts:
            if node.pid:
                guarding(node, True)
                node.remove_all_guests()
                node.shell(f"rm -f {MOUNT}/images/bench.img", check=False)
        cluster.remove("bench")
        cluster.destroy()
    print("| | without vmguard | with vmguard | with / without |\n|---|---|---|---|")
    for name in ("volume", "file on GFS2"):
        for column, what in ((0, "sequential write, MiB/s"), (1, "time of a write, ms")):
            off, on = ([one[column] for one in found[name, which]] for which in (False, True))
            ratios = [a / b for a, b in zip(on, off)]
            print(f"| {name}: {what} | {spread(off)} | {spread(on)} | {spread(ratios)} |")
    return 0


def spread(values: List[float]) -> str:
    """Median, and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
