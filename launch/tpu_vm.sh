#!/usr/bin/env bash
# One stage on all hosts of a Cloud TPU slice (or of several), without Kubernetes:
#
#   export TPU=unils ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
#   launch/tpu_vm.sh create                    # a queued resource; SPOT=1 for one that can be taken away, SLICES=2 for two
#   launch/tpu_vm.sh install gs://bucket/unils_jax-0.1.0-py3-none-any.whl
#   launch/tpu_vm.sh train --config prior --workdir /shared/prior --parent /shared/codec \
#     --config.data.store=/shared/store --config.train.compute_dtype=bfloat16
#   launch/tpu_vm.sh log                       # follows the first host's log; stop saves and ends; delete gives it back
#
# Not tested on a slice. The folders are shared by all hosts (a mounted Filestore or bucket). `train` returns at once: the
# processes do not end with this shell, and are started again by themselves when they end with status 75.
set -eu
: "${TPU:?name of the TPU}" "${ZONE:?its zone}"
slices=${SLICES:-1}

on_all() { # a command on every host of every slice
  for ((i = 0; i < slices; i++)); do
    name=$TPU
    if ((slices > 1)); then name=$TPU-$i; fi
    gcloud compute tpus tpu-vm ssh "$name" --zone "$ZONE" --worker all --command "$1" &
  done
  wait
}

action=${1:?create, install, train, log, stop or delete}
shift
case $action in
  create)
    nodes=(--node-id "$TPU")
    if ((slices > 1)); then nodes=(--node-count "$slices" --node-prefix "$TPU"); fi
    gcloud compute tpus queued-resources create "$TPU" "${nodes[@]}" --zone "$ZONE" --accelerator-type "${TYPE:?}" \
      --runtime-version "${RUNTIME:?}" ${SPOT:+--spot}
    until gcloud compute tpus queued-resources describe "$TPU" --zone "$ZONE" --format 'value(state.state)' |
      tee /dev/stderr | grep -q ACTIVE; do sleep "${POLL_S:-30}"; done
    ;;
  install)
    wheel=$(printf %q "$(basename "$1")")
    on_all "set -e; sudo apt-get install -y -q python3.11-venv; python3.11 -m venv ~/unils
      gcloud storage cp $(printf %q "$1") /tmp/; ~/unils/bin/pip install \"/tmp/${wheel}[tpu]\""
    ;;
  train)
    printf -v flags '%q ' "$@"
    on_all "cat > ~/unils.sh <<'SCRIPT'
while :; do
  ~/unils/bin/unils train --distributed $flags
  status=\$?
  if [ \$status -ne 75 ] || [ -e ~/unils.stop ]; then echo \"ended with status \$status\"; exit \$status; fi
done
SCRIPT
      rm -f ~/unils.stop; setsid nohup bash ~/unils.sh >> ~/unils.log 2>&1 < /dev/null & sleep 1"
    ;;
  log) gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker 0 --command 'tail -n 100 -f ~/unils.log' ;;
  stop) on_all 'touch ~/unils.stop; pkill -TERM -f "unils train"' ;;
  delete) gcloud compute tpus queued-resources delete "$TPU" --zone "$ZONE" --force ;;
  *) echo "unknown action $action: create, install, train, log, stop or delete" >&2; exit 2 ;;
esac
