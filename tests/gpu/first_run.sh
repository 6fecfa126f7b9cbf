#!/usr/bin/env bash
# All that is to be seen on a GPU node, in one go: every kernel beside its twin, training beside PyTorch, predicted beside
# measured, plans over several GPUs where there are. Writes first_run.json and first_run.log into a folder.
#
#     ./yard bundle                                  # where it was developed
#     trainyard/first_run.sh OUT [part ...]          # on the node, from the unpacked bundle
#
# Goals on one H100 in bf16: no slower than PyTorch compiled, 45% MFU on the dense shapes, 40% on the Grok-1 shape,
# memory-bound kernels at 85% of the bandwidth of a copy.
set -uo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
out=${1:?the folder for results}
shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(facts tests bench train torch calibrate shapes plans)
mkdir -p "$out"
log="$out/first_run.log"
: >"$log"
bin="$here/bin"
share="$here/share/trainyard"

# CUDA's libraries: the toolkit's, or those that came with PyTorch.
for folder in /usr/local/cuda/lib64 $(python3 - <<'PY' 2>/dev/null
import glob, sysconfig
print(*glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/*/lib"))
PY
); do
  [ -d "$folder" ] && LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
done
export LD_LIBRARY_PATH
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}

say() { printf '%s %s\n' "$(date +%T)" "$*" | tee -a "$log"; }

# run NAME LIMIT COMMAND...: standard output into NAME.out, errors into the log, the exit code and seconds into NAME.json.
run() {
  local name=$1 limit=$2 begin code
  shift 2
  begin=$(date +%s.%N)
  say "$name: $*"
  timeout "$limit" "$@" >"$out/$name.out" 2> >(tee -a "$out/$name.err" >>"$log")
  code=$?
  printf '{"exit": %d, "seconds": %s}\n' "$code" "$(echo "$(date +%s.%N) - $begin" | bc 2>/dev/null || echo 0)" >"$out/$name.json"
  say "$name: exit $code"
  tail -n 4 "$out/$name.out" >>"$log"
  return $code
}

facts() {
  run facts 60 bash -c 'nvidia-smi; grep PRETTY /etc/os-release; ldd --version | head -1; nvcc --version | tail -2; cmake --version | head -1'
  run doctor 60 "$bin/trainyard" doctor --json
}

tests() {
  run tests 240 "$bin/test_gpu" --reporter compact
}

bench() { run kernels 200 "$bin/kernel_bench"; }

models=(llama-1b llama-2b grok1-2b)

train() {
  local model
  for model in "${models[@]}"; do
    run "train-$model" 150 "$bin/trainyard" exec run "$share/scenarios/gpu/train-$model.json" --data "$here/src" \
      --device cuda --unvalidated --store "$out/runs.sqlite" --json
    run "predict-$model" 60 "$bin/trainyard" sim run "$share/scenarios/gpu/train-$model.json" --no-store -q --json
  done
}

torch() {
  python3 -c 'import torch' 2>/dev/null || { say "no PyTorch here"; return; }
  local scenarios="$share/scenarios/models"
  run torch-llama-1b 120 python3 "$here/torch_step.py" "$scenarios/llama-1b.json" --micro-batch 4 --micro-batches 4
  run torch-llama-2b 120 python3 "$here/torch_step.py" "$scenarios/llama-2b.json" --micro-batch 2 --micro-batches 8
  run torch-grok1-2b 120 python3 "$here/torch_step.py" "$scenarios/grok1-2b.json" --micro-batch 4 --micro-batches 4
}

calibrate() { (cd "$here" && run calibrate 150 "$bin/trainyard" calibrate --device cuda --json); }

# After calibrate: its profile is looked for where it was written.
shapes() { (cd "$here" && run shapes 240 python3 "$here/plans.py" "$bin/trainyard" "$share/scenarios" "$here/src" --only shapes); }

plans() {
  local gpus part
  gpus=$(nvidia-smi -L | wc -l)
  [ "$gpus" -ge 2 ] || { say "one GPU here: no plans over several"; return; }
  for part in losses strict killed speed; do
    run "plans-$part" 240 python3 "$here/plans.py" "$bin/trainyard" "$share/scenarios" "$here/src" --gpus 2 --only "$part"
  done
}

for part in "${parts[@]}"; do "$part"; done

python3 - "$out" <<'PY'
import glob, json, os, sys
out = sys.argv[1]
result = {}
for file in sorted(glob.glob(out + "/*.json")):
    name = os.path.basename(file)[:-5]
    if name == "first_run":
        continue
    entry = json.load(open(file))
    text = open(file[:-5] + ".out").read()
    try:
        entry["result"] = json.loads(text)
    except ValueError:
        try:
            entry["result"] = json.loads(text.strip().splitlines()[-1])
        except (ValueError, IndexError):
            entry["text"] = text[-2000:]
    result[name] = entry
json.dump(result, open(out + "/first_run.json", "w"), indent=1)
PY
say "results: $out/first_run.json"
