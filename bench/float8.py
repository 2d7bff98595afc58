"""How far a float8 reference puts the KL off, on held-out text of the demo; on a CPU its products are emulated.

    python bench/float8.py OUT.json [--demo runs/demo]

For the adapted model itself, whose KL to the exact reference is 0, and for the model that continued pre-training with
KL made of it: the mean KL of a token to the bf16 reference and to the float8 one, and the cosine between the gradients
of the two by the model's hidden states.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from vikhr_fast.config import RuntimeConfig
from vikhr_fast.corpus.packing import PackedCorpus
from vikhr_fast.corpus.token_shards import TokenShards
from vikhr_fast.demo.paths import DemoPaths
from vikhr_fast.files import write_text
from vikhr_fast.model import Mistral
from vikhr_fast.objective import gathered
from vikhr_fast.ranks import Ranks, process_group
from vikhr_fast.train.sharding import load_sharded
from vikhr_kernels import linear_ce_kl, reference

LENGTH, SEQUENCES = 256, 16


def load(path: Path, ranks: Ranks, float8: bool = False) -> Mistral:
    """A frozen model in bf16."""
    dtype = torch.bfloat16
    model = load_sharded(path, ranks, ops=reference, compute=dtype, storage=dtype, float8=float8)
    return model.requires_grad_(False)


@torch.no_grad()
def outputs(model: Mistral, tokens: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and head."""
    hidden = model(tokens, cu_seqlens=cu_seqlens)
    with gathered(model.lm_head) as head:
        return hidden, head.weight.detach().clone()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="output of `vikhr-fast demo`")
    options = parser.parse_args()
    paths = DemoPaths(options.demo)
    if not paths.model(0, "cpt-kl").is_dir():
        parser.error(f"{options.demo}: no finished demo; `vikhr-fast demo` makes one, or give --demo")
    shards = TokenShards.open(paths.shards("russian", "russian", "validation"))
    batch = PackedCorpus({"": shards}, LENGTH, epochs=1, seed=0).batch(list(range(SEQUENCES)))
    adapted = paths.model(0, "adapted")
    results = {"tokens": batch.trained_tokens}
    with process_group(RuntimeConfig()) as ranks:
        batch = batch.to(ranks.device)
        exact, narrow = (
            outputs(load(adapted, ranks, float8), batch.tokens, batch.cu_seqlens) for float8 in (False, True)
        )
        for name in ("adapted", "cpt-kl"):
            hidden, head = outputs(load(paths.model(0, name), ranks), batch.tokens, batch.cu_seqlens)
            kls, gradients = [], []
            for frozen in (exact, narrow):
                leaf = hidden.clone().requires_grad_()
                loss, _, kl = linear_ce_kl(leaf, head, batch.targets, *frozen, ce_weight=0.0)
                loss.backward()
                kls.append(float(kl.sum()) / batch.trained_tokens)
                gradients.append(leaf.grad.double().flatten())
            cosine = float(torch.nn.functional.cosine_similarity(*gradients, dim=0)) if kls[0] else None
            results[name] = {"kl": kls[0], "kl_float8": kls[1], "gradient_cosine": cosine}
    write_text(options.out, json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
