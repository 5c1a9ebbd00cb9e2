#!/usr/bin/env bash
# N processes of `unils train` on this machine, a device each:
#
#   launch/local.sh 2 --config smoke/codec --workdir runs/codec --config.data.store=data/synthetic
#
# TERM, USR1, HUP and INT (Ctrl-C) are handed on to all of them, once: each runs in a separate session, because a second
# signal ends a process at once. The exit status is 0 or the last one that is not; 75 means that
# the run has saved and wants to be started again.
set -u
count=$1
shift
pids=()
for ((i = 0; i < count; i++)); do
  CUDA_VISIBLE_DEVICES=$i setsid unils train --coordinator "127.0.0.1:${PORT:-12355}" --num_processes "$count" --process_id "$i" "$@" &
  pids+=($!)
done
interrupted=0
for name in TERM USR1 HUP INT; do
  # shellcheck disable=SC2064
  trap "interrupted=1; kill -s $name \${pids[*]} 2>/dev/null" "$name"
done
status=0
for pid in "${pids[@]}"; do
  while :; do
    interrupted=0
    wait "$pid"
    code=$?
    ((interrupted)) || break # a trapped signal ends `wait` before the process ends
  done
  ((code)) && status=$code
done
exit "$status"
