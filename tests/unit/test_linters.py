# SPDX-License-Identifier: LGPL-2.1-or-later
"""The linters, as tests. A tool that is missing skips its test, except where everything must be there: CI=true."""

import ast
import os
import shutil
import subprocess
from pathlib import Path
from typing import List

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("vmguard", "tests", "packaging", "hooks", ".ci", "man", "conf", "docs")


def files() -> List[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    return [path for path in found if not any(part.startswith((".mypy", ".ruff", "__pycache")) for part in path.parts)]


def starts_with(path: Path, text: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(text)) == text


PYTHON = [path for path in files() if path.suffix == ".py" or starts_with(path, b"#!/usr/bin/python3")]
SHELL = [path for path in files() if starts_with(path, b"#!/bin/sh") or starts_with(path, b"#!/bin/bash")]
MANUALS = sorted((ROOT / "man").iterdir())


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(tool: str, *arguments: object) -> None:
    program = shutil.which(tool)
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{tool} is not installed")
        pytest.skip(f"{tool} is not installed")
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_files_are_found() -> None:
    assert ROOT / "vmguard/config.py" in PYTHON
    assert ROOT / "packaging/copy-library" in PYTHON
    assert {ROOT / "hooks/qemu", ROOT / ".ci/run"} <= set(SHELL)
    assert len(MANUALS) == 4


def test_ruff() -> None:
    run("ruff", "check", "--no-cache", "--output-format", "concise", *PYTHON)


def test_mypy(tmp_path: Path) -> None:
    run("mypy", "--strict", "--cache-dir", tmp_path, "vmguard")


@pytest.mark.parametrize("path", SHELL, ids=named)
def test_shellcheck(path: Path) -> None:
    run("shellcheck", path)


@pytest.mark.parametrize("path", MANUALS, ids=named)
def test_mandoc(path: Path) -> None:
    run("mandoc", "-T", "lint", "-W", "warning", path)


def test_codespell() -> None:
    # A macro of mdoc, a disk, the mark in the footer of a VHD image; words that tests get wrong on purpose.
    run("codespell", "-L", "nd,hda,conectix,gaurd,caf,nstall", *[path for path in files() if path.suffix != ".xml"], "README.md")


@pytest.mark.parametrize("path", PYTHON, ids=named)
def test_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 9))


@pytest.mark.parametrize("path", [*PYTHON, *SHELL, *MANUALS], ids=named)
def test_licence_line(path: Path) -> None:
    if path.stat().st_size:
        head = path.read_text(encoding="utf-8").splitlines()[:2]
        assert any("SPDX-License-Identifier: LGPL-2.1-or-later" in line for line in head)
