"""Retention texts: how they are read, what is refused, and what a run forgets of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import letters, tiny_config, tiny_model
from pages import assert_self_contained

from jaxtune.chat import Conversation, Message, load_tokenizer
from jaxtune.config import EarlyStoppingConfig, ModelSource
from jaxtune.errors import UserError
from jaxtune.evaluate.positions import divergence, target_losses
from jaxtune.runs.forgotten import forget, forgotten
from jaxtune.runs.history import read_run
from jaxtune.step.losses import HeadSpec
from jaxtune.step.programs import Programs
from jaxtune.storage.documents import read_json
from jaxtune.tasks import Task, from_jsonl
from jaxtune.train import quickstart, retention, texts
from jaxtune.train.exposure import exposures
from jaxtune.train.resolution import resolve
from jaxtune.train.run import train
from jaxtune.train.session import Base, open_session

SENTENCES = [f"The {n} wheel of the old mill turned {n * 7} times before the {n + 2} boats came in." for n in range(12)]


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retention")
    tiny_model(folder / "base")
    jsonl(folder / "mill.jsonl", [{"text": text} for text in SENTENCES])
    return folder


def config_of(place, **changes):
    config = tiny_config(place)
    settings = dataclasses.replace(
        config.eval, retention=(str(place / "mill.jsonl"),), generate=False, **changes.pop("eval", {})
    )
    return dataclasses.replace(config, eval=settings, **changes)


def test_every_token_of_a_document_counts_and_those_of_a_completion(place, tmp_path):
    words = load_tokenizer(place / "base")
    path = jsonl(tmp_path / "mixed.jsonl", [{"text": "one two"}, {"prompt": "3 + 4\n", "completion": "7"}])
    [(name, found)] = texts.read_texts([path], words, 64, {}).items()
    assert name == "mixed.jsonl"
    document, completion = found.examples
    assert (
        document.tokens[0] == words.bos_id and (document.loss_weights == [0] + [1] * (len(document.tokens) - 1)).all()
    )
    assert words.decode(completion.tokens[completion.loss_weights > 0].tolist()).strip() == "7"
    long = jsonl(tmp_path / "long.jsonl", [{"text": SENTENCES[0]}])
    assert len(texts.read_texts([long], words, 5, {})["long.jsonl"].examples[0].tokens) == 5


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "holds no document|no record"),
        ([{"words": "x"}], '"text"'),
        ([{"text": 3}], '"text"'),
        ([{"text": ""}], '"text"'),
        ([{"prompt": "a"}], '"text"'),
    ],
)
def test_a_file_of_another_form_is_refused(place, tmp_path, records, message):
    with pytest.raises(UserError, match=message):
        texts.read_texts([jsonl(tmp_path / "x.jsonl", records)], load_tokenizer(place / "base"), 64, {})


def test_a_missing_file_and_a_weight_without_texts_are_refused_before_anything_trains(place):
    config = config_of(place)
    missing = dataclasses.replace(config, eval=dataclasses.replace(config.eval, retention=("nowhere.jsonl",)))
    with pytest.raises(UserError, match="no file nowhere.jsonl.*builtin"):
        resolve(missing)
    without = dataclasses.replace(tiny_config(place), early_stopping=EarlyStoppingConfig(forget_weight=0.5))
    with pytest.raises(UserError, match="forget_weight"):
        resolve(without)


def test_a_text_that_is_trained_on_is_refused(place, tmp_path):
    task = letters("long", 40)
    record = task.source("train")[7]
    answer = " ".join(SENTENCES[:3])
    messages = [record["messages"][0], {"role": "assistant", "content": answer}]
    trained = tmp_path / "train.jsonl"
    jsonl(trained, [{"messages": messages}, *(task.source("train")[i] for i in range(8))])
    leaking = Task(name="leaking", splits={"train": from_jsonl(trained)})
    config = config_of(place, tasks=(leaking,))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=128))
    with pytest.raises(UserError, match="mill.jsonl shares 32 tokens in a row with the training data of leaking"):
        resolve(config)


@pytest.mark.slow
def test_the_builtin_texts_are_not_in_the_builtin_tasks():
    quick = quickstart.config()
    names = ("builtin", "builtin-completions")
    settings = dataclasses.replace(quick.eval, retention=names, generate=False)
    found = resolve(dataclasses.replace(quick, eval=settings), questions=False, show_progress=False).retention
    assert [len(found[name].examples) for name in names] == [200, 210]


@pytest.mark.bits
@pytest.mark.parametrize(("vocab_axis", "cap"), [(0, None), (1, None), (0, 5.0)])
def test_losses_and_divergence_are_those_of_the_softmax(vocab_axis, cap):
    rng = np.random.default_rng(0)
    hidden, other = (jnp.asarray(rng.normal(size=(3, 7, 8)), jnp.float32) for _ in range(2))
    head = jnp.asarray(rng.normal(size=(20, 8) if vocab_axis == 0 else (8, 20)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 20, (3, 7)))
    spec = HeadSpec(vocab_axis=vocab_axis, soft_cap=cap)
    logits = [h @ (head.T if vocab_axis == 0 else head) for h in (hidden, other)]
    logits = [one if cap is None else cap * jnp.tanh(one / cap) for one in logits]
    log_p, log_q = (jax.nn.log_softmax(one) for one in logits)
    nll, hit = target_losses(hidden, head, targets, spec)
    np.testing.assert_allclose(nll, -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0], rtol=1e-4, atol=1e-5)
    assert (hit == (log_p.argmax(-1) == targets)).all()
    kl = divergence((hidden, head), (other, head), spec)
    np.testing.assert_allclose(kl, (np.exp(log_p) * (log_p - log_q)).sum(-1), rtol=1e-3, atol=1e-5)
    assert (divergence((hidden, head), (hidden, head), spec) == 0).all()


@pytest.mark.slow
def test_noise_on_the_parameters_forgets_more_the_more_of_it_there_is(place):
    """theta0 + a (theta - theta0): the built-in base and its own documents."""
    config = dataclasses.replace(config_of(place), model=ModelSource(path="builtin"))
    settings = dataclasses.replace(config.eval, retention=("builtin",), rows=16)
    config = dataclasses.replace(config, eval=settings, data=dataclasses.replace(config.data, seq_len=128))
    session = open_session(resolve(config, questions=False), Programs())
    base, rng = session.base.trainable, np.random.default_rng(0)
    noise = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) * jnp.std(leaf), base)
    found = []
    with jax.set_mesh(session.mesh):
        for amount in (0.0, 0.05, 0.1, 0.2):
            moved = jax.tree.map(lambda leaf, way, by=amount: leaf + by * way, base, noise)
            found.append(retention.read_all(session, moved, Base(trainable=base, frozen=None))["builtin"])
    losses, kl = [one.loss for one in found], [sum(one.kl) / sum(one.tokens) for one in found]
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.1 and losses[0] < 2.5
    assert kl[0] == 0 and kl == sorted(kl) and kl[1] > 0
    assert sum(found[0].tokens) > 5000 and len(found[0].nll) == 200


@pytest.fixture(scope="module")
def runs(place):
    """A run that moves nothing and one that learns; both watch what they forget."""
    programs, found = Programs(), {}
    for name, factor in (("still", 0.0), ("moves", 1.0)):
        config = config_of(place, early_stopping=EarlyStoppingConfig(forget_weight=2.0))
        # The rate itself is above 0 always.
        optim = dataclasses.replace(config.optim, peak_lr=3e-2, weight_decay=0.0, lr_multipliers={".*": factor})
        train(dataclasses.replace(config, optim=optim), place / name, programs=programs)
        found[name] = place / name
    return found


def test_a_run_that_moves_nothing_forgets_nothing_to_the_bit(runs):
    kept = read_json(runs["still"] / "retention.json")
    before, after = kept["before"]["mill.jsonl"], kept["after"]["mill.jsonl"]
    assert before["documents"]["nll"] == after["documents"]["nll"] and after["kl"] == 0
    assert forget(read_run(runs["still"])) == 0 and before["n"] == len(SENTENCES)


def test_a_run_that_learns_changes_its_texts_and_watches_that(runs):
    run = read_run(runs["moves"])
    [text] = forgotten(run)
    assert text.kl > 0 and text.loss != 0 and text.text == "mill.jsonl"
    last = next(row for row in reversed(run.evals) if row.step == run.summary["best"]["step"])
    assert run.summary["best"]["value"] == pytest.approx(last.macro_loss + 2.0 * text.loss, rel=1e-5)
    page = assert_self_contained((runs["moves"] / "report.html").read_text())
    assert "Forgetting" in page.text


def test_a_model_that_was_not_trained_exposes_nothing(place):
    words = [f"{a} {b}" for a in ("red", "blue", "green", "grey") for b in ("fox", "owl", "ant", "bee")]
    items = [
        Conversation(messages=(Message("user", f"What belongs to {n}?"), Message("assistant", words[n * 7 % 16])))
        for n in range(60)
    ]
    session = open_session(resolve(config_of(place), questions=False), Programs())
    with jax.set_mesh(session.mesh):
        found = exposures(session, session.base.trainable, items, words)
    knows_nothing = 4 - np.log2(np.arange(1, 17)).mean()
    assert found.shape == (60,) and found.mean() == pytest.approx(knows_nothing, abs=0.35)
    with pytest.raises(UserError, match="'red fox' is none of the 15"):
        exposures(session, session.base.trainable, items[:1], words[1:])
