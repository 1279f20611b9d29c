"""Write tests/golden/families/<case>.npz: what transformers computes for the small models of `family_cases`.

Run:  PYTHONPATH=tests python tests/parity/make_family_goldens.py [case ...]     (needs torch and transformers)

A golden holds the config.json that transformers saves, names and shapes of the tensors that it saves (their values
follow from the names), and every seventh column of the logits of the two sequences, each read alone: in a batch the
longest row picks transformers' longrope frequencies for all. The default tests compare with these numbers, so that they
need neither torch nor transformers.
"""

import json
import pathlib
import sys
import tempfile

import family_cases
import numpy as np
import torch
import transformers

from jaxtune.hf import safetensors as safetensors_io

TESTS = pathlib.Path(__file__).parent.parent


def golden(case: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    fields = family_cases.config_fields(case, seed=0)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "shapes")
    shapes = {name: entry.shape for name, entry in safetensors_io.find_tensors(folder / "shapes").items()}
    saved = json.loads((folder / "shapes" / "config.json").read_text())
    saved.pop("transformers_version")
    family_cases.write_checkpoint(folder / "model", saved, shapes)
    network = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = [network(torch.tensor(s)[None]).logits[0].numpy() for s in family_cases.sequences(config.vocab_size)]
    return {
        "config": np.asarray(json.dumps(saved)),
        "shapes": np.asarray(json.dumps(shapes)),
        "logits": np.concatenate([row[:, ::7] for row in logits]),
    }


def main():
    out = TESTS / "golden" / "families"
    out.mkdir(parents=True, exist_ok=True)
    for case in sys.argv[1:] or family_cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            np.savez_compressed(out / f"{case}.npz", **golden(case, pathlib.Path(folder)))


if __name__ == "__main__":
    main()
