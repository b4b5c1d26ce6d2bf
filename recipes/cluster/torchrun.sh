#!/bin/bash
# Finetunes the agents that a run owes with your own launcher, over several machines. Not yet run on a cluster of GPUs.
#
#     maft debate recipes/cluster/config.yaml && maft curate recipes/cluster/config.yaml
#     bash recipes/cluster/torchrun.sh runs/cluster      # on every machine, with RANK, HEAD (its address) and MACHINES set
#     maft run recipes/cluster/config.yaml               # finds the agents, and goes on
#
# LAUNCHER=accelerate divides the weights over all GPUs (FSDP2, accelerate.yaml); torchrun leaves them whole on each.
set -euo pipefail

RUN=$1
HEAD=${HEAD:-127.0.0.1} RANK=${RANK:-0} MACHINES=${MACHINES:-1} GPUS=${GPUS:-8} LAUNCHER=${LAUNCHER:-torchrun}
HERE=$(dirname "$0")
JOBS=$(mktemp -d)/jobs.json
python "$HERE/write_jobs.py" "$RUN" "$JOBS"

# The worker ends when its standard input does, as it would if maft died; here it stays open.
if [ "$LAUNCHER" = accelerate ]; then
  accelerate launch --config_file "$HERE/accelerate.yaml" --num_machines "$MACHINES" \
    --num_processes "$((MACHINES * GPUS))" --machine_rank "$RANK" --main_process_ip "$HEAD" \
    -m maft.trainers.sft_worker "$JOBS" < <(sleep infinity)
else
  torchrun --nnodes "$MACHINES" --node-rank "$RANK" --nproc-per-node "$GPUS" --master-addr "$HEAD" --master-port 29500 \
    -m maft.trainers.sft_worker "$JOBS" < <(sleep infinity)
fi
