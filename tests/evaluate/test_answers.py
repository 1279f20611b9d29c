"""Which test questions are asked, and what is kept of them."""

import dataclasses
import math

import pytest
import sacrebleu
from helpers import ASSETS, chat_record

from jaxtune.chat import Conversation, Message, load_template, load_tokenizer
from jaxtune.errors import UserError
from jaxtune.evaluate import answers
from jaxtune.evaluate.answers import Question, Respondent, generation_scores, spread
from jaxtune.evaluate.asked import ask
from jaxtune.evaluate.code_runs import Program
from jaxtune.evaluate.likelihood import Likelihood
from jaxtune.tasks import ProblemLog, Scoring, Task, from_list
from jaxtune.tasks.scoring import Expected


def asked(task, number, context=""):
    return Question(task=task, id=f"{task}{number}", text="?", context=context, prompt=[1], reference="yes")


def unused(*_):
    raise AssertionError("no metric needs it")


def saying(answers, *, sample=unused, likelihoods=unused, run=unused):
    """A respondent with these answers."""
    return Respondent(answer=lambda prompts: answers, sample=sample, likelihoods=likelihoods, run=run)


def test_fixed_questions_are_spread_over_the_tasks_and_keep_their_order():
    every = [asked("qa", 0), asked("qa", 1), asked("qa", 2), asked("math", 0), asked("math", 1), asked("code", 0)]
    assert [q.id for q in spread(every, 4)] == ["qa0", "qa1", "math0", "code0"]
    assert [q.id for q in spread(every, 2)] == ["qa0", "math0"]
    assert spread(every, 0) == [] and spread(every, 99) == every


def test_the_turns_before_a_question_are_kept_beside_it():
    words, template = load_tokenizer(ASSETS), load_template(ASSETS)
    said = [("system", "Short."), ("user", "Capital of France?"), ("assistant", "Paris"), ("user", "And in French?")]
    conversation = Conversation(messages=tuple(Message(*one) for one in [*said, ("assistant", "Paris")]))
    question = answers.question("qa", conversation, template, words, "a:1")
    assert question.text == "And in French?"
    assert question.context == "system: Short.\nuser: Capital of France?\nassistant: Paris"
    right = words.encode("yes")
    result = generation_scores(
        saying([right, right]), [question, asked("qa", 1)], words, {"qa": Scoring()}, stop_ids=set()
    )
    first, second = result.answers["qa"]
    assert first["context"] == question.context and "context" not in second
    assert second["correct"] and not first["correct"]


SQUAD = Scoring(metrics=("squad_em", "squad_f1"), references="answers.text", source="title")


def squad_task(*records, scoring=SQUAD):
    return Task(name="qa", splits={"test": from_list(list(records), name="qa")}, metric=scoring)


def squad_record(number, title="Rome", accepted=("Rome", "the city of Rome")):
    return chat_record(number, "Where?", accepted[0]) | {"title": title, "answers": {"text": list(accepted)}}


def questions_of(task, log=None):
    log = log or ProblemLog()
    found = ask([task], load_template(ASSETS), load_tokenizer(ASSETS), limit=9, context=256, log=log)
    return found, log


def test_accepted_answers_and_the_source_come_from_the_fields_that_the_task_names():
    (question,), _ = questions_of(squad_task(squad_record(1)))
    assert question.expected == Expected(references=("Rome", "the city of Rome"), source="Rome")
    scores = answers.text_scores("The City of Rome.", question, SQUAD)
    assert scores == {"exact_match": 0.0, "squad_em": 1.0, "squad_f1": 1.0}  # the best reference counts
    assert answers.text_scores("in Rome", question, SQUAD)["squad_f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"answers": {"text": []}}, "metric.references='answers.text' must be a list of texts; got"),
        ({"answers": {"text": [7]}}, "must be a list of texts"),
        ({"answers": {}}, "no field 'answers.text', which metric.references names; the record has"),
        ({"title": ["a"]}, "metric.source='title' is no text or number"),
    ],
)
def test_a_record_without_what_its_scoring_needs_is_a_problem_with_its_place(record, said):
    asked, log = questions_of(squad_task(squad_record(1), squad_record(2) | record))
    assert len(asked) == 1
    [problem] = log.kept
    assert problem.rule == "question-unusable" and said in problem.message and problem.id == "r2"


