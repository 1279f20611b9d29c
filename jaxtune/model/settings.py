"""Shape and family of a Transformer as typed fields."""

import dataclasses
import enum

from jaxtune.errors import UserError
from jaxtune.model.attention.core import Backend
from jaxtune.model.moe import MoeConfig
from jaxtune.model.rope import RopeConfig, rotary_dim


class Activation(enum.Enum):
    """Gate of the feed-forward layer."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    GELU = "gelu"


class LayerKind(enum.Enum):
    """What a layer attends to: the whole segment, or its last `sliding_window` tokens."""

    GLOBAL = "global"
    LOCAL = "local"


class Remat(enum.Enum):
    """What the backward pass computes again instead of keeping it in memory."""

    NONE = "none"  # nothing
    DOTS = "dots"  # all but the results of matmuls with weights, and of attention
    FULL = "full"  # everything inside a layer; only the layers' inputs are kept
    OFFLOAD = "offload"  # as DOTS, with the matmul results kept in host memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and family of a Transformer. All but `remat` and `attention` says what it computes; these two say how."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int
    """Longest context; longer rows are an error."""
    family: str = "llama"
    """Hugging Face `model_type`: names the tensor layout for import and export."""
    activation: Activation = Activation.SILU
    norm_eps: float = 1e-5
    norm_offset: bool = False
    """RMSNorm multiplies by 1 + scale, with scale starting at zero (Gemma)."""
    post_norms: bool = False
    """A second norm after attention and feed-forward, before the residual sum (Gemma 2, 3)."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotation (Qwen 3, Gemma 3)."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = True
    embed_scale: float | None = None
    """Factor on embeddings, rounded to the compute dtype (Gemma: sqrt(D))."""
    attn_scale: float | None = None
    """Factor on query-key products; None is Dh ** -0.5."""
    attn_soft_cap: float | None = None
    final_soft_cap: float | None = None
    """Logits become cap * tanh(logits / cap); the loss must apply it too."""
    sliding_window: int | None = None
    layer_kinds: tuple[LayerKind, ...] | None = None
    """One per layer; None: all LOCAL with a sliding window, else all GLOBAL."""
    rope: RopeConfig = RopeConfig()
    local_rope: RopeConfig | None = None
    """Rotary embedding of LOCAL layers where it differs (Gemma 3)."""
    moe: MoeConfig | None = None
    """Mixture of experts in place of the dense feed-forward; `d_ff` is then unused."""
    remat: Remat = Remat.NONE
    attention: Backend = Backend.AUTO

    def __post_init__(self):
        sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_seq_len")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"model {name} is {getattr(self, name)}; it must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}).")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UserError(f"sliding_window is {self.sliding_window}; it must be at least 1, or None.")
        if len(self.kinds) != self.num_layers:
            raise UserError(f"layer_kinds has {len(self.kinds)} entries; the model has {self.num_layers} layers.")
        if LayerKind.LOCAL in self.kinds and self.sliding_window is None:
            raise UserError("layer_kinds has local layers; set sliding_window.")
        for rope in (self.rope, self.local_rope):
            if rope is not None:
                rotary_dim(rope, self.head_dim)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Kind of every layer, with the default filled in."""
        if self.layer_kinds is not None:
            return self.layer_kinds
        return (LayerKind.GLOBAL if self.sliding_window is None else LayerKind.LOCAL,) * self.num_layers
