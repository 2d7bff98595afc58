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
#SBATCH --signal B:USR1@300
set -euo pipefail
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=270 # seconds for a checkpoint; before torch 2.12 torchrun knows 30 alone
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The warning comes here alone: torchrun passes SIGTERM on, but would die of SIGUSR1, and exits with 1 after either.
warned=
trap 'warned=yes; scancel --signal TERM "$SLURM_JOB_ID"' USR1
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
    --rdzv-endpoint "$first:29500" -m vikhr_fast.train --runtime.replicas "$SLURM_NNODES" "$@" &
status=0
wait "$!" || status=$?
if [ "$warned" ]; then # the trap ended that wait
    status=0
    wait "$!" || status=$?
fi
if [ "$warned" ] && [ "$status" -ne 0 ]; then # stopped with a checkpoint, not finished
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
