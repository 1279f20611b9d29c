"""Answers of the model: to the test questions before and after tuning, to a few of them while it trained."""

from collections.abc import Sequence

from jaxtune.reports import page
from jaxtune.reports.drawing import shorten
from jaxtune.reports.page import TASKS_DRAWN, Column, Html, Section, join, tag
from jaxtune.runs.history import Run
from jaxtune.runs.results import fixed_answers
from jaxtune.storage.documents import Json

ANSWERS_OPEN, ANSWERS_SHOWN = 3, 12
"""Questions of a task that are shown at once, and with those behind a fold."""
FIXED_SHOWN, STEPS_SHOWN = 12, 5
"""Fixed questions, and validations of each, that are shown."""


def answers_section(run: Run) -> Section | None:
    """Answers to the same test questions before, while and after training."""
    before, after = run.generations.get("before", {}), run.generations.get("after", {})
    if not before and not after:
        return None
    order = {task: index for index, task in enumerate(run.task_names)}
    parts: list[object] = [*fixed_part(run, order)]
    for task in list({**before, **after})[:TASKS_DRAWN]:
        old = {row["id"]: row for row in before.get(task, [])}
        new = {row["id"]: row for row in after.get(task, [])}
        keys = list({**old, **new})
        rows = [answer_row(old.get(key), new.get(key)) for key in keys[:ANSWERS_SHOWN]]
        parts += [tag("h3", page.swatch(order.get(task, 0), task)), answer_table(rows[:ANSWERS_OPEN])]
        if len(rows) > ANSWERS_OPEN:
            parts.append(page.details(f"{len(rows) - ANSWERS_OPEN} more of {task}", answer_table(rows[ANSWERS_OPEN:])))
    lead = "The first test questions of each task, answered greedily by the base model and by the tuned one."
    return Section("answers", "Answers before and after", lead, parts)


def fixed_part(run: Run, order: dict[str, int]) -> list[object]:
    """The fixed questions with their answers at some validations, from the base model on."""
    asked = fixed_answers(run)
    steps = some(list(asked), STEPS_SHOWN)
    if not steps:
        return []
    before = {(t, row["id"]): row for t, rows in run.generations.get("before", {}).items() for row in rows}
    columns = [Column("Question", number=False), Column("Reference", number=False)]
    columns += [Column("Step 0", number=False), *(Column(f"Step {step:,}", number=False) for step in steps)]
    rows = []
    for key, known in list(asked[steps[0]].items())[:FIXED_SHOWN]:
        question = join([page.swatch(order.get(key[0], 0), key[0]), question_cell(known)])
        cells = [answer_cell(asked[step].get(key)) for step in steps]
        rows.append([question, shorten(str(known["reference"]), 400), answer_cell(before.get(key)), *cells])
    note = f"{len(asked[steps[0]])} fixed questions at every validation"
    note += f"; {len(steps)} of {len(asked)} validations are shown." if len(steps) < len(asked) else "."
    return [tag("h3", "While training"), page.table(columns, rows, class_="answers"), tag("p", note, class_="note")]


def some(items: Sequence[int], most: int) -> list[int]:
    """At most so many of the items, spread evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def answer_table(rows: Sequence[Sequence[object]]) -> Html:
    """Questions with their answers before and after."""
    columns = [Column(name, number=False) for name in ("Question", "Reference", "Before", "After")]
    return page.table(columns, rows, class_="answers")


def answer_row(before: Json | None, after: Json | None) -> list[object]:
    """A question, its reference and both answers."""
    known = after or before or {}
    return [
        question_cell(known),
        shorten(str(known.get("reference", "")), 400),
        answer_cell(before),
        answer_cell(after),
    ]


def question_cell(row: Json) -> Html:
    """The question, below what was said before it in the conversation."""
    asked = tag("div", shorten(str(row.get("prompt", "")), 400))
    if not row.get("context"):
        return asked
    said = str(row["context"])
    said = said if len(said) <= 400 else "…" + said[-399:]  # the end is what the question refers to
    return join([tag("div", said, class_="context"), asked])


def answer_cell(row: Json | None) -> Html:
    """An answer with a mark that says whether it is right."""
    if row is None:
        return Html("–")
    word, sign, kind = ("right", "✓", "good") if row["correct"] else ("wrong", "✗", "bad")
    text = shorten(str(row["prediction"]), 300) or tag("span", "(empty)", class_="dim")
    return tag("div", tag("span", sign, class_=f"mark {kind}", title=word), tag("div", text), class_="answer")
