#!/usr/bin/env python3
"""Makes the software-stack profiles in this folder: documented facts, and at most five fitted numbers for each.

    python3 scenarios/profiles/fit_stacks.py [--only NAME] [--check] [--trainyard build/release/cli/trainyard]

Each stack's numbers are fitted on the few published runs that its entry below names by id, all from scenarios/measured/runs.json, and
on no others: `trainyard validate` predicts the rest. Of large sources every so-manieth row is taken, in the order of their ids. The fit minimises the mean |log(predicted / measured)|. The same binary gives the
same files. `--check` writes nothing and fails when a file would change. Standard library only.
"""
import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
RUNS = HERE.parent / "measured" / "runs.json"
DATE = "2026-11-27"

UNITS = dict(sustained_clock="1", attention_relative="1", memory_traffic="1", overlap_slowdown="1", jitter="1", collectives_relative="1",
             kernel_gap_s="s", host_sync_s="s", context_bytes="bytes", communicator_bytes="bytes", allocator_reserve="1")
# Fused kernels move what the program says, and eager ones not twice as much; no GPU trains at the clock of a kernel alone.
LIMITS = dict(sustained_clock=(0.6, 0.95), attention_relative=(0.5, 1.05), memory_traffic=(1, 2), overlap_slowdown=(0, 1), jitter=(0, 0.05),
              collectives_relative=(0.05, 1.2))
# Where a search begins, and how wide its first steps are.
START = dict(sustained_clock=(0.85, 0.05), attention_relative=(0.9, -0.1), memory_traffic=(1.2, 0.4), overlap_slowdown=(0.2, 0.15),
             jitter=(0.003, 0.004), collectives_relative=(0.8, -0.2))
COMMON = dict(kernel_gap_s=(1e-6, "assumed: back-to-back launches of one stream"),
              host_sync_s=(3e-5, "assumed: device-to-host copy, synchronise, launch of what follows"),
              context_bytes=(1e9, "assumed: CUDA context with cuBLAS, cuDNN and NCCL kernels loaded"),
              communicator_bytes=(2.5e9, "assumed: NCCL channel buffers of five to eight communicators"),
              allocator_reserve=(0.03, "assumed: fragmentation of a caching allocator"))
A100 = ["a100-sxm", "a100-sxm-40gb"]

