"""Train the base model from nothing on `base_text`: plain next-token prediction, every token with weight 1.

Run:    python experiments/00-base-model/train_base.py --steps 6000 --out runs/base
Takes:  see README.md.

A row of 128 tokens holds whole documents `<s> text </s>`, each its own segment. The rows of a step are a pure function
of its number, so a run can be continued from its last checkpoint (`--resume`) with the same result. The learning rate
is constant until the last quarter of the steps, so `--steps` may be changed on resume before that quarter has begun.
"""

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece as spm
from base_text import documents
from safetensors.numpy import load_file, save_file

from jaxtune import optim
from jaxtune.batch import Batch
from jaxtune.model import transformer as model
from jaxtune.model.settings import ModelConfig
from jaxtune.step import update as step

CONFIG = ModelConfig(
    vocab_size=1536, d_model=192, num_layers=5, num_heads=3, num_kv_heads=1, head_dim=64, d_ff=512, max_seq_len=512
)
SEQ_LEN = 128
DOCUMENTS_PER_WINDOW = 1000
HELD_OUT_WINDOW, FIRST_WINDOW = 0, 1
TOKENIZER = Path(__file__).parents[2] / "jaxtune/assets/base/tokenizer.model"


def pack(lengths: list[int]) -> list[list[int]]:
    """First fit, longest first: rows of document indices whose lengths sum to at most SEQ_LEN."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((r for r, left in enumerate(free) if left >= lengths[i]), None)
        if place is None:
            rows.append([])
            free.append(SEQ_LEN)
            place = len(rows) - 1
        rows[place].append(i)
        free[place] -= lengths[i]
    return rows


def window_rows(window: int, processor: spm.SentencePieceProcessor) -> dict[str, np.ndarray]:
    """Tokens, segments and positions of the rows that one window of documents fills, in random order."""
    texts = list(documents(window * DOCUMENTS_PER_WINDOW, (window + 1) * DOCUMENTS_PER_WINDOW))
    ids = [[processor.bos_id(), *text, processor.eos_id()] for text in processor.encode(texts)]
    ids = [text for text in ids if len(text) <= SEQ_LEN]
    rows = pack([len(text) for text in ids])
    order = np.random.Generator(np.random.PCG64(window)).permutation(len(rows))
    fields = {name: np.zeros((len(rows), SEQ_LEN), np.int32) for name in ("tokens", "segment_ids", "positions")}
    for place, row in enumerate(order):
        at = 0
        for segment, text in enumerate((ids[i] for i in rows[row]), start=1):
            span = slice(at, at + len(text))
            fields["tokens"][place, span] = text
            fields["segment_ids"][place, span] = segment
            fields["positions"][place, span] = np.arange(len(text))
            at += len(text)
    return fields


def batches(rows_per_step: int, first_window: int) -> Iterator[Batch]:
    """Batches [1, rows, seq] from window `first_window` on, without end; leftover rows wait for the next."""
    processor = spm.SentencePieceProcessor(model_file=str(TOKENIZER))
    rest: dict[str, np.ndarray] | None = None
    window = first_window
    while True:
        new = window_rows(window, processor)
        window += 1
        rest = new if rest is None else {name: np.concatenate([rest[name], new[name]]) for name in new}
        while len(rest["tokens"]) >= rows_per_step:
            fields = {name: rest[name][None, :rows_per_step] for name in rest}
            rest = {name: rest[name][rows_per_step:] for name in rest}
            yield Batch(
                loss_weights=(fields["segment_ids"] > 0).astype(np.float32),
                task_ids=np.zeros_like(fields["tokens"]),
                **fields,
            )


def make_steps(config: optim.OptimConfig, seed: int):
    """Train state, jitted update and jitted evaluation."""
    graphdef, params = model.init_params(CONFIG, seed)

    def forward(params, frozen, batch, numbers, key=None):
        hidden = model.apply(graphdef, params, batch.tokens, batch.positions, batch.segment_ids, dtype=jnp.bfloat16)
        return hidden, params["embed"]["embedding"]

    optimizer = optim.make_optimizer(config, params)
    spec = step.StepSpec(num_tasks=1)
    train_step = step.make_train_step(forward, optimizer, optim.make_groups(config, params), spec)
    eval_step = step.make_eval_step(forward, spec)
    return step.init_state(params, optimizer), jax.jit(train_step, donate_argnums=0), jax.jit(eval_step)


def save_state(state: step.TrainState, path: Path) -> None:
    """Every array of the state under its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    save_file({jax.tree_util.keystr(place): np.asarray(leaf) for place, leaf in leaves}, path)


