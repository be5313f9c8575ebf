"""What the benchmarks share: observed objectives, resumable runs, and the record of a machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

RESULTS = Path(__file__).parent / "results"
console = Console(width=None if sys.stdout.isatty() else 120)


class Done(Exception):
    """Raised by an objective to end a run from within: nothing is left to observe."""


class Observed:
    """An objective that watches itself, so that every library is measured in the same way.

    Args:
        fun: Takes (n, d), returns (n,) losses.
        budget: Evaluations that count; `Done` is raised by a call that wants more.
        targets: Losses to reach, in falling order; `Done` is raised once the last is reached.

    Attributes:
        nfev: Evaluations so far.
        best: The lowest loss so far.
        hits: After how many evaluations each target was reached; None for not yet.
    """

    def __init__(self, fun: Callable, budget: int, targets: Sequence[float]) -> None:
        self.fun, self.budget, self.targets = fun, budget, targets
        self.nfev, self.best = 0, np.inf
        self.hits: list[int | None] = [None] * len(targets)
        self._reached = 0

    def __call__(self, x):
        """Return the losses (n,) of points (n, d)."""
        counted = x[: self.budget - self.nfev]
        if len(counted):
            losses = self.fun(counted)
            self._observe(losses)
        if len(counted) < len(x):
            raise Done
        return losses

    def one(self, x):
        """Return the loss of one point (d,), for libraries that evaluate one at a time."""
        return float(self(np.asarray(x, dtype=float)[np.newaxis])[0])

    def _observe(self, losses):
        for i in np.flatnonzero(losses < self.best):
            if losses[i] < self.best:
                self.best = float(losses[i])
                while (
                    self._reached < len(self.targets) and self.best <= self.targets[self._reached]
                ):
                    self.hits[self._reached] = self.nfev + int(i) + 1
                    self._reached += 1
        self.nfev += len(losses)
        if self._reached == len(self.targets) > 0:
            raise Done


def run_cells(
    path: Path, cells: Iterable[dict], run: Callable[..., dict], jobs: int = 1
) -> list[dict]:
    """Run `run(**cell)` for each cell that the file does not hold yet.

    Each finished cell is a line of JSON, so an interrupted benchmark goes on where it was. A cell
    that raised is recorded with its error, and tried again by the next call.

    Args:
        path: The file of JSON lines.
        cells: What to run: the keyword arguments that tell one measurement from the others.
        run: Measures one cell and returns what is to be recorded; with several jobs a function of
            a module, which other processes find by its name.
        jobs: How many cells are measured at a time, each in a process; for what no clock decides.

    Returns:
        One row a cell, in the order of `cells`: the cell, and what was recorded for it.
    """
    cells = list(cells)
    rows = _finished(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_half_line(path)
    missing = [cell for cell in cells if _key(cell) not in rows]
    with path.open("a") as file, _Progress(len(missing)) as advance:
        for cell, result in _results(missing, run, jobs):
            try:
                row = {"cell": cell, **result()}
            except Exception as error:  # one library's failure must not cost the others' hours
                row = {"cell": cell, "error": f"{type(error).__name__}: {error}"}
                console.print(f"[red]{cell}: {row['error']}")
            rows[_key(cell)] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            advance()
    return [rows[_key(cell)] for cell in cells]


def _results(
    cells: list[dict], run: Callable[..., dict], jobs: int
) -> Iterator[tuple[dict, Callable[[], dict]]]:
    """Each cell as its turn comes, or as it finishes, with what returns its result or raises."""
    if jobs == 1:
        for cell in cells:
            yield cell, partial(run, **cell)
        return
    pool = ProcessPoolExecutor(jobs)
    try:
        futures = {pool.submit(run, **cell): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:
        pool.shutdown(cancel_futures=True)


def recorded(path: Path, cells: Iterable[dict]) -> list[dict]:
    """Return the rows of those cells that `run_cells` has finished, in the order of `cells`."""
    rows = _finished(path)
    return [rows[_key(cell)] for cell in cells if _key(cell) in rows]


def _finished(path: Path) -> dict[str, dict]:
    return {_key(row["cell"]): row for row in _read(path) if "error" not in row}


def _key(cell: dict) -> str:
    return json.dumps(cell, sort_keys=True)


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file; a run killed while writing leaves half a line at most, its last."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def _drop_half_line(path: Path) -> None:
    """Remove it, so that the next line begins a line; the file is never without its whole ones."""
    if path.exists() and not path.read_text().endswith("\n"):
        beside = path.with_suffix(".whole")
        beside.write_text("".join(_whole_lines(path)))
        beside.replace(path)


class _Progress:
    """A progress bar with the time left; a line a minute where there is no terminal."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start, self._said = total, 0, time.monotonic(), 0.0
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left:"), TimeRemainingColumn())
        # The speed is averaged over all of the run, as neighbouring cells differ in length.
        self._bar = Progress(*columns, console=console, speed_estimate_period=1e9)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Callable[[], None]:
        if console.is_terminal:
            self._bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        if console.is_terminal:
            self._bar.stop()

    def _advance(self) -> None:
        self._done += 1
        self._bar.advance(self._task)
        passed = time.monotonic() - self._start
        if not console.is_terminal and passed - self._said > 60:
            self._said = passed
            left = passed / self._done * (self._total - self._done) / 60
            print(f"{self._done} of {self._total} cells, {left:.0f} minutes left", flush=True)


def environment(*packages: str) -> dict[str, Any]:
    """Return what a figure depends on besides the code: versions, machine, threads, commit."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("dfo-lora", "numpy", "scipy", *packages)},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def write_report(path: Path, packages: Sequence[str], settings: dict, results: Any) -> None:
    """Write the environment, the settings and the results to a JSON file."""
    report = {"environment": environment(*packages), "settings": settings, "results": results}
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"wrote {path}")


def save_plot(figure: Any, path: Path) -> None:
    """Write a matplotlib figure to a PNG file."""
    figure.savefig(path, dpi=120, bbox_inches="tight")
    console.print(f"wrote {path}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
