# SPDX-License-Identifier: LGPL-2.1-or-later
"""
libvirt's own collection of domain definitions: each gets a verdict on a real host, none an exception.

Read from libvirt's source, which is not part of this project: VMGUARD_LIBVIRT_SOURCE names an unpacked one (Debian:
`apt-get source libvirt`).
"""

import glob
import json
import os
from typing import List

import pytest
from hosts import Host

SOURCE = os.environ.get("VMGUARD_LIBVIRT_SOURCE", "/usr/src/libvirt")
FOLDERS = ("qemuxml2argvdata", "qemuxmlconfdata", "genericxml2xmlindata", "qemustatusxml2xmldata")

# On the host, with the library that is installed there; one process, since each would take a tenth of a second.
SCRIPT = """
import json, sys
sys.path[:0] = [sys.argv[1]]
from vmguard.domain import parse
from vmguard.errors import Error
from vmguard.verdict import verdict_of
found = {}
for path in sys.stdin.read().splitlines():
    try:
        verdict = verdict_of(parse(open(path, 'rb').read()))
        found[path] = sorted({type(error).__name__ for error in verdict.objections}) or ['would start']
    except Error as error:
        found[path] = [type(error).__name__]
    except Exception as error:
        found[path] = ['BUG', repr(error)]
print(json.dumps(found))
"""


def definitions() -> List[str]:
    return sorted(path for folder in FOLDERS for path in glob.glob(f"{SOURCE}/tests/{folder}/*.xml"))


@pytest.mark.skipif(not definitions(), reason=f"no source of libvirt in {SOURCE} (VMGUARD_LIBVIRT_SOURCE)")
def test_each_definition_gets_a_verdict(node1: Host) -> None:
    library = node1.shell("dirname $(dirname $(find /usr/local/lib -path '*vmguard/hook.py'))").out.strip()
    paths = definitions()
    done = node1.run("/usr/bin/python3", "-I", "-c", SCRIPT, library, stdin="\n".join(paths), within=300)
    found = json.loads(done.out)
    assert len(found) == len(paths) > 1000
    bugs = {os.path.basename(path): verdict for path, verdict in found.items() if verdict[0] == "BUG"}
    kinds = sorted({kind for verdict in found.values() for kind in verdict})
    counts = {kind: sum(kind in verdict for verdict in found.values()) for kind in kinds}
    print(counts, f"in {done.seconds:.1f} s")
    assert not bugs
    # Their paths are mostly fictitious. Some name nothing, and would start; not one must be more than half understood.
    assert counts["would start"] > 50


@pytest.mark.skipif(not definitions(), reason=f"no source of libvirt in {SOURCE} (VMGUARD_LIBVIRT_SOURCE)")
def test_the_command_says_the_same(node1: Host) -> None:
    """A few of them through the command line: an exit status with a meaning, and words."""
    for path in definitions()[::97]:
        done = node1.vmguard("check", path, check=False)
        assert done.status in (0, 1, 3), (path, done)
        assert done.out + done.err and "Traceback" not in done.err, (path, done)
