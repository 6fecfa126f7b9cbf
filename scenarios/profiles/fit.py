#!/usr/bin/env python3
"""Fits the hardware profiles in this folder from measured kernel tables.

    python3 scenarios/profiles/fit.py --data DIR [--check]

DIR holds `calibration/` (NVIDIA aiconfigurator's measured database, Apache-2.0, snapshot of 2026-08-21) and
`published/collectives_kernels.json.gz`. Writes <gpu>.json for each GPU and prints residuals on the rows that were
fitted and on the fifth that was held aside. The same data gives the same files, byte for byte. `--check` writes nothing
and fails when a file would change. Standard library only.
"""
import argparse
import csv
import gzip
import json
import math
import pathlib
import sys
import zlib

HERE = pathlib.Path(__file__).parent
DATE = "2026-08-21"
AICONFIGURATOR = "NVIDIA aiconfigurator measured database"

# What data sheets say; everything else is fitted below.
GPUS = {
    "a100-sxm": dict(key="a100_sxm", sms=108, peak_bf16=312e12, peak_f32=19.5e12, memory=(79.25 * 2**30, "PyTorch's total capacity: OOTDiffusion issue 235, Vad-R1 issue 11"), bandwidth=2.039e12,
                     prefill="attention_prefill_bfloat16_a100_sxm", kernel="fmha", figures="A100", nccl="a100_sxm__comm__nccl_2.27.3__nccl_perf", nvls=False,
                     sheet="NVIDIA A100 80GB SXM data sheet, 2021-06"),
    "h100-sxm": dict(key="h100_sxm", sms=132, peak_bf16=989.4e12, peak_f32=66.9e12, memory=(85017493504, "PyTorch's total_memory on an H100 80GB HBM3, driver 580.159"), bandwidth=3.352e12,
                     prefill="attention_prefill_bfloat16_fa3_h100_sxm", kernel="flash3", figures="H100", nccl="h100_sxm__comm__nccl_2.29.2__nccl_perf", nvls=True,
                     sheet="NVIDIA H100 SXM data sheet, 2023-03"),
    "h200-sxm": dict(key="h200_sxm", sms=132, peak_bf16=989.4e12, peak_f32=66.9e12, memory=(150109880320, "PyTorch's total_memory on an H200, driver 580.159"), bandwidth=4.8e12,
                     prefill="attention_prefill_bfloat16_fa3_h200_sxm", kernel="flash3", figures="H100", nccl="h200_sxm__comm__nccl_2.29.2__nccl_perf", nvls=True,
                     sheet="NVIDIA H200 SXM data sheet, 2023-11"),
}

# The same chip with other memory: measured shares of what their own data sheets say.
VARIANTS = {
    "a100-sxm-40gb": dict(like="a100-sxm", memory=(39.50 * 2**30, "PyTorch's total capacity: CoSeR issue 10"), bandwidth=1.555e12, sheet="NVIDIA A100 40GB SXM data sheet, 2020-05"),
    "h100-96gb": dict(like="h100-sxm", memory=(96e9, "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"), bandwidth=2.4e12,
                      sheet="torchtitan, benchmarks/llama3_h100_202412_torchtitan.md: 96 GB of HBM2e at 2.4 TB/s, 500 W"),
}

# Output tiles that cuBLAS picks from, and the share of the best tile's throughput that each reaches (fitted, but for the first).
TILES = [(128, 256), (256, 128), (128, 128), (64, 128), (128, 64), (64, 64)]


