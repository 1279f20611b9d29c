"""Documents of a run folder that its inputs determine: the table of the mixture, and examples with their loss mask."""

from typing import Any

from jaxtune.chat import mask_view as masks
from jaxtune.plan import order
from jaxtune.terminal.numbers import quantity
from jaxtune.train.forecast import times
from jaxtune.train.resolution import TRAIN, Inputs
from jaxtune.train.staging import ends_of, stage_rows


def mixture_json(inputs: Inputs) -> dict[str, Any]:
    """Contents of mixture.json: the plan's table, with what the tokenised data add."""
    table = inputs.plan.to_json()
    for row in table["tasks"]:
        store = inputs.train[row["task"]]
        row["outcomes"] = dict(store.outcomes)
    table["held_out"] = sorted(inputs.held)
    if inputs.config.mixture.stages > 1:
        table["stages"] = stage_rows(inputs.config.mixture, inputs.plan, inputs.total_steps)
    return table


def size_in_words(inputs: Inputs) -> str:
    """Size of a run in words: steps, tokens, validations, test questions."""
    table, config = inputs.plan.to_json(), inputs.config
    tokens, trained = (sum(row[name] for row in table["tasks"]) for name in ("tokens", "loss_tokens"))
    said = (
        f"{inputs.total_steps:,} steps of {config.batch.rows:,} rows of {config.data.seq_len:,} tokens: "
        f"{quantity(tokens)} tokens, {quantity(trained)} of them trained, in {table['examples']:,} examples"
    )
    if inputs.plan.num_steps < inputs.total_steps:
        said += f" up to step {inputs.plan.num_steps:,}, where the next of {config.mixture.stages:,} stages is planned"
    if inputs.eval_plan is not None:
        every = config.eval.every
        count = times(every, 0, inputs.total_steps) + 1
        count += sum(1 for end in ends_of(config)[:-1] if not every or end % every)
        said += f"; {count:,} validations of {inputs.eval_plan.num_examples:,} examples"
    if inputs.questions:
        said += f"; {len(inputs.questions):,} test questions, before and after"
    return said


def text_in_words(inputs: Inputs) -> str:
    """Chat template with what it is told beyond messages: variables, and a date, which is not today's; or nothing."""
    template = inputs.template
    if template.described == template.name:
        return ""
    dated = "; its date is --model.template-date, on every day" if template.asks_date else ""
    return f"chat template {template.described}{dated}"


def samples(inputs: Inputs, per_task: int = 3) -> dict[str, list[dict[str, Any]]]:
    """The first training examples of each task as pieces with weights, for people to look at."""
    return {
        name: [
            sample(inputs, name, int(number))
            for number in order.permutation(inputs.config.seed, name, 0, len(store))[:per_task]
        ]
        for name, store in inputs.train.items()
    }


def sample(inputs: Inputs, task: str, number: int) -> dict[str, Any]:
    """One training example of a task's token store as pieces with weights."""
    store = inputs.train[task]
    example = store.example(number)
    pieces = masks.shown_tokens(example, inputs.tokenizer)
    return {
        "id": inputs.tasks[task].source(TRAIN).where(store.record(number)),
        "tokens": [piece.text for piece in pieces],
        "weights": [piece.weight for piece in pieces],
        "controls": [piece.control for piece in pieces],
        "length": len(example.tokens),
        "trained": int((example.loss_weights > 0).sum()),
    }
