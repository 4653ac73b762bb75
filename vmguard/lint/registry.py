# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rules: which there are, by the names of their files; each is imported only when it is asked for.

A rule is a module rules/vmg405_cache_unsafe.py with RULE and one of

    check(one, site) -> findings    of one definition: `one` is a looking `Subject`
    compare(guest, meeting) -> findings   of one definition among others, for rules that need an inventory

and a page of text beside it, rules/vmg405_cache_unsafe.md, from which `vmguard explain`, docs/rules.md and vmguard-lint(1) are
made.
"""

import importlib
import os
import re
from types import ModuleType
from typing import Dict, List, NamedTuple, Optional

from vmguard.errors import BadRequest
from vmguard.lint.findings import Rule

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rules")
_NAME = re.compile(r"(vmg\d{3})_([a-z0-9_]+)\.py")


class Known(NamedTuple):
    """A rule as its file name tells it."""

    code: str
    slug: str
    stem: str  # of its two files


def known() -> List[Known]:
    """All rules by code. None of them is imported."""
    matches = (_NAME.fullmatch(name) for name in sorted(os.listdir(_FOLDER)))
    return [
        Known(match.group(1).upper(), match.group(2).replace("_", "-"), match.group(0)[: -len(".py")])
        for match in matches
        if match
    ]


def find(name: str) -> Optional[Known]:
    """The rule of that code or slug, in any case of letters; None if there is none."""
    wanted = name.strip().lower()
    return next((one for one in known() if wanted in (one.code.lower(), one.slug)), None)


def module(one: Known) -> ModuleType:
    """A rule's module."""
    return importlib.import_module(f"vmguard.lint.rules.{one.stem}")


def rule(one: Known) -> Rule:
    """What a rule says of itself."""
    found = module(one).RULE
    assert isinstance(found, Rule)
    return found


def page(one: Known) -> str:
    """A rule's page of text, in Markdown."""
    with open(os.path.join(_FOLDER, one.stem + ".md"), encoding="utf-8") as file:
        return file.read()


def load(only: str = "") -> Dict[str, ModuleType]:
    """
    The modules by code: all, or those that `only` names (codes, beginnings of codes, slugs; with commas).

    Raises BadRequest for a name that no rule has.
    """
    wanted = [word.strip() for word in only.split(",") if word.strip()]
    chosen = known()
    if wanted:
        chosen = []
        for word in wanted:
            some = [one for one in known() if one.code.startswith(word.upper()) or one.slug == word.lower()]
            if not some:
                raise BadRequest(f"there is no rule {word!r}", "`vmguard rules` lists them")
            chosen += [one for one in some if one not in chosen]
    return {one.code: module(one) for one in chosen}