def rows_of(data, name):
    with gzip.open(data / "calibration" / f"{name}.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def held_aside(*key):
    """A fifth of the rows, chosen by their own content."""
    return zlib.crc32(repr(key).encode()) % 5 == 0


def simplex(cost, start, scale, steps):
    """Nelder-Mead; deterministic."""
    points = [list(start)]
    for i, s in enumerate(scale):
        point = list(start)
        point[i] += s
        points.append(point)
    values = [cost(p) for p in points]
    for _ in range(steps):
        order = sorted(range(len(points)), key=lambda i: values[i])
        points, values = [points[i] for i in order], [values[i] for i in order]
        centre = [sum(p[j] for p in points[:-1]) / (len(points) - 1) for j in range(len(start))]
        def at(t):
            return [c + t * (w - c) for c, w in zip(centre, points[-1])]
        reflected = at(-1)
        value = cost(reflected)
        if value < values[0]:
            stretched = at(-2)
            stretched_value = cost(stretched)
            points[-1], values[-1] = (stretched, stretched_value) if stretched_value < value else (reflected, value)
        elif value < values[-2]:
            points[-1], values[-1] = reflected, value
        else:
            shrunk = at(0.5)
            shrunk_value = cost(shrunk)
            if shrunk_value < values[-1]:
                points[-1], values[-1] = shrunk, shrunk_value
            else:
                points = [points[0]] + [[(a + b) / 2 for a, b in zip(points[0], p)] for p in points[1:]]
                values = [values[0]] + [cost(p) for p in points[1:]]
    return min(zip(values, points))[1]


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


def report(what, predict, rows):
    """Prints median and 90th percentile of |predicted/measured - 1| for fitted and held-aside rows."""
    out = {}
    for name, chosen in (("fitted", [r for r in rows if not r[-1]]), ("held aside", [r for r in rows if r[-1]])):
        errors = [abs(predict(*r[:-2]) / r[-2] - 1) for r in chosen]
        out[name] = dict(rows=len(errors), median=round(quantile(errors, 0.5), 4), p90=round(quantile(errors, 0.9), 4))
        print(f"  {what:24s} {name:10s} {len(errors):6d} rows  median {out[name]['median']:.1%}  p90 {out[name]['p90']:.1%}")
    return out


def gemm_seconds(p, gpu, m, n, k):
    """See gemm_seconds in models/cost/cost.cpp, which must stay the same function."""
    compute = math.inf
    for (tile_m, tile_n), relative in zip(TILES, p["relative"]):
        tiles = math.ceil(m / tile_m) * math.ceil(n / tile_n)
        waves = tiles / gpu["sms"]
        # A last wave that is not full costs as much as a full one, but for what split-K and stream-K win back.
        quantised = waves + p["quantisation"] * (math.ceil(waves) - waves)
        flops_per_wave = 2 * tile_m * tile_n * (k + p["prologue_k"]) * gpu["sms"]
        compute = min(compute, quantised * flops_per_wave / (gpu["peak_bf16"] * p["efficiency"] * relative))
    memory = 2 * (m * k + n * k + m * n) / (gpu["bandwidth"] * p["memory_efficiency"])
    return p["floor_s"] + max(compute, memory)


def smallest_kernel_s(data, gpu):
    """What the smallest product of the table takes: launching and finishing, nothing else."""
    return min(float(r["latency_ms"]) * 1e-3 for r in rows_of(data, f"gemm_bfloat16_{gpu['key']}"))


def fit_gemm(data, gpu):
    floor = smallest_kernel_s(data, gpu)
    rows = []
    for r in rows_of(data, f"gemm_bfloat16_{gpu['key']}"):
        m, n, k = int(r["m"]), int(r["n"]), int(r["k"])
        # The shapes that training has; single-token shapes have another kernel family.
        if m >= 256 and n >= 256 and k >= 256:
            rows.append((m, n, k, float(r["latency_ms"]) * 1e-3, held_aside(m, n, k)))
    fitted = [r for r in rows if not r[-1]]
    fitted = fitted[:: max(1, len(fitted) // 900)]

    def unpack(x):
        return dict(efficiency=x[0], prologue_k=max(0.0, x[1]), quantisation=min(1.0, max(0.0, x[2])), floor_s=floor,
                    memory_efficiency=min(1.0, x[3]), relative=[1.0, 1.0] + [min(1.0, v) for v in (x[4], x[5], x[5], x[6])])

    def cost(x):
        if x[0] <= 0.2 or x[3] <= 0.2 or min(x[4:]) <= 0.05:
            return 1e9
        p = unpack(x)
        # Larger products weigh more: they are where training spends its time.
        return sum(min(1, 2 * m * n * k / 1e11 + 0.05) * abs(math.log(gemm_seconds(p, gpu, m, n, k) / t)) for m, n, k, t, _ in fitted)

    best = simplex(cost, [0.85, 100, 0.5, 0.8, 0.9, 0.7, 0.5], [0.05, 100, 0.2, 0.1, 0.05, 0.1, 0.1], 500)
    p = unpack(best)
    large = [r for r in rows if 2 * r[0] * r[1] * r[2] >= 5e10]
    print(f"  gemm {({a: (round(b, 4) if not isinstance(b, list) else [round(v, 3) for v in b]) for a, b in p.items()})}")
    residuals = report("gemm, all", lambda m, n, k: gemm_seconds(p, gpu, m, n, k), rows)
    residuals_large = report("gemm, 50 GFLOP and more", lambda m, n, k: gemm_seconds(p, gpu, m, n, k), large)
    return p, dict(all=residuals, large=residuals_large)


def fit_attention(data, gpu, head_dim):
    """Forward efficiency by sequence length: the median over rows that fill the GPU. Causal."""
    by_length, rows = {}, []
    for r in rows_of(data, gpu["prefill"]):
        b, s, h, d = int(r["batch_size"]), int(r["isl"]), int(r["num_heads"]), int(r["head_dim"])
        if d != head_dim or int(r["window_size"]) != 0 or s < 512 or b * h * s < 65536 or int(r.get("step") or 0) != 0:
            continue
        flops = 4 * b * h * d * s * (s + 1) / 2
        seconds = float(r["latency_ms"]) * 1e-3
        aside = held_aside(b, s, h, r["num_key_value_heads"])
        rows.append((b, s, h, seconds, aside))
        if not aside:
            by_length.setdefault(s, []).append(flops / seconds / gpu["peak_bf16"])
    lengths = sorted(s for s, e in by_length.items() if len(e) >= 3)
    curve = [(math.log2(s), quantile(by_length[s], 0.5)) for s in lengths]

    def predict(b, s, h):
        x = math.log2(s)
        lo = max([c for c in curve if c[0] <= x], default=curve[0])
        hi = min([c for c in curve if c[0] >= x], default=curve[-1])
        e = lo[1] if hi[0] == lo[0] else lo[1] + (hi[1] - lo[1]) * (x - lo[0]) / (hi[0] - lo[0])
        return 4 * b * h * head_dim * s * (s + 1) / 2 / (gpu["peak_bf16"] * e)

    return curve, report(f"attention forward, heads of {head_dim}", predict, rows)


def attention_kernels(data, gpu, published, ratio):
    """Curves of every kernel that was measured on this GPU: those of the table first, then those of published figures."""
    out, residuals = [], {}

    def add(kernel, head_dim, source, curve):
        out.append(dict(kernel=kernel, head_dim=head_dim, source=source, log2_length=[round(x, 4) for x, _ in curve],
                        forward=[round(e, 4) for _, e in curve]))

    sizes = sorted({int(r["head_dim"]) for r in rows_of(data, gpu["prefill"])})
    for head_dim in sizes:
        curve, residual = fit_attention(data, gpu, head_dim)
        add(gpu["kernel"], head_dim, f"{AICONFIGURATOR}, medians by fit.py", curve)
        residuals[f"head_dim_{head_dim}"] = residual
    figures = {}
    for r in published:
        if r.get("op") == "flash_attention" and r.get("causal") and r["gpu_type"] == gpu["figures"]:
            figures.setdefault((r["library"].split(" ")[0], r["direction"], r["head_dim"]), {})[r["seq_len"]] = r["tflops"]
    for (library, direction, head_dim), points in sorted(figures.items()):
        kernel = {"FA2": "flash2", "cuDNN": "cudnn"}.get(library)
        if kernel is None or (kernel == "flash2") != (direction == "fwd+bwd"):
            continue
        # Of forward and backward together, 1 and 2.5 times the products, the forward's part.
        forward = (1 + 2.5 / ratio) / 3.5 if direction == "fwd+bwd" else 1
        add(kernel, head_dim, "FlashAttention-2 and -3 figures, causal",
            [(math.log2(s), t * 1e12 * forward / gpu["peak_bf16"]) for s, t in sorted(points.items())])
    return out, residuals


def fit_backward(published):
    """Backward over forward efficiency, from FlashAttention-2's forward and forward+backward figures on H100."""
    forward, both = {}, {}
    for r in published:
        if r.get("op") != "flash_attention" or r.get("head_dim") != 128 or not r.get("causal"):
            continue
        if r["library"].startswith("FA2") and r["gpu_type"] == "H100":
            (forward if r["direction"] == "fwd" else both)[r["seq_len"]] = r["tflops"]
    ratios = []
    for s, f in forward.items():
        if s >= 2048 and s in both:
            backward = 2.5 / (3.5 / both[s] - 1 / f)
            ratios.append(backward / f)
    return quantile(ratios, 0.5), len(ratios)


def fit_links(data, gpu):
    """Seconds by bytes, per collective and number of ranks, as a curve over log2(bytes): NCCL changes algorithm and
    protocol with size, and one alpha and one beta miss the middle by half. message_size counts two-byte elements."""
    curves, residuals = {}, {}
    table = rows_of(data, gpu["nccl"])
    for op in ("all_reduce", "all_gather", "reduce_scatter", "alltoall"):
        out, all_rows = [], []
        for n in (2, 4, 8):
            rows = sorted((2 * int(r["message_size"]), float(r["latency"]) * 1e-3) for r in table
                          if r["op_name"] == op and int(r["num_gpus"]) == n and r["nccl_dtype"] == "half")
            if not rows:
                continue
            largest = rows[-1][0]
            points = [(s, t) for s, t in rows if s == largest or s == rows[0][0] or not held_aside(op, n, s)]
            # Moving less never takes longer: a spike at a small size is noise.
            level = []
            for s, t in reversed(points):
                level.insert(0, (s, min(t, level[0][1] if level else math.inf)))
            out.append(dict(ranks=n, log2_bytes=[round(math.log2(s), 4) for s, _ in level], seconds=[round(t, 9) for _, t in level]))
            all_rows += [(n, s, t, (s, t) not in points) for s, t in rows]
        by_ranks = {c["ranks"]: c for c in out}

        def predict(n, size):
            xs, ts, x = by_ranks[n]["log2_bytes"], by_ranks[n]["seconds"], math.log2(size)
            i = max(1, next((j for j, v in enumerate(xs) if v >= x - 1e-3), len(xs) - 1))
            share = min(1, max(0, (x - xs[i - 1]) / (xs[i] - xs[i - 1])))
            return math.exp(math.log(ts[i - 1]) + share * (math.log(ts[i]) - math.log(ts[i - 1])))

        residuals[op] = report(f"nvlink {op}", predict, all_rows)

        # What the simulator does for numbers of ranks between measured ones, tried on one that was measured.
        def between(size):
            return math.sqrt(predict(2, size) * predict(8, size))

        errors = sorted(abs(between(s) / t - 1) for n, s, t, _ in all_rows if n == 4 and s >= 1024)
        residuals[op]["four_ranks_from_two_and_eight"] = dict(
            rows=len(errors), median=round(quantile(errors, 0.5), 4), p90=round(quantile(errors, 0.9), 4))
        curves["all_to_all" if op == "alltoall" else op] = out
    return curves, residuals


TREE_FITTED_ON = (32, 1024)  # ranks; the other numbers of ranks and the other source are kept for the test


def tree_step(gpu, published):
    """Seconds of a step of NCCL's NVLSTree all-reduce: the one number of t = 2 log2(nodes) (step + chunk / rate) +
    bytes / rate (fabric_collective in models/cost/cost.cpp), least sum of absolute logarithms."""
    if not gpu["nvls"]:
        return constant(0, "s", "no NVLink SHARP: rings and plain trees")
    rate = 0.92 * 50e9
    rows = [r for r in published if r["kind"] == "collective" and r["algo"] == "NVLSTree" and r["num_gpus"] in TREE_FITTED_ON]

    def error(step):
        total = 0
        for r in rows:
            n, size = r["num_gpus"], r["message_bytes"]
            measured = 2 * (n - 1) / n * size / (r["busbw_gbps"] * 1e9)
            latency = 2 * math.ceil(math.log2(n / 8)) * (step + min(2**19, size / 8 / 4) / rate)
            total += abs(math.log((latency + 2 * (n - 1) / n * size / 8 / rate) / measured))
        return total

    step = min((error(us * 1e-6), us) for us in range(10, 80))[1]
    return constant(step * 1e-6, "s", f"NVIDIA's slide of NVLSTree all-reduces on DGX H100, {len(rows)} rows of "
                    f"{' and '.join(map(str, TREE_FITTED_ON))} GPUs, by fit.py")


def fit_memory(data, gpu):
    """Large memory-bound kernels: weight reads of single-token products, 64 MiB of weights and more."""
    rates = []
    for r in rows_of(data, f"gemm_bfloat16_{gpu['key']}"):
        m, n, k = int(r["m"]), int(r["n"]), int(r["k"])
        if m <= 16 and 2 * n * k >= 64 << 20:
            rates.append(2 * (n * k + m * k + m * n) / (float(r["latency_ms"]) * 1e-3))
    efficiency = quantile(rates, 0.5) / gpu["bandwidth"]
    print(f"  memory-bound: {efficiency:.3f} of the data sheet over {len(rates)} rows, p10 {quantile(rates, 0.1) / gpu['bandwidth']:.3f}")
    return efficiency


def fit_network(published):
    """Bus bandwidth of large all-reduces between nodes with eight 400 Gb/s NICs, over the 400 GB/s of line rate."""
    best = {}
    for r in published:
        if r.get("op") == "all_reduce" and r.get("gpu_type") == "H100" and (r.get("num_nodes") or 1) >= 2 and "8x400G" in (r.get("fabric") or ""):
            if r["busbw_gbps"] and r.get("algo") in (None, "Ring", "ring"):
                best[r["num_gpus"]] = max(best.get(r["num_gpus"], 0), r["busbw_gbps"])
    return best


def constant(value, unit, source, date=DATE):
    return dict(value=float(f"{value:.6g}"), unit=unit, source=source, date=date)


def variant(name, text, changes):
    out = json.loads(text)
    out["name"] = name
    out["constants"]["memory_bytes"] = constant(changes["memory"][0], "bytes", changes["memory"][1])
    out["constants"]["memory_bytes_per_s"] = constant(changes["bandwidth"], "bytes/s", changes["sheet"])
    del out["residuals"]
    return json.dumps(out, indent=2) + "\n"


def profile(name, gpu, data, published):
    print(name)
    gemm, gemm_residuals = fit_gemm(data, gpu)
    ratio, ratio_rows = fit_backward(published)
    kernels, attention_residuals = attention_kernels(data, gpu, published, ratio)
    memory_efficiency = fit_memory(data, gpu)
    links, link_residuals = fit_links(data, gpu)
    fitted = f"{AICONFIGURATOR}, fitted by fit.py"
    out = {
        "schema": 1,
        "name": name,
        "constants": {
            "peak_bf16_flops": constant(gpu["peak_bf16"], "FLOP/s", gpu["sheet"]),
            "peak_f32_flops": constant(gpu["peak_f32"], "FLOP/s", gpu["sheet"]),
            "memory_bytes": constant(gpu["memory"][0], "bytes", gpu["memory"][1]),
            "memory_bytes_per_s": constant(gpu["bandwidth"], "bytes/s", gpu["sheet"]),
            "memory_efficiency": constant(memory_efficiency, "1", fitted),
            "kernel_floor_s": constant(gemm["floor_s"], "s", fitted),
            "sms": constant(gpu["sms"], "1", gpu["sheet"]),
            "gemm_efficiency": constant(gemm["efficiency"], "1", fitted),
            "gemm_prologue_k": constant(gemm["prologue_k"], "elements of k", fitted),
            "gemm_quantisation": constant(gemm["quantisation"], "1", fitted),
            "gemm_memory_efficiency": constant(gemm["memory_efficiency"], "1", fitted),
            "gemm_relative_128x128": constant(gemm["relative"][2], "1", fitted),
            "gemm_relative_64x128": constant(gemm["relative"][3], "1", fitted),
            "gemm_relative_64x64": constant(gemm["relative"][5], "1", fitted),
            "attention_backward_efficiency_ratio": constant(ratio, "1", f"FlashAttention-2 figures on H100, {ratio_rows} lengths, by fit.py"),
            "nvlink_p2p_bytes_per_s": constant(0.85 * (300e9 if name == "a100-sxm" else 450e9), "bytes/s", gpu["sheet"] + ", one direction, 85% of it assumed"),
            "nvlink_p2p_latency_s": constant(8e-6, "s", "NCCL send/recv inside a node, assumed"),
            "nic_latency_s": constant(20e-6, "s", "NCCL 2.30 tuning.cc: 14 us net latency of the Simple protocol + 2x3 us net overhead"),
            "tree_step_s": tree_step(gpu, published),
            "nic_efficiency": constant(0.92, "1", "published large all-reduces over 8x400G NDR reach 360-370 of 400 GB/s"),
        },
        "attention": {"unit": "share of peak bf16 FLOP/s in the forward pass, causal pairs counted once", "date": DATE, "kernels": kernels},
        "nvlink": {"unit": "s by log2(bytes of the larger buffer)", "source": f"{AICONFIGURATOR}, {gpu['nccl']}, fitted by fit.py", "date": DATE, **links},
        "residuals": {"gemm": gemm_residuals, "attention": attention_residuals, "nvlink": link_residuals},
    }
    return json.dumps(out, indent=2) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with gzip.open(arguments.data / "published" / "collectives_kernels.json.gz", "rt") as file:
        published = json.load(file)
    changed = []
    texts = {name: profile(name, gpu, arguments.data, published) for name, gpu in GPUS.items()}
    texts.update({name: variant(name, texts[changes["like"]], changes) for name, changes in VARIANTS.items()})
    for name, text in texts.items():
        path = HERE / f"{name}.json"
        if not path.exists() or path.read_text() != text:
            changed.append(path.name)
            if not arguments.check:
                path.write_text(text)
    best = fit_network(published)
    print("network all-reduce, best bus GB/s by GPUs:", dict(sorted(best.items())))
    if arguments.check and changed:
        sys.exit(f"would change: {', '.join(changed)}")


if __name__ == "__main__":
    main()
