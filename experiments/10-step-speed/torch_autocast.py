"""The peers' plain torch loop under autocast: products in bfloat16, as who trains with torch on a CPU would set it.

BENCH=<folder of the peers' scripts> PEERS=<folder of their venvs and data> \\
    python experiments/10-step-speed/torch_autocast.py --config A|B --mode padded|packed [--steps N] [--threads 1|2]
"""

import os
import runpy
import sys

import torch

sys.path.insert(0, os.environ["BENCH"])
torch.set_autocast_dtype("cpu", torch.bfloat16)
torch.set_autocast_enabled("cpu", True)
runpy.run_path(os.path.join(os.environ["BENCH"], "hf_torch.py"), run_name="__main__")
