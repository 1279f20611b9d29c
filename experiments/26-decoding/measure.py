"""Time of greedy answers to the quickstart's test questions, and of a 135 M model at one and 16 rows.

python experiments/26-decoding/measure.py --model MODEL_FOLDER --out results.jsonl [--trees OLD_TREE NEW_TREE]

With `--trees` each is measured in a process of its own, in turns, so that other work on the machine meets both alike.
Rows of results.jsonl: name of the tree, wall and CPU seconds of the first call (compilation included) and of the
median of the later ones, answers' digest (equal digests: the same tokens), tokens.
"""

import argparse
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

FIELDS = ("first_wall", "first_cpu", "later_wall", "later_cpu")


def questions(folder: pathlib.Path, count: int) -> list[list[int]]:
    """Prompts of the built-in tasks' test questions, `count` of each task."""
    from jaxtune.chat import load_template, load_tokenizer
    from jaxtune.evaluate.asked import ask
    from jaxtune.tasks import ProblemLog
    from jaxtune.tasks.builtin import TASKS

    asked = ask(
        TASKS.values(), load_template(folder), load_tokenizer(folder), limit=count, context=512, log=ProblemLog()
    )
    return [question.prompt for question in asked]


def measure(folder: pathlib.Path | None, rows: int, new_tokens: int, repeats: int) -> dict:
    """Times of `generate` in this process; without a folder, of random weights of SmolLM2-135M's shape."""
    import jax
    import numpy as np

    from jaxtune.evaluate.decoding import Batching, SamplingConfig, generate
    from jaxtune.hf import folder as hf
    from jaxtune.model.settings import ModelConfig
    from jaxtune.model.transformer import abstract_params, init_params

    if folder is None:
        config = ModelConfig(
            vocab_size=49152, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, d_ff=1536,
            max_seq_len=2048,
        )  # fmt: skip
        params = jax.jit(lambda: init_params(config, 0)[1])()
        draws = np.random.default_rng(0)
        prompts = [draws.integers(0, 49152, 64).tolist() for _ in range(rows)]
        stops = [config.vocab_size + 1]
    else:
        config, params = hf.import_model(folder)
        prompts = questions(folder, 60)
        stops = [5]
    graphdef = abstract_params(config)[0]
    times = []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        answers = generate(
            graphdef, params, config, prompts, stop_ids=stops, sampling=SamplingConfig(max_new_tokens=new_tokens),
            batching=Batching(rows=rows),
        )  # fmt: skip
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    later = [statistics.median(column) for column in zip(*times[1:], strict=True)]
    digest = hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:12]
    found = dict(zip(FIELDS, (*times[0], *later), strict=True))
    return {**found, "prompts": len(prompts), "tokens": sum(map(len, answers)), "digest": digest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, help="a folder of the quickstart's model; absent: 135 M, random")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trees", nargs="*", default=[], help="source trees to compare")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    if not arguments.trees:
        row = measure(arguments.model, arguments.rows, arguments.new_tokens, arguments.repeats)
        print(json.dumps({name: round(x, 3) if isinstance(x, float) else x for name, x in row.items()}))
        return
    own = ["--rows", arguments.rows, "--new-tokens", arguments.new_tokens, "--repeats", arguments.repeats]
    own += ["--model", arguments.model] if arguments.model else []
    for _ in range(arguments.rounds):
        for tree in arguments.trees:
            done = subprocess.run(
                [sys.executable, __file__, *map(str, own)], env={**os.environ, "PYTHONPATH": tree},
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            row = {"tree": pathlib.Path(tree).name, "rows": arguments.rows, **json.loads(done.stdout.splitlines()[-1])}
            print(json.dumps(row), flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
