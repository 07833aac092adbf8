#!/usr/bin/env bash
# What `tpu_vm.sh` has each worker do, in its home folder: stop | install BUCKET | run COMMAND ...
set -euo pipefail
cd

stop() { # a run, which saves first; it may be one that has lost its launcher
  if pid=$(cat run.pid 2>/dev/null) && kill "$pid" 2>/dev/null; then
    timeout 600 tail --pid="$pid" -f /dev/null || kill -9 "$pid"
  fi
}

case $1 in
  stop) stop ;;
  install)
    stop
    mkdir -p storage
    if [ -n "$2" ] && ! mountpoint -q storage; then
      key=/usr/share/keyrings/cloud.google.asc source=https://packages.cloud.google.com/apt
      curl -sSf $source/doc/apt-key.gpg | sudo tee $key >/dev/null
      echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get update -qq
      sudo apt-get install -qq -o DPkg::Lock::Timeout=600 gcsfuse
      # Without a cache, so that workers see at once what others wrote.
      gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 "$2" storage
    fi
    rm -rf cropvlm_jax
    mkdir -p cropvlm_jax storage/runs storage/data
    tar -xzf code.tgz -C cropvlm_jax
    ln -s ~/storage/runs ~/storage/data cropvlm_jax
    [ -x .local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
    .local/bin/uv venv --quiet --allow-existing --python 3.11 venv # the images have 3.10
    .local/bin/uv pip install --quiet --python venv -c cropvlm_jax/launch/constraints.txt \
      -e './cropvlm_jax[tpu,data]'
    ;;
  run)
    stop
    trap 'rm -f ~/run.pid' EXIT
    export PATH=~/venv/bin:$PATH
    cd cropvlm_jax
    "${@:2}" &
    echo $! >../run.pid
    wait $!
    ;;
esac
