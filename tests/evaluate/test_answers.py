"""Which test questions are asked, and what is kept of them."""

from helpers import ASSETS

from jaxtune.chat import Conversation, Message, load_template, load_tokenizer
from jaxtune.evaluate import answers
from jaxtune.evaluate.answers import Question, generation_scores, spread


def asked(task, number, context=""):
    return Question(task=task, id=f"{task}{number}", text="?", context=context, prompt=[1], reference="yes")


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
        lambda prompts: [right] * len(prompts), [question, asked("qa", 1)], words, {"qa": "exact_match"}, stop_ids=set()
    )
    first, second = result.answers["qa"]
    assert first["context"] == question.context and "context" not in second
    assert second["correct"] and not first["correct"]