def test_every_answer_keeps_its_scores_and_intervals_count_sources():
    words = load_tokenizer(ASSETS)
    right, wrong = words.encode("Rome"), words.encode("Paris")

    def scored(titles):
        asked, _ = questions_of(squad_task(*(squad_record(i, title) for i, title in enumerate(titles))))
        given = [right, right, wrong, wrong]
        return generation_scores(saying(given), asked, words, {"qa": SQUAD}, stop_ids=set())

    alone, shared = scored("abcd"), scored("aabb")
    assert [row["scores"]["squad_em"] for row in alone.answers["qa"]] == [1, 1, 0, 0]
    assert [row["source"] for row in shared.answers["qa"]] == ["a", "a", "b", "b"]
    assert alone.task_score == shared.task_score and alone.task_score["qa"]["squad_f1"] == 0.5
    width = lambda result: result.task_interval["qa"]["squad_em"][1] - result.task_interval["qa"]["squad_em"][0]
    assert 0 < width(alone) < width(shared) <= 1
    one = generation_scores(saying([right]), [asked("qa", 0)], words, {"qa": Scoring()}, stop_ids=set())
    assert one.task_interval == {"qa": {}}  # one question has none


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metrics": ()}, "metric.metrics is empty"),
        ({"metrics": ("squad_em", "squad_em")}, "names squad_em twice"),
        ({"metrics": ("squad_f",)}, "no metric 'squad_f'.*did you mean squad_f1"),
    ],
)
def test_an_unusable_scoring_is_refused_where_the_task_is_made(fields, said):
    with pytest.raises(UserError, match=said):
        squad_task(squad_record(1), scoring=dataclasses.replace(SQUAD, **fields))


def test_a_corpus_score_is_of_all_answers_together_and_its_interval_leaves_sources_out():
    words = load_tokenizer(ASSETS)
    scoring = Scoring(metrics=("corpus_bleu", "bleu", "corpus_chrf"), references="answers.text", source="title")
    said = ["the cat sat on the mat", "a dog ran in the park today", "it is one of the best", "we saw the old house"]
    right = [["the cat sat on a mat"], ["a dog ran in the park", "the dog ran today"], ["it is the best"], [said[3]]]
    records = [squad_record(i, f"t{i // 2}", accepted) for i, accepted in enumerate(right)]
    asked, _ = questions_of(squad_task(*records, scoring=scoring))
    result = generation_scores(saying(list(map(words.encode, said))), asked, words, {"qa": scoring}, stop_ids=set())
    padded = [[one[0] for one in right], [None, right[1][1], None, None]]
    score = result.task_score["qa"]
    assert score["corpus_bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, padded).score / 100)
    assert score["corpus_chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, padded).score / 100)
    assert abs(score["corpus_bleu"] - score["bleu"]) > 1e-5 and "corpus_bleu" not in result.answers["qa"][0]["scores"]
    halves = [sacrebleu.corpus_chrf(said[i : i + 2], [c[i : i + 2] for c in padded]).score / 100 for i in (0, 2)]
    half = 12.7062 * math.sqrt(0.5 * sum((one - sum(halves) / 2) ** 2 for one in halves))  # t with 1 degree of freedom
    low, high = result.task_interval["qa"]["corpus_chrf"]
    assert low > 0 and high < 1
    assert (low, high) == pytest.approx((score["corpus_chrf"] - half, score["corpus_chrf"] + half), rel=1e-4)


CHOICE = Scoring(metrics=("choice_accuracy", "log_likelihood", "choice_accuracy_norm"), choices="options")


def test_choices_are_weighed_by_likelihood_whole_and_by_character():
    words = load_tokenizer(ASSETS)
    texts = ("cat", "a long answer", "dog")
    asked, _ = questions_of(squad_task(squad_record(1, accepted=["dog"]) | {"options": list(texts)}, scoring=CHOICE))
    totals = {"dog": -6.0, "cat": -3.0, "a long answer": -4.0}

    def scorer(pairs):
        assert all(pair[0] == asked[0].prompt for pair in pairs)
        return [Likelihood(total=totals[words.decode(ids)], tokens=len(ids), greedy=False) for _, ids in pairs]

    result = generation_scores(
        saying([words.encode("dog")], likelihoods=scorer), asked, words, {"qa": CHOICE}, stop_ids=set()
    )
    score = dict(result.task_score["qa"])
    assert score.pop("log_likelihood") == pytest.approx(-6.0 / len(words.encode("dog")))
    assert score == {"exact_match": 1.0, "choice_accuracy": 0.0, "choice_accuracy_norm": 0.0, "n": 1}
    totals |= {"dog": -3.5}  # -1 a character for cat, -1.17 for dog, -0.31 for the long one
    assert (
        generation_scores(
            saying([words.encode("cat")], likelihoods=scorer), asked, words, {"qa": CHOICE}, stop_ids=set()
        ).task_score["qa"]["choice_accuracy_norm"]
        == 0.0
    )
    totals |= {"dog": -0.5}
    best = generation_scores(
        saying([words.encode("cat")], likelihoods=scorer), asked, words, {"qa": CHOICE}, stop_ids=set()
    )
    assert best.task_score["qa"]["choice_accuracy"] == best.task_score["qa"]["choice_accuracy_norm"] == 1.0
    assert best.answers["qa"][0]["choices"] == [["cat", -3.0], ["a long answer", -4.0], ["dog", -0.5]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["cat", "Dog"], "the answer 'dog' is none of the choices"),
        (["dog", "dog"], "choices must differ"),
        (["dog", ""], "choices must differ and hold text"),
        ("dog", None),
    ],
)
def test_choices_that_cannot_be_told_apart_are_problems(options, said):
    _, log = questions_of(squad_task(squad_record(1, accepted=["dog"]) | {"options": options}, scoring=CHOICE))
    assert [said in problem.message for problem in log.kept] == ([True] if said else [])


