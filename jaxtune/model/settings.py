"""Shape and family of a Transformer as typed fields."""

import dataclasses
import enum
import math

from jaxtune.errors import UserError
from jaxtune.model.attention.core import Backend
from jaxtune.model.delta import DeltaConfig
from jaxtune.model.moe import MoeConfig
from jaxtune.model.rope import RopeConfig, check_fit, depends_on_length

MAX_LAYERS, MAX_SIZE = 10_000, 2**31 - 1
"""Far beyond any model; a file that states more is damaged, and must not take the machine's memory."""


class Activation(enum.Enum):
    """Gate of the feed-forward layer."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    GELU = "gelu"
    RELU2 = "relu2"  # the square of ReLU (arXiv 2109.08668)


class LayerKind(enum.Enum):
    """Way in which a layer mixes over tokens.

    Attention to the whole segment, attention to its last `sliding_window` tokens, or linear attention, which carries a
    memory of fixed size from token to token.
    """

    GLOBAL = "global"
    LOCAL = "local"
    LINEAR = "linear"


class FeedForward(enum.Enum):
    """Kind of a layer's part after attention."""

    DENSE = "dense"
    EXPERTS = "experts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """Kinds of one layer of a stack, where layers of a stack differ."""

    attention: LayerKind
    rotated: bool
    """Queries and keys are rotated by their positions."""
    feed_forward: FeedForward


class Remat(enum.Enum):
    """Rematerialisation: results that the backward pass computes again instead of keeping them in memory."""

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
    norm_center: bool = False
    """Norms subtract the mean first, as LayerNorm does (Cohere)."""
    pre_norms: bool = True
    """A norm before attention and feed-forward (all but OLMo 2, 3; Exaone 4)."""
    post_norms: bool = False
    """A norm after attention and feed-forward, before the residual sum (Gemma 2, 3; OLMo 2, 3; GLM-4; Exaone 4)."""
    parallel_block: bool = False
    """The feed-forward reads what attention reads, after one norm for both, and the sum takes both (Cohere)."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotation (Qwen 3, Gemma 3)."""
    qk_norm_whole: bool = False
    """`qk_norm` runs over all heads of a token together (OLMo 2, 3)."""
    attn_gate: bool = False
    """What attention gives is multiplied by the sigmoid of a gate of each head's dimensions (Qwen3-Next, Qwen 3.5)."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    mlp_gate: bool = True
    """The feed-forward is down(activation(gate x) * up x); without a gate, down(activation(up x)) (Arcee)."""
    tie_embeddings: bool = True
    embed_scale: float | None = None
    """Factor on embeddings, rounded to the compute dtype (Gemma: sqrt(D); Granite)."""
    residual_scale: float = 1.0
    """Factor on what attention and feed-forward add to the residual stream (Granite)."""
    logit_scale: float = 1.0
    """Factor on the final hidden states, and so on the logits before their cap (Granite, Cohere)."""
    attn_scale: float | None = None
    """Factor on query-key products; None is Dh ** -0.5."""
    attn_soft_cap: float | None = None
    attn_sinks: bool = False
    """Each head has a learned score that takes part in its softmax, with a value of zero (gpt-oss)."""
    final_soft_cap: float | None = None
    """Logits become cap * tanh(logits / cap); the loss must apply it too."""
    sliding_window: int | None = None
    layer_kinds: tuple[LayerKind, ...] | None = None
    """One per layer; None: all LOCAL with a sliding window, else all GLOBAL."""
    delta: DeltaConfig | None = None
    """Sizes of LINEAR layers (Qwen3-Next, Qwen 3.5)."""
    rope: RopeConfig = RopeConfig()
    local_rope: RopeConfig | None = None
    """Rotary embedding of LOCAL layers where it differs (Gemma 3)."""
    unrotated_layers: tuple[int, ...] = ()
    """Layers without a rotary embedding, counted from 0 (SmolLM 3, arXiv 2501.18795; Cohere 2, Exaone 4)."""
    moe: MoeConfig | None = None
    """Mixture of experts in place of the dense feed-forward; `d_ff` is then that of `dense_layers` alone."""
    dense_layers: tuple[int, ...] = ()
    """Layers among those with experts whose feed-forward is dense, counted from 0 (Qwen 2, 3 MoE)."""
    remat: Remat = Remat.NONE
    attention: Backend = Backend.AUTO

    def __post_init__(self):
        sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_seq_len")
        for name in sizes:
            most = MAX_LAYERS if name == "num_layers" else MAX_SIZE
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"model {name} is {getattr(self, name)!r:.20}; it must be in [1, {most}].")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}).")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UserError(f"sliding_window is {self.sliding_window}; it must be at least 1, or None.")
        if len(self.kinds) != self.num_layers:
            raise UserError(f"layer_kinds has {len(self.kinds)} entries; the model has {self.num_layers} layers.")
        if LayerKind.LOCAL in self.kinds and self.sliding_window is None:
            raise UserError("layer_kinds has local layers; set sliding_window.")
        if LayerKind.LINEAR in self.kinds and self.delta is None:
            raise UserError("layer_kinds has linear layers; set delta, their sizes.")
        if LayerKind.LINEAR in self.kinds and depends_on_length(self.rope):
            raise UserError(
                "layer_kinds has linear layers, whose memory cannot be computed again as longrope needs; "
                "choose another scaling of the rope."
            )
        for name in ("unrotated_layers", "dense_layers"):
            beyond = [layer for layer in getattr(self, name) if not 0 <= layer < self.num_layers]
            if beyond:
                raise UserError(f"{name} has {beyond}; the model has layers 0 to {self.num_layers - 1}.")
        if self.dense_layers and self.moe is None:
            raise UserError("dense_layers says which layers have no experts; set moe too, or leave it empty.")
        if len(set(self.dense_layers)) == self.num_layers:
            raise UserError("dense_layers has every layer; leave out moe, then all are dense.")
        if self.qk_norm_whole and not self.qk_norm:
            raise UserError("qk_norm_whole says how qk_norm works; set qk_norm too.")
        if not (self.mlp_gate or self.moe is None):
            raise UserError("experts have a gate; leave mlp_gate on.")
        if self.parallel_block and not self.pre_norms:
            raise UserError("attention and feed-forward side by side read one norm; set pre_norms.")
        if self.local_rope is not None and self.local_rope.interleaved != self.rope.interleaved:
            raise UserError("rope and local_rope must agree on interleaved.")
        if not (self.pre_norms or self.post_norms):
            raise UserError("a layer needs norms before or after its parts; set pre_norms or post_norms.")
        self._check_finite()
        for rope in (self.rope, self.local_rope):
            if rope is not None:
                check_fit(rope, self.head_dim)

    def _check_finite(self) -> None:
        names = ("embed_scale", "attn_scale", "attn_soft_cap", "final_soft_cap")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for name, value in (given | {name: getattr(self, name) for name in ("residual_scale", "logit_scale")}).items():
            if not 0 < value < math.inf:
                raise UserError(f"model {name} is {value}; it must be above 0 and finite.")
        if not 0 <= self.norm_eps < 1:
            raise UserError(f"model norm_eps is {self.norm_eps}; it must be in [0, 1).")

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Kind of every layer, with the default filled in."""
        if self.layer_kinds is not None:
            return self.layer_kinds
        return (LayerKind.GLOBAL if self.sliding_window is None else LayerKind.LOCAL,) * self.num_layers

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Kinds of every layer."""
        experts = set() if self.moe is None else set(range(self.num_layers)) - set(self.dense_layers)
        unrotated = set(self.unrotated_layers)
        return tuple(
            Layer(
                attention=kind,
                rotated=layer not in unrotated,
                feed_forward=FeedForward.EXPERTS if layer in experts else FeedForward.DENSE,
            )
            for layer, kind in enumerate(self.kinds)
        )

    def shallow(self, num_layers: int) -> "ModelConfig":
        """The model with `num_layers` layers alike: its first one's attention, and experts where it has any."""
        return dataclasses.replace(
            self, num_layers=num_layers, layer_kinds=self.kinds[:1] * num_layers, unrotated_layers=(), dense_layers=()
        )
