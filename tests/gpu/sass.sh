#!/usr/bin/env bash
# What the compiler made of memory-bound kernels: they read 16 bytes at a time. In SASS also: they keep nothing in local memory.
# (Spills fail the build in any case.) Without cuobjdump, PTX has to do.
#
#     tests/gpu/sass.sh NVCC trainyard_cuda.so SOURCE_DIR
set -euo pipefail

nvcc=$1 module=$2 sources=$3
if dump=$(command -v cuobjdump || command -v "$(dirname "$nvcc")/cuobjdump"); then
  text() { "$dump" -sass "$module"; }
else
  echo "no cuobjdump here: looking at PTX"
  text() {
    local file
    for file in dense loss optimizer; do
      "$nvcc" -std=c++20 -gencode=arch=compute_90a,code=compute_90a --expt-relaxed-constexpr -I"$sources" -ptx \
        "$sources/kernels/cuda/$file.cu" -o -
    done
  }
fi

text | awk '
  /Function :/ { name = $3; kernels[name] = 1 }
  /^(\.visible )?\.entry/ { name = $0; sub(/.*entry /, "", name); sub(/\(.*/, "", name); kernels[name] = 1 }
  /LDG\.E\.128/ || /ld\.global[a-z0-9_:.]*\.v4\.(u32|b32|f32)/ || /ld\.global[a-z0-9_:.]*\.v2\.(u64|b64|f64)/ { wide[name] = 1 }
  /[ \t](STL|LDL)[. ]/ { ++local[name] }
  END {
    split("norm activate row_max row_sum row_grad adamw", groups, " ")
    for (g = 1; g in groups; ++g) {
      found = 0; reads = 0
      for (name in kernels) {
        if (name !~ groups[g]) continue
        ++found
        if (name in wide) ++reads
        if (name in local) { printf "%s uses local memory %d times\n", name, local[name]; bad = 1 }
      }
      printf "%-10s %3d kernels, %3d of them read 16 bytes at a time\n", groups[g], found, reads
      if (reads == 0) { printf "no kernel of %s reads 16 bytes at a time\n", groups[g]; bad = 1 }
    }
    exit bad
  }'
