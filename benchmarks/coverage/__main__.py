"""Simulates how often intervals and labels are right, and puts the tables into docs/statistics.md: `make statistics`.

    python -m benchmarks.coverage [--draws 200] [PART ...]

A part is a module of this folder with `table(draws) -> str`, Markdown. It replaces what stands between its markers:
    <!-- part: intervals -->
    <!-- end -->
"""

from __future__ import annotations

import argparse
import re
import time
from importlib import import_module
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"
MARKED = re.compile(r"(?P<head><!-- part: (?P<part>\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
DRAWS = 200


def tables(page: str, parts: list[str], draws: int) -> str:
    """The page with the tables of some parts made again; none named: of all."""

    def made(match: re.Match[str]) -> str:
        part = match["part"]
        if parts and part not in parts:
            return match[0]
        began = time.process_time()
        text: str = import_module(f"benchmarks.coverage.{part}").table(draws)
        print(f"{part}: {time.process_time() - began:.0f} CPU-seconds")
        return f"{match['head']}{text.strip()}\n"

    return MARKED.sub(made, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="to make again; default: all")
    parser.add_argument("--draws", type=int, default=DRAWS, help="simulated runs per row (default: %(default)s)")
    given = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    unknown = set(given.parts) - {match["part"] for match in MARKED.finditer(page)}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such part in {PAGE.name}")
    PAGE.write_text(tables(page, given.parts, given.draws), encoding="utf-8")


if __name__ == "__main__":
    main()
