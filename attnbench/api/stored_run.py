"""A stored run in Python: its cells and crossovers as pandas frames, its pictures, and what a notebook shows of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.api import arguments, frames
from attnbench.api.pictures import Pictures

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.analysis.run import Run
    from attnbench.analysis.summary import Summary


@dataclass(frozen=True, repr=False)
class StoredRun:
    """A run that `attnbench run` has stored. In a notebook it shows its verdict.

    Args:
        stored: its files, checked.
    """

    stored: Run

    @property
    def folder(self) -> Path:
        """Where it is stored."""
        return self.stored.folder

    @property
    def name(self) -> str:
        """The suite's name."""
        return self.stored.name

    @property
    def environment(self) -> dict[str, Any]:
        """What it was measured on and with: environment.json."""
        return self.stored.environment

    @property
    def results(self) -> pd.DataFrame:
        """One row per cell, the columns of results.csv: base units, their names carry them; missing is NaN or NA."""
        return self.stored.results.copy()

    @arguments.named
    def summary(
        self,
        metrics: str | Iterable[str] = (),
        baseline: str | None = None,
        axis: str | None = None,
        operators: str | Sequence[str] = (),
    ) -> Summary:
        """Everything that `attnbench show` prints, as data.

        Args:
            metrics: those that are wanted; none: all that the run has.
            baseline: `operator[:impl]` to compare with; None: the suite's.
            axis: None: all.
            operators: those that are shown, judged among all; none: all.

        Raises: BadInput where the run has no such metric, baseline, axis or operator.
        """
        from attnbench.analysis.summary import summarise

        only = arguments.names("metrics", metrics), arguments.text("baseline", baseline), arguments.text("axis", axis)
        return summarise(self.stored, *only, arguments.names("operators", operators))

    def crossovers(
        self,
        metrics: str | Iterable[str] = (),
        baseline: str | None = None,
        axis: str | None = None,
        operators: str | Sequence[str] = (),
    ) -> pd.DataFrame:
        """Where each series passes the baseline, and where the best exact softmax; the arguments are `summary`'s.

        A row for every crossing, and one for a series that has none.

        Returns: the panel's columns (`axis`, and what all of its series have in common), then
            metric, series, operator, impl, params: params as JSON.
            against: "baseline", or "best exact".
            baseline: `operator[:impl]`, or what the best exact softmax is called for this metric.
            kind: "crossing"; "always": cheaper at every size measured; "never": dearer at every one; "stretch": told
                apart from `first` to `last` (None: the smallest, the largest size), where it is `cheaper` or not;
                "same": equal exact figures; "undecided": told apart at no size; "nothing": no size has both.
            at, low, high: of a crossing, the size and its 95 % interval. `bracket`: it lies between the measured sizes
                `low` and `high`, and no more is known.
            direction: the series is cheaper "above" or "below" the crossing.
            ratio_at_smallest, ratio_at_largest: series over baseline.
            text: the crossover as tables have it.
        """
        return frames.crossovers(self.summary(metrics, baseline, axis, operators))

    def choose(self, operators: str | Sequence[str] = (), **problem: Any) -> pd.DataFrame:
        """What to use for one problem, by this run's times where it has any: `attnbench.choose` with this run.

        Args:
            operators: to choose from; none: all.
            problem: the other arguments of `attnbench.choose`, but for run and device.
        """
        from attnbench.api.choices import choose

        return choose(operators, run=self.folder, **problem)

    @arguments.named
    def plot(
        self,
        metrics: str | Iterable[str] = (),
        baseline: str | None = None,
        axis: str | None = None,
        operators: str | Sequence[str] = (),
        size: str | None = None,
        title: str | None = None,
    ) -> Pictures:
        """The pictures of `attnbench plot` as matplotlib figures by name; the arguments are `summary`'s.

        Args:
            size: "3.5in" (a width), "89mm", "3.5x2.5in"; None: as each needs.
            title: above each; "none": no title; None: its own.

        Raises: BadInput where matplotlib is missing, the size is too small, or there is nothing to draw, too.
        """
        from attnbench.outputs.plot import pictures, wanted

        summary = self.summary(metrics, baseline, axis, operators)
        picture = wanted(arguments.text("size", size), arguments.text("title", title))
        return Pictures(pictures(summary, self.families, picture, arguments.names("operators", operators)))

    @property
    def families(self) -> dict[str, str]:
        """By operator, its family."""
        return dict(self.environment.get("families", {}))

    def __fspath__(self) -> str:
        """Its folder, so that it may stand where one is asked for."""
        return str(self.folder)

    def __repr__(self) -> str:
        return f"<attnbench run {self.name!r}: {len(self.stored.results)} cells, {self.folder}>"

    def _repr_html_(self) -> str:
        from attnbench.api.run_html import run_html

        return run_html(self.stored, self.summary())


@arguments.named
def load(folder: str | os.PathLike[str]) -> StoredRun:
    """A stored run; nothing that its files name is imported.

    Args:
        folder: one that `attnbench run` wrote.

    Raises: BadInput where it is none, or where what it holds cannot be trusted.
    """
    from attnbench.analysis.run import read_run

    return StoredRun(read_run(arguments.folder("folder", folder)))
