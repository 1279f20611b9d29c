import dataclasses
import pickle
import threading

import jax
import numpy as np
import pytest

from jaxtune.batch import Batch, Example, count_batch
from jaxtune.chat import TEMPLATES
from jaxtune.chat.tokenizer import ByteTokenizer
from jaxtune.data.batches import StepBatches, batches
from jaxtune.data.encoding import Encoding
from jaxtune.data.jobs import tokenize
from jaxtune.data.subset import length_table
from jaxtune.errors import UserError
from jaxtune.mixture.settings import Budget, MixtureConfig, Strategy
from jaxtune.plan.budgets import plan_for_budget
from jaxtune.plan.ledger import Ledger
from jaxtune.plan.packing import PackPolicy, RowLayout
from jaxtune.plan.planning import make_eval_plan
from jaxtune.tasks import Task, Template, from_list

SEQ_LEN, ROWS = 128, 8


def make_tasks():
    sums = [{"q": f"{i}+{i}", "a": str(2 * i)} for i in range(70)]
    echoes = [{"prompt": "say " + "ab" * (i % 17), "completion": "ab" * (i % 17 + 1)} for i in range(200)]
    wordings = (Template(prompt="{q}", response="{a}"), Template(prompt="What is {q}?", response="It is {a}."))
    return [
        Task(name="sums", splits={"train": from_list(sums)}, templates=wordings),
        Task(name="echoes", splits={"train": from_list(echoes)}),
    ]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    encoding = Encoding(template=TEMPLATES["chatml"], tokenizer=ByteTokenizer(), max_length=SEQ_LEN)
    return tokenize(make_tasks(), "train", encoding, tmp_path_factory.mktemp("cache"), show_progress=False)


LAYOUT = RowLayout(seq_len=SEQ_LEN, rows_per_step=ROWS)


def make_plan(stores, packing=PackPolicy.BEST_FIT):
    layout = dataclasses.replace(LAYOUT, packing=packing, window=64)
    return plan_for_budget(Budget(examples=600), length_table(stores), MixtureConfig(), layout, seed=1)


def counted_in(batch, plan):
    return Ledger(tasks=plan.tasks, **count_batch(batch, len(plan.tasks)))


@pytest.fixture(scope="module")
def plan(stores):
    return make_plan(stores)


@pytest.fixture(scope="module")
def expected(plan, stores):
    source = StepBatches(plan, stores)
    return [source[step] for step in range(len(source))]


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and x.shape == y.shape and (x == y).all() for x, y in leaves)


@pytest.mark.parametrize("packing", list(PackPolicy))
def test_every_planned_token_is_in_its_batch(stores, packing):
    plan = make_plan(stores, packing)
    source, total = StepBatches(plan, stores), plan.ledger(0)
    for step in range(len(source)):
        batch = source[step]
        total += counted_in(batch, plan)
        for r, row in enumerate(plan.rows(step)):
            for segment, p in enumerate(row, start=1):
                example, place = stores[p.task].example(p.example, p.template), slice(p.offset, p.offset + p.length)
                assert (batch.tokens[r, place] == example.tokens).all()
                assert (batch.loss_weights[r, place] == example.loss_weights).all()
                assert (batch.segment_ids[r, place] == segment).all()
                assert (batch.task_ids[r, place] == p.task_id).all()
    assert total.to_json() == plan.ledger().to_json()


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_rows", [None, 8])
def test_hosts_hold_contiguous_slices_of_the_same_global_batch(plan, stores, expected, hosts, micro_rows):
    share = ROWS // hosts
    held = [np.arange(host * share, (host + 1) * share) for host in range(hosts)]
    sources = [StepBatches(plan, stores, micro_rows=micro_rows, local_rows=rows) for rows in held]
    for step, whole in enumerate(expected):
        parts = [source[step] for source in sources]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=-2), *parts)
        assert same(joined, whole if micro_rows is None else jax.tree.map(lambda a: a[None], whole))


