"""The tracker of a run: appends rows to metrics.jsonl, or passes them on to several trackers."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtune.errors import UserError
from jaxtune.runs.history import METRICS, read_rows
from jaxtune.runs.seal import LogState
from jaxtune.storage.documents import json_line, naming, replace_file


@runtime_checkable
class Tracker(Protocol):
    """Receiver of a run's rows. A row is one JSON object with at least `kind` and `step`."""

    def log(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """Appends rows to `metrics.jsonl`, each flushed at once, so that a killed process loses at most a torn last line.

    A new run starts an empty file and refuses one that holds rows. `resume_step=n` keeps the rows up to step n,
    drops those of steps that will be trained again and the scores of an end that will be reached again, and removes
    a torn last line. Unless step n is `validated`, its validation will be done again as well.
    """

    def __init__(self, run_dir: Path | str, *, resume_step: int | None = None, validated: bool = True):
        self.path = Path(run_dir) / METRICS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            self._keep_up_to(resume_step, validated=validated)
        elif self.path.exists() and self.path.stat().st_size:
            raise UserError(f"{self.path} already holds a run; resume it, or choose another run folder")
        self._sha, self._rows = hashlib.sha256(), 0
        if self.path.exists():
            self._count(self.path.read_bytes())
        self._file = self.path.open("ab")

    def _count(self, lines: bytes) -> None:
        self._sha.update(lines)
        self._rows += lines.count(b"\n")

    def state(self) -> LogState:
        """Number and digest of the rows so far, which are on the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return LogState(rows=self._rows, sha256=self._sha.hexdigest())

    def _keep_up_to(self, step: int, *, validated: bool) -> None:
        again = lambda row: (
            (row["kind"] in ("score", "retention") and row["step"])
            or (row["kind"] == "eval" and row["step"] == step and not validated)
        )
        if self.path.exists():
            kept = [row for row in read_rows(self.path) if row["step"] <= step and not again(row)]
            replace_file(self.path, b"".join(map(json_line, kept)))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        assert "kind" in row and "step" in row, f"a row needs kind and step: {row}"
        line = json_line(row)
        with naming(self.path):
            self._file.write(line)
            self._file.flush()
        self._count(line)

    def close(self) -> None:
        """Flush to the disk and close; a second call does nothing."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = tuple(trackers)

    def log(self, row: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(row)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
