"""Seven instruction-tuning tasks that need no download: generated, with real answers that can be checked.

Their training sets are as unequal as in practice (4500 : 300, 12,000 examples together). Each task also has 60 examples
for validation and 60 for test; the three splits share no exercise, whatever its wording.
"""

import functools

from jaxtune.tasks.builtin.collection import FAMILIES, GeneratedSource, phrase
from jaxtune.tasks.builtin.exercise import Split
from jaxtune.tasks.task import Task

CLUSTERS = {
    "qa": "reading",
    "summarization": "reading",
    "translation": "language",
    "classification": "reading",
    "open_ended": "writing",
    "code": "reasoning",
    "math": "reasoning",
}
"""What kind of task each one is."""

TASKS: dict[str, Task] = {
    name: Task(
        name=name,
        splits={split.value: GeneratedSource(name, family, split) for split in Split},
        templates=tuple(functools.partial(phrase, phrasing=i) for i in range(len(family.phrasings))),
        cluster=CLUSTERS[name],
    )
    for name, family in FAMILIES.items()
}
"""The built-in tasks by name, largest first."""
