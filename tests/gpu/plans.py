#!/usr/bin/env python3
"""Plans over the GPUs of a node: small models in float32 train alike under each, large ones in bf16 as fast as predicted.

    python3 tests/gpu/plans.py bin/trainyard SCENARIOS DATA --gpus 2 [--quick]

Also: two runs in strict mode give the same bits, and a job whose rank is killed goes on from its checkpoint to the losses of
one that nobody disturbed. Prints JSON. Standard library only.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

SMALL = {"sequence_length": 256, "global_batch_size": 16, "micro_batch_size": 4, "precision": "f32",
         "optimizer": {"learning_rate": 1e-3, "warmup_steps": 4, "decay_steps": 200}}
LARGE = {"sequence_length": 4096, "global_batch_size": 16, "micro_batch_size": 2,
         "optimizer": {"learning_rate": 3e-4, "warmup_steps": 20, "decay_steps": 200}}


def plans(n, experts):
    """Of n GPUs (2, 4 or 8), by name."""
    out = {
        f"dp{n}": {"dp": n},
        f"dp{n} zero1": {"dp": n, "zero_stage": 1},
        f"dp{n} zero2": {"dp": n, "zero_stage": 2},
        f"dp{n} zero3": {"dp": n, "zero_stage": 3},
        f"tp{n}": {"tp": n},
        f"tp{n} sp": {"tp": n, "sequence_parallel": True},
        f"pp{n}": {"pp": n},
        f"cp{n}": {"cp": n},
        f"cp{n} ring": {"cp": n, "cp_comm_type": "p2p"},
    }
    if n >= 4:
        out[f"tp2 pp2 dp{n // 4} sp"] = {"tp": 2, "pp": 2, "dp": n // 4, "sequence_parallel": True}
    if experts:
        out[f"ep{n} dp{n}"] = {"ep": n, "dp": n, "zero_stage": 1}
    return out


class Node:
    def __init__(self, options, folder):
        self.trainyard, self.scenarios, self.data = options.trainyard, pathlib.Path(options.scenarios).resolve(), os.path.abspath(options.data)
        self.folder = folder
        self.count = 0

    def write(self, model, plan, steps, training=None, on=None):
        self.count += 1
        file = self.folder / f"job-{self.count}.json"
        file.write_text(json.dumps({
            "schema": 1, "name": f"job-{self.count}", "plan": plan,
            "model": str(model if isinstance(model, pathlib.Path) else self.scenarios / "models" / (model + ".json")),
            "cluster": str(self.scenarios / "clusters" / ((on or "one-h100") + ".json")), "stack": on or "megatron-core",
            "training": {"data": self.data, "steps": steps, **(training or {})}}))
        return file

    def command(self, *words):
        return [self.trainyard, *map(str, words)]

    def train(self, file, *extra):
        begin = time.monotonic()
        try:
            done = subprocess.run(self.command("exec", "run", file, "--device", "cuda", "--unvalidated", "--no-store", "--json",
                                               "-q", *extra), text=True, capture_output=True, timeout=60)
        except subprocess.TimeoutExpired:
            return {"problem": "did not end within 60 s"}
        try:
            report = json.loads(done.stdout)
        except ValueError:
            report = {}
        if done.returncode != 0 or "losses" not in report:
            return {"exit": done.returncode, "problem": (done.stderr + done.stdout)[-600:]}
        return {"losses": report["losses"], "step_time_s": report["step_time_s"], "wall_s": time.monotonic() - begin,
                "device_bytes": [rank["device_bytes"] for rank in report["memory"]]}

    def predict(self, file):
        done = subprocess.run(self.command("sim", "run", file, "--no-store", "-q", "--json"), text=True, capture_output=True)
        if done.returncode != 0:
            return None
        return json.loads(done.stdout)["step"]["time_s"]


def off(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b))


def same_losses(node, n):
    out = {}
    for model in ("small-llama", "small-grok1"):
        alone = node.train(node.write(model, SMALL, 5))
        out[model + " on one"] = alone
        if "losses" not in alone:
            continue
        for name, axes in plans(n, model == "small-grok1").items():
            got = node.train(node.write(model, {**SMALL, **axes}, 5))
            if "losses" in got:
                got["loss_error"] = off(got["losses"], alone["losses"])
            out[f"{model} {name}"] = got
            print(f"{model:12} {name:16}", got.get("loss_error", got.get("problem")), file=sys.stderr)
    return out


def speed(node, n, quick):
    out = {}
    wanted = [f"cp{n}", f"ep{n} dp{n}", f"tp{n} sp", f"dp{n} zero3", f"dp{n} zero1", f"pp{n}"]
    for name in wanted[:4] if quick else wanted:
        experts = name.startswith("ep")
        file = node.write("grok1-2b" if experts else "llama-1b", {**LARGE, **plans(n, True)[name]}, 6)
        got = node.train(file)
        got["predicted_s"] = node.predict(file)
        if "step_time_s" in got and got["predicted_s"]:
            got["error"] = got["predicted_s"] / got["step_time_s"] - 1
        out[name] = got
        print(f"{name:16}", got.get("step_time_s", got.get("problem")), got["predicted_s"], file=sys.stderr, flush=True)
    return out


def shapes(node):
    """Of one GPU: measured beside predicted by the shipped profile, and by what calibrate found here."""
    llama = {"family": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "norm": "rms_norm", "position": "rope",
             "hidden_act": "silu", "gated_mlp": True, "max_position_embeddings": 8192}
    wide = {**llama, "hidden_size": 4096, "head_dim": 128, "intermediate_size": 14336, "num_hidden_layers": 3, "vocab_size": 32000}
    slim = {**llama, "hidden_size": 2048, "head_dim": 64, "intermediate_size": 8192, "num_hidden_layers": 6, "vocab_size": 32000}
    gpt = {"family": "gpt3", "hidden_size": 2048, "num_attention_heads": 16, "intermediate_size": 8192, "num_hidden_layers": 8,
           "vocab_size": 50304, "max_position_embeddings": 2048, "norm": "layer_norm", "position": "learned",
           "hidden_act": "gelu_tanh", "gated_mlp": False, "attention_bias": True, "mlp_bias": True}
    moe = {**slim, "family": "mixtral", "intermediate_size": 5632, "num_hidden_layers": 3,
           "moe": {"num_local_experts": 8, "num_experts_per_tok": 2}}
    wanted = {
        "wide, 4096 x 2": (wide, 4096, 2, {}), "wide, 2048 x 1": (wide, 2048, 1, {}),
        "wide, 8192 x 1, full recompute": (wide, 8192, 1, {"recompute": "full"}),
        "slim, 4096 x 4": (slim, 4096, 4, {}), "slim, 1024 x 4": (slim, 1024, 4, {}),
        "slim, 4096 x 4, selective": (slim, 4096, 4, {"recompute": "selective"}),
        "gpt, 2048 x 4": (gpt, 2048, 4, {}), "gpt, 1024 x 8": (gpt, 1024, 8, {}),
        "moe, 4096 x 2": (moe, 4096, 2, {}), "moe, 2048 x 4": (moe, 2048, 4, {}),
    }
    out = {}
    for name, (model, sequence, micro_batch, more) in wanted.items():
        file = node.folder / f"model-{len(out)}.json"
        file.write_text(json.dumps({"schema": 1, "name": name, **model}))
        plan = {"sequence_length": sequence, "micro_batch_size": micro_batch, "global_batch_size": 4 * micro_batch, **more}
        job = node.write(file, plan, 6)
        got = node.train(job)
        got["predicted_s"] = node.predict(job)
        got["calibrated_s"] = node.predict(node.write(file, plan, 6, on="localhost-cuda"))
        for key, source in (("error", "predicted_s"), ("calibrated_error", "calibrated_s")):
            if "step_time_s" in got and got[source]:
                got[key] = got[source] / got["step_time_s"] - 1
        got.pop("losses", None)
        out[name] = got
        print(f"{name:32}", got.get("step_time_s", got.get("problem")), got.get("error"), got.get("calibrated_error"),
              file=sys.stderr, flush=True)
    return out


def strict(node, n):
    file = node.write("small-llama", {**SMALL, "dp": n, "zero_stage": 1}, 5)
    first, second = (node.train(file, "--strict-sums").get("losses") for _ in range(2))
    return {"losses": first, "same_bits": first is not None and first == second}


def killed(node, n, steps=200, every=20):
    """Kills a rank under load; the next run goes on from the last checkpoint."""
    plan = {**SMALL, "dp": n, "zero_stage": 1}
    whole = node.train(node.write("small-llama", plan, steps), "--strict-sums")
    print("undisturbed:", whole.get("problem", "all steps done"), file=sys.stderr, flush=True)
    folder = node.folder / "checkpoints"
    file = node.write("small-llama", plan, steps, {"checkpoint": {"folder": str(folder), "every_steps": every}})
    command = node.command("exec", "run", file, "--device", "cuda", "--unvalidated", "--no-store", "--json", "-q", "--strict-sums")
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not [whole for whole in folder.glob("step-*") if whole.name[5:].isdigit()]:
        time.sleep(0.02)
    ranks = subprocess.run(["pgrep", "-P", str(launcher.pid)], text=True, capture_output=True).stdout.split()
    struck = time.monotonic()
    if ranks:
        os.kill(int(ranks[-1]), signal.SIGKILL)
    _, errors = launcher.communicate(timeout=120)
    noticed = time.monotonic() - struck
    again = node.train(file, "--strict-sums")
    tail = again.get("losses", [])
    return {"exit": launcher.returncode, "said": errors[-300:], "noticed_s": noticed, "resumed_s": again.get("wall_s"),
            "steps_after": len(tail), "problem": again.get("problem"),
            "same_bits": bool(tail) and "losses" in whole and whole["losses"][-len(tail):] == tail}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainyard")
    parser.add_argument("scenarios")
    parser.add_argument("data")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["losses", "speed", "shapes", "strict", "killed"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        node = Node(options, pathlib.Path(folder))
        parts = {"losses": lambda: same_losses(node, options.gpus), "speed": lambda: speed(node, options.gpus, options.quick),
                 "shapes": lambda: shapes(node),
                 "strict": lambda: strict(node, options.gpus), "killed": lambda: killed(node, options.gpus)}
        out = {name: part() for name, part in parts.items() if options.only in (None, name)}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
