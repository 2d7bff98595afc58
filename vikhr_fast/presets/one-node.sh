#!/bin/bash
# Trains on all GPUs of this machine; started again, it goes on from the last checkpoint.
#
#   one-node.sh --config vikhr-7b-pretrain --model ADAPTED --output RUN --data.train ru SHARDS
set -euo pipefail
exec torchrun --standalone --nproc-per-node gpu -m vikhr_fast.train "$@"
