"""From a run folder: which examples were in a step, rendered anew from the source files and found in the batch.

python experiments/13-which-examples/reconstruct.py runs/long --step 731

Nothing of the run's own batches is stored. The plan gives the examples; their records are read from the source files
and tokenised again (the token cache is not asked). Each must stand at its place in the batch that the pipeline makes
for the step, token by token and weight by weight, and the trained tokens of each task must be those that the run
counted in `metrics.jsonl` while it trained. Exit code 1 if anything differs.
"""

import argparse
import collections
import pathlib
import sys

import numpy as np

from jaxtune import config
from jaxtune.batch import Example
from jaxtune.data import encoding as cache
from jaxtune.data.encoding import Encoding
from jaxtune.errors import UserError
from jaxtune.plan.placement import Placement
from jaxtune.runs import folder as runfolder
from jaxtune.runs import history as tracking
from jaxtune.train import resolution
from jaxtune.train.identity import global_batch, identify
from jaxtune.train.resolution import TRAIN, Inputs


def opened(run_dir: pathlib.Path) -> Inputs:
    """The run's experiment, resolved again and the same."""
    path, overrides = runfolder.read_command(run_dir)
    inputs = resolution.resolve(config.override(config.load(path), overrides), questions=False)
    runfolder.check_same(run_dir, identify(inputs))
    return inputs


def rendered(inputs: Inputs, placement: Placement) -> Example:
    """The placement's example, tokenised from its record in the source file."""
    data = inputs.config.data
    encoding = Encoding(
        template=inputs.template, tokenizer=inputs.tokenizer, max_length=data.seq_len, mask_policy=data.mask_policy,
        length_policy=data.length_policy, prompt_loss_weight=data.prompt_loss_weight,
    )  # fmt: skip
    record = inputs.train[placement.task].record(placement.example)
    part, troubles = cache.encode_records(inputs.tasks[placement.task], TRAIN, [record], encoding)
    if troubles:
        raise SystemExit(f"{troubles[0].text}")
    ends = np.cumsum(part.lengths[0])
    span = slice(ends[placement.template] - part.lengths[0][placement.template], ends[placement.template])
    return Example(tokens=part.tokens[span], loss_weights=part.weights[span])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=pathlib.Path)
    parser.add_argument("--step", type=int, default=731, help="number of the update, from 1, as in metrics.jsonl")
    arguments = parser.parse_args()
    try:
        inputs = opened(arguments.run_dir)
    except UserError as error:
        sys.exit(f"error: {error}")
    index = arguments.step - 1
    batch = global_batch(inputs, index)
    trained: collections.Counter[str] = collections.Counter()
    wrong = 0
    for row, placements in enumerate(inputs.plan.rows(index)):
        for placement in placements:
            example = rendered(inputs, placement)
            place = slice(placement.offset, placement.offset + len(example.tokens))
            same = np.array_equal(batch.tokens[row, place], example.tokens) and np.array_equal(
                batch.loss_weights[row, place], example.loss_weights
            )
            wrong += not same
            trained[placement.task] += int((example.loss_weights[1:] > 0).sum())
            where = inputs.describe(placement.task, placement.example, placement.epoch)
            verdict = "found" if same else "NOT IN THE BATCH"
            print(f"row {row} tokens {place.start}-{place.stop}  wording {placement.template}  {where}: {verdict}")
    rows = tracking.read_rows(arguments.run_dir / "metrics.jsonl")
    logged = next((row for row in rows if row["kind"] == "train" and row["step"] == arguments.step), None)
    if logged is None:
        print(f"the run did not reach step {arguments.step}; only the plan was compared with the pipeline")
    elif dict(trained) != logged["task_tokens"]:
        print(f"the run counted {logged['task_tokens']} trained tokens, these examples have {dict(trained)}")
        wrong += 1
    else:
        print(f"trained tokens by task, as the run counted them: {dict(trained)}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
