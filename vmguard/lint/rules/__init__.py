# SPDX-License-Identifier: LGPL-2.1-or-later
"""One rule a module, its page of text beside it; see ../registry.py."""
