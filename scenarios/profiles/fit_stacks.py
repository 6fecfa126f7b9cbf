#!/usr/bin/env python3
"""Makes the software-stack profiles in this folder: documented facts, and at most five fitted numbers for each.

    python3 scenarios/profiles/fit_stacks.py [--only NAME] [--check] [--leave-one-out FILE] [--trainyard build/release/cli/trainyard]

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

UNITS = dict(sustained_clock="1", attention_relative="1", memory_traffic="1", overlap_slowdown="1", jitter="1", collectives_relative="1", nvlink_relative="1",
             kernel_gap_s="s", host_sync_s="s", context_bytes="bytes", communicator_bytes="bytes", gradient_copy_bytes="bytes", step_gradient_bytes="bytes", logit_copy_bytes="bytes", allocator_reserve="1")
# Fused kernels move what the program says, and eager ones hardly twice as much; no GPU trains at the clock of a kernel alone.
LIMITS = dict(sustained_clock=(0.6, 0.95), attention_relative=(0.5, 1.05), memory_traffic=(1, 2), overlap_slowdown=(0, 1), jitter=(0, 0.05),
              collectives_relative=(0.05, 1.2), nvlink_relative=(0.1, 1.2), kernel_gap_s=(0, 3e-4))
# Where a search begins, and how wide its first steps are.
START = dict(sustained_clock=(0.85, 0.05), attention_relative=(0.9, -0.1), memory_traffic=(1.2, 0.4), overlap_slowdown=(0.2, 0.15),
             jitter=(0.003, 0.004), collectives_relative=(0.8, -0.2), nvlink_relative=(0.5, -0.15), kernel_gap_s=(2e-5, 3e-5))
KEEP = 5e-3  # of the sum of errors: a row that is met half a percent better
COMMON = dict(kernel_gap_s=(1e-6, "assumed: back-to-back launches of one stream"),
              host_sync_s=(3e-5, "assumed: device-to-host copy, synchronise, launch of what follows"),
              context_bytes=(1.1e9, "CUDA context with kernels of PyTorch, cuBLAS and NCCL, PyTorch 2.11 on an H100: 529 + 156 + 362 MiB"),
              communicator_bytes=(5.07e8, "NCCL 2.28.9, a communicator of two H100s after its first collectives: 484 MiB"),
              allocator_reserve=(0.03, "assumed: fragmentation of a caching allocator"))
A100 = ["a100-sxm", "a100-sxm-40gb"]

STACKS = [
    dict(name="megatron-core", hardware=["h100-sxm", "h200-sxm"], frameworks=["NeMo", "Megatron-Core", "Megatron-Bridge"],
         attention=dict(kernel="cudnn", source="NeMo recipes use Transformer Engine's fused attention, cuDNN's on Hopper", date="2024-11"),
         fitted=["sustained_clock", "attention_relative", "memory_traffic", "jitter"],
         group="NVIDIA dgxc-benchmarking 24.11, nine rows of six models on at most 128 GPUs",
         rows=[f"nvidia-dgxc-benchmarking-24-{i:04}" for i in (19, 22, 29, 30, 42, 53, 55, 69, 79)]),
    dict(name="megatron-2021", hardware=A100, frameworks=["Megatron-LM 20"],
         attention=dict(kernel="materialised", dropout=True, source="Megatron-LM before FlashAttention: batched GEMMs, fused scale, mask and "
                        "softmax; attention dropout 0.1 by default", date="2021"),
         facts=dict(step_gradient_bytes=(4, "Float16Optimizer copies fp16 gradients to f32 ones (megatron/optimizer/optimizer.py, _copy_model_grads_to_main_grads)")),
         fitted=["sustained_clock", "memory_traffic", "collectives_relative", "jitter"],
         group="Korthikanti et al. 2022, all; Megatron-LM's README of 2020, one node",
         rows=[f"korthikanti-et-al-2022-arxiv-{i:04}" for i in range(1, 11)] + [f"megatron-lm-readme-sep-2020-{i:04}" for i in (2, 5, 8, 11)]),
    # GPT-NeoX too is Megatron's model on DeepSpeed's pipeline engine and ZeRO (arXiv 2204.06745).
    dict(name="megatron-deepspeed", hardware=A100,
         frameworks=["Megatron-DeepSpeed", "GPT-NeoX"],
         attention=dict(kernel="materialised", source="bigscience: no FlashAttention, fused softmax, no attention dropout", date="2022"),
         facts=dict(gradient_copy_bytes=(2, "DeepSpeed's BF16_Optimizer leaves gradients in bf16 beside those summed in f32 (update_hp_grads, clear_lp_grads off)"),
                    step_gradient_bytes=(4, "DeepSpeed's ZeRO optimizer casts its partition of fp16 gradients to f32 in step (stage_1_and_2.py, single_grad_partition)"),
                    context_bytes=(4.1e9, "CUDA context with kernels, 1.1e9; DeepSpeed's buckets of 5e8 elements: two to reduce, one to gather")),
         # CUDA_LAUNCH_BLOCKING=1 was set (chronicles-prequel.md, "dealing with JZ hanging"): the host waits for every kernel, and a gap
         # between two of them is what it then takes to launch the next; each of the program's ops is several of PyTorch's.
         fitted=["sustained_clock", "memory_traffic", "collectives_relative", "nvlink_relative", "kernel_gap_s"],
         group="BLOOM's chronicles: every fourth row",
         rows=[f"bigscience-bloom-tr11-chroni-{i:04}" for i in (6, 12, 18, 24, 29, 35, 43, 51, 57, 65, 72, 82, 89, 95, 104, 110, 114, 120, 127, 134)]),
    dict(name="zero3-2021", hardware=A100, frameworks=["DeepSpeed ZeRO-3"],
         attention=dict(kernel="materialised", dropout=True, source="before FlashAttention: batched GEMMs, fused scale, mask and softmax", date="2021"),
         fitted=["sustained_clock", "memory_traffic", "collectives_relative", "overlap_slowdown"],
         # Rows 13 and 16 take as long on twice the GPUs as 12 and 15: nothing but the gathers is left, and they are slow.
         start=dict(collectives_relative=(0.1, -0.03), overlap_slowdown=(0.05, 0.1)),
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
    dict(name="torchtitan-compiled", hardware=["h100-96gb"], frameworks=["torchtitan (FSDP2), compiled"],
         attention=dict(kernel="flash2", source="PyTorch's scaled_dot_product_attention with FlashAttention-2", date="2024-12"),
         fitted=["sustained_clock"], facts=dict(memory_traffic="torch", overlap_slowdown="torch", logit_copy_bytes=(8, "torchtitan takes the loss of pred.float(): a copy, and its log-softmax")),
         group="torchtitan, Llama 3 8B on 8 GPUs, compiled",
         rows=["torchtitan-benchmarks-dec-20-0002"]),
    dict(name="torchtitan", hardware=["h100-96gb"], frameworks=["torchtitan"],
         attention=dict(kernel="flash2", source="PyTorch's scaled_dot_product_attention with FlashAttention-2", date="2024-12"),
         # Its norms and rotations are several kernels in f32 each.
         fitted=["memory_traffic"], limits=dict(memory_traffic=(1, 3)), facts=dict(sustained_clock="torchtitan-compiled", overlap_slowdown="torch", logit_copy_bytes="torchtitan-compiled"),
         group="torchtitan, Llama 3 8B on 8 GPUs, not compiled",
         rows=["torchtitan-benchmarks-dec-20-0001"]),
    dict(name="llm.c", hardware=A100 + ["h100-sxm"], frameworks=["llm.c"],
         attention=dict(kernel="fastest", source="train_gpt2.cu, built with USE_CUDNN=1; the fastest that was measured on the GPU stands for it", date="2024-06"),
         fitted=["sustained_clock"], facts=dict(memory_traffic=(1, "kernels written by hand, and fused")),
         group="llm.c, GPT-2 124M on 8 A100",
         rows=["karpathy-llm-c-scripts-discu-0001"]),
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


# For software that nobody has fitted: by hardware, and for the time before attention was one kernel. Each number is the median of the
# stacks that have it fitted.
DEFAULTS = [
    dict(name="default", of=["megatron-core", "torch", "composer"],
         attention=dict(kernel="fastest", source="the fastest that was measured on the GPU", date=DATE)),
    dict(name="default-a100", hardware=A100, of=["torch-a100", "composer-amp"],
         attention=dict(kernel="fastest", source="the fastest that was measured on the GPU", date=DATE)),
    # BloombergGPT's attention is Megatron's: a fused kernel of mask and softmax in SMP (arXiv 2303.17564, fused kernels).
    dict(name="default-2021", hardware=A100, frameworks=["SageMaker Model Parallel"], of=["megatron-2021", "megatron-deepspeed", "zero3-2021"],
         attention=dict(kernel="materialised", source="before FlashAttention (arXiv 2205.14135)", date="2022-05")),
]
# Where one of them alone was fitted, it says little of others.
OF_DEFAULTS = ("sustained_clock", "attention_relative", "memory_traffic", "overlap_slowdown", "jitter", "collectives_relative")


def fact(key, its):
    """A value with its source, or the name of the stack that shares it."""
    if isinstance(its, str):
        value = json.loads((HERE / f"stack-{its}.json").read_text())["constants"][key]["value"]
        return dict(value=value, unit=UNITS[key], source=f"as in the stack {its}", date=DATE)
    return dict(value=its[0], unit=UNITS[key], source=its[1], date=DATE)


def limits_of(stack):
    return {**LIMITS, **stack.get("limits", {})}


def constants(stack, values):
    out = {}
    for key in UNITS:
        if key in values:
            value = float(f"{values[key]:.4g}")
            limit = ", at its limit" if value in limits_of(stack).get(key, ()) else ""
            out[key] = dict(value=value, unit=UNITS[key], source=f"fitted by fit_stacks.py on {stack['group']}{limit}", date=DATE)
        elif key in stack.get("facts", {}):
            out[key] = fact(key, stack["facts"][key])
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


def default_profile(default, folder=HERE):
    fitted = [json.loads((folder / f"stack-{name}.json").read_text())["constants"] for name in default["of"]]
    values = {}
    for key in OF_DEFAULTS:
        known = [constants[key]["value"] for constants in fitted if "fitted by" in constants.get(key, {}).get("source", "")]
        if known:
            values[key] = statistics.median(known)
    out = dict(schema=1, name=default["name"], **{k: default[k] for k in ("hardware", "frameworks") if k in default},
               attention=default["attention"], constants=constants(dict(group=""), values))
    for key in values:
        out["constants"][key]["source"] = f"the median of the stacks {', '.join(default['of'])}, by fit_stacks.py"
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
        self.results = report["results"]
        return {row["id"]: row["error"] for row in report["results"]}

    def predicted(self, stack_name=None, ids=None):
        """Every row that a stack would predict, or `ids` with `stack_name` whatever their framework."""
        command = [self.trainyard, "validate", "--json", "-q"]
        if ids is not None:
            rows = self.folder / "rows.json"
            rows.write_text(json.dumps([self.rows[i] for i in ids]))
            command += ["--set", str(rows), "--stack", stack_name]
        done = subprocess.run(command, text=True, capture_output=True, env={**os.environ, "TRAINYARD_PROFILES": str(self.folder)})
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return json.loads(done.stdout)["results"]

    def allocator_reserve(self, stack, values):
        """Share of the arena that the caching allocator loses: the median over the rows that published a peak. The peak is linear in it."""
        peaks = []
        for reserve in (0.0, 0.5):
            self.errors(stack, {**values, "allocator_reserve": reserve})
            peaks.append({row["id"]: row["peak_bytes"] for row in self.results})
        measured = {row["id"]: row["measured_peak_bytes"] for row in self.results if "measured_peak_bytes" in row}
        if not measured:
            return {}
        reserves = [0.5 * (its - peaks[0][i]) / (peaks[1][i] - peaks[0][i]) for i, its in measured.items()]
        return dict(allocator_reserve=float(f"{max(0.0, statistics.median(reserves)):.3g}"))


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
    keys, limits, start = stack["fitted"], limits_of(stack), {**START, **stack.get("start", {})}

    def within(point):
        return {k: min(max(v, limits[k][0]), limits[k][1]) for k, v in zip(keys, point)}

    def cost(point):
        values = within(point)
        beyond = sum(abs(v - values[k]) for k, v in zip(keys, point))
        errors = runner.errors(stack, values)
        # Few rows say little of some numbers: those stay where the search begins unless a step away gains more than KEEP.
        steps = sum(abs((v - start[k][0]) / start[k][1]) for k, v in zip(keys, point))
        return (sum(abs(math.log(1 + e)) for e in errors.values()) + KEEP * steps) / len(errors) + beyond

    # The cost has corners and valleys (a clock that is too slow looks like contention), where a simplex shrinks to nothing: two
    # beginnings, and from the better one new simplexes until they gain nothing.
    def search(point, sign=1):
        return simplex(cost, point, [sign * start[k][1] for k in keys], 50)

    best = min((search([start[k][0] + shift * start[k][1] for k in keys]) for shift in (0, 2)), key=cost)
    lowest = cost(best)
    for sign in (-1, 1, -1, 1):
        point = search(best, sign)
        its = cost(point)
        if its < lowest:
            best = point
        if its > lowest - 5e-4:
            break
        lowest = its
    return {k: float(f"{v:.4g}") for k, v in within(best).items()}


def figures(results):
    errors = [row["error"] for row in results]
    sizes = sorted(map(abs, errors))
    return dict(rows=len(errors), median_abs_error=round(statistics.median(sizes), 4), p90_abs_error=round(sizes[math.ceil(0.9 * len(sizes)) - 1], 4),
                bias=round(statistics.mean(errors), 4))


def evenly(ids, count):
    """At most `count` of them, in their order."""
    return ids if len(ids) <= count else [ids[i * len(ids) // count] for i in range(count)]


def leave_one_out(runner, only):
    """How stacks do on sources that they know nothing of: fitted on their other sources, and by the default of all other stacks."""
    out = []
    by_stack = {}
    for row in runner.predicted():
        by_stack.setdefault(row["stack"], []).append(row)
    for stack in STACKS:
        if only not in (None, stack["name"]):
            continue
        rows = by_stack.get(stack["name"], [])
        sources = sorted({row["source"] for row in rows})
        for source in sources if len(sources) > 1 else []:
            inside = [row["id"] for row in rows if row["source"] == source]
            kept = [i for i in stack["rows"] if i not in inside] or evenly(sorted(row["id"] for row in rows if row["source"] != source), 8)
            if kept != stack["rows"]:
                values = fit({**stack, "rows": kept}, runner)
                (runner.folder / f"stack-{stack['name']}.json").write_text(profile(stack, values))
            how = "fitted on the stack's other sources" if kept != stack["rows"] else "none of its rows was fitted on"
            out.append(dict(stack=stack["name"], left_out=source, how=how,
                            **figures(runner.predicted(stack["name"], inside))))
            (runner.folder / f"stack-{stack['name']}.json").write_text((HERE / f"stack-{stack['name']}.json").read_text())
            print(json.dumps(out[-1]), flush=True)
        for default in DEFAULTS if rows else []:
            if stack["name"] not in default["of"]:
                continue
            others = {**default, "of": [name for name in default["of"] if name != stack["name"]]}
            path = runner.folder / f"stack-{default['name']}.json"
            path.write_text(default_profile(others, runner.folder))
            out.append(dict(stack=stack["name"], left_out="all of its sources", how=f"{default['name']}, of {' and '.join(others['of'])}",
                            **figures(runner.predicted(default["name"], [row["id"] for row in rows]))))
            path.write_text((HERE / path.name).read_text())
            print(json.dumps(out[-1]), flush=True)
        if rows and not any(stack["name"] in default["of"] for default in DEFAULTS):
            hardware = "default-a100" if rows[0]["gpu"] == "A100" else "default"
            ids = [row["id"] for row in rows if row["gpu"] == rows[0]["gpu"]]
            out.append(dict(stack=stack["name"], left_out="all of its sources", how=hardware, **figures(runner.predicted(hardware, ids))))
            print(json.dumps(out[-1]), flush=True)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--leave-one-out", metavar="FILE", help="write no profile, but what stacks do on sources they were not fitted on")
    parser.add_argument("--trainyard", default=str(HERE.parent.parent / "build" / "release" / "cli" / "trainyard"))
    arguments = parser.parse_args()
    changed = []
    with tempfile.TemporaryDirectory() as folder:
        for file in HERE.glob("*.json"):
            (pathlib.Path(folder) / file.name).write_text(file.read_text())
        runner = Runner(arguments.trainyard, folder)
        if arguments.leave_one_out:
            pathlib.Path(arguments.leave_one_out).write_text(json.dumps(dict(
                command="python3 scenarios/profiles/fit_stacks.py --leave-one-out FILE", date=DATE, results=leave_one_out(runner, arguments.only)), indent=1) + "\n")
            return
        for stack in STACKS:
            if arguments.only not in (None, stack["name"]):
                continue
            values = fit(stack, runner)
            values.update(runner.allocator_reserve(stack, values))
            errors = runner.errors(stack, values)
            print(stack["name"], values, "mean |error|", f"{100 * sum(map(abs, errors.values())) / len(errors):.1f}%")
            text = profile(stack, values, {i: round(e, 4) for i, e in errors.items()})
            path = HERE / f"stack-{stack['name']}.json"
            if not path.exists() or path.read_text() != text:
                changed.append(path.name)
                if not arguments.check:
                    path.write_text(text)
    for default in DEFAULTS:
        path, text = HERE / f"stack-{default['name']}.json", default_profile(default)
        if not path.exists() or path.read_text() != text:
            changed.append(path.name)
            if not arguments.check:
                path.write_text(text)
    if arguments.check and changed:
        sys.exit(f"would change: {', '.join(changed)}")


if __name__ == "__main__":
    main()
