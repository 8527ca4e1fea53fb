#!/usr/bin/env bash
# What is worth doing on a CUDA machine, most valuable first, within some seconds (520):
#
#     bash tests/gpu.sh [SECONDS]
#
# Tests, the benchmark with the kernels in Triton and without, where the time of a step goes, the paper's MNIST runs (they go
# on in results/), and the benchmark of Depth-10. $OUT (runs/gpu) gets what each of them printed, and results.tgz. A part that
# runs out of time is interrupted, which loses nothing.
# PYTHON names the interpreter, DEVICE=cpu rehearses.
set -u
cd "$(dirname "$0")/.."
most=${1:-520} out=${OUT:-runs/gpu} device=${DEVICE:-cuda} python=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 RSO_DATA=${RSO_DATA:-$PWD/data}
mkdir -p "$out"

# part NAME SECONDS ARGUMENTS: run python with them, for so many seconds at the most, and show how it ended
part() {
  local name=$1 seconds=$2 left=$((most - SECONDS - 10))
  shift 2
  [ "$left" -gt 20 ] || { echo "== $name: no time left"; return; }
  timeout --signal=INT --kill-after=20 $((seconds < left ? seconds : left)) "$python" "$@" >"$out/$name.txt" 2>&1
  echo "== $name: status $? after $SECONDS s in all"
  tr '\r' '\n' <"$out/$name.txt" | tail -n 5
}

run="--dataset mnist --net mnist_net --val-size 0 --device $device"
part tests 80 -m pytest -q -p no:cacheprovider -o addopts= tests/test_kernels_cuda.py tests/test_graphs.py tests/test_device.py
part bench_mnist_net 60 -m rso_lib bench --batch 5000 --device "$device" --json "$out/bench_mnist_net_5000_$device.json"
RSO_KERNELS=0 part bench_torch 60 -m rso_lib bench --batch 5000 --device "$device" --json "$out/bench_torch_5000_$device.json"
PYTHONPATH=$PWD:tests part profile 30 tests/gpu_profile.py
# shellcheck disable=SC2086  # the words of $run
part mnist_paper_inverted 170 -m rso_lib train results/mnist_paper_inverted $run --order input
# shellcheck disable=SC2086
part mnist_paper 150 -m rso_lib train results/mnist_paper $run
part bench_cifar_net_10 60 -m rso_lib bench --net cifar_net_10 --batch 5000 --device "$device" \
  --json "$out/bench_cifar_net_10_5000_$device.json"
tar czf "$out/results.tgz" results
