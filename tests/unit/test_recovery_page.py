# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/recovery.md: whoever has a refusal, an alarm or an event before him finds it there by its words."""

import re
from pathlib import Path

import pytest
from test_report import CLAIM, HOLDER, NOW, SAMPLES

from vmguard import errors, report

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/recovery.md").read_text(encoding="utf-8")
# What names are in the samples; they are … on the page.
NAMES = (CLAIM.what, str(HOLDER.host), "acquire")


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_a_refusal(error: errors.Error) -> None:
    head = report.sentence(error, "web", NOW).splitlines()[0]
    words = head.partition(" was not started: ")[2].partition("whether it is safe: ")
    text = (words[2] or words[0]).partition(" (saved ")[0].rstrip(".")
    for name in NAMES:
        text = text.replace(name, "…")
    assert re.sub(r"host id \d+", "host id …", text) in PAGE


def test_an_error_of_our_own() -> None:
    assert report.bug_words("web").splitlines()[0].partition("not started: ")[2].rstrip(".") in PAGE


def test_every_event() -> None:
    """What is written down has a word, and that has a line."""
    written = r"""(?:record|_say|_tell|_about|_done|told\.append)\(\(?(?:\w+, )?\s*"([a-z-]+)","""
    found = set()
    for path in (ROOT / "vmguard").rglob("*.py"):
        found |= set(re.findall(written, path.read_text(encoding="utf-8")))
    found |= {"refused", "ended", "contained"}  # chosen by an expression
    assert {"conflict", "alarm", "mounted", "unseen", "source-lingers", "surprise"} <= found
    lines = PAGE.partition("\n## Events")[2].partition("\n## ")[0]
    missing = {word for word in found if not re.search(rf"\b{word}\b", lines)}
    assert not missing


def test_what_is_wrong_with_a_store() -> None:
    """The reasons that the store gives, as far as they are one text."""
    raised = re.compile(r'StoreBroken\(\s*[\w."]+,\s*f?"([^"]+)"')
    for path in (ROOT / "vmguard/leases").rglob("*.py"):
        for text in raised.findall(path.read_text(encoding="utf-8")):
            # The longest piece without a name or number in it.
            piece = max(re.split(r"\{[^}]*\}|\(|:|;|, ", text), key=len).strip()
            assert piece in PAGE or text in NEVER, f"{path.name}: {text}"


# What no administrator meets: too little room for what is always small enough.
NEVER = (
    "its head does not fit in a sector",
    "a note about {note.identity[:64]!r} has no room beside its lease",
)
