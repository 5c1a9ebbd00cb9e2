#!/usr/bin/env bash
# One stage on all hosts of a Cloud TPU slice, where `unils` is installed and the folders are shared:
#
#   TPU=name ZONE=us-central2-b launch/tpu_vm.sh --config prior --workdir /shared/prior --parent /shared/codec \
#     --config.data.store=/shared/store --config.train.compute_dtype=bfloat16
#
# Not tested on a slice. Exit status 75 means that the run has saved and wants to be started again with the same line.
set -u
printf -v flags '%q ' "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all --command "unils train --distributed $flags"
