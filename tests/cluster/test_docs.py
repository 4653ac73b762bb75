# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pages for two nodes, carried out on two nodes as they stand there: docs/cluster-gfs2.md, docs/cluster-lvm.md."""

import re
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest
from guarded import Guarded
from guests import guest
from hosts import PROJECT
from nodes import Node
from test_packages import Fresh, block, debs, fresh  # noqa: F401

# What these nodes do not have.
NOT_HERE = ("pcs ",)


def commands(page: str) -> Iterator[Tuple[str, str, List[str]]]:
    """Prompt, command and the output that is shown below it."""
    text = Path(PROJECT, "docs", page).read_text()
    found: List[Tuple[str, str, List[str]]] = []
    for shown in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in shown.splitlines():
            prompt = re.match(r"(both|node\d)# (.*)$", line)
            if prompt:
                found.append((prompt.group(1), prompt.group(2), []))
            elif found and line.strip():
                found[-1][2].append(line)
    yield from found


def carry_out(cluster: Guarded, page: str) -> None:
    for prompt, text, output in commands(page):
        if text.startswith(NOT_HERE):
            continue
        for node in cluster.hosts if prompt == "both" else [cluster.hosts[int(prompt[-1]) - 1]]:
            words = text.replace("apt install", "DEBIAN_FRONTEND=noninteractive apt-get -q -y install")
            done = node.shell(f"cd /root; {words}", check=False, within=240)
            if any(line.startswith("error:") for line in output):
                assert done.status, (text, done)
                for piece in re.split(r"\.\.\.|\n", "\n".join(output)):
                    assert " ".join(piece.split()) in " ".join((done.out + done.err).split()), (piece, done)
            else:
                # Warnings of doctor: the nodes' watchdog is the kernel's own.
                assert done.status in ((0, 1) if text.startswith("vmguard doctor") else (0,)), (text, done)


def take_off(node: Node) -> None:
    node.remove_all_guests()
    node.shell("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge vmguard python3-vmguard", check=False, within=240)


@pytest.mark.parametrize("page", ["cluster-gfs2.md", "cluster-lvm.md"])
def test_page(fresh: Fresh, debs: List[Path], page: str) -> None:  # noqa: F811
    name = "web" if page == "cluster-lvm.md" else "image"
    for node in fresh.hosts:
        take_off(node)
        for path in debs:
            node.write(f"/root/{path.name}", path.read_bytes())
    disk = fresh.volume(name).path
    fresh.hosts[0].shell("mkdir -p /srv/shared/images; truncate -s 1M /srv/shared/images/web.img")
    web = guest("web", [block(disk)])
    for node in fresh.hosts:
        node.define(web)
    try:
        carry_out(fresh, page)
    finally:
        for node in fresh.hosts:
            take_off(node)
        fresh.remove(name)
