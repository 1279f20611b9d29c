"""The first run: the built-in base model on the seven built-in tasks, all of it in the package.

Run:     make quickstart      (jaxtune train quickstart --run-dir runs/quickstart, wherever jaxtune is installed)
Takes:   one and a half to two and a half minutes on two CPU cores.
Reaches: see `jaxtune/train/quickstart.py`, which this file passes on.
"""

from jaxtune.train.quickstart import config as config
