#!/usr/bin/env bash
# Runs a command on all workers of a Cloud TPU, from this checkout as it is (uncommitted changes
# included), and starts it again after every preemption until it ends well:
#
#   NAME=mine TYPE=v5litepod-16 BUCKET=my-bucket bash launch/tpu_vm.sh \
#     cropvlm train --distributed --config=experiments/zoom_digits.py --workdir=runs/mine
#   NAME=mine bash launch/tpu_vm.sh delete
#
# Ctrl-C stops the run, which saves first; the TPU stays, and costs, until it is deleted. `runs/`
# and `data/` of the workers are the bucket's; without one, each worker's own disk, where several
# workers cannot save together and which a preemption takes away. Checkpoints need renames, which
# are atomic in buckets with a hierarchical namespace. Slices of several workers need
# `ssh-add ~/.ssh/google_compute_engine` first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAME=${NAME:-cropvlm} # of the TPU VM, which may be there already, and of its queued resource
ZONE=${ZONE:-us-central1-a}
TYPE=${TYPE:-v5litepod-8} # accelerator type
SPOT=${SPOT-1}            # empty: on demand
BUCKET=${BUCKET:-}
POLL=${POLL:-60}    # seconds between looks at the state
QUICK=${QUICK:-600} # seconds; what fails sooner counts, and five in a row end the script
port=8482 # JAX's own choice
case $TYPE in
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e port=8476 ;; # which the firewall made for it lets through
  *) image=tpu-ubuntu2204-base ;;
esac
RUNTIME=${RUNTIME:-$image}
PORT=${PORT:-$port} # of worker 0, where the processes meet
[ $# -gt 0 ] || { echo "usage: [NAME=value ...] $0 delete | COMMAND ..." >&2 && exit 2; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"; kill $(jobs -p) 2>/dev/null || true' EXIT

say() { echo "$(date +%T) $NAME: $*" >&2; }
tpu() { gcloud compute tpus "$@" --zone="$ZONE" --quiet; }
on_all() { tpu tpu-vm ssh "$NAME" --worker=all --ssh-flag="-o ServerAliveInterval=30" "$@"; }
state() { # of the TPU VM (tpu-vm state) or of its request (queued-resources state.state), if any
  tpu "$1" describe "$NAME" --format="value($2)" 2>"$tmp/error" ||
    grep -q NOT_FOUND "$tmp/error" || { cat "$tmp/error" >&2 && return 1; }
}
delete() {
  local request
  request=$(state queued-resources state.state) || return
  if [ "$request" ]; then
    tpu queued-resources delete "$NAME" --force
  else
    tpu tpu-vm delete "$NAME"
  fi
}
ready() { # waits for the TPU VM; asks for one where there is none, or none any longer
  local vm request now before=
  while :; do
    vm=$(state tpu-vm state) && request=$(state queued-resources state.state) || return
    now="TPU VM ${vm:-absent}, request ${request:-absent}"
    [ "$now" = "$before" ] || say "$now"
    before=$now
    case $vm/$request in
      READY/ | READY/ACTIVE) return ;;
      PREEMPTED/* | TERMINATED/* | */FAILED | */SUSPENDED) delete || return ;;
      /) tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
        --runtime-version="$RUNTIME" ${SPOT:+--spot} || return ;;
      *) sleep "$POLL" ;;
    esac
  done
}
install() {
  tpu tpu-vm scp "$tmp/code.tgz" launch/tpu_worker.sh "$NAME:" --worker=all &&
    on_all --command="bash tpu_worker.sh install '${BUCKET#gs://}'"
}
run() {
  local logs ssh tail code=0
  logs=runs/tpu_vm/$NAME/$(date +%Y%m%d-%H%M%S)
  mkdir -p "$logs" && touch "$logs/0.log"
  # In the background, so that signals are heard at once.
  on_all --output-directory="$logs" --command="JAX_COORDINATOR_PORT=$PORT bash tpu_worker.sh run $(printf '%q ' "$@")" & ssh=$!
  tail -n +1 -f "$logs/0.log" & tail=$!
  wait "$ssh" || code=$?
  sleep 1 && kill "$tail" # after the last lines
  say "ended with $code; the logs of all workers are in $logs"
  return "$code"
}

state tpu-vm state >/dev/null # without access, rather now than at every attempt
if [ "$1" = delete ]; then delete; exit; fi
export GIT_INDEX_FILE=$tmp/index # not the checkout's own
git add --all
git archive --format=tar.gz --output="$tmp/code.tgz" "$(git write-tree)"
trap 'say "stopping"; on_all --command="bash tpu_worker.sh stop" || true; exit 130' INT TERM
failures=0
until began=$SECONDS && ready && began=$SECONDS && install && run "$@"; do
  code=$?
  # 143: it was told to stop, and saved.
  ((code == 143 || SECONDS - began >= QUICK)) && failures=0 || failures=$((failures + 1))
  if ((failures == 5)); then say "giving up" && exit "$code"; fi
  sleep $((POLL << failures))
done