STACKS = [
    dict(name="megatron-core", hardware=["h100-sxm", "h200-sxm"], frameworks=["NeMo", "Megatron-Core", "Megatron-Bridge"],
         attention=dict(kernel="cudnn", source="NeMo recipes use Transformer Engine's fused attention, cuDNN's on Hopper", date="2024-11"),
         fitted=["sustained_clock", "attention_relative", "memory_traffic", "jitter"],
         group="NVIDIA dgxc-benchmarking 24.11, nine rows of six models on at most 128 GPUs",
         rows=[f"nvidia-dgxc-benchmarking-24-{i:04}" for i in (19, 22, 29, 30, 42, 53, 55, 69, 79)]),
    dict(name="megatron-2021", hardware=A100, frameworks=["Megatron-LM 20", "GPT-NeoX"],
         attention=dict(kernel="materialised", dropout=True, source="Megatron-LM before FlashAttention: batched GEMMs, fused scale, mask and "
                        "softmax; attention dropout 0.1 by default", date="2021"),
         fitted=["sustained_clock", "memory_traffic", "collectives_relative", "jitter"],
         group="Korthikanti et al. 2022, all; Megatron-LM's README of 2020, one node",
         rows=[f"korthikanti-et-al-2022-arxiv-{i:04}" for i in range(1, 11)] + [f"megatron-lm-readme-sep-2020-{i:04}" for i in (2, 5, 8, 11)]),
    dict(name="megatron-deepspeed", hardware=A100, frameworks=["Megatron-DeepSpeed"],
         attention=dict(kernel="materialised", source="bigscience: no FlashAttention, fused softmax, no attention dropout", date="2022"),
         fitted=["sustained_clock", "memory_traffic", "collectives_relative", "jitter"],
         group="BLOOM's chronicles: every eighth row",
         rows=[f"bigscience-bloom-tr11-chroni-{i:04}" for i in (6, 18, 29, 43, 57, 72, 89, 104, 114, 127)]),
    dict(name="zero3-2021", hardware=A100, frameworks=["DeepSpeed ZeRO-3"],
         attention=dict(kernel="materialised", dropout=True, source="before FlashAttention: batched GEMMs, fused scale, mask and softmax", date="2021"),
         fitted=["sustained_clock", "memory_traffic", "collectives_relative", "overlap_slowdown"],
         group="Narayanan et al. 2021, Table 2, four of six",
         rows=[f"megatron-lm-sc21-arxiv-2104-{i:04}" for i in (11, 12, 14, 16)]),
    dict(name="torch", hardware=["h100-sxm", "h200-sxm"], frameworks=["PyTorch FSDP", "torchtitan"],
         attention=dict(kernel="flash2", source="PyTorch's scaled_dot_product_attention with FlashAttention-2", date="2024-07"),
         fitted=["sustained_clock", "memory_traffic", "overlap_slowdown"],
         group="fms-fsdp, Llama 2 13B, 34B and 70B on 96 H100",
         rows=[f"ibm-meta-fms-fsdp-readme-{i:04}" for i in (4, 6, 8)]),
    dict(name="torch-a100", hardware=A100, frameworks=["PyTorch FSDP", "torchtitan"],
         attention=dict(kernel="flash2", source="PyTorch's scaled_dot_product_attention with FlashAttention-2", date="2024-07"),
         fitted=["sustained_clock", "memory_traffic"],
         group="fms-fsdp, Llama 2 13B, 34B and 70B on 128 A100",
         rows=[f"ibm-meta-fms-fsdp-readme-{i:04}" for i in (3, 5, 7)]),
    dict(name="composer", hardware=["h100-sxm", "h200-sxm"], frameworks=["Composer + PyTorch FSDP", "Composer"],
         attention=dict(kernel="flash2", source="llm-foundry's H100 runs: FlashAttention-2", date="2023-11"),
         fitted=["sustained_clock", "attention_relative", "memory_traffic", "overlap_slowdown", "jitter"],
         group="MosaicML llm-foundry, H100: every seventh row",
         rows=[f"mosaicml-llm-foundry-benchma-{i:04}" for i in (5, 13, 23, 33, 43, 55, 67)]),
    dict(name="composer-amp", hardware=A100, frameworks=["Composer + PyTorch FSDP", "Composer"],
         attention=dict(kernel="flash2", source="llm-foundry's A100 runs are of early 2023, with FlashAttention-1: attention_relative says what "
                        "that is of FlashAttention-2", date="2023-05"),
         fitted=["sustained_clock", "attention_relative", "memory_traffic", "overlap_slowdown", "jitter"],
         group="MosaicML llm-foundry, A100: every eighth row",
         rows=[f"mosaicml-llm-foundry-benchma-{i:04}" for i in (83, 95, 109, 123, 134, 147, 161, 177, 188, 201, 211)]),
]


def constants(stack, values):
    out = {}
    for key in UNITS:
        if key in values:
            out[key] = dict(value=float(f"{values[key]:.4g}"), unit=UNITS[key], source=f"fitted by fit_stacks.py on {stack['group']}", date=DATE)
        elif key in COMMON:
            out[key] = dict(value=COMMON[key][0], unit=UNITS[key], source=COMMON[key][1], date=DATE)
        elif key in ("sustained_clock", "attention_relative"):
            out[key] = dict(value=1.0, unit="1", source="not fitted", date=DATE)
    return out


def profile(stack, values, residuals=None):
    out = dict(schema=1, name=stack["name"], hardware=stack["hardware"], frameworks=stack["frameworks"], attention=stack["attention"],
               constants=constants(stack, values))
    if residuals:
        out["residuals"] = residuals
    return json.dumps(out, indent=2) + "\n"


def default_profile():
    """For software that nobody has fitted: the median of each number over the stacks that have it."""
    fitted = [json.loads((HERE / f"stack-{stack['name']}.json").read_text())["constants"] for stack in STACKS]
    values = {}
    for key in ("sustained_clock", "attention_relative", "memory_traffic", "overlap_slowdown", "jitter"):
        known = [constants[key]["value"] for constants in fitted if key in constants and constants[key]["source"] != "not fitted"]
        values[key] = statistics.median(known)
    out = dict(schema=1, name="default", attention=dict(kernel="fastest", source="the fastest that was measured on the GPU", date=DATE),
               constants=constants(dict(group=""), values))
    for key in values:
        out["constants"][key]["source"] = "the median of the fitted stacks, by fit_stacks.py"
    return json.dumps(out, indent=2) + "\n"


