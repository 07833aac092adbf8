#!/usr/bin/env bash
# Installs what the tests need into .venv and runs style, types and tests: bash launch/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
export JAX_PLATFORMS=cpu
ruff check .
ruff format --check .
mypy
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
