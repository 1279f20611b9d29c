"""Documents of a run folder that its inputs determine: the table of the mixture, and examples with their loss mask."""

from typing import Any

from jaxtune.chat import mask_view as masks
from jaxtune.plan import order
from jaxtune.train.resolution import TRAIN, Inputs


def mixture_json(inputs: Inputs) -> dict[str, Any]:
    """Contents of mixture.json: the plan's table, with what the tokenised data add."""
    table = inputs.plan.to_json()
    for row in table["tasks"]:
        store = inputs.train[row["task"]]
        row["outcomes"] = dict(store.outcomes)
    table["held_out"] = sorted(inputs.held)
    return table


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
