"""Order, packing, plan and pipeline: what they cost, beside `datasets`, TRL and Grain on the same data, in one run.

    .venv-parity/bin/python experiments/02-plan-and-pipeline-speed/measure.py [SECTION ...]

Rates are per CPU-second of this process and its children, so that they hold on a busy machine; the peers need the
`parity` extra. `tokenise` also needs a chat data set: JAXTUNE_EXTRA_DATA/mixture, and a tokenizer folder in
JAXTUNE_EXTRA_DATA/tokenizers/smollm2.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import tempfile
import time

import numpy as np

from jaxtune.batch import count_batch
from jaxtune.data.batches import StepBatches, batches
from jaxtune.data.store import Part, TaskTokens, merge
from jaxtune.mixture.allocation import allocate
from jaxtune.mixture.settings import MixtureConfig
from jaxtune.plan.lengths import LengthTable
from jaxtune.plan.order import Interleaving, MixedOrder, stream_key
from jaxtune.plan.packing import RowLayout, best_fit
from jaxtune.plan.planning import Plan, make_plan

SIZES = {
    "translation": 24000,
    "qa": 15000,
    "classification": 9000,
    "math": 6300,
    "code": 4075,
    "summary": 2800,
    "open": 1600,
}
SEQ_LEN = 512
ROWS = 64
RESULTS = pathlib.Path(__file__).parent / "results.jsonl"


def cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def best_rate(work, number: int, repeats: int = 3) -> float:
    """Items per CPU-second, the best of a few repeats."""
    rates = []
    for _ in range(repeats):
        start = cpu_seconds()
        work()
        rates.append(number / (cpu_seconds() - start))
    return max(rates)


def by_blocks(stretch, total: int) -> float:
    """Positions per CPU-second, read in blocks of a window."""
    return best_rate(lambda: [stretch(k, min(k + 4096, total)) for k in range(0, total, 4096)], total)


def lognormal_lengths(rng, shape, mean=4.7, sigma=0.8):
    return np.clip(rng.lognormal(mean, sigma, shape), 4, SEQ_LEN).astype(np.int32)


def flan_sizes() -> dict[str, int]:
    rng = np.random.default_rng(1)
    return {f"task{i:04d}": int(n) for i, n in enumerate(np.clip(rng.lognormal(8, 2, 1836), 30, 500_000))}


def route() -> dict:
    """Positions routed to (task, use), and to (task, example, template)."""
    out = {}
    for name, sizes in (("7 tasks", SIZES), ("1836 tasks", flan_sizes())):
        counts = np.array(list(allocate(sizes, MixtureConfig(rate_max=3000, temperature=1), 2_000_000).counts.values()))
        keys = np.array([stream_key(0, "interleave", task) for task in sizes], np.uint64)
        number = np.array(list(sizes.values()))
        order = MixedOrder(
            tuple(sizes), counts=counts, sizes=number, usable=number, templates=np.ones_like(number), seed=0
        )
        out[name] = {
            "routed": by_blocks(Interleaving(counts, keys).positions, order.total),
            "with examples": by_blocks(order.stretch, order.total),
        }
    return out


def stray() -> dict:
    """Largest distance of a task's count from its share, over all prefixes of 20,000 draws from 7 tasks."""
    counts = np.array(list(allocate(SIZES, MixtureConfig(), 20_000).counts.values()))
    keys = np.array([stream_key(0, "interleave", task) for task in SIZES], np.uint64)
    planned, _ = Interleaving(counts, keys).positions(0, 20_000)
    drawn = np.random.default_rng(0).choice(len(counts), 20_000, p=counts / counts.sum())
    k = np.arange(1, 20_001)

    def worst(task):
        return max(float(np.abs(np.cumsum(task == i) - counts[i] * k / 20_000).max()) for i in range(len(counts)))

    return {"planned": worst(planned), "independent draws": worst(drawn)}


