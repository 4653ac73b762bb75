# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The pages of the rules: for a terminal, as docs/rules.md, and as the list in vmguard-lint(1).

    python3 -m vmguard.lint.pages docs  >docs/rules.md
    python3 -m vmguard.lint.pages man   prints the list of rules for man/vmguard-lint.1
"""

import re
import sys
from typing import List

from vmguard.lint import registry
from vmguard.lint.findings import Needs, Rule
from vmguard.lint.registry import Known

_FAMILIES = {
    "0": "Input",
    "1": "Double use",
    "2": "Sharing",
    "3": "Paths and placement",
    "4": "Format and cache",
    "5": "Leases",
    "6": "Clones",
    "7": "Around the guard",
}

_NEEDS = {
    Needs.XML: "the definition alone",
    Needs.HOST: "the host whose definition it is",
    Needs.INVENTORY: "the definitions of other guests (--all, --connect, --inventory)",
    Needs.CLUSTER: "a host that vmguard setup made part of a cluster",
}


def facts(rule: Rule) -> List[str]:
    """What a rule says of itself, a line each."""
    return [
        f"severity: {rule.severity.value}",
        f"needs:    {_NEEDS[rule.needs]}",
        "the hook: refuses such a start as well" if rule.deny else "the hook: lets it pass",
    ]


def text(one: Known) -> str:
    """The page of a rule as it is read in a terminal."""
    rule = registry.rule(one)
    head, _, rest = registry.page(one).partition("\n")
    lines = [head.lstrip("# "), "", *(f"  {line}" for line in facts(rule))]
    for line in rest.strip("\n").split("\n"):
        lines.append(line[3:].upper() if line.startswith("## ") else line)
    return "\n".join([*lines[:5], "", *lines[5:]])


def markdown() -> str:
    """docs/rules.md: all pages, and a table before them."""
    rules = [(one, registry.rule(one)) for one in registry.known()]
    lines = [
        "# The rules of vmguard lint",
        "",
        "Made from the pages beside the rules (`vmguard/lint/rules`) by `make docs`; `vmguard explain VMG101` shows one of them.",
        "",
        "| rule | name | severity | needs | the hook | what it finds |",
        "|---|---|---|---|---|---|",
    ]
    for _, rule in rules:
        link = f"[{rule.code}](#{rule.code.lower()}-{rule.slug})"
        deny = "refuses" if rule.deny else ""
        lines.append(
            f"| {link} | {rule.slug} | {rule.severity.value} | {rule.needs.value} | {deny} | {_cell(rule.title)} |"
        )
    family = ""
    for one, rule in rules:
        if rule.code[3] != family:
            family = rule.code[3]
            lines += ["", f"## {_FAMILIES[family]}"]
        head, _, rest = registry.page(one).partition("\n")
        lines += ["", f"##{head}", "", "  \n".join(facts(rule))]
        lines.append(re.sub(r"^## (.*)$", r"**\1**", rest.rstrip("\n"), flags=re.MULTILINE))
    return "\n".join(lines) + "\n"


def _cell(title: str) -> str:
    return title.replace("<", "&lt;").replace("|", "\\|")


def man() -> str:
    """The rules as a list of mdoc(7)."""
    lines = ['.Bl -tag -width "VMG101"']
    for one in registry.known():
        rule = registry.rule(one)
        notes = ", ".join(
            [rule.severity.value, f"needs {rule.needs.value}", *(["refused by the hook"] if rule.deny else [])]
        )
        title = rule.title.replace("\\", "\\e").replace("'", "\\(aq")
        lines += [f".It Cm {rule.code} {rule.slug}", title[:1].upper() + title[1:] + ".", f"({notes})"]
    return "\n".join([*lines, ".El"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown() if sys.argv[1:] == ["docs"] else man())
