"""Config of the base model: its source, how its texts are written, and the types it computes in."""

import dataclasses
import datetime
import enum
from typing import Annotated

from jaxtune.chat import Bos
from jaxtune.errors import REAL, WHOLE, UserError, check_fields
from jaxtune.model.attention.core import Backend
from jaxtune.model.settings import Remat


class Dtype(enum.Enum):
    """Floating-point formats for parameters and compute."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class ComputeDtype(enum.Enum):
    """Format of the arithmetic."""

    AUTO = "auto"  # bfloat16 over parameters in `param_dtype`; on CPUs float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The base model: its source, and the types it computes in."""

    path: str
    """Hugging Face folder with config.json, safetensors and tokenizer files, or its URL (gs://bucket/model), or a hub
    name. `builtin` is the small base model that ships with jaxtune."""
    tokenizer: str | None = None
    """Folder or file of the tokenizer, here or at a URL; by default the model folder."""
    template: str | None = None
    """Name of a built-in chat template, or a Jinja file (a path or a URL); by default that of the tokenizer."""
    template_variables: dict[str, bool | Annotated[int, WHOLE] | Annotated[float, REAL] | str] = dataclasses.field(
        default_factory=dict
    )
    """What the template may ask for beyond messages and tools, e.g. `{"enable_thinking": False}`. Training, evaluation
    and generation see them, and the exported template takes them for its defaults."""
    template_date: str = "2024-07-26"
    """The date that a template which asks for today's is told, as YYYY-MM-DD: the same data give the same tokens on
    every day."""
    exact_marks: bool = False
    """Train on exactly what the template's `{% generation %}` marks enclose, whatever that is."""
    bos: Bos = Bos.TEMPLATE
    """Who writes the token that begins a text: the `template`, or `add` it where the template does not, or `none`."""
    param_dtype: Dtype = Dtype.FLOAT32
    """Format of the parameters. Moments, sums of gradients and the moving average are float32 in either; updates of
    bfloat16 parameters are rounded stochastically, so that small ones add up."""
    compute_dtype: ComputeDtype = ComputeDtype.AUTO
    """Format of activations and matrix products; norms, softmax and loss are float32 always. `auto` is bfloat16, and on
    CPUs float32; the run records which."""
    reduce_dtype: Dtype = Dtype.FLOAT32
    """Format in which devices add up the gradients of linear layers. `bfloat16` sends half of the bytes, rounds each
    device's part before they are added, and needs products in bfloat16. Micro-batches add in float32, and so do the
    embedding and the head."""
    remat: Remat = Remat.NONE
    """What the backward pass recomputes instead of keeping."""
    attention: Backend = Backend.AUTO
    """Attention implementation; `auto` takes the fastest one proven on this platform and the run records which."""

    def __post_init__(self):
        check_fields(self, "model")
        try:
            datetime.date.fromisoformat(self.template_date)
        except ValueError as error:
            given = f"model.template_date is {self.template_date!r}; write it as YYYY-MM-DD"
            raise UserError(given) from error
        if self.reduce_dtype is Dtype.BFLOAT16 and self.compute_dtype is ComputeDtype.FLOAT32:
            raise UserError(
                "model.reduce_dtype is bfloat16 and model.compute_dtype float32; set model.compute_dtype to bfloat16, "
                "or leave model.reduce_dtype out"
            )
