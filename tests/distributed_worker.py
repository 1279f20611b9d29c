"""One process of a small job, started by test_distributed.py: sums rows over all devices, saves, ends as it is told."""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxtune.errors import UserError
from jaxtune.parallel import job as distributed
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import MeshConfig, make_mesh
from jaxtune.runs import written
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.documents import FileDigest

ROWS, SEQ = 8, 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Arrays, or in the same places their shardings."""

    step: Any
    params: dict[str, Any]


def batch(step: int, rows: np.ndarray) -> np.ndarray:
    """These rows of the global batch of a step, whoever asks."""
    whole = np.random.default_rng(step).normal(size=(ROWS, SEQ)).astype(np.float32)
    return whole[rows]


def update(state: State, x: jax.Array) -> tuple[State, jax.Array]:
    loss, gradient = jax.value_and_grad(lambda w: jnp.mean((x @ w) ** 2))(state.params["w"])
    return State(state.step + 1, {"w": state.params["w"] - 0.1 * gradient}), loss


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--fail-at", type=int)
    parser.add_argument("--unread", type=int, help="process that cannot read what it wrote")
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    distributed.start(distributed.detect(os.environ), heartbeat_seconds=10)
    with distributed.Guard(), distributed.StopSignal() as stop:
        return run(options, stop)


def run(options: argparse.Namespace, stop: distributed.StopSignal) -> int:
    mesh = make_mesh(MeshConfig(fsdp=2))
    rows = sharding.local_rows(mesh, ROWS)
    places = State(sharding.replicated(mesh), {"w": jax.NamedSharding(mesh, jax.P("fsdp"))})
    state = jax.jit(lambda: State(jnp.zeros((), jnp.int32), {"w": jnp.ones((SEQ, 4))}), out_shardings=places)()
    step_fn = jax.jit(update, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
    record = {"process": jax.process_index(), "rows": rows.tolist(), "losses": [], "batches": [], "digested": {}}
    read = written.digests_of

    def digested(folder: epath.Path, names: list[str]) -> dict[str, FileDigest]:
        if options.unread == jax.process_index():
            raise OSError("the disk of this process is broken")
        found = read(folder, names)
        record["digested"] |= {name.replace(".orbax-checkpoint-tmp", ""): digest for name, digest in found.items()}
        return found

    written.digests_of = digested
    with Checkpoints(options.folder / "checkpoints") as checkpoints:
        start = checkpoints.latest() or 0
        record["start"] = start
        if start:
            state = checkpoints.restore(start, abstract(state))
        for step in range(start, options.steps):
            if jax.process_index() == 1 and step == options.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if jax.process_index() == 1 and step == options.fail_at:
                raise UserError("file data.jsonl, line 7: no JSON")
            x = sharding.put_batch(mesh, batch(step, rows), ROWS)
            for shard in sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0):
                first = shard.index[0].start or 0
                digest = hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest()
                record["batches"].append([step, first, digest])
            state, loss = step_fn(state, x)
            record["losses"].append(float(loss))
            print(f"step {step} done", flush=True)
            time.sleep(options.pause)
            if stop.after(step + 1) or step + 1 == options.steps:
                checkpoints.save(step + 1, state, {"decided": distributed.from_main(jax.process_index() + 0.5)})
                break
        checkpoints.wait()
        record["saved"] = checkpoints.latest()
        record["extra"] = checkpoints.extra(checkpoints.latest() or 0)
    record["w"] = hashlib.sha256(
        np.asarray(jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(state.params["w"])).tobytes()
    ).hexdigest()
    (options.folder / f"process_{jax.process_index()}.json").write_text(json.dumps(record))
    return stop.exit_code if stop.received else 0


if __name__ == "__main__":
    raise SystemExit(main())
