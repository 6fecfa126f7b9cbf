#!/usr/bin/env python3
"""Models that are trained here and loaded by Hugging Face transformers, and the other way round.

For a tiny Llama, Mixtral and GPT-2: trains some steps, exports, and compares the loss of 40 texts here and in
transformers (a text of one token more than its context gives one logit's probability, so single-token texts compare
logits); then saves a model of transformers' own with random weights, imports it, compares again, and trains on.

    python3 tests/parity/hugging_face.py            # needs torch, transformers, safetensors
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "build/release/cli/trainyard"
TEXTS = 40


def trainyard(*args):
    run = subprocess.run([str(BINARY), *map(str, args)], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"trainyard {' '.join(map(str, args))}: {run.stderr}")
    return run.stdout


def write_job(folder, name, model, plan, steps, rate, text):
    # Dropout would make losses differ from transformers' evaluation.
    job = {"schema": 1, "name": name, "model": str(model) if isinstance(model, pathlib.Path) else model,
           "plan": {"precision": "f32", "sequence_length": 16, "global_batch_size": 4, **plan,
                    "optimizer": {"learning_rate": rate, "weight_decay": 0}},
           "cluster": str(ROOT / "scenarios/clusters/localhost.json"),
           "training": {"data": str(text), "steps": steps, "checkpoint": {"folder": f"{name}-saved"}}}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(job))
    return path


def losses_here(folder, model, weights, length, text, tag):
    plan = {"sequence_length": length, "global_batch_size": 1}
    job = write_job(folder, f"eval-{tag}-{length}", model, plan, TEXTS, 0, text)
    return sorted(json.loads(trainyard("exec", "run", "--unvalidated", job, "--from", weights, "--json", "-q", "--no-store"))["losses"])


def losses_there(model, length, text):
    data = torch.tensor(list(text.read_bytes()))
    out = []
    with torch.no_grad():
        for i in range(TEXTS):
            window = data[i * length:i * length + length + 1]
            logits = model(window[None, :-1]).logits[0]
            out.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    return sorted(out)


def compare(folder, model_file, weights, model, tag):
    worst = 0
    for length in (1, 16):
        text = folder / f"text-{length}"
        draw = random.Random(length)
        text.write_bytes(bytes(draw.randrange(256) for _ in range(TEXTS * length + 1)))
        here, there = losses_here(folder, model_file, weights, length, text, tag), losses_there(model, length, text)
        worst = max(worst, max(abs(a - b) / b for a, b in zip(here, there)))
    print(f"{tag}: losses differ by at most {worst:.1e}")
    assert worst < 1e-5, "not the same model"


def main():
    shapes = {"llama": {}, "mixtral": {"dp": 2, "ep": 2}, "gpt3": {"tp": 2}}
    for name, plan in shapes.items():
        with tempfile.TemporaryDirectory() as tmp:
            folder = pathlib.Path(tmp)
            base = {"base": str(ROOT / f"scenarios/models/tiny-{name}.json"), "vocab_size": 256, "hidden_dropout": 0}
            job = write_job(folder, name, base, plan, 30, 3e-3, ROOT / "README.md")
            trainyard("exec", "run", "--unvalidated", job, "-q", "--no-store")
            trainyard("export", "huggingface", job, "-o", folder / "exported")
            model = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported").float().eval()
            trainyard("import", "huggingface", folder / "exported", "-o", folder / "model.json")
            compare(folder, folder / "model.json", folder / "exported", model, f"{name}-there")

            torch.manual_seed(3)
            theirs = transformers.AutoModelForCausalLM.from_config(model.config).float().eval()
            with torch.no_grad():
                for parameter in theirs.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
            theirs.save_pretrained(folder / "theirs")
            trainyard("import", "huggingface", folder / "theirs", "-o", folder / "theirs.json")
            compare(folder, folder / "theirs.json", folder / "theirs", theirs, f"{name}-here")
            job = write_job(folder, f"{name}-on", folder / "theirs.json", plan, 30, 3e-3, ROOT / "README.md")
            losses = json.loads(trainyard("exec", "run", "--unvalidated", job, "--from", folder / "theirs", "--json", "-q", "--no-store"))["losses"]
            print(f"{name}: trained on from {losses[0]:.3f} to {losses[-1]:.3f}")
            assert losses[-1] < losses[0] - 0.5


if __name__ == "__main__":
    main()
