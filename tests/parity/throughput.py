#!/usr/bin/env python3
"""Tokens per second of `trainyard exec run` beside PyTorch eager: the same model, batch, precision and threads, one after the
other on this machine. Prints JSON.

    python3 tests/parity/throughput.py scenarios/bench/cpu-llama.json

The job's plan must have one rank; its cpu_threads are PyTorch's threads. Needs torch (Debian: python3-torch with
libopenblas0-pthread).
"""
import argparse
import json
import math
import pathlib
import re
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[2]


def read_json(path):
    return json.loads(re.sub(r"^\s*//.*$", "", path.read_text(), flags=re.M))


class Block(nn.Module):
    def __init__(self, m):
        super().__init__()
        d, h, kv = m["hidden_size"], m["num_attention_heads"], m["num_key_value_heads"]
        self.h, self.kv, self.dim = h, kv, m.get("head_dim", d // h)
        self.norm1, self.norm2 = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.qkv = nn.Linear(d, (h + 2 * kv) * self.dim, bias=False)
        self.out = nn.Linear(h * self.dim, d, bias=False)
        self.up = nn.Linear(d, 2 * m["intermediate_size"], bias=False)
        self.down = nn.Linear(m["intermediate_size"], d, bias=False)

    def forward(self, x, cos, sin, mask):
        b, s, _ = x.shape
        q, k, v = self.qkv(norm(x, self.norm1)).split([self.h * self.dim, self.kv * self.dim, self.kv * self.dim], -1)
        q, k, v = (t.view(b, s, -1, self.dim).transpose(1, 2) for t in (q, k, v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(self.h // self.kv, 1) for t in (k, v))
        if hasattr(F, "scaled_dot_product_attention"):
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            o = ((q @ k.transpose(2, 3)) / math.sqrt(self.dim) + mask).softmax(-1) @ v
        x = x + self.out(o.transpose(1, 2).reshape(b, s, -1))
        gate, up = self.up(norm(x, self.norm2)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Llama(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.embed = nn.Embedding(m["vocab_size"], m["hidden_size"])
        self.blocks = nn.ModuleList(Block(m) for _ in range(m["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.ones(m["hidden_size"]))
        self.head = nn.Linear(m["hidden_size"], m["vocab_size"], bias=False)

    def forward(self, tokens, cos, sin, mask):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.head(norm(x, self.norm))


def torch_step_s(model_spec, plan, steps):
    torch.manual_seed(1)
    model = Llama(model_spec)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    s, dim = plan["sequence_length"], model.blocks[0].dim
    angle = torch.outer(torch.arange(s), 10000.0 ** (-torch.arange(0, dim, 2) / dim))
    cos, sin, mask = angle.cos(), angle.sin(), torch.full((s, s), -math.inf).triu(1)
    batch, micro = plan["global_batch_size"], plan["micro_batch_size"]
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        for _ in range(batch // micro):
            tokens = torch.randint(0, 256, (micro, s + 1))
            logits = model(tokens[:, :-1], cos, sin, mask)
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) * micro / batch
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--binary", default=str(ROOT / "build/release/cli/trainyard"))
    args = parser.parse_args()
    job = read_json(args.job)
    model_spec, plan = read_json(args.job.parent / job["model"]), job["plan"]
    torch.set_num_threads(plan.get("cpu_threads", 1))
    ours = json.loads(subprocess.run([args.binary, "exec", "run", "--unvalidated", str(args.job), "--steps", str(args.steps), "--json", "-q",
                                      "--no-store"], check=True, capture_output=True).stdout)
    theirs = torch_step_s(model_spec, plan, args.steps)
    tokens = plan["global_batch_size"] * plan["sequence_length"]
    print(json.dumps({"job": job["name"], "threads": plan.get("cpu_threads", 1), "parameters": ours["parameters"],
                      "commit": ours["commit"], "trainyard_tokens_per_s": round(ours["tokens_per_s"]),
                      "torch": torch.__version__, "torch_tokens_per_s": round(tokens / theirs),
                      "ratio": round(ours["tokens_per_s"] * theirs / tokens, 3)}, indent=2))


if __name__ == "__main__":
    main()