@pytest.mark.parametrize("micro_rows", [1, 2, 4, 8])
def test_micro_batches_are_the_rows_in_order(plan, stores, expected, micro_rows):
    batch = StepBatches(plan, stores, micro_rows=micro_rows)[3]
    assert batch.tokens.shape == (ROWS // micro_rows, micro_rows, SEQ_LEN)
    assert same(jax.tree.map(lambda a: a.reshape(ROWS, SEQ_LEN), batch), expected[3])


@pytest.mark.parametrize("threads, prefetch", [(1, 1), (2, 2), (8, 16)])
def test_threads_change_nothing(plan, stores, expected, threads, prefetch):
    iterator = batches(StepBatches(plan, stores), threads=threads, prefetch=prefetch)
    assert all(same(a, b) for a, b in zip(iterator, expected, strict=True))
    iterator.close()


def test_worker_processes_change_nothing(plan, stores, expected):
    iterator = batches(StepBatches(plan, stores), workers=2, start=2, stop=9)
    got = list(iterator)
    iterator.close()
    assert all(same(a, b) for a, b in zip(got, expected[2:9], strict=True))


@pytest.mark.parametrize("start", [1, 5, 11])
def test_a_restart_goes_on_with_the_same_batches(plan, stores, expected, start):
    iterator = batches(StepBatches(pickle.loads(pickle.dumps(plan)), pickle.loads(pickle.dumps(stores))), start=start)
    assert same(next(iterator), expected[start])
    iterator.close()


def test_rows_beyond_the_end_are_padding(plan, stores, expected):
    last = np.asarray(expected[-1].segment_ids)
    real = plan.num_rows - (plan.num_steps - 1) * ROWS
    assert 0 < real < ROWS
    assert last[:real].any(axis=1).all()
    assert not last[real:].any()
    assert not np.asarray(expected[-1].loss_weights)[real:].any()


def test_an_evaluation_batch_needs_no_micro_batches(stores):
    plan = make_eval_plan(length_table(stores), RowLayout(seq_len=SEQ_LEN, rows_per_step=5))
    iterator = batches(StepBatches(plan, stores))
    counted = plan.ledger(0)
    for batch in iterator:
        assert batch.tokens.shape == (5, SEQ_LEN)
        counted += counted_in(batch, plan)
    iterator.close()
    assert counted.examples.tolist() == [70, 200]


def test_examples_are_dropped_before_mixing_so_half_and_half_is_half_and_half(tmp_path):
    long_and_short = [{"prompt": "a" * (5 + 300 * (i % 2)), "completion": "b"} for i in range(100)]
    short = [{"prompt": f"{i}", "completion": "b"} for i in range(100)]
    tasks = [Task(name=name, splits={"train": from_list(r)}) for name, r in (("a", long_and_short), ("b", short))]
    encoding = Encoding(template=TEMPLATES["chatml"], tokenizer=ByteTokenizer(), max_length=SEQ_LEN)
    stores = tokenize(tasks, "train", encoding, tmp_path, show_progress=False)
    mixture = MixtureConfig(strategy=Strategy.EQUAL)
    plan = plan_for_budget(Budget(examples=400), length_table(stores), mixture, LAYOUT, seed=0)
    source, counted = StepBatches(plan, stores), plan.ledger(0)
    for step in range(len(source)):
        counted += counted_in(source[step], plan)
    assert counted.examples.tolist() == [200, 200]


def test_prompts_with_weight_are_still_counted_as_prompts(tmp_path):
    """The ledger tells prompt from response whatever the prompts weigh."""
    found = []
    for weight in (0.0, 0.5):
        encoding = Encoding(
            template=TEMPLATES["chatml"], tokenizer=ByteTokenizer(), max_length=SEQ_LEN, prompt_loss_weight=weight
        )
        stores = tokenize(make_tasks(), "train", encoding, tmp_path, show_progress=False)
        found.append(make_plan(stores).ledger())
    plain, weighted = found
    assert weighted.response_tokens.tolist() == plain.response_tokens.tolist()
    assert (weighted.loss_tokens > plain.loss_tokens).all()


def test_many_tasks_do_not_mean_many_threads(stores):
    many = {f"task{i}": stores["echoes"] for i in range(300)}
    plan = make_eval_plan(length_table(many), LAYOUT)
    before = threading.active_count()
    iterator = batches(StepBatches(plan, many), threads=2, stop=20)
    during = max(threading.active_count() for _ in iterator)
    iterator.close()
    assert during <= before + 3


class Broken:
    """A store whose example 33 cannot be read."""

    def __init__(self, inner):
        self.inner = inner

    def example(self, number: int, template: int = 0) -> Example:
        if number == 33:
            raise OSError("the disk under example 33 is gone")
        return self.inner.example(number, template)

    def check_unchanged(self) -> None:
        self.inner.check_unchanged()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_ends_the_run_with_that_error(plan, stores, workers):
    broken = {"sums": stores["sums"], "echoes": Broken(stores["echoes"])}
    iterator = batches(StepBatches(plan, broken), workers=workers)
    with pytest.raises(OSError, match="the disk under example 33 is gone"):
        for _ in iterator:
            pass
    iterator.close()


def test_data_that_changed_after_the_plan_are_refused(tmp_path):
    encoding = Encoding(template=TEMPLATES["chatml"], tokenizer=ByteTokenizer(), max_length=SEQ_LEN)
    stores = tokenize(make_tasks(), "train", encoding, tmp_path, show_progress=False)
    plan = make_plan(stores)
    folder = stores["sums"].folder
    (folder / "data").write_bytes((folder / "data").read_bytes() + b"more")
    with pytest.raises(UserError, match="changed while it was in use"):
        batches(StepBatches(plan, stores))


def test_examples_that_do_not_fit_the_plan_are_refused(plan, stores):
    class Longer(Broken):
        def example(self, number: int, template: int = 0) -> Example:
            example = self.inner.example(number, template)
            return Example(
                tokens=np.append(example.tokens, np.int32(1)), loss_weights=np.append(example.loss_weights, 1.0)
            )

    source = StepBatches(plan, {task: Longer(store) for task, store in stores.items()})
    with pytest.raises(ValueError, match="planned"):
        source[0]


def test_micro_batches_that_do_not_divide_the_step_are_refused(plan, stores):
    with pytest.raises(ValueError, match="do not divide"):
        StepBatches(plan, stores, micro_rows=3)


def test_batches_cross_jit_as_pytrees(expected):
    total = jax.jit(lambda batch: batch.loss_weights.sum())(expected[0])
    assert float(total) == float(np.asarray(expected[0].loss_weights).sum())
    assert isinstance(expected[0], Batch)
    assert count_batch(expected[0], 2)["tokens"].sum() == (np.asarray(expected[0].segment_ids) > 0).sum()
