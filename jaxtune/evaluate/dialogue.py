"""Talking to a model: answers to given prompts, and a chat in the terminal."""

import codecs
import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxtune import chat
from jaxtune.chat import ChatTemplate, Conversation, Message, Tokenizer, load_template, load_tokenizer
from jaxtune.errors import UserError, say
from jaxtune.evaluate.decoding import Batching, SamplingConfig, generate, stream
from jaxtune.evaluate.harness import LmEvalConfig, Model, check_tasks, evaluate_tasks
from jaxtune.evaluate.likelihood import likelihoods
from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import end_tokens, read_generation
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import Indivisible, MeshConfig, make_mesh
from jaxtune.step.update import Params
from jaxtune.storage.documents import Json
from jaxtune.terminal.display import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speaker:
    """A model with its words."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    template: ChatTemplate
    named_ends: tuple[int, ...] = ()
    """End tokens that the folder's generation settings name."""

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return sorted(chat.stop_ids(self.template, self.tokenizer, self.named_ends))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the answer starts."""
        return chat.render_prompt(Conversation(messages=tuple(messages)), self.template, self.tokenizer)

    def text(self, ids: Sequence[int]) -> str:
        """An answer without what ended it."""
        return self.tokenizer.decode([i for i in ids if i not in self.stop_ids])


def load(folder: pathlib.Path, mesh: jax.sharding.Mesh | None = None) -> Speaker:
    """A Hugging Face folder, ready to answer; on the default device, or split over the devices of a mesh."""
    with Phase("reading the model"):
        config, params = hf.import_model(folder, dtype=jnp.float32, sharding=mesh and places(folder, mesh))
    return Speaker(
        config=config, params=params, tokenizer=load_tokenizer(folder), template=load_template(folder),
        named_ends=tuple(end_tokens(read_generation(folder))),
    )  # fmt: skip


def places(folder: pathlib.Path, mesh: jax.sharding.Mesh) -> hf.ShardingRule:
    """Place of each parameter of a model folder on a mesh; whole on every device where it does not divide."""
    shapes = abstract_params(hf.load_config(folder))[1]
    placed = sharding.shardings(mesh, shapes, indivisible=Indivisible.REPLICATE)
    by_path = {sharding.path_name(path): where for path, where in jax.tree_util.tree_leaves_with_path(placed)}
    return by_path.__getitem__


def measure_folder(folder: pathlib.Path, settings: LmEvalConfig) -> Json:
    """Scores of a model folder on tasks of lm-eval, by task."""
    check_tasks(settings)
    speaker = load(folder)
    graphdef = abstract_params(speaker.config)[0]
    model = Model(
        tokenizer=speaker.tokenizer, template=speaker.template, max_length=speaker.config.max_seq_len,
        stop_ids=frozenset(speaker.stop_ids),
        score=lambda pairs: likelihoods(speaker.params, speaker.config, pairs),
        generate=lambda prompts, sampling: generate(
            graphdef, speaker.params, speaker.config, prompts, stop_ids=speaker.stop_ids, sampling=sampling
        ),
    )  # fmt: skip
    return dict(evaluate_tasks(model, settings).scores)


def opening(system: str | None) -> list[Message]:
    """First messages of a conversation: the system prompt, where there is one."""
    return [] if system is None else [Message("system", system)]


def answer(folder: pathlib.Path, prompts: Sequence[str], *, system: str | None, sampling: SamplingConfig) -> list[str]:
    """One answer for each prompt, each in a conversation of its own.

    In a job the model is split over all devices; all processes call this, with the same prompts, and get all answers.
    """
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1)) if jax.process_count() > 1 else None
    speaker = load(folder, mesh)
    ids = [speaker.prompt([*opening(system), Message("user", prompt)]) for prompt in prompts]
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        found = generate(
            abstract_params(speaker.config)[0], speaker.params, speaker.config, ids,
            stop_ids=speaker.stop_ids, sampling=sampling, batching=Batching(mesh=mesh),
        )  # fmt: skip
    return [speaker.text(tokens) for tokens in found]


def converse(folder: pathlib.Path, *, system: str | None, sampling: SamplingConfig) -> None:
    """A chat until the end of input; an empty line starts a new conversation."""
    speaker = load(folder)
    graphdef = abstract_params(speaker.config)[0]
    messages = opening(system)
    say("Type a message. An empty line starts a new conversation, Ctrl-D ends.")
    while True:
        try:
            said = input("you> ")
        except EOFError:
            say()
            return
        if not said.strip():
            messages = opening(system)
            say("(new conversation)")
            continue
        asked = [*messages, Message("user", said)]
        try:
            tokens = []
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            for token in stream(
                graphdef, speaker.params, speaker.config, speaker.prompt(asked),
                stop_ids=speaker.stop_ids, sampling=sampling,
            ):  # fmt: skip
                tokens.append(token)
                if token not in speaker.stop_ids:
                    say(decoder.decode(speaker.tokenizer.token_bytes(token)), end="", flush=True)
            say(decoder.decode(b"", final=True))
        except UserError as error:  # the conversation outgrew the context; the chat goes on
            say(f"error: {error}")
            continue
        messages = [*asked, Message("assistant", speaker.text(tokens))]
