# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Lint: what is dangerous about the storage of a domain, said before anything starts.

    registry.py rules/        one rule a module and a page of text
    document.py subject.py    a definition with places; looked at by the guard's own claims (looking.py, paper.py)
    doubles.py                which claims of which guests exclude each other
    site.py sources.py        the host, and where definitions come from
    engine.py                 many definitions; suppressions.py: what they allow
    standing.py watch.py      one definition at a time, when it changes: for the agent
    formats/ pages.py html.py reports and pages
"""
