#!/usr/bin/env python3
"""Predicted memory of a process against its measured peak, over random plans of up to eight ranks of four models. Prints JSON.

    python3 tests/parity/process_memory.py [plans]            # 48 unless told; minutes

Processes are compared at the fullest stage. Plans that are not sound for their model are drawn again.
"""
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "build/release/cli/trainyard"
SIZES = {"vocab_size": 256, "hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "intermediate_size": 512,
         "max_position_embeddings": 256, "num_hidden_layers": 4}
MODELS = [{**SIZES, "base": str(ROOT / f"scenarios/models/tiny-{name}.json"), "num_key_value_heads": kv}
          for name, kv in (("llama", 2), ("mixtral", 2), ("grok1", 2), ("gpt3", 4))]


def draw(dice, model):
    plan = {"tp": dice.choice([1, 1, 2]), "cp": dice.choice([1, 1, 2]), "pp": dice.choice([1, 2, 4]),
            "dp": dice.choice([1, 2, 4]), "zero_stage": dice.choice([0, 1, 2, 3]),
            "recompute": dice.choice(["none", "selective", "full"]), "precision": dice.choice(["f32", "bf16"]),
            "micro_batch_size": dice.choice([1, 2]), "global_batch_size": 8, "sequence_length": dice.choice([64, 256])}
    if plan["tp"] > 1:
        plan["sequence_parallel"] = dice.random() < 0.5
    if "mixtral" in model["base"] or "grok1" in model["base"]:
        plan["ep"] = dice.choice([1, 2])
    if plan["pp"] > 1 and dice.random() < 0.3:
        plan.update(schedule="interleaved", virtual_stages=4 // plan["pp"])
    return plan


def trainyard(*args):
    run = subprocess.run([str(BINARY), *map(str, args)], capture_output=True, text=True)
    return json.loads(run.stdout) if run.returncode == 0 else None


def main():
    dice, rows = random.Random(1), []
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 48
    with tempfile.TemporaryDirectory() as tmp:
        job = pathlib.Path(tmp) / "job.json"
        while len(rows) < wanted:
            model = MODELS[len(rows) % len(MODELS)]
            plan = draw(dice, model)
            job.write_text(json.dumps({
                "schema": 1, "name": "memory", "model": model, "stack": "localhost", "plan": plan,
                "cluster": str(ROOT / "scenarios/clusters/localhost.json"),
                "training": {"data": str(ROOT / "models"), "steps": 2}}))
            if plan["tp"] * plan["cp"] * plan["pp"] * plan["dp"] > 8 or trainyard("plan", "check", job, "--json") is None:
                continue
            predicted = trainyard("sim", "run", job, "--json", "-q", "--no-store")["step"]["memory_peak_bytes"]
            ranks = trainyard("exec", "run", "--unvalidated", job, "--json", "-q", "--no-store")
            measured = max(rank["rss_bytes"] for rank in ranks["memory"])
            rows.append({"model": pathlib.Path(model["base"]).stem, "plan": plan, "predicted_bytes": predicted,
                         "measured_bytes": measured, "error": predicted / measured - 1})
            print(f"{rows[-1]['model']} {plan}: {rows[-1]['error']:+.1%}", file=sys.stderr)
    errors = [abs(row["error"]) for row in rows]
    print(json.dumps({"commit": ranks["commit"], "median_error": statistics.median(errors), "worst_error": max(errors),
                      "plans": rows}, indent=2))


if __name__ == "__main__":
    main()
