#!/usr/bin/env bash
# The runs of the looks experiment (protocol.md), their evaluations on test and results.json:
#
#     bash experiments/look/runs.sh                    # all of it, in order
#     bash experiments/look/runs.sh section pairs      # the runs and evaluations of a section of the results
#     bash experiments/look/runs.sh train pairs_k2 0   # one run: a variant of look.py and a seed
#     bash experiments/look/runs.sh evaluate pairs 0   # one evaluation: a section of the results and a seed
#     bash experiments/look/runs.sh choose prices      # before all others: the middle price, on validation scenes
#
# Each command goes on where it was stopped; what is finished is left alone. RUNS is the folder of all that is made.
# To try the script small: SEEDS are fewer seeds, TRAIN and EVALUATE more flags of `cropvlm train` and of `cropvlm
# evaluate`, SAVE is the file of the results.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${RUNS:-runs/look}
target=zoom_digits_looks/target
# mixed_gate has the middle one of the three prices, so that it is the second of the croppers of one price each.
declare -A variants=([pairs]="pairs_k1 pairs_k2" [mixed]="mixed_always mixed_gate" [deep]="deep_looks1 deep_looks2"
  [budget]="mixed_gate price_low price_high budget")
seeds=${SEEDS:-0 1 2}

train() { # variant, seed, name of the run, more flags
  [ -f "$runs/$3/done" ] && return
  # shellcheck disable=SC2086
  cropvlm train --config="experiments/look/look.py:$1" --config.seed="$2" --workdir="$runs/$3" "${@:4}" ${TRAIN:-}
  touch "$runs/$3/done"
}

evaluate() { # section of the results, seed
  local croppers scenes=$1 more=()
  case $1 in
    pairs) croppers=k1=pairs_k1,k2=pairs_k2 ;;
    mixed) croppers=always=mixed_always,gate=mixed_gate ;;
    deep) croppers=looks1=deep_looks1,looks2=deep_looks2 ;;
    budget)
      scenes=mixed
      croppers=gate=mixed_gate,low=price_low,high=price_high,budget=budget
      more=(--budgets=low,middle,high)
      ;;
    *) echo "no section $1: pairs, mixed, deep or budget" >&2 && exit 1 ;;
  esac
  [ -f "$runs/test/$1_$2/done" ] && return
  croppers=$(sed -E "s#=([a-z0-9_]+)#=$runs/\1_$2/cropper#g" <<<"$croppers")
  # shellcheck disable=SC2086
  cropvlm evaluate --benchmark="zoom_digits_$scenes" --targets=$target --croppers="$croppers" "${more[@]}" \
    --costs --report --out="$runs/test/$1_$2" ${EVALUATE:-}
  touch "$runs/test/$1_$2/done"
}

choose_prices() {
  local croppers=always=$runs/choose/always/cropper
  train mixed_always 0 choose/always
  for price in 10 20 40; do
    train mixed_gate 0 "choose/price_$price" --config.grpo.token_price=$price
    croppers=$croppers,price_$price=$runs/choose/price_$price/cropper
  done
  # shellcheck disable=SC2086
  cropvlm evaluate --benchmark=zoom_digits_mixed --split=validation --targets=$target --croppers="$croppers" \
    --out="$runs/choose/prices" ${EVALUATE:-}
}

section() { # section of the results
  for seed in $seeds; do
    for variant in ${variants[$1]}; do train "$variant" "$seed" "${variant}_$seed"; done
  done
  for seed in $seeds; do evaluate "$1" "$seed"; done
}

case ${1:-all} in
  train) train "$2" "$3" "$2_$3" ;;
  evaluate) evaluate "$2" "$3" ;;
  section) section "$2" ;;
  choose) choose_prices ;;
  all)
    for name in pairs mixed deep budget; do section $name; done
    python experiments/look/results.py --runs="$runs" --save="${SAVE:-experiments/look/results.json}"
    ;;
  *) echo "no command $1: section, train, evaluate, choose, or nothing for all" >&2 && exit 1 ;;
esac
