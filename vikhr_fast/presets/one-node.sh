#!/bin/bash
# Trains on all GPUs of this machine; started again, it goes on from the last checkpoint.
#
#   one-node.sh --config vikhr-7b-pretrain --model ADAPTED --output RUN --data.train ru SHARDS
set -euo pipefail
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=270 # seconds for a checkpoint; before torch 2.12 torchrun knows 30 alone
exec torchrun --standalone --nproc-per-node gpu -m vikhr_fast.train "$@"
