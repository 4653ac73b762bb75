# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the tests of packages are told with: debs, machine.

They need root, mmdebstrap and a source of Debian's packages; where one of them is missing they are skipped by name, and are
errors under VMGUARD_PACKAGES=must.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import machines  # noqa: E402
from machines import Machine  # noqa: E402

# sid as well, where it is asked for: it is another one each day.
SUITES = os.environ.get("VMGUARD_PACKAGES_SUITES", "bookworm trixie").split()


def cannot(why: str) -> None:
    if os.environ.get("VMGUARD_PACKAGES") == "must":
        pytest.fail(why)
    pytest.skip(why)


def build(kind: str, folder: Path, version: str = "") -> List[str]:
    """The packages that `make deb` or `make rpm` makes."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    if version:
        environment["VMGUARD_VERSION"] = version
    done = subprocess.run(
        [os.path.join(machines.ROOT, f"packaging/build-{kind}"), str(folder)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, List[str]]:
    """The packages, by version: the tree's own, and those of an update."""
    folder = tmp_path_factory.mktemp("debs")
    return {
        "0.1.0": build("deb", folder / "old"),
        "0.1.1": build("deb", folder / "new", "0.1.1-1"),
    }


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    if os.geteuid() != 0:
        cannot("needs root")
    try:
        machines.release(request.param)
    except (RuntimeError, OSError) as error:
        cannot(f"{request.param} cannot be had: {error}")
    return str(request.param)


@pytest.fixture
def machine(suite: str) -> Iterator[Machine]:
    made = Machine(suite, suite + "-test")
    try:
        yield made
    finally:
        made.close()