def rows_by_id():
    out = {}
    for group in json.loads(RUNS.read_text())["groups"]:
        for row in group["rows"]:
            out[row["id"]] = {**group["common"], **row}
    return out


class Runner:
    def __init__(self, trainyard, folder):
        self.trainyard, self.folder, self.rows = trainyard, pathlib.Path(folder), rows_by_id()

    def errors(self, stack, values):
        """Predicted over measured, less one, by row."""
        (self.folder / f"stack-{stack['name']}.json").write_text(profile(stack, values))
        rows = self.folder / "rows.json"
        rows.write_text(json.dumps([self.rows[i] for i in stack["rows"]]))
        done = subprocess.run([self.trainyard, "validate", "--set", str(rows), "--stack", stack["name"], "--json", "-q"], text=True,
                              capture_output=True, env={**os.environ, "TRAINYARD_PROFILES": str(self.folder)})
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        report = json.loads(done.stdout)
        if report["predicted"] != len(stack["rows"]):
            sys.exit(f"{stack['name']}: {report['skipped']}")
        return {row["id"]: row["error"] for row in report["results"]}


def simplex(cost, start, scale, steps):
    """Nelder-Mead; deterministic."""
    n = len(start)
    points = [list(start)] + [[v + (scale[i] if i == j else 0) for j, v in enumerate(start)] for i in range(n)]
    values = [cost(p) for p in points]
    for _ in range(steps):
        order = sorted(range(n + 1), key=lambda i: values[i])
        points, values = [points[i] for i in order], [values[i] for i in order]
        centre = [sum(p[i] for p in points[:-1]) / n for i in range(n)]

        def at(t):
            point = [centre[i] + t * (points[-1][i] - centre[i]) for i in range(n)]
            return point, cost(point)

        reflected, its = at(-1)
        if its < values[0]:
            further, better = at(-2)
            points[-1], values[-1] = (further, better) if better < its else (reflected, its)
        elif its < values[-2]:
            points[-1], values[-1] = reflected, its
        else:
            nearer, its = at(0.5)
            if its < values[-1]:
                points[-1], values[-1] = nearer, its
            else:
                for i in range(1, n + 1):
                    points[i] = [(a + b) / 2 for a, b in zip(points[0], points[i])]
                    values[i] = cost(points[i])
    return points[min(range(n + 1), key=lambda i: values[i])]


def fit(stack, runner):
    keys = stack["fitted"]

    def within(point):
        return {k: min(max(v, LIMITS[k][0]), LIMITS[k][1]) for k, v in zip(keys, point)}

    def cost(point):
        values = within(point)
        beyond = sum(abs(v - values[k]) for k, v in zip(keys, point))
        errors = runner.errors(stack, values)
        return sum(abs(math.log(1 + e)) for e in errors.values()) / len(errors) + beyond

    best = within(simplex(cost, [START[k][0] for k in keys], [START[k][1] for k in keys], 45))
    return {k: float(f"{v:.4g}") for k, v in best.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--trainyard", default=str(HERE.parent.parent / "build" / "release" / "cli" / "trainyard"))
    arguments = parser.parse_args()
    changed = []
    with tempfile.TemporaryDirectory() as folder:
        for file in HERE.glob("*.json"):
            (pathlib.Path(folder) / file.name).write_text(file.read_text())
        runner = Runner(arguments.trainyard, folder)
        for stack in STACKS:
            if arguments.only not in (None, stack["name"]):
                continue
            values = fit(stack, runner)
            errors = runner.errors(stack, values)
            print(stack["name"], values, "mean |error|", f"{100 * sum(map(abs, errors.values())) / len(errors):.1f}%")
            text = profile(stack, values, {i: round(e, 4) for i, e in errors.items()})
            path = HERE / f"stack-{stack['name']}.json"
            if not path.exists() or path.read_text() != text:
                changed.append(path.name)
                if not arguments.check:
                    path.write_text(text)
    path = HERE / "stack-default.json"
    if path.read_text() != default_profile():
        changed.append(path.name)
        if not arguments.check:
            path.write_text(default_profile())
    if arguments.check and changed:
        sys.exit(f"would change: {', '.join(changed)}")


if __name__ == "__main__":
    main()
