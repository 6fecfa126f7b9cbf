#!/usr/bin/env python3
"""The simulator's step time against the measured one, over ten plans that fit two processors. Prints JSON.

    build/release/cli/trainyard calibrate && python3 tests/parity/step_time.py

Run it where `calibrate` has written its profiles. None of the ten models is one that calibration runs.
"""
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "build/release/cli/trainyard"

LLAMA = {"base": str(ROOT / "scenarios/models/small-llama.json")}
WIDE = {**LLAMA, "hidden_size": 640, "num_attention_heads": 10, "num_key_value_heads": 5, "intermediate_size": 1728,
        "num_hidden_layers": 4}
NARROW = {**LLAMA, "hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 512,
          "num_hidden_layers": 8, "max_position_embeddings": 512}
GROK = {"base": str(ROOT / "scenarios/models/tiny-grok1.json"), "vocab_size": 256, "hidden_size": 256, "head_dim": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512, "max_position_embeddings": 256}
GPT = {"base": str(ROOT / "scenarios/models/tiny-gpt3.json"), "vocab_size": 512, "hidden_size": 320, "head_dim": 64,
       "num_attention_heads": 5, "num_key_value_heads": 5, "intermediate_size": 1280, "max_position_embeddings": 256}
F32, BF16 = {"precision": "f32"}, {"precision": "bf16"}
PLANS = [
    ("llama dp2", LLAMA, {**F32, "dp": 2, "zero_stage": 1, "micro_batch_size": 4}),
    ("llama tp2", LLAMA, {**F32, "tp": 2, "micro_batch_size": 4}),
    ("llama tp2 sp", LLAMA, {**F32, "tp": 2, "sequence_parallel": True, "micro_batch_size": 4}),
    ("llama pp2", LLAMA, {**F32, "pp": 2, "micro_batch_size": 2}),
    ("llama, two threads", LLAMA, {**F32, "cpu_threads": 2, "micro_batch_size": 8}),
    ("wide llama cp2", WIDE, {**F32, "cp": 2, "micro_batch_size": 4}),
    ("wide llama ZeRO 3, bf16", WIDE, {**BF16, "dp": 2, "zero_stage": 3, "micro_batch_size": 4}),
    ("narrow llama, recompute", NARROW, {**F32, "dp": 2, "recompute": "full", "micro_batch_size": 2,
                                         "sequence_length": 512}),
    ("grok ep2", GROK, {**F32, "dp": 2, "ep": 2, "micro_batch_size": 4}),
    ("gpt, bf16, two threads", GPT, {**BF16, "cpu_threads": 2, "micro_batch_size": 8}),
]


def trainyard(*args):
    run = subprocess.run([str(BINARY), *map(str, args)], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"trainyard {' '.join(map(str, args))}: {run.stderr}")
    return json.loads(run.stdout)


def main():
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        for name, model, plan in PLANS:
            job = pathlib.Path(tmp) / "job.json"
            job.write_text(json.dumps({
                "schema": 1, "name": name, "model": model, "stack": "localhost",
                "plan": {"sequence_length": 256, "global_batch_size": 16, **plan},
                "cluster": str(ROOT / "scenarios/clusters/localhost.json"),
                "training": {"data": str(ROOT / "models"), "steps": 8}}))
            predicted = trainyard("sim", "run", job, "--json", "-q", "--no-store")
            measured = trainyard("exec", "run", "--unvalidated", job, "--json", "-q", "--no-store")
            peak = max(rank["rss_bytes"] for rank in measured["memory"])
            rows.append({"plan": name, "predicted_s": predicted["step"]["time_s"], "measured_s": measured["step_time_s"],
                         "error": predicted["step"]["time_s"] / measured["step_time_s"] - 1,
                         "predicted_bytes": predicted["step"]["memory_peak_bytes"], "measured_bytes": peak,
                         "memory_error": predicted["step"]["memory_peak_bytes"] / peak - 1})
            print(f"{name}: {rows[-1]['error']:+.1%}, memory {rows[-1]['memory_error']:+.1%}", file=sys.stderr)
    print(json.dumps({"commit": measured["commit"], "median_error": statistics.median(abs(r["error"]) for r in rows),
                      "median_memory_error": statistics.median(abs(r["memory_error"]) for r in rows), "plans": rows},
                     indent=2))


if __name__ == "__main__":
    main()
