#!/usr/bin/env bash
# Trains in two processes on this machine as two hosts would: bash launch/multihost_local.sh --config=... --workdir=...
# Takes the arguments of `cropvlm train`. XLA_FLAGS=--xla_force_host_platform_device_count=4 gives each process four CPU devices.
set -euo pipefail
[ -n "${VIRTUAL_ENV:-}" ] || source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
train() {
  exec python -m cropvlm_jax.apps.train --heartbeat_timeout_seconds=30 "${@:2}" \
    --coordinator_address="127.0.0.1:$port" --num_processes=2 --process_id="$1"
}
train 0 "$@" &
pids=($!)
train 1 "$@" > >(sed -u 's/^/process 1: /') 2>&1 &
pids+=($!)

# The first Ctrl-C lets both save and stop, the second one stops them at once.
signal=TERM
trap 'kill -$signal "${pids[@]}" 2>/dev/null || true; signal=KILL' INT TERM
code=0
for pid in "${pids[@]}"; do  # one that fails ends the other, see parallel.joined
  until wait "$pid" && status=0 || status=$?; ! kill -0 "$pid" 2>/dev/null; do :; done  # a signal interrupts wait
  [ "$status" = 0 ] || code=$status
done
exit "$code"
