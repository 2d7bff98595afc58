"""How fast a step should be: matrix products at a measured rate, passes over memory, collectives beside them."""

from dataclasses import dataclass

from vikhr_fast.config import TrainConfig
from vikhr_fast.model.config import ModelConfig
from vikhr_fast.plan.collectives import StepCounts, collectives
from vikhr_fast.plan.memory import GIB, Parameters


@dataclass(frozen=True)
class Range:
    """A figure that isn't known exactly; of rates and shares, the high end is the fast one."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True)
class Hardware:
    """One GPU: its data sheet, and what was measured on it."""

    name: str
    memory: float  # bytes that a program can have
    peak: float  # bf16 FLOP/s, dense, of the data sheet: what MFU is a share of, and nothing else here
    link: float  # bytes a second to its neighbours in the node, one direction, of the data sheet
    watts: float
    products: Range  # FLOP/s of a large bf16 matrix product, measured
    copies: Range  # bytes that a copy in memory reads and writes a second
    measured: str  # where these figures are from


HARDWARE = {
    "a100-80": Hardware(
        "A100-80GB", 79 * GIB, 312e12, 300e9, 400,
        products=Range(256e12, 264e12, 268e12), copies=Range(1.6e12, 1.75e12, 1.83e12),
        measured="nothing on this GPU yet; products: 256.4 (PCIe) and 267.9 TFLOP/s (SXM), the best of many shapes in "
        "S. Bekman's Machine Learning Engineering; copies: the share of the data sheet's 2.04 TB/s that H100 and H200 "
        "reach",
    ),
    "h100": Hardware(
        "H100-80GB", 79 * GIB, 989e12, 450e9, 700,
        products=Range(780e12, 800e12, 804e12), copies=Range(2.9e12, 3.01e12, 3.05e12),
        measured="a product of 8192³ at 796 to 804 TFLOP/s, a copy at 3.01 TB/s",
    ),
    "h200": Hardware(
        "H200-141GB", 139 * GIB, 989e12, 450e9, 700,
        products=Range(780e12, 803e12, 804e12), copies=Range(4.1e12, 4.22e12, 4.3e12),
        measured="a product of 8192³ at 803 TFLOP/s, a copy at 4.22 TB/s; of that rate a micro-batch of Mistral-7B and "
        "its reference reached 64.6% with 3 x 1,024 tokens, 74.0% with 16 x 1,024",
    ),
}  # fmt: skip
# Of the large product's rate, what a step's products reach. On an H200 a sequence of 1,024 tokens more took 95.9 ms
# (docs/training-step.md): less attention (4.5 ms at its measured rates) and passes over memory (5.4 ms), 0.85. The same
# arithmetic on what MosaicML and fms-fsdp published for 7B on A100s, 4,641 and 4,550 tokens/s, gives 0.81 to 0.84.
PRODUCTS = Range(0.80, 0.85, 0.87)
# The same of attention, documents of 1,024 tokens: measured on an H100, 284 forward and 261 backward of 800 TFLOP/s; on
# Ampere FlashAttention-2's 133 TFLOP/s of 268, of which these kernels reached 0.67 to 0.98 on a stand-in.
ATTENTION = Range(0.30, 0.38, 0.45)
LINKS = Range(0.6, 0.7, 0.8)  # of the link's rate, what collectives reach
TAKEN = Range(0.2, 0.1, 0.05)  # of the GPU, what collectives take from products while they run
NODE = 8  # GPUs
NETWORK = 20e9  # bytes a second of each GPU between nodes: of replicas, or of weights sharded over more than a node
RESERVED = 2.5 * GIB  # context, communication buffers, workspaces, and what fragmentation loses


@dataclass(frozen=True)
class Speed:
    """Of one step, on each GPU."""

    step_seconds: float  # all micro-batches and the update
    compute_seconds: float  # of that, products, attention and passes over memory
    copy_seconds: float  # of these, copying what is gathered and reduced, and adding up gradients
    communication_seconds: float  # of gathering and reducing, which runs beside the rest as far as it fits
    link_bytes: float  # that a GPU sends
    copy_bytes: float  # that it reads and writes in `copy_seconds`
    tokens_per_second: float  # a GPU
    training_share: float  # of the data sheet's peak by 6 N + attention FLOPs a token, without the reference (MFU)
    whole_share: float  # the same, the reference's forward counted


def attention_flops(model: ModelConfig, pairs: float) -> float:
    """Of the forward pass over so many pairs of a query and a key, in all layers; backward takes 2.5 times as many."""
    return 4 * model.num_hidden_layers * model.num_attention_heads * model.head_dim * pairs


def seen_keys(model: ModelConfig, length: float) -> float:
    """That a query of a document of so many tokens sees on average."""
    window = min(length, model.sliding_window or length)
    return window - window**2 / (2 * length)


def flops_per_token(model: ModelConfig, length: float) -> tuple[float, float]:
    """Of training and of the reference's forward, with documents of so many tokens on average.

    6 N and 2 N, N without the embedding, and causal attention.
    """
    n, attention = Parameters.of(model).multiplied, attention_flops(model, seen_keys(model, length))
    return 6 * n + 3.5 * attention, 2 * n + attention


def peak_flops(gpu: str) -> float | None:
    """The bf16 peak of a GPU by the name that its driver gives; None where it isn't one of HARDWARE."""
    return next((known.peak for known in HARDWARE.values() if known.name.partition("-")[0] in gpu), None)


