#!/usr/bin/env python3
"""Does training train? The two small jobs that are shipped, from nothing, beside what is known of their text without any
model: the entropy of its bytes, of bytes by the one and the two before, and what xz makes of it. In nats a byte, as losses are.
Prints JSON.

    python3 tests/parity/training.py            # minutes
"""
import collections
import json
import lzma
import math
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "build/release/cli/trainyard"
JOBS = ["scenarios/tiny/train-llama.json", "scenarios/tiny/train-grok1.json"]
TAIL = 10  # steps over which the last loss is a mean


def entropy(text, order):
    """Of a byte, given the `order` bytes before it, with the text's own frequencies: less than any such model could reach."""
    pairs = collections.Counter(text[i:i + order + 1] for i in range(len(text) - order))
    contexts = collections.Counter(text[i:i + order] for i in range(len(text) - order))
    total = sum(pairs.values())
    return -sum(n / total * math.log(n / contexts[gram[:-1]]) for gram, n in pairs.items())


def train(job):
    run = subprocess.run([str(BINARY), "exec", "run", job, "--unvalidated", "--no-store", "--json", "-q"],
                         capture_output=True, text=True, cwd=ROOT)
    if run.returncode != 0:
        sys.exit(f"{job}: {run.stderr}")
    report = json.loads(run.stdout)
    losses = report["losses"]
    return {"job": job, "parameters": report["parameters"], "ranks": report["ranks"], "steps": report["steps"],
            "minutes": round(report["wall_s"] / 60, 2), "tokens_per_s": round(report["tokens_per_s"]),
            "first_loss": losses[0], "last_loss": sum(losses[-TAIL:]) / TAIL, "every_tenth_loss": losses[::10]}


def main():
    text = b"".join(p.read_bytes() for p in sorted((ROOT / "models").rglob("*")) if p.is_file())
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    print(json.dumps({
        "commit": commit.stdout.strip(), "machine": platform.processor() or platform.machine(),
        "text_bytes": len(text),
        "nats_a_byte": {"uniform": math.log(256), "bytes": entropy(text, 0), "after_one": entropy(text, 1),
                        "after_two": entropy(text, 2), "xz": len(lzma.compress(text, preset=9)) * 8 * math.log(2) / len(text)},
        "runs": [train(job) for job in JOBS]}, indent=2))


if __name__ == "__main__":
    main()
