"""Tasks of EleutherAI's lm-eval on a jaxtune model: its language-model interface over our likelihoods and generation.

`lm_eval` (extra `lm-eval`) is imported where it is used. Its own rules hold for prompts, few-shot examples, filters and
metrics; ours is only what the model says, and it is what its backend `hf` says of the exported folder.
"""

import dataclasses
import importlib.util
import logging
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

from jaxtune.chat import ChatTemplate, Conversation, Message, Tokenizer, prompt_text
from jaxtune.errors import Range, UserError, check_fields, did_you_mean, first_line
from jaxtune.evaluate.decoding import SamplingConfig
from jaxtune.evaluate.likelihood import Scorer
from jaxtune.storage.documents import Json
from jaxtune.storage.userfiles import locate, looked_for

BOOTSTRAP = 1000
"""Resamples of lm-eval for the errors of metrics that are no means, such as BLEU."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the longest answer in a task's generation settings, the one that goes first in front."""
USUAL_LENGTH = 256
"""Longest answer where a task names none, as in lm-eval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LmEvalConfig:
    """Tasks of lm-eval that are measured before and after tuning."""

    tasks: tuple[str, ...] = ()
    """Names of tasks, groups or tags of lm-eval, or of those in `include`. Their data must be here or downloadable."""
    include: str | None = None
    """Folder of your own task files (lm-eval's YAML), which go before its tasks of the same name."""
    shots: Annotated[int, Range(0, 1000)] | None = None
    """Examples before each question; None: as many as the task says."""
    limit: Annotated[int, Range(1, 1e9)] | None = None
    """Questions per task, the first ones; None: all."""
    chat: bool = True
    """Write prompts with the model's chat template; without, they are the plain texts of the task."""

    def __post_init__(self):
        check_fields(self, "eval.lm_eval")
        alone = [name for name in ("include", "shots", "limit") if getattr(self, name) is not None]
        if alone and not self.tasks:
            raise UserError(f"eval.lm_eval.{alone[0]} has no effect while eval.lm_eval.tasks is empty; name a task")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Results of lm-eval."""

    scores: Mapping[str, Mapping[str, Any]]
    """Task or group -> {metric: value, "metric_stderr": standard error, "n": questions}, or {"error": why}."""
    rows: Mapping[str, Sequence[Json]]
    """Task -> questions with what was answered and the score of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model as lm-eval asks it."""

    tokenizer: Tokenizer
    template: ChatTemplate
    max_length: int
    """Tokens that the model can see."""
    stop_ids: frozenset[int]
    score: Scorer
    generate: Callable[[list[list[int]], SamplingConfig], list[list[int]]]

    @property
    def end(self) -> int:
        """Token that ends a text."""
        return min(self.stop_ids) if self.tokenizer.eos_id is None else self.tokenizer.eos_id

    @property
    def begin(self) -> int:
        """Token before a text that has no context."""
        return self.end if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    def encode(self, text: str, add_special: bool | None = None) -> list[int]:
        """Ids of a text, its control strings as control tokens; BOS first where the tokenizer's files say so.

        A text that begins with BOS's own string gets no second one.
        """
        ids = self.tokenizer.encode(text, specials=True)
        wanted = self.tokenizer.adds_bos if add_special is None else add_special and self.tokenizer.adds_bos
        bos = self.tokenizer.bos_id
        return ids if bos is None or not wanted or ids[:1] == [bos] else [bos, *ids]

    def log_likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(sum of log p, whether greedy) of continuations; contexts that are too long lose their beginning."""
        for _, continuation in pairs:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a text of {len(continuation):,} tokens is longer than the model's context of {self.max_length:,}"
                )
        cut = [(context[-(self.max_length + 1 - len(text)) :], text) for context, text in pairs]
        return [(one.total, one.greedy) for one in self.score(cut)]

    def answers(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Generated text after each context, up to its stop strings."""
        groups: dict[SamplingConfig, list[int]] = {}
        for i, (_, settings) in enumerate(asked):
            groups.setdefault(sampling_of(settings), []).append(i)
        found: dict[int, str] = {}
        for sampling, members in groups.items():
            room = self.max_length - sampling.max_new_tokens
            if room < 1:
                raise UserError(
                    f"a task asks for answers of {sampling.max_new_tokens:,} tokens, and the model's context is "
                    f"{self.max_length:,}; set max_gen_toks in a task file of your own"
                )
            said = self.generate([self.encode(asked[i][0])[-room:] for i in members], sampling)
            for i, ids in zip(members, said, strict=True):
                text = self.tokenizer.decode([one for one in ids if one not in self.stop_ids], controls=False)
                found[i] = cut_at(text, asked[i][1].get("until"))
        return [found[i] for i in range(len(asked))]

    def chat_text(self, history: Sequence[Mapping[str, str]], *, generation_prompt: bool) -> str:
        """Prompt of a conversation; without a generation prompt its last message is the beginning of the answer."""
        begun = history[-1]["content"] if not generation_prompt and history[-1]["role"] == "assistant" else ""
        said = [Message(one["role"], one["content"]) for one in (history[:-1] if begun else history)]
        return prompt_text(Conversation(messages=tuple(said)), self.template, self.tokenizer) + begun


def sampling_of(settings: Mapping[str, Any]) -> SamplingConfig:
    """Sampling of a task's generation settings; greedy unless it says `do_sample` or a temperature above 0."""
    known = {"until", "do_sample", "temperature", "top_k", "top_p", "min_p", *LENGTHS}
    if unknown := sorted(set(settings) - known):
        raise UserError(f"a task generates with {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    length = next((settings[name] for name in LENGTHS if settings.get(name) is not None), USUAL_LENGTH)
    heat = settings.get("temperature")
    drawn = settings.get("do_sample", bool(heat))
    heat = float(1.0 if heat is None else heat) if drawn else 0.0
    filters: dict[str, Any] = {  # 0 means off there
        name: settings.get(name) or None for name in ("top_k", "top_p", "min_p") if heat
    }
    return SamplingConfig(max_new_tokens=int(length), temperature=heat, **filters)


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of its stop strings."""
    for stop in [until] if isinstance(until, str) else until or ():
        text = text.split(stop)[0] if stop else text
    return text


def language_model(model: Model) -> Any:
    """A model as an `lm_eval.api.model.LM`."""
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
        get_rolling_token_windows,
        make_disjoint_window,
    )

    class JaxtuneLM(TemplateLM):
        """lm-eval's interface; it tokenises contexts with continuations and splits them."""

        eot_token_id = property(lambda self: model.end)
        prefix_token_id = property(lambda self: model.begin)
        max_length = property(lambda self: model.max_length)
        tokenizer_name = property(lambda self: f"jaxtune-{model.tokenizer.fingerprint[:16]}")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return model.encode(string, add_special_tokens)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            return model.log_likelihoods([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
            windows = [
                [
                    make_disjoint_window(one)
                    for one in get_rolling_token_windows(
                        model.encode(request.args[0]), model.begin, model.max_length, 1
                    )
                ]
                for request in requests
            ]
            scores = iter(model.log_likelihoods([one for text in windows for one in text]))
            return [math.fsum(next(scores)[0] for _ in text) for text in windows]

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
            return model.answers([request.args for request in requests])

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return model.chat_text(chat_history, generation_prompt=add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str:
            return model.template.name

    return JaxtuneLM()


def check_tasks(settings: LmEvalConfig) -> None:
    """Raise UserError where lm-eval is not installed, or knows no such task; nothing of the tasks' data is read."""
    if settings.tasks:
        manager_of(settings)


def manager_of(settings: LmEvalConfig) -> Any:
    """lm-eval's index of tasks, in which those of the settings are."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("eval.lm_eval needs lm_eval: pip install 'jaxtune[lm-eval]'")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder = None if settings.include is None else locate(settings.include)
    if folder is not None and not folder.is_dir():
        raise UserError(f"eval.lm_eval.include: no folder {settings.include}{looked_for(str(settings.include))}")
    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if set(settings.tasks) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in settings.tasks:
        if name not in manager.all_tasks:
            of = "" if folder is None else f" and in {folder}"
            raise UserError(f"eval.lm_eval: no task {name!r} in lm-eval{of}{did_you_mean(name, manager.all_tasks)}")
    return manager


def task_files(settings: LmEvalConfig) -> list[pathlib.Path]:
    """Files of the settings' own tasks."""
    if not settings.tasks or settings.include is None:
        return []
    return sorted(path for path in locate(settings.include).rglob("*") if path.is_file())


def evaluate_tasks(model: Model, settings: LmEvalConfig) -> Measured:
    """Measure a model by lm-eval, task by task. One that fails has its error in place of scores; the others go on.

    What the model's own computation raises is no property of a task, and is raised.
    """
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]

    ours: list[Exception] = []
    watched = dataclasses.replace(model, score=_noting(model.score, ours), generate=_noting(model.generate, ours))
    lm, manager = language_model(watched), manager_of(settings)
    scores: dict[str, Mapping[str, Any]] = {}
    rows: dict[str, Sequence[Json]] = {}
    for name in settings.tasks:
        try:
            found = simple_evaluate(
                model=lm, tasks=[name], num_fewshot=settings.shots, limit=settings.limit, task_manager=manager,
                apply_chat_template=settings.chat, fewshot_as_multiturn=settings.chat, bootstrap_iters=BOOTSTRAP,
            )  # fmt: skip
        except Exception as error:  # a task's code and data are not ours: whatever it raises is the task's result
            if ours:
                raise
            scores[name] = {"error": f"{type(error).__name__}: {first_line(error)}"[:300]}
            continue
        assert found is not None  # it returns nothing on processes other than the first of its own jobs
        scores |= scores_of(found)
        rows |= {task: [row_of(one) for one in samples] for task, samples in found.get("samples", {}).items()}
    return Measured(scores=scores, rows=rows)


def _noting(function: Callable[..., Any], raised: list[Exception]) -> Callable[..., Any]:
    """The function; what it raises is noted, but for messages about what a task asks of it."""

    def noted(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError:
            raise
        except Exception as error:
            raised.append(error)
            raise

    return noted


def scores_of(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Metrics by task and group; `acc` for lm-eval's `acc,none`, `exact_match (strict-match)` for one with a filter."""
    counts = found.get("n-samples", {})
    result: dict[str, dict[str, Any]] = {}
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        kept: dict[str, Any] = {}
        for key, value in values.items():
            name, comma, filtered = key.partition(",")
            if comma and isinstance(value, int | float):
                kept[name if filtered == "none" else f"{name} ({filtered})"] = float(value)
        result[task] = kept | ({"n": counts[task]["effective"]} if task in counts else {})
    return result


def row_of(sample: Mapping[str, Any]) -> Json:
    """One question of lm-eval's samples: number, target, answer after filters, and its scores."""
    names: Iterable[str] = sample.get("metrics", ())
    return {
        "id": sample["doc_id"], "filter": sample.get("filter", "none"), "target": str(sample["target"]),
        "answer": sample["filtered_resps"],
        "scores": {name: value for name in names if isinstance(value := sample.get(name), int | float)},
    }  # fmt: skip
