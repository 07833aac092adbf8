#!/usr/bin/env bash
# From clone to a cropper that has learned to zoom, in about ten minutes on two cores: bash launch/local.sh
# Installs into .venv, trains on scenes of handwritten digits, and evaluates with controls. Arguments go to `cropvlm
# train`, and OUT names the folder, one for each run: OUT=runs/seed1 bash launch/local.sh --config.seed=1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" report
out=${OUT:-runs/zoom_digits}
cropvlm train --config=experiments/zoom_digits.py --workdir="$out" "$@"
cropvlm evaluate --targets=zoom_digits/target \
  --croppers="sft=zoom_digits/cropper,grpo=$out/cropper" --out="$out" --report
