"""Where the browser is."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """The path of a Chromium; None: there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)
