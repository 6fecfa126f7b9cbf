#!/usr/bin/env bash
# Builds the GPU plug-in from the sources beside this script, for the CUDA of this node, and puts it in place of the one that came
# with the bundle. Needs CMake, ninja and the toolkit with cuDNN and NCCL. Takes a few minutes.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cmake -S "$here" -B "$here/build" -G Ninja
ninja -C "$here/build"
cp "$here/build/kernels/cuda/trainyard_cuda.so" "$here/../lib/trainyard/"
echo "built: $here/../lib/trainyard/trainyard_cuda.so"
