#!/usr/bin/env bash
# From clone to a cropper that has learned to zoom, in ten minutes on two cores: bash launch/local.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" report
out=runs/zoom_digits
cropvlm train --config=experiments/zoom_digits.py --workdir="$out" "$@"
cropvlm evaluate --targets=zoom_digits/target \
  --croppers="sft=zoom_digits/cropper,grpo=$out/cropper" --out="$out" --report