def load_state(like: step.TrainState, path: Path) -> step.TrainState:
    """The saved state, in the structure of `like`."""
    arrays = load_file(path)
    return jax.tree_util.tree_map_with_path(lambda place, _: jnp.asarray(arrays[jax.tree_util.keystr(place)]), like)


def held_out_loss(eval_step, params, batch: Batch) -> float:
    """Mean loss in nats per token of a fixed batch."""
    sums = eval_step(params, {}, jax.tree.map(lambda x: x[0], batch), step.hparams(0.0))
    return float(sums.nll.sum() / sums.weight.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rows", type=int, default=16, help="rows of 128 tokens per update")
    parser.add_argument("--peak-lr", type=float, default=3e-3)
    parser.add_argument("--optimizer", type=optim.Optimizer, default=optim.Optimizer.MUON)
    parser.add_argument("--decay-frac", type=float, default=0.25)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first-window", type=int, default=FIRST_WINDOW, help="of 1000 documents each; 0 is held out")
    parser.add_argument("--init", type=Path, help="state.safetensors whose parameters to start from")
    parser.add_argument("--resume", action="store_true", help="go on from state.safetensors of the output folder")
    parser.add_argument("--save-every", type=int, default=200)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    config = optim.OptimConfig(
        optimizer=args.optimizer, peak_lr=args.peak_lr, schedule=optim.Schedule.WSD, decay_frac=args.decay_frac,
        final_fraction=0.02, warmup_steps=min(100, args.steps // 10), b2=0.95, weight_decay=0.05,
    )  # fmt: skip
    state, train_step, eval_step = make_steps(config, seed=0)
    if args.init is not None:
        state = dataclasses.replace(state, params=load_state(state, args.init).params)
    if args.resume:
        state = load_state(state, args.out / "state.safetensors")
    rates, numbers = (
        optim.rate_table(config, args.steps),
        step.hparams(0.0, config.weight_decay, clip_norm=config.clip_norm),
    )
    held_out = next(batches(64, HELD_OUT_WINDOW))
    stream = batches(args.rows, args.first_window)
    tokens, start = 0, time.perf_counter()
    with (args.out / "loss.jsonl").open("a") as log:
        for k in range(args.steps):
            batch = next(stream)
            tokens += int((batch.segment_ids > 0).sum())
            if k < int(state.step):
                continue
            state, metrics = train_step(state, {}, batch, dataclasses.replace(numbers, learning_rate=rates[k]))
            if (k + 1) % 50 == 0 or k + 1 == args.steps:
                row = {
                    "step": k + 1,
                    "tokens": tokens,
                    "train_loss": float(metrics.loss),
                    "grad_norm": float(metrics.grad_norm),
                    "learning_rate": float(metrics.learning_rate),
                    "wall_s": round(time.perf_counter() - start, 1),
                    "cpu_s": round(resource.getrusage(resource.RUSAGE_SELF).ru_utime, 1),
                }
                if (k + 1) % 250 == 0 or k + 1 == args.steps:
                    row["held_out_loss"] = held_out_loss(eval_step, state.params, held_out)
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(row, flush=True)
            if (k + 1) % args.save_every == 0 or k + 1 == args.steps:
                save_state(state, args.out / "state.safetensors")


if __name__ == "__main__":
    main()
