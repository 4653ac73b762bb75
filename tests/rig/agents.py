# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmguardd on hosts of the rig: switched on for a test, killed, listened to."""

import json
import subprocess
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

from hosts import Host, eventually, finish_pipe

EVENTS = "/var/log/vmguard/events.jsonl"
OUTPUT = "/var/log/vmguardd.out"


class Agent:
    """The agent of one host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.process: Optional[subprocess.Popen[str]] = None
        self._from = len(host.read(EVENTS).splitlines())

    def start(self) -> None:
        self.process = self.host.spawn("/bin/sh", "-c", f"exec vmguardd >>{OUTPUT} 2>&1")
        eventually(lambda: self.pid() is not None, f"{self.host}: vmguardd runs")

    def pid(self) -> Optional[int]:
        """As the host numbers it; its children have the same words."""
        found = [pid for pid, words in self.host.processes() if words[-2:-1] == ["/usr/local/bin/vmguardd"]]
        return min(found) if found else None

    def kill(self, name: str = "KILL") -> None:
        pid = self.pid()
        if pid is not None:
            self.host.run("/bin/kill", f"-{name}", str(pid), check=False)
        assert self.process is not None
        finish_pipe(self.process)
        self.process = None

    def events(self, *words: str) -> List[Dict[str, Any]]:
        """What was written down since this agent was made; of these kinds."""
        lines = self.host.read(EVENTS).rpartition("\n")[0].splitlines()[self._from :]  # one may be half written
        found = [json.loads(line) for line in lines]
        return [one for one in found if not words or one["event"] in words]

    def forget(self) -> None:
        """Look only at what is written down from now on."""
        self._from = len(self.host.read(EVENTS).splitlines())

    def tells(self, word: str, within: float = 15) -> Dict[str, Any]:
        """Wait for an event; the first of its kind."""
        eventually(lambda: self.events(word), f"{self.host}: {word} is written down; so far {self.events()}", within)
        return self.events(word)[0]


def configure(host: Host, text: str) -> None:
    host.write("/etc/vmguard/vmguard.conf.d/50-test.conf", text)


@contextmanager
def watched(*hosts: Host, conflict: str = "pause") -> Iterator[List[Agent]]:
    """Agents on these hosts."""
    agents = [Agent(host) for host in hosts]
    try:
        for agent in agents:
            configure(agent.host, f"[agent]\nconflict = {conflict}\n")
            agent.start()
        yield agents
        for agent in agents:
            assert not agent.events("bug"), agent.events("bug")
            assert not agent.host.read(OUTPUT), agent.host.read(OUTPUT)
    finally:
        for agent in agents:
            print(agent.host, agent.host.read(OUTPUT), *agent.events(), sep="\n")
            agent.host.run("rm", "-f", OUTPUT, check=False)
            if agent.process is not None:
                agent.kill("TERM")
            agent.host.run("rm", "-f", "/etc/vmguard/vmguard.conf.d/50-test.conf", check=False)
