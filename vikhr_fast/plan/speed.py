"""How fast a run should be: matrix products at a share of the GPU's peak, communication beside them."""

from dataclasses import dataclass

from vikhr_fast.config import TrainConfig
from vikhr_fast.model_config import ModelConfig
from vikhr_fast.plan.memory import GIB, Parameters


@dataclass(frozen=True)
class Hardware:
    """One GPU, by its data sheet."""

    name: str
    memory: float  # bytes that a program can have
    flops: float  # bf16 matrix products a second, dense
    bandwidth: float  # bytes of memory a second
    link: float  # bytes a second to its neighbours in the node, one direction
    watts: float
    measured: str = "nothing on this GPU yet"  # bench/results; not what the plan reckons with


HARDWARE = {
    "a100-80": Hardware("A100-80GB", 79 * GIB, 312e12, 2.04e12, 300e9, 400),
    "h100": Hardware(
        "H100-80GB", 79 * GIB, 989e12, 3.35e12, 450e9, 700,
        measured="a product of 8192³ at 796 to 804 TFLOP/s",
    ),
    "h200": Hardware(
        "H200-141GB", 139 * GIB, 989e12, 4.8e12, 450e9, 700,
        measured="a product of 8192³ at 803 TFLOP/s; of that rate a micro-batch of Mistral-7B and its reference "
        "reached 64.6% with 3 x 1,024 tokens, 74.0% with 16 x 1,024",
    ),
}  # fmt: skip
LINK_SHARE = 0.7  # of the link's rate that collectives reach
NETWORK = 20e9  # bytes a second of each GPU between nodes, where replicas sum their gradients
RESERVED = 2.5 * GIB  # context, communication buffers, workspaces, and what fragmentation loses


@dataclass(frozen=True)
class Speed:
    """Of one step, on each GPU.

    Attributes:
        step_seconds: all micro-batches and the update.
        compute_seconds: of that, matrix products.
        communication_seconds: of gathering and reducing, which runs beside the products as far as it fits.
        tokens_per_second: a GPU.
        training_share: of the peak, by 6 N + attention FLOPs a token, the reference not counted (MFU).
        whole_share: the same, the reference's forward counted.
    """

    step_seconds: float
    compute_seconds: float
    communication_seconds: float
    tokens_per_second: float
    training_share: float
    whole_share: float


def attention_flops(model: ModelConfig, pairs: float) -> float:
    """Of the forward pass over so many pairs of a query and a key, in all layers; backward takes 2.5 times as many."""
    return 4 * model.num_hidden_layers * model.num_attention_heads * model.head_dim * pairs


def flops_per_token(model: ModelConfig, length: float) -> tuple[float, float]:
    """Of training and of the reference's forward: 6 N and 2 N, N without the embedding, and causal attention.

    Args:
        model: its shape.
        length: mean tokens of a document.
    """
    n = Parameters.of(model).multiplied
    seen = min(length / 2, model.sliding_window or length)
    attention = attention_flops(model, seen)
    return 6 * n + 3.5 * attention, 2 * n + attention


def peak_flops(gpu: str) -> float | None:
    """The bf16 peak of a GPU by the name that its driver gives; None where it isn't one of HARDWARE."""
    return next((known.flops for known in HARDWARE.values() if known.name.partition("-")[0] in gpu), None)


def speed(config: TrainConfig, model: ModelConfig, hardware: Hardware, gpus: int, efficiency: float) -> Speed:
    """The step's time at a share `efficiency` of the peak in matrix products, the collectives beside them."""
    count = Parameters.of(model)
    batch = config.batch
    tokens = batch.sequences_per_step * config.data.sequence_length / gpus
    training, frozen = flops_per_token(model, config.data.sequence_length)
    if config.kl.combine == "sum" and config.kl.weight == 0:
        frozen = 0.0
    again = {"none": 0.0, "selective": training / 3, "full": training / 3}[config.runtime.checkpointing]
    compute = tokens * (training + frozen + again) / (hardware.flops * efficiency)
    micro_batches = batch.sequences_per_step / (batch.micro_batch * gpus)
    replicas = config.runtime.replicas
    shards = gpus // replicas
    moved = (shards - 1) / shards * count.total
    bytes_gathered = 4 + (0 if frozen == 0 else 2)  # bf16 before forward and backward, the reference's
    reductions = micro_batches if config.runtime.reduce_each_micro_batch else 1
    communication = (micro_batches * bytes_gathered + 4 * reductions) * moved / (hardware.link * LINK_SHARE)
    between = reductions * 2 * (replicas - 1) / replicas * 4 * count.total / shards / NETWORK
    update = 30 * count.total / shards / hardware.bandwidth  # AdamW reads and writes 30 bytes a float32 master
    seconds = max(compute, communication + between) + update
    return Speed(
        step_seconds=seconds,
        compute_seconds=compute,
        communication_seconds=communication + between,
        tokens_per_second=tokens / seconds,
        training_share=tokens * training / seconds / hardware.flops,
        whole_share=tokens * (training + frozen) / seconds / hardware.flops,
    )
