"""Durable training state: asynchronous Orbax checkpoints that carry their own digests and are never used when damaged.

A checkpoint is a folder `<step, 8 digits>/` with the Orbax items `params` and `rest` (every other field of the state)
and `checkpoint.json`: the caller's JSON, the metrics, the shape and dtype of every leaf, and the SHA-256 of every file.
That document is written after the arrays and before the commit (an atomic rename on a file system, a commit file on an
object store), so a committed checkpoint always has one and a half-written checkpoint is never listed.
"""

import dataclasses
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxtune.errors import UserError, say
from jaxtune.parallel.gathering import lines_of_all
from jaxtune.parallel.job import barrier
from jaxtune.runs.documents import read_checkpoint
from jaxtune.runs.leaves import described, differences, mismatch, parts, placed
from jaxtune.runs.retention import COMMITTED, DOCUMENT, CheckpointConfig, Keep, is_step, open_folder, ranked
from jaxtune.runs.written import Barrier, all_digests, note_own
from jaxtune.storage.documents import Json, UnreadableDocument, is_remains, number, plain, write_sealed
from jaxtune.storage.faults import faults_at
from jaxtune.storage.fingerprints import file_digests, files_below
from jaxtune.storage.stores import StoreError

ITEMS = ("params", "rest")
SET_ASIDE = "set-aside"
_SAVE_SECONDS = 3600  # how long the processes of a job wait for one another's arrays, the digests and the copies


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not the ones that were written; `good` is the newest undamaged step, if any."""

    def __init__(self, step: int, folder: str, problems: Sequence[str], good: int | None):
        listed = "".join(f"\n  - {p}" for p in problems[:10])
        more = f"\n  - and {len(problems) - 10} more" if len(problems) > 10 else ""
        remedy = (
            f"The newest undamaged checkpoint is step {good}: continue from it with --resume-step {good}."
            if good is not None
            else "No earlier checkpoint is undamaged: start again with --overwrite, or put back a copy of the folder."
        )
        super().__init__(f"checkpoint {step} is damaged and was not used ({folder}):{listed}{more}\n{remedy}")
        self.step, self.problems, self.good = step, list(problems), good


class Checkpoints:
    """The checkpoints of one run folder; a context manager.

    Every process of a job must make the same calls in the same order; with `alone` one of them makes them all, and
    arrays are those of its host. With `read_only` nothing is created, cleaned up or deleted, so a live run can be read.
    `before` is called before a checkpoint counts outside this machine: what it sends is there first.

    Where `config.directory` is a store that Orbax cannot write to, every checkpoint is copied there before it is
    committed; a copy that fails is tried again with the next checkpoint and when the checkpoints are closed, which then
    is an error.
    """

    def __init__(
        self, directory: str | os.PathLike[str], config: CheckpointConfig | None = None, *, read_only: bool = False,
        alone: bool = False, before: Callable[[], None] | None = None,
    ):  # fmt: skip
        import orbax.checkpoint as ocp

        self._alone, self._into_memory, self._before = alone or jax.process_count() == 1, alone, before
        self.directory = open_folder(os.fspath(directory))
        self.config = config or CheckpointConfig()
        if read_only and not self.directory.exists():
            copies = self.config.bucket()
            hint = f"; `jaxtune train --resume` brings them from {copies.url}" if copies else ""
            raise UserError(f"no checkpoints here: {self.directory} does not exist{hint}")
        self.read_only = read_only
        self._had: set[str] = set()
        self._bucket = None if read_only or jax.process_index() else self.config.bucket()
        if self._bucket is not None:
            self._bucket.check()
            self._had = {path.name for path in self.directory.iterdir()} if self.directory.exists() else set()
        self._saving: tuple[int, dict[str, Any]] | None = None
        self._verified: set[int] = set()
        self._metrics: dict[int, dict[str, float]] = {}
        of_some = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="alone"
        )
        processes = of_some if alone else ocp.options.MultiprocessingOptions()
        if not read_only and alone:
            self.directory.mkdir(parents=True, exist_ok=True)  # Orbax makes it for whole jobs only
        # Compressing takes as much memory as the state and twice the time, and weights shrink by a tenth at most.
        self._barrier = None if self._alone else Barrier(ocp.multihost.get_barrier_sync_fn(), self._note)
        handler = lambda: ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=processes)
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={item: handler() for item in ITEMS},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=Keep(self.config, self._metrics.get),
                step_format_fixed_length=8,
                cleanup_tmp_directories=not read_only,
                create=not read_only and not alone,
                multiprocessing_options=processes,
                async_options=ocp.options.AsyncOptions(
                    barrier_sync_fn=self._barrier,
                    post_finalization_callback=self._write_document,
                    timeout_secs=_SAVE_SECONDS,
                ),
            ),
        )
        self._read_metrics()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._alone:  # in a job of several processes, waiting for the others would not end
            self._manager.close()
            self._copy_out(last=False)  # what went wrong here shall not hide what went wrong before

    def save(
        self, step: int, state: Any, extra: Mapping[str, Any] | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Start saving `state` (a dataclass with a field `params`); returns once the arrays are copied off the devices.

        `extra` is any JSON (plan hash, seed, early-stopping state, ...); `metrics` ranks the checkpoint when it holds
        the `WATCHED` loss. An error of the save before this one is raised here.
        """
        import orbax.checkpoint as ocp

        assert not self.read_only, "these checkpoints were opened for reading"
        latest = self.latest()
        if latest is not None and step <= latest:
            raise RuntimeError(f"step {step} is not after the newest checkpoint, step {latest}, in {self.directory}")
        params, rest = parts(state)
        document = {
            "format": 1,
            "step": step,
            "extra": plain(extra or {}),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "leaves": {"params": described(params), "rest": described(rest)},
        }
        self._saving = step, document
        self._metrics[step] = document["metrics"]
        items = ocp.args.Composite(params=ocp.args.PyTreeSave(params), rest=ocp.args.PyTreeSave(rest))
        if self._barrier is not None:
            self._barrier.begin()
        with faults_at(self.directory):
            if not self._manager.save(step, args=items, force=True):
                raise RuntimeError(f"Orbax did not save step {step} in {self.directory}")

    def wait(self) -> None:
        """Block until the running save is committed; raise its error if it failed."""
        with faults_at(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the running save and the copies, and release the threads."""
        with faults_at(self.directory):
            self._manager.close()
        self._copy_out(last=True)

    def fetch(self) -> None:
        """Bring the copies from the bucket, if there is one and the folder has no checkpoint."""
        if self.steps():
            return
        if self._bucket is not None:
            for name in self._bucket.steps():
                say(f"fetching checkpoint {name} from {self._bucket.url}", file=sys.stderr)
                self._bucket.fetch(name, pathlib.Path(self.directory / name))
        self._wait_for_all("jaxtune: copies of checkpoints fetched")
        self._manager.reload()
        self._read_metrics()

    def steps(self) -> list[int]:
        """Committed steps, ascending, once a running save is done."""
        self.wait()
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the lowest finite `WATCHED` loss (the earliest among equals), or None if no step has one."""
        best_first = ranked({step: self._metrics.get(step) for step in self.steps()})
        return best_first[0] if best_first else None

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics that were saved with `step`; empty if there were none."""
        return dict(self._metrics.get(self._existing(step), {}))

    def set_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Rank an earlier checkpoint by metrics that became known after it was saved."""
        document = self._good_document(step)
        document["metrics"] = {name: float(value) for name, value in metrics.items()}
        if jax.process_index() == 0:
            write_sealed(self._folder(step) / DOCUMENT, document)
        self._wait_for_all("jaxtune: metrics of a checkpoint")
        self._metrics[step] = document["metrics"]

    def extra(self, step: int) -> dict[str, Any]:
        """The JSON that was saved with `step`, after the whole checkpoint has been checked against its digests."""
        return self._good_document(step)["extra"]

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state saved at `step`, with the shapes, dtypes and shardings of `abstract_state` (see `abstract`).

        Raises `DamagedCheckpoint` if a file differs from what was written, `UserError` listing every missing, extra or
        mis-shaped leaf. Nothing is cast.
        """
        params, rest = parts(abstract_state)
        restored = self._restore(step, {"params": params, "rest": rest})
        return dataclasses.replace(abstract_state, params=restored["params"], **restored["rest"])

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """Only the parameters saved at `step`; checks as in `restore`."""
        return self._restore(step, {"params": abstract_params})["params"]

    def leaves(self, step: int) -> dict[str, dict[str, tuple[tuple[int, ...], str]]]:
        """Shape and dtype of every saved leaf, by item (`params`, `rest`) and path."""
        saved = self._good_document(step)["leaves"]
        return {
            item: {path: (tuple(shape), dtype) for path, (shape, dtype) in of.items()} for item, of in saved.items()
        }

    def problems(self, step: int) -> list[str]:
        """Differences between the files of `step` and their digests; empty when the checkpoint is intact.

        The processes of a job share the reading and all get the same answer.
        """
        document = self._document(self._existing(step))
        if isinstance(document, str):
            return self._agree([document])
        folder = self._folder(step)
        found = [name for name in files_below(folder, COMMITTED) if not is_remains(name)]
        recorded = document["files"]
        listed = [f"{name}: missing" for name in sorted(set(recorded) - set(found))]
        listed += [f"{name}: not part of the checkpoint" for name in sorted(set(found) - set(recorded))]
        both = sorted(set(recorded) & set(found))
        mine = both if self._alone else both[jax.process_index() :: jax.process_count()]
        listed = listed if jax.process_index() == 0 else []
        for name, (size, digest) in zip(mine, file_digests(folder, mine), strict=True):
            if size != recorded[name]["bytes"]:
                listed.append(f"{name}: {size} bytes, {recorded[name]['bytes']} were written")
            elif digest != recorded[name]["sha256"]:
                listed.append(
                    f"{name}: content changed (SHA-256 {digest[:12]}, {recorded[name]['sha256'][:12]} was written)"
                )
        agreed = self._agree(listed)
        if not agreed:
            self._verified.add(step)
        return agreed

    def set_aside_after(self, step: int) -> list[int]:
        """Move the checkpoints newer than `step` into `set-aside/`, so that a run can go on from it; returns them."""
        newer = [s for s in self.steps() if s > step]
        if jax.process_index() == 0:
            for s in newer:
                target = self.directory / SET_ASIDE / self._folder(s).name
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    target.rmtree()
                self._folder(s).rename(target)
        self._wait_for_all("jaxtune: checkpoints set aside")
        self._manager.reload()
        for s in newer:
            self._metrics.pop(s, None)
            self._verified.discard(s)
        return newer

    def _restore(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        saved = self._good_document(step)["leaves"]
        found = [d for item in wanted for d in differences(item, saved[item], described(wanted[item]))]
        if found:
            raise UserError(mismatch(step, self._folder(step), found))
        if self._into_memory:  # of this host: devices of others are out of reach
            trees = dict(wanted)
            arguments = lambda tree: jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        else:
            trees = {item: placed(tree) for item, tree in wanted.items()}
            arguments = ocp.checkpoint_utils.construct_restore_args
        items = {item: ocp.args.PyTreeRestore(tree, restore_args=arguments(tree)) for item, tree in trees.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return {item: restored[item] for item in wanted}

    def _good_document(self, step: int) -> Json:
        if step not in self._verified and (problems := self.problems(step)):
            earlier = [s for s in reversed(self.steps()) if s < step]
            good = next((s for s in earlier if not self.problems(s)), None)
            raise DamagedCheckpoint(step, str(self._folder(step)), problems, good)
        document = self._document(step)
        assert isinstance(document, dict), document
        return document

    def _document(self, step: int) -> Json | str:
        """`checkpoint.json` of a step, or what is wrong with it."""
        try:
            return read_checkpoint(self._folder(step) / DOCUMENT)
        except UnreadableDocument as error:
            return str(error)

    def _note(self) -> None:
        """Digest what this process wrote. Orbax calls this on every process of a job, when that is on the disk."""
        note_own(self._unfinished()[0], jax.process_index())

    def _unfinished(self) -> tuple[epath.Path, str, dict[str, Any]]:
        """The checkpoint that is being written: its folder of now, its name to be, its document so far."""
        assert self._saving is not None
        step, document = self._saving
        name = self._folder(step).name
        return next(path for path in self.directory.iterdir() if path.name.startswith(name)), name, document

    def _write_document(self) -> None:
        """Complete the document of the checkpoint being written. Orbax calls this on process 0, before the commit."""
        folder, name, document = self._unfinished()
        document = document | {"files": all_digests(folder, COMMITTED)}
        if self._before is not None and self._bucket is None:
            self._before()
        write_sealed(folder / DOCUMENT, document)
        self._copy_out({name: folder}, last=False)

    def _copy_out(self, unfinished: Mapping[str, epath.Path] | None = None, *, last: bool) -> None:
        """Make the bucket hold the checkpoints that are here, and the one that is about to be committed."""
        if self._bucket is None:
            return
        try:
            here = {path.name: path for path in self.directory.iterdir() if is_step(path)} | dict(unfinished or {})
            if self._before is not None:
                self._before()
            for name, folder in sorted(here.items()):
                if (folder / DOCUMENT).exists():  # else it is damaged, and a good copy may be there
                    self._bucket.send(pathlib.Path(folder), name)
            self._had |= set(here)
            for name in self._had & set(self._bucket.steps()) - set(here):  # never what was not here before
                self._bucket.remove(name)
        except StoreError as error:
            message = f"not all checkpoints could be copied to {self._bucket.url}: {error}"
            if last:
                raise UserError(f"{message}\nThey are whole in {self.directory}.") from error
            warnings.warn(f"{message}; this is tried again with the next one", RuntimeWarning, stacklevel=2)

    def _read_metrics(self) -> None:
        for step in self._manager.all_steps():
            document = self._document(step)
            if isinstance(document, dict):
                self._metrics[step] = {name: number(value) for name, value in document["metrics"].items()}

    def _agree(self, lines: list[str]) -> list[str]:
        return lines if self._alone else lines_of_all(lines)

    def _wait_for_all(self, name: str) -> None:
        if not self._alone:
            barrier(name)

    def _folder(self, step: int) -> epath.Path:
        return self.directory / f"{step:08d}"

    def _existing(self, step: int) -> int:
        steps = self.steps()
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are: {known}")
        return step


def abstract(state: Any, shardings: Any = None) -> Any:
    """Shapes, dtypes and places of a state: what `restore` needs.

    `state` holds arrays or the result of `jax.eval_shape`; `shardings` is a tree of the same structure (default:
    where the arrays are now).
    """
    if shardings is None:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), state
        )
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
