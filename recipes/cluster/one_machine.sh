#!/bin/bash
# One machine of eight GPUs. Not yet run on a cluster of GPUs.
#
#     bash recipes/cluster/one_machine.sh
set -euo pipefail

# maft itself starts `accelerate launch` with as many processes as asked for, each with a GPU of its own, and writes the
# configuration of FSDP2 (or `deepspeed`, ZeRO-3) for it.
maft run recipes/cluster/config.yaml vllm.tensor_parallel_size=8 \
  engine.num_train_processes=8 engine.train_sharding=fsdp