def pass_bytes(model: ModelConfig) -> tuple[float, float]:
    """What the operations between products read and write a token, in bf16: a layer's forward, and its backward.

    Both norms with the residual stream, rotation of q and k, a copy of v, SwiGLU; backward also joins the gradients of
    q, k and v.
    """
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    forward = 8 * model.hidden_size + 2 * (queries + keys) + 2 * keys + 3 * model.intermediate_size
    backward = 8 * model.hidden_size + 2 * (queries + keys) + 2 * (queries + 2 * keys) + 5 * model.intermediate_size
    return 2.0 * forward, 2.0 * backward


def step_copy_bytes(config: TrainConfig, model: ModelConfig, gpus: int) -> float:
    """What FSDP2 reads and writes of one GPU's memory, on the stream of the products.

    Gathered weights are copied out of their buffer. Gradients are copied into a reduction's, in float32; those of
    micro-batches that don't reduce are added to float32 sums.
    """
    counts, total = StepCounts.of(config, gpus), Parameters.of(model).total
    gathered = sum(2 * c.num_bytes for c in collectives(config, model, gpus) if c.kind == "all-gather")
    if gpus == 1:  # the products add to the sums: read and written but for the first time
        return 8.0 * total * (counts.micro_batches - 1)
    if counts.micro_batches == counts.reductions:
        return gathered + (2 + 4) * total * counts.reductions
    return gathered + (2 + 8) * total * counts.micro_batches + (4 + 4) * total


def speed(config: TrainConfig, model: ModelConfig, hardware: Hardware, gpus: int, case: str = "likely") -> Speed:
    """The step's time at the rates of one case: low, likely or high."""
    rate, copies, share, attention_share, links, taken = (
        getattr(known, case) for known in (hardware.products, hardware.copies, PRODUCTS, ATTENTION, LINKS, TAKEN)
    )
    counts, shape = StepCounts.of(config, gpus), Parameters.of(model)
    tokens = config.batch.sequences_per_step * config.data.sequence_length / gpus
    compared = counts.compared * config.batch.micro_batch * config.data.sequence_length
    again, attended = {"none": (0, 0), "selective": (1, 0), "full": (1, 1)}[config.runtime.checkpointing]
    attention = attention_flops(model, seen_keys(model, config.data.sequence_length))
    forward, backward = (model.num_hidden_layers * each for each in pass_bytes(model))
    products = shape.multiplied * ((6 + 2 * again) * tokens + 2 * compared)
    attending = attention * ((3.5 + attended) * tokens + compared)
    passes = ((1 + again) * forward + backward) * tokens + forward * compared
    passes += model.vocab_size * (6 * tokens + 4 * compared)  # logits read, their gradient written
    copied = step_copy_bytes(config, model, gpus)
    compute = products / (rate * share) + attending / (rate * attention_share) + (passes + copied) / copies
    called = list(collectives(config, model, gpus))
    within = sum(call.link_bytes for call in called if call.among != "replicas")
    between = sum(call.link_bytes for call in called if call.among == "replicas")
    shards = gpus // config.runtime.replicas
    communication = within / (hardware.link * links if shards <= NODE else NETWORK) + between / NETWORK
    update = 40 * shape.total / shards / copies  # norm, clipping and AdamW on float32 masters, moments, gradients
    seconds = max(compute + taken * communication, communication) + update
    training, frozen = flops_per_token(model, config.data.sequence_length)
    return Speed(
        step_seconds=seconds,
        compute_seconds=compute,
        copy_seconds=copied / copies,
        communication_seconds=communication,
        link_bytes=within + between,
        copy_bytes=copied,
        tokens_per_second=tokens / seconds,
        training_share=tokens * training / seconds / hardware.peak,
        whole_share=(tokens * training + compared * frozen) / seconds / hardware.peak,
    )


def assumptions(hardware: Hardware) -> str:
    """What the numbers stand on."""

    def share(known: Range) -> str:
        return f"{known.likely:.0%} ({min(known.low, known.high):.0%} to {max(known.low, known.high):.0%})"

    def rate(known: Range, digits: int) -> str:
        values = (f"{value / 1e12:.{digits}f}" for value in (known.likely, known.low, known.high))
        return "{} ({} to {})".format(*values) if known.low < known.high else next(values)

    return (
        f"Assumed, in brackets at least and at most: products at {share(PRODUCTS)} and attention at {share(ATTENTION)} "
        f"of a large product's {rate(hardware.products, 0)} TFLOP/s; memory at {rate(hardware.copies, 2)} TB/s; "
        f"collectives at {share(LINKS)} of {hardware.link / 1e9:.0f} GB/s in a node, {NETWORK / 1e9:.0f} GB/s between "
        f"replicas, taking {share(TAKEN)} of the GPU meanwhile; documents as long as the sequence; "
        f"{RESERVED / GIB:.1f} GiB reserved; {hardware.watts:.0f} W a GPU, no cooling, no host\n"
        f"Measured: {hardware.measured}"
    )
