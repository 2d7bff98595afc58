#!/bin/bash
# Trains on several nodes, each with a copy of the weights sharded over its GPUs. Put back into the queue when Slurm takes
# the nodes away: a signal saves a checkpoint, and the same command goes on from it.
#
#   sbatch --nodes 2 slurm.sh --config vikhr-7b-pretrain --model ADAPTED --output RUN --data.train ru SHARDS
#
#SBATCH --job-name vikhr
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal TERM@300
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
status=0
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
    --rdzv-endpoint "$first:29500" -m vikhr_fast.train --runtime.replicas "$SLURM_NNODES" "$@" || status=$?
if [ "$status" -eq 143 ]; then # stopped by a signal, after a checkpoint
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