def interleave() -> dict:
    """Examples per CPU-second of the mixed order alone: numbers in, (task, example) out."""
    import datasets
    import grain

    datasets.disable_progress_bars()
    allocation = allocate(SIZES, MixtureConfig(), 100_000)
    p, n = list(allocation.probabilities.values()), 50_000
    sizes = np.array(list(SIZES.values()))
    order = MixedOrder(
        tuple(SIZES), counts=np.array(list(allocation.counts.values())), sizes=sizes, usable=sizes,
        templates=np.ones_like(sizes), seed=0,
    )  # fmt: skip
    sources = [datasets.Dataset.from_dict({"i": list(range(size))}) for size in SIZES.values()]

    def hf_build():
        return datasets.interleave_datasets(sources, probabilities=p, seed=0, stopping_strategy="all_exhausted")

    def hf_read():
        for _ in itertools.islice(hf_build(), n):
            pass

    def grain_read():
        shuffled = [grain.MapDataset.range(size).seed(i).shuffle().repeat() for i, size in enumerate(SIZES.values())]
        mixed = grain.MapDataset.mix(shuffled, p)
        for i in range(n):
            mixed[i]

    out = {
        "jaxtune": by_blocks(order.stretch, order.total),
        "datasets.interleave_datasets, building it": best_rate(hf_build, len(hf_build())),
        "datasets.interleave_datasets, built and read": best_rate(hf_read, n),
        "grain shuffle, repeat, mix": best_rate(grain_read, n),
    }
    return out


def pack() -> dict:
    """Examples packed per CPU-second, and fill, on the same lognormal lengths."""
    import datasets
    import grain
    from trl import pack_dataset

    datasets.disable_progress_bars()
    rng = np.random.default_rng(0)
    lengths = lognormal_lengths(rng, 40_960)
    tokens = [np.ones(length, np.int32) for length in lengths]
    rows = []

    def ours():
        rows.append(sum(int(best_fit(lengths[k : k + 4096], SEQ_LEN).max()) + 1 for k in range(0, len(lengths), 4096)))

    def grain_packer(packer):
        data = grain.MapDataset.source([{"tokens": t} for t in tokens]).to_iter_dataset()
        return packer(data, length_struct={"tokens": SEQ_LEN}, num_packing_bins=64)

    def grain_run(packer):
        rows.append(sum(1 for _ in grain_packer(packer)))

    table = datasets.Dataset.from_dict({"input_ids": tokens})

    def trl_run():
        rows.append(len(pack_dataset(table, SEQ_LEN, "bfd")))

    out = {}
    runs = {
        "jaxtune": ours,
        "grain BestFitPackIterDataset, 64 bins": lambda: grain_run(grain.experimental.BestFitPackIterDataset),
        "grain FirstFitPackIterDataset, 64 bins": lambda: grain_run(grain.experimental.FirstFitPackIterDataset),
        "trl pack_dataset bfd": trl_run,
    }
    for name, work in runs.items():
        rate = best_rate(work, len(lengths), repeats=2)
        out[name] = {"examples/CPU-s": rate, "fill": float(lengths.sum() / (rows[-1] * SEQ_LEN))}
    return out


