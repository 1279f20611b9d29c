import collections
import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from jaxtune.tasks.builtin.exercise import Split
from jaxtune.tasks.builtin.science import CLASSES, CUES, FAMILIES, NOISY_ANSWERS, TASKS

PRINTED = """
import json
from jaxtune.tasks.builtin.science import TASKS
print(json.dumps({name: {part: list(source) for part, source in task.splits.items()} for name, task in TASKS.items()}))
"""


@pytest.fixture(scope="module")
def records():
    """Every record, drawn in another process: there the types of the two million draws are not checked one by one."""
    printed = subprocess.run([sys.executable, "-c", PRINTED], capture_output=True, text=True, check=True).stdout
    return {name: {Split(part): rows for part, rows in parts.items()} for name, parts in json.loads(printed).items()}


def prompts(rows):
    return [row["prompts"][0] for row in rows]


def test_sizes_go_from_a_hundred_to_one_with_300_questions_each(records):
    sizes = [len(parts[Split.TRAIN]) for parts in records.values()]
    assert max(sizes) == 100 * min(sizes) and sizes == sorted(sizes, reverse=True)
    assert all(len(parts[split]) == 300 for parts in records.values() for split in (Split.VALIDATION, Split.TEST))


@pytest.mark.parametrize("world", ["sums", "styles", "prefix", "noisy", "format", "six_classes"])
def test_no_group_is_in_two_splits_of_any_task_of_its_world(records, world):
    members = [name for name, family in FAMILIES.items() if (family.world or name) == world]
    where = collections.defaultdict(set)
    for name in members:
        for split, rows in records[name].items():
            for row in rows:
                where[row["group"]].add(split)
    assert members and max(map(len, where.values())) == 1


def test_related_tasks_ask_for_the_same_sums_in_other_words(records):
    for row in records["sums"][Split.TRAIN][:50] + records["sum_stories"][Split.TRAIN][:50]:
        assert int(row["answer"]) == sum(map(int, row["group"].split(" + ")))
    assert not set(prompts(records["sums"][Split.TRAIN])) & set(prompts(records["sum_stories"][Split.TRAIN]))
    assert {r["group"] for r in records["sum_stories"][Split.TRAIN]} <= {
        r["group"] for r in records["sums"][Split.TRAIN]
    }


def test_the_conflicting_tasks_share_every_prompt_and_no_answer(records):
    terse, verbose = records["terse"][Split.TRAIN], records["verbose"][Split.TRAIN]
    assert prompts(terse) == prompts(verbose)
    assert all(a["answer"] != b["answer"] and a["answer"] in b["answer"] for a, b in zip(terse, verbose, strict=True))
    cued = prompts(records["terse_cued"][Split.TRAIN]), prompts(records["verbose_cued"][Split.TRAIN])
    assert not set(cued[0]) & set(cued[1])
    assert all(a.startswith(p) and b.startswith(p) for p, a, b in zip(prompts(terse), *cued, strict=True))


def test_noisy_answers_are_even_and_say_nothing(records):
    rows = records["noisy"][Split.TRAIN]
    counts = collections.Counter(row["answer"] for row in rows)
    assert len(NOISY_ANSWERS) == 64 and set(counts) <= set(NOISY_ANSWERS)
    assert sum((count - 600 / 64) ** 2 / (600 / 64) for count in counts.values()) < 100  # chi2(63) above 100: 1 in 500
    by_onset = collections.defaultdict(collections.Counter)
    for row in rows:
        by_onset[row["group"][0]][row["answer"]] += 1
    assert max(c.most_common(1)[0][1] / c.total() for c in by_onset.values()) < 0.25


def test_prefixes_lengthen_the_same_questions(records):
    lengths = {}
    for words in (0, 48, 144):
        rows = records[f"prefix_{words}"][Split.TEST]
        lengths[words] = np.mean([len(row["prompts"][0].split()) for row in rows])
        assert [row["answer"] for row in rows] == [row["answer"] for row in records["prefix_0"][Split.TEST]]
    assert lengths[48] - lengths[0] == pytest.approx(48, abs=4) and lengths[144] - lengths[0] == pytest.approx(
        144, abs=8
    )
    assert all(row["answer"] in row["prompts"][0] for row in records["prefix_144"][Split.TEST])


def test_classes_overlap_so_that_the_best_guess_is_wrong_in_one_of_five(records):
    rows = records["six_classes"][Split.TRAIN]
    assert len(set(CUES)) == 4 * len(CLASSES)
    right = 0
    for row in rows:
        cues = row["prompts"][0].split(": ")[1].split(". ")[0].split(", ")
        votes = collections.Counter(CLASSES[CUES.index(cue) // 4] for cue in cues)
        best = [name for name, count in votes.items() if count == max(votes.values())]
        right += (row["answer"] in best) / len(best)
    assert 0.7 < right / len(rows) < 0.9


@pytest.mark.parametrize("name", ["sum_stories", "terse_cued"])
def test_records_are_the_same_in_another_process_and_make_conversations(records, name):
    source: Any = TASKS[name].splits["train"]
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint == source.fingerprint
    plain = lambda row: json.loads(json.dumps(row))
    assert [plain(row) for row in again] == records[name][Split.TRAIN]
    word: Any = TASKS[name].templates[0]
    conversation = word(source[0])
    assert conversation.messages[-1].content == source[0]["answer"]
