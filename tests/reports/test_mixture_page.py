import json
import re

import pytest
import toy_runs

from jaxtune.mixture import alternatives
from jaxtune.mixture.settings import MixtureConfig
from jaxtune.reports.mixture import alternatives_section, left_out, mixture_section, share_bars
from jaxtune.runs.history import task_shares
from jaxtune.storage.documents import plain

SIZES = {"qa": 1000, "code": 200, "math": 50}


def shares_of(sizes, temperature=2.0):
    return task_shares(toy_runs.mixture(sizes, temperature, 1000, 10)["tasks"])


def test_bars_compare_natural_with_sampled_shares_of_examples():
    tasks = shares_of(SIZES, temperature=8.0)
    bars = share_bars(tasks)
    assert [bar.first for bar in bars] == pytest.approx([0.8, 0.16, 0.04])
    drawn = [one.count for one in tasks]
    assert [bar.second for bar in bars] == pytest.approx([count / sum(drawn) for count in drawn])
    assert bars[2].note.endswith("epochs, capped")


def test_the_section_says_how_the_shares_came_about():
    mixed = toy_runs.mixture(SIZES, 2.0, 1000, 10)
    section = mixture_section(task_shares(mixed["tasks"]), mixed, {"max_repeats": 3.0})
    assert "1,250 usable examples" in str(section.lead) and "size^(1/2), each at most 3 times" in str(section.lead)
    assert "98.7% full" in section.html()


def test_what_was_dropped_or_cut_is_listed_with_its_reason():
    rows = toy_runs.mixture(SIZES, 2.0, 1000, 10)["tasks"]
    rows[0]["outcomes"] = {"kept": 1000, "dropped: longer than the maximum length": 12}
    assert left_out(task_shares(rows)) == "Not used as written: qa 12 dropped: longer than the maximum length"


def test_a_value_that_cannot_meet_the_budget_is_shown_with_its_reason():
    found = alternatives(SIZES, MixtureConfig(), 3000, "max_repeats", ["1", "4"])
    assert found[0].allocation is None and "1250" in found[0].problem.replace(",", "")
    assert found[1].allocation is not None
    json.dumps(plain([one.to_json() for one in found]), allow_nan=False)
    page = alternatives_section("max_repeats", found).html()
    assert "max_repeats 1:" in page and "max repeats 4" in page


def test_the_table_of_alternatives_holds_every_task_and_marks_caps():
    found = alternatives(SIZES, MixtureConfig(max_repeats=2), 600, "temperature", ["1", "inf"])
    page = alternatives_section("temperature", found).html()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert "33.3%" not in cells and page.count("cap</span>") == 1
    assert all(task in page for task in SIZES)