CODE = Scoring(metrics=("pass_at_1", "pass_at_2"), tests="check", prefix="begin", samples=3, temperature=0.5)


def test_programs_are_sampled_joined_with_their_tests_and_counted():
    words = load_tokenizer(ASSETS)
    record = squad_record(1, accepted=["def f(): return 1"]) | {"check": "assert f() == 1", "begin": "import math"}
    asked, _ = questions_of(squad_task(record, scoring=CODE))
    drawn = ["def f(): return 1", "def f(): return 2", "def f(): return 3"]
    seen = []

    def sample(prompts, temperature):
        assert prompts == [asked[0].prompt] * 3 and temperature == 0.5
        return [words.encode(text) for text in drawn]

    def run(programs):
        seen.extend(programs)
        return ["passed" if "return 1" in one.text else "failed: AssertionError: " for one in programs]

    greedy = words.encode(drawn[0])
    result = generation_scores(saying([greedy], sample=sample, run=run), asked, words, {"qa": CODE}, stop_ids=set())
    assert seen[0] == Program(text="import math\ndef f(): return 1", tests="assert f() == 1") and len(seen) == 3
    assert result.task_score["qa"]["pass_at_1"] == pytest.approx(1 / 3)
    assert result.task_score["qa"]["pass_at_2"] == pytest.approx(2 / 3)
    assert result.answers["qa"][0]["programs"][1] == (drawn[1], "failed: AssertionError: ")
    one = dataclasses.replace(CODE, samples=1, metrics=("pass_at_1",))
    alone = generation_scores(saying([greedy], run=run), asked, words, {"qa": one}, stop_ids=set())
    assert alone.task_score["qa"]["pass_at_1"] == 1.0  # the greedy answer


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metrics": ("choice_accuracy",)}, "metric.choices must name the field"),
        ({"metrics": ("pass_at_1",)}, "metric.tests must name the field"),
        ({"metrics": ("pass_at_5",), "tests": "t", "samples": 4}, "pass_at_5 needs at least so many metric.samples"),
        ({"metrics": ("pass_at_0",)}, "no metric 'pass_at_0'"),
        ({"samples": 0}, "metric.samples is 0"),
        ({"temperature": 0.0}, "metric.temperature is 0.0"),
    ],
)
def test_a_scoring_says_what_its_metrics_lack(fields, said):
    with pytest.raises(UserError, match=said):
        squad_task(squad_record(1), scoring=Scoring(**fields))
