"""Does transformers load the tuned model, agree on its logits, and answer with it?

Run:    python experiments/08-smollm2-compact/check_export.py runs/smollm2/model $JAXTUNE_EXTRA_DATA/mixture_compact
Needs the `parity` extra. One validation chat of each task; float32 on the CPU, here and there.
"""

import functools
import json
import pathlib
import sys

import jax
import numpy as np
import torch
import transformers

from jaxtune.hf import folder as hf
from jaxtune.model import transformer as model
from jaxtune.parallel import compilation as compiling


def chats(data: pathlib.Path) -> dict[str, list[dict]]:
    """The first validation conversation of each task."""
    files = sorted(data.glob("*/validation.jsonl"))
    return {file.parent.name: json.loads(file.open(encoding="utf-8").readline())["messages"] for file in files}


def main() -> None:
    folder, data = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    words = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    double = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    shape, params = hf.import_model(folder)
    graphdef = model.abstract_params(shape)[0]

    @functools.partial(compiling.jit, platform=jax.default_backend(), dtype="float32")
    def logits(params, tokens):
        places = np.arange(tokens.shape[1])[None]
        hidden = model.apply(graphdef, params, tokens, places, np.ones_like(places))
        return model.apply_logits(graphdef, params, hidden)

    print(f"end of answer: {network.generation_config.eos_token_id} {words.eos_token!r}")
    worst, worst_own, beyond = 0.0, 0.0, 0.0
    for task, messages in chats(data).items():
        text = words.apply_chat_template(messages, tokenize=False)
        ids = np.asarray(words(text, add_special_tokens=False)["input_ids"])[None]
        with torch.no_grad():
            theirs, exact = (net(torch.tensor(ids)).logits.numpy() for net in (network, double))
        ours = np.asarray(logits(params, ids))
        difference = float(np.abs(ours - theirs).max())
        beyond = max(beyond, float((np.abs(ours - theirs) / (1 + np.abs(theirs))).max()))
        own = float(np.abs(theirs - exact).max())
        worst, worst_own = max(worst, difference), max(worst_own, own)
        prompt = words.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        asked = words(prompt, add_special_tokens=False, return_tensors="pt")
        answer = network.generate(**asked, max_new_tokens=24, do_sample=False)[0][asked["input_ids"].shape[1] :]
        print(f"{task}: largest difference {difference:.1e}; answer {words.decode(answer)!r}")
    print(f"largest difference of a logit x, as a share of 1 + |x|: {beyond:.1e}")
    print(f"largest difference of logits {worst:.1e}; of transformers' float32 from its own float64 {worst_own:.1e}")


if __name__ == "__main__":
    main()
