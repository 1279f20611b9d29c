"""Write the trained base model to the package: bfloat16 weights and configs, beside its tokenizer.

Run:    python experiments/00-base-model/export_base.py runs/base jaxtune/assets/base
"""

import sys
from pathlib import Path

import jax.numpy as jnp
from train_base import CONFIG, load_state, make_steps

from jaxtune.chat import load_template, load_tokenizer, terminator_id
from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import TextFiles, tokenizer_files
from jaxtune.optim import OptimConfig, Optimizer

if __name__ == "__main__":
    run, folder = Path(sys.argv[1]), Path(sys.argv[2])
    like, _, _ = make_steps(100, OptimConfig(optimizer=Optimizer.MUON), seed=0)
    state = load_state(like, run / "state.safetensors")
    words = load_tokenizer(folder)
    hf.export_model(
        folder,
        CONFIG,
        state.params,
        TextFiles(
            eos_token_id=terminator_id(load_template(folder), words),
            bos_token_id=words.bos_id,
            pad_token_id=words.pad_id,
            files=tuple(tokenizer_files(folder)),
            generation={"eos_token_id": [words.controls.ids["</s>"]]},  # what its documents ended with
        ),
        dtype=jnp.bfloat16,
        overwrite=True,
    )
    print(f"step {int(state.step)}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB in {folder}")
