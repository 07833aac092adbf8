# Sourced by the other scripts: makes .venv with the extras named in $1 (once), and enters it.
# It installs the versions of launch/constraints.txt, which are the tested ones; NEWEST=1 takes the newest.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=.venv/.installed-${1:-base}${NEWEST:+-newest}
if [ ! -x .venv/bin/python ]; then
  python3 -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed"'
  python3 -m venv .venv
fi
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ launch/constraints.txt -nt "$stamp" ]; then
  echo "installing into .venv ..."
  versions=(--constraint launch/constraints.txt)
  [ -z "${NEWEST:-}" ] || versions=(--upgrade)
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${versions[@]}" -e ".${1:+[$1]}"
  touch "$stamp"
fi
source .venv/bin/activate
# Hundreds of MB of scratch memory a step: keep it instead of giving it back to the kernel each time.
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_ARENA_MAX=2
