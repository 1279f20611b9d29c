"""Two sweeps over the same settings, of a small and of a large model: do they order them alike?"""

import dataclasses

import numpy as np

from jaxtune.errors import UserError
from jaxtune.runs.sweeps import Measure, Sweep, key
from jaxtune.science.proxy import agreement
from jaxtune.storage.documents import Json, plain

RATES = ("optim.peak-lr", "optim.peak_lr")
"""Options whose best value moves with a model's width (arXiv 2203.03466)."""


def proxy_of(small: Sweep, large: Sweep, measure: Measure) -> Json:
    """Decision accuracy and rank correlation over the settings that both sweeps have, as plain JSON.

    UserError with fewer than two of them.
    """
    places = {key(setting): index for index, setting in enumerate(large.settings)}
    shared = [(index, places[key(setting)]) for index, setting in enumerate(small.settings) if key(setting) in places]
    if len(shared) < 2:
        raise UserError(
            f"{small.path} and {large.path} share {len(shared)} settings; both take the same --grid or --arms"
        )
    rows = np.array(shared)
    try:
        found = agreement(small.matrix(measure.pick)[rows[:, 0]], large.matrix(measure.pick)[rows[:, 1]])
    except ValueError as error:
        raise UserError(f"{small.path} and {large.path}: {error}") from None
    varied = [option for option in RATES if len(small.axes.get(option, [])) > 1]
    warning = (
        f"{varied[0]} is among the settings: the best learning rate moves with a model's width, so what the small "
        "model says of it does not carry over"
        if varied
        else ""
    )
    return plain({"settings": len(shared), "measure": measure.name, **dataclasses.asdict(found), "warning": warning})
