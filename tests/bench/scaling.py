#!/usr/bin/env python3
"""What one step costs to simulate by the number of GPUs: Grok-1's plan with more and more replicas, each at the same work.

    python3 tests/bench/scaling.py [--trainyard build/release/cli/trainyard]

Writes docs/results/scaling.json (the best of three runs each) and draws docs/scaling.svg. Curves: a fabric that spreads packets, healthy; the same with
ten faults on ten nodes; and hashed flows, as far as they go. Standard library only.
"""

import argparse
import json
import math
import pathlib
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LIMIT_S = 120  # a curve ends where a step takes longer


def scenario(replicas, routing, faults):
    nodes = 8 * replicas
    struck = [nodes * i // 10 for i in range(10)]
    kinds = [dict(kind="gpu_slow", factor=2), dict(kind="nic_slow", factor=2)]
    injected = [dict(kinds[i % 2], node=node, device=i % 8) for i, node in enumerate(struck)] if faults else []
    return {
        "schema": 1, "name": "scaling", "model": str(ROOT / "scenarios/models/grok-1.json"), "stack": "megatron-core",
        "plan": {"base": str(ROOT / "scenarios/plans/grok1-100k.json"), "dp": replicas, "global_batch_size": 16 * replicas},
        "cluster": {"base": str(ROOT / "scenarios/clusters/colossus-100k-h100.json"), "nodes": 18750, "routing": routing},
        "faults": {"injected": injected},
    }


def measure(trainyard, file, runs):
    best = None
    for _ in range(runs):
        start = time.monotonic()
        try:
            done = subprocess.run([trainyard, "sim", "run", file, "--no-store", "-q", "--json"], text=True,
                                  capture_output=True, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            return None
        wall = time.monotonic() - start
        if done.returncode != 0:
            return None
        if best is None or wall < best[0]:
            best = (wall, json.loads(done.stdout))
    wall, report = best
    step = report["step"]
    return dict(wall_s=round(wall, 3), peak_rss_bytes=report["host"]["peak_rss_bytes"], classes=step["classes"],
                activities=step["activities"], events=step["events"], step_s=step["time_s"])


def svg(curves):
    width, height, left, bottom, top, right = 720, 420, 70, 50, 30, 190
    points = [(p["gpus"], p["wall_s"]) for curve in curves for p in curve["points"]]
    x0, x1 = 9.5, 17.5
    y0, y1 = math.floor(math.log10(min(w for _, w in points))), math.ceil(math.log10(max(w for _, w in points)))
    x = lambda gpus: left + (math.log2(gpus) - x0) / (x1 - x0) * (width - left - right)
    y = lambda wall: height - bottom - (math.log10(wall) - y0) / (y1 - y0) * (height - bottom - top)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           f'<text x="{left}" y="18">seconds to simulate one step of Grok-1, by GPUs</text>']
    for k in range(10, 18):
        out.append(f'<line x1="{x(2**k):.1f}" y1="{top}" x2="{x(2**k):.1f}" y2="{height - bottom}" stroke="#ddd"/>'
                   f'<text x="{x(2**k):.1f}" y="{height - bottom + 18}" text-anchor="middle">{2**k:,}</text>')
    for e in range(y0, y1 + 1):
        out.append(f'<line x1="{left}" y1="{y(10.0**e):.1f}" x2="{width - right}" y2="{y(10.0**e):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{y(10.0**e) + 4:.1f}" text-anchor="end">{10.0**e:g}</text>')
    first = curves[0]["points"][0]
    ends = [(first["gpus"], first["wall_s"]), (2**17, min(10.0**y1, first["wall_s"] * 2**17 / first["gpus"]))]
    out.append(f'<line x1="{x(ends[0][0]):.1f}" y1="{y(ends[0][1]):.1f}" x2="{x(ends[1][0]):.1f}" y2="{y(ends[1][1]):.1f}" stroke="#999" stroke-dasharray="5 4"/>'
               f'<text x="{x(2**17) + 8:.1f}" y="{y(ends[1][1]) + 4:.1f}" fill="#777">as many times as GPUs</text>')
    for curve, colour in zip(curves, ("#1b6ca8", "#c0392b", "#2e7d32")):
        path = " ".join(f"{x(p['gpus']):.1f},{y(p['wall_s']):.1f}" for p in curve["points"])
        last = curve["points"][-1]
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(p["gpus"]):.1f}" cy="{y(p["wall_s"]):.1f}" r="3" fill="{colour}"/>' for p in curve["points"]]
        out.append(f'<text x="{x(last["gpus"]) + 8:.1f}" y="{y(last["wall_s"]) + 4:.1f}" fill="{colour}">{curve["name"]}</text>')
    return "\n".join(out + ["</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainyard", default=str(ROOT / "build/release/cli/trainyard"))
    trainyard = parser.parse_args().trainyard
    curves = []
    with tempfile.TemporaryDirectory() as folder:
        file = str(pathlib.Path(folder) / "scaling.json")
        for name, routing, faults, runs in (("healthy", "adaptive", False, 3), ("ten faults", "adaptive", True, 1), ("hashed flows", "ecmp", False, 1)):
            points = []
            for power in range(10, 18):
                pathlib.Path(file).write_text(json.dumps(scenario(2**power // 64, routing, faults)))
                its = measure(trainyard, file, runs)
                print(name, 2**power, its, flush=True)
                if its is None:
                    break
                points.append(dict(gpus=2**power, **its))
            curves.append(dict(name=name, points=points))
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, text=True, capture_output=True).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    result = dict(commit=commit, machine=cpu, limit_s=LIMIT_S, curves=curves)
    (ROOT / "docs/results/scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    (ROOT / "docs/scaling.svg").write_text(svg([c for c in curves if c["points"]]))


if __name__ == "__main__":
    main()
