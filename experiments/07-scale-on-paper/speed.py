"""Share of peak that a step can reach, from its operations, its bytes and the makers' data sheets. Prints the tables.

    python experiments/07-scale-on-paper/speed.py

No device is used and nothing is measured: a bound, with every number that goes into it in this file.
"""

import dataclasses

SEQ_LEN = 4096


@dataclasses.dataclass(frozen=True)
class Shape:
    """What of a Llama-3.1 model its operations depend on."""

    d_model: int
    num_layers: int
    d_ff: int
    kv_width: int = 8 * 128
    vocab_size: int = 128256

    @property
    def layers(self) -> int:
        """Parameters of all layers, norms left out."""
        attention = 2 * self.d_model * (self.d_model + self.kv_width)
        return self.num_layers * (attention + 3 * self.d_model * self.d_ff)

    @property
    def head(self) -> int:
        return self.vocab_size * self.d_model

    @property
    def counted(self) -> float:
        """Operations of one row that count: 6 for each parameter of a matmul and token, and causal attention."""
        return 6 * (self.layers + self.head) * SEQ_LEN + 3 * self.attention

    @property
    def again(self) -> float:
        """Operations of the layers' forward pass, which the backward pass repeats. The head's are not repeated."""
        return 2 * self.layers * SEQ_LEN + self.attention

    @property
    def attention(self) -> float:
        """Forward: two products over half of all pairs of tokens."""
        return 2 * self.num_layers * SEQ_LEN**2 * self.d_model


SHAPES = {"8b": Shape(4096, 32, 14336), "70b": Shape(8192, 80, 28672)}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Data sheet."""

    name: str
    peak: float
    """Dense bfloat16, FLOP/s."""
    receives: float
    """Bytes a second that a chip receives on all its links together: half of the bidirectional rate."""


V5P = Chip("TPU v5p", 459e12, 600e9)
V6E = Chip("TPU v6e", 918e12, 400e9)
H200 = Chip("H200, NVLink", 989e12, 450e9)
NETWORK = 50e9
"""Bytes a second of one 400 Gbit/s network card, one for each H200."""


def weight_bytes(shape: Shape, gathered: int, ways: int, tensor: int = 1) -> float:
    """Bytes that a device receives for weights in a step: layers gathered twice, embedding and head once, all gradients
    scattered once in float32. `gathered`: bytes of a gathered weight."""
    numbers = (2 * shape.layers + 2 * shape.head) * gathered + (shape.layers + 2 * shape.head) * 4
    return numbers / tensor * (ways - 1) / ways


def sum_bytes(shape: Shape, tensor: int, rows: float) -> float:
    """Bytes that a device receives for sums over `tensor`: bfloat16 hidden states, eight times in a layer as compiled.

    Two in the forward pass, one when it is computed again, and five backward: what q, k, v, gate and up were given has
    a gradient from each, and each is summed by itself.
    """
    return 8 * shape.num_layers * 2 * (tensor - 1) / tensor * rows * SEQ_LEN * shape.d_model * 2


def line(label: str, chip: Chip, counted: float, done: float, network: float) -> str:
    compute = done / chip.peak
    overlapped, alone = (counted / chip.peak / t for t in (max(compute, network), compute + network))
    return f"| {label} | {chip.name} | {compute:.2f} | {network:.2f} | {overlapped:.2f} | {alone:.2f} |"


def main() -> None:
    small, large = SHAPES["8b"], SHAPES["70b"]
    for name, shape in SHAPES.items():
        print(
            f"{name}: layers {shape.layers / 1e9:.3f}e9, head {shape.head / 1e9:.3f}e9; a row of {SEQ_LEN}: "
            f"{shape.counted / 1e12:.1f} TFLOP count, of them attention {3 * shape.attention / 1e12:.1f}; "
            f"{shape.again / 1e12:.1f} are done again"
        )
    print("\n| step | chip | compute, s | network, s | share, overlapped | share, one after the other |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    done = small.counted + small.again
    label = "8B, fsdp=64, one row a chip"
    for chip in (V5P, V6E):
        print(line(label, chip, small.counted, done, weight_bytes(small, 2, 64) / chip.receives))
    # In a node 8 GPUs; a node's 8 cards together bring each other node's weights in once, NVLink spreads them.
    cards = weight_bytes(small, 4, 64) * (56 / 63) / (8 * NETWORK)
    print(line(label, H200, small.counted, done, max(cards, weight_bytes(small, 4, 64) / H200.receives)))
    cards = 2 * (small.layers + 2 * small.head) * 4 / 8 * (7 / 8) / NETWORK
    link = weight_bytes(small, 4, 8) / H200.receives
    print(line("8B, data=8 x fsdp=8, one row a chip", H200, small.counted, done, max(cards, link)))
    done, rows = large.counted + large.again, 1
    moved = weight_bytes(large, 2, 64)
    print(line("70B, fsdp=64, one row a chip", V5P, large.counted, done, moved / V5P.receives))
    moved = weight_bytes(large, 2, 64, tensor=4) + sum_bytes(large, 4, rows)
    print(line("70B, fsdp=64 x tensor=4, a row for four chips", V5P, large.counted / 4, done / 4, moved / V5P.receives))


if __name__ == "__main__":
    main()