def planned(sizes: dict[str, int], lengths: dict, budget: int) -> Plan:
    allocation = allocate(sizes, MixtureConfig(max_repeats=8), budget)
    losses = {task: np.maximum(a // 3, 1) for task, a in lengths.items()}
    layout = RowLayout(seq_len=SEQ_LEN, rows_per_step=ROWS)
    return make_plan(LengthTable(lengths, losses), allocation, layout, seed=0)


def plan(examples: int = 10_000_000) -> dict:
    """Planning a large run, and reaching a step in it."""
    rng, out = np.random.default_rng(0), {}
    for name, sizes in (
        ("7 tasks", {task: n * examples // 62_775 for task, n in SIZES.items()}),
        ("1836 tasks", flan_sizes()),
    ):
        lengths = {task: lognormal_lengths(rng, (n, 1)) for task, n in sizes.items()}
        start = cpu_seconds()
        made = planned(sizes, lengths, examples)
        took = cpu_seconds() - start
        seeks = []
        for step in rng.integers(0, made.num_steps, 40):
            made._recent.clear()
            began = cpu_seconds()
            made.rows(int(step))
            seeks.append(cpu_seconds() - began)
        out[name] = {
            "examples": examples, "steps": made.num_steps, "fill": made.fill, "examples/CPU-s": examples / took,
            "seek ms, median": 1e3 * float(np.median(seeks)), "seek ms, worst of 40": 1e3 * max(seeks),
        }  # fmt: skip
    return out


def huge() -> dict:
    """A hundred million examples: memory per example beyond the lengths, which lie in files."""
    sizes = {task: n * 100_000_000 // 62_775 for task, n in SIZES.items()}
    with tempfile.TemporaryDirectory() as folder:
        lengths, losses = {}, {}
        rng = np.random.default_rng(0)
        for task, n in sizes.items():
            for table, divisor in ((lengths, 1), (losses, 3)):
                path = os.path.join(folder, f"{task}{divisor}")
                block = np.maximum(lognormal_lengths(rng, (1_000_000, 1)) // divisor, 1)
                with open(path, "wb") as file:
                    for k in range(0, n, len(block)):
                        file.write(block[: n - k].tobytes())
                table[task] = np.memmap(path, np.int32, "r", shape=(n, 1))
        total = sum(sizes.values())
        before, start, wall = anonymous_bytes(), cpu_seconds(), time.perf_counter()
        allocation = allocate(sizes, MixtureConfig(temperature=1, max_repeats=1), total)
        layout = RowLayout(seq_len=SEQ_LEN, rows_per_step=1024)
        made = make_plan(LengthTable(lengths, losses), allocation, layout, seed=0)
        seconds, elapsed, after = cpu_seconds() - start, time.perf_counter() - wall, anonymous_bytes()
        made._recent.clear()
        began = cpu_seconds()
        made.row(made.num_rows - 1000)
        return {
            "examples": total, "rows": made.num_rows, "fill": made.fill, "examples/CPU-s": total / seconds,
            "wall s": elapsed, "bytes per example": (after - before) / total, "seek ms": 1e3 * (cpu_seconds() - began),
        }  # fmt: skip


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    fields = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def synthetic_stores(folder: pathlib.Path) -> dict[str, TaskTokens]:
    rng = np.random.default_rng(0)
    stores = {}
    for task, n in SIZES.items():
        lengths = lognormal_lengths(rng, (n, 1))
        total, halves = int(lengths.sum()), np.maximum(lengths // 3, 1)
        weights = np.zeros(total, np.float32)
        ends = np.cumsum(lengths)
        for end, loss in zip(ends, halves[:, 0], strict=True):
            weights[end - loss : end] = 1
        part = Part(
            tokens=rng.integers(1, 30_000, total).astype(np.int32), weights=weights, lengths=lengths,
            loss_lengths=halves, response_lengths=halves, records=np.arange(n), outcomes={"kept": n},
        )  # fmt: skip
        part.write(folder / f"{task}.npz", 30_000)
        merge([folder / f"{task}.npz"], folder / task, task=task, split="train", facts={})
        stores[task] = TaskTokens(folder / task)
    return stores


def pipeline() -> dict:
    """Tokens per CPU-second, from stored examples to packed, mixed batches of 64 rows of 512."""
    import grain

    with tempfile.TemporaryDirectory() as folder:
        stores = synthetic_stores(pathlib.Path(folder))
        lengths = {task: np.asarray(store.lengths) for task, store in stores.items()}
        made = planned(SIZES, lengths, 60_000)
        p = list(made.allocation.probabilities.values())
        steps, seen = 150, []

        def ours():
            iterator = batches(StepBatches(made, stores), stop=steps)
            seen.append(sum(count_batch(batch, len(made.tasks))["tokens"].sum() for batch in iterator))
            iterator.close()

        def grains():
            def record(store, i):
                example = store.example(int(i))
                return {"tokens": example.tokens, "loss_weights": example.loss_weights}

            parts = [
                grain.MapDataset.range(len(store))
                .seed(k)
                .shuffle()
                .repeat()
                .map(lambda i, store=store: record(store, i))
                for k, store in enumerate(stores.values())
            ]
            data = grain.MapDataset.mix(parts, p).to_iter_dataset(
                grain.ReadOptions(num_threads=2, prefetch_buffer_size=64)
            )
            packed = grain.experimental.BestFitPackIterDataset(
                data, length_struct={"tokens": SEQ_LEN, "loss_weights": SEQ_LEN}, num_packing_bins=64
            ).batch(ROWS)
            seen.append(sum(int((batch["tokens_segment_ids"] > 0).sum()) for batch in itertools.islice(packed, steps)))

        out = {}
        for name, work in (("jaxtune", ours), ("grain mix, best-fit pack, batch", grains)):
            work()
            out[name] = best_rate(work, seen[-1], repeats=2)
        return out


def tokenise() -> dict:
    """Conversations per CPU-second, from JSON lines to tokens and loss mask: our cached pass, and TRL's preparation."""
    from jaxtune.chat import TEMPLATES, load_tokenizer
    from jaxtune.data.encoding import Encoding
    from jaxtune.data.jobs import tokenize
    from jaxtune.tasks import Task, from_jsonl

    extra = pathlib.Path(os.environ["JAXTUNE_EXTRA_DATA"])
    names = ("qa", "math", "translation")
    files = {name: extra / "mixture" / name / "train.jsonl" for name in names}
    folder = extra / "tokenizers" / "smollm2"
    number = sum(sum(1 for _ in file.open()) for file in files.values())
    out = {}
    for processes in (1, 2):
        tasks = [Task(name=name, splits={"train": from_jsonl(file)}) for name, file in files.items()]
        encoding = Encoding(template=TEMPLATES["chatml"], tokenizer=load_tokenizer(folder), max_length=1024)
        with tempfile.TemporaryDirectory() as cache:
            start, wall = cpu_seconds(), time.perf_counter()
            tokenize(tasks, "train", encoding, cache, processes=processes, show_progress=False)
            out[f"jaxtune, {processes} process{'es' * (processes > 1)}"] = {
                "per CPU-s": number / (cpu_seconds() - start), "wall s": time.perf_counter() - wall,
            }  # fmt: skip
    out["trl, 1 process"] = trl_tokenise(files, folder, number, TEMPLATES["chatml"].source)
    return out


def trl_tokenise(files, folder, number, template: str) -> dict:
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template  # TRL refuses the folder's own, which has no generation marks
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    records = [json.loads(line) for file in files.values() for line in file.open()]
    data = datasets.Dataset.from_list([{"messages": record["messages"]} for record in records])
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out, use_cpu=True, bf16=False, max_length=1024, assistant_only_loss=True, report_to="none"
        )
        trainer = SFTTrainer(
            model=LlamaForCausalLM(shape), args=config, train_dataset=data.select(range(8)), processing_class=tokenizer
        )
        start, wall = cpu_seconds(), time.perf_counter()
        trainer._prepare_dataset(data, trainer.processing_class, config, False, None, "train")
        return {"per CPU-s": number / (cpu_seconds() - start), "wall s": time.perf_counter() - wall}


SECTIONS = {f.__name__: f for f in (route, stray, interleave, pack, plan, pipeline, tokenise, huge)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[*SECTIONS][:-1])
    with RESULTS.open("a") as results:
        for name in parser.parse_args().sections:
            row = {"section": name, "cpus": os.cpu_count(), "result": SECTIONS[name]()}
            print(json.dumps(row, indent=1), flush=True)
            results.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
