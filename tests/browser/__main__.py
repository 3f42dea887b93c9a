"""Installs Chromium from Debian and what drives it, where they are missing, and runs the tests of this folder.

Where that cannot be installed it says so and ends with 0: not every machine may install a browser.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.browser.chromium import executable
from tests.installing import debian, extra, failure

HERE = Path(__file__).parent


def main() -> int:
    """The exit code of the tests; 0 where they could not be run."""
    missing = failure("browser-test", lambda: () if executable() else debian("chromium")) or failure(
        "browser-test", lambda: extra("browser", "playwright", "axe_playwright_python")
    )
    if missing:
        print(f"browser-test: skipped, no test of the HTML report was run: {missing}", file=sys.stderr)
        return 0
    return subprocess.run([sys.executable, "-m", "pytest", str(HERE), *sys.argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
