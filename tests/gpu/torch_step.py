#!/usr/bin/env python3
"""One optimizer step of a model in PyTorch, as its users write it: what our step is set beside.

    python3 tests/gpu/torch_step.py scenarios/models/llama-1b.json --sequence 4096 --micro-batch 4 --micro-batches 4

Weights in float32 under bf16 autocast (`--pure-bf16`: weights in bf16, with no float32 copy of them: less work than ours),
torch.compile, fused AdamW with clipping, scaled_dot_product_attention, or FlexAttention where scores are capped; experts by
grouped products. Prints JSON: seconds of a step (median), tokens/s, peak memory.
"""

import argparse
import json
import re
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


def read(path):
    return json.loads(re.sub(r"^\s*//.*$|(?<=[,{}\[\]\s])//.*$", "", open(path).read(), flags=re.M))


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    def __init__(self, m):
        super().__init__()
        d, self.h, self.k, self.dh = m["hidden_size"], m["num_attention_heads"], m["num_key_value_heads"], m["head_dim"]
        self.qkv = nn.Linear(d, (self.h + 2 * self.k) * self.dh, bias=False)
        self.out = nn.Linear(self.h * self.dh, d, bias=False)
        self.scale, self.cap = m.get("attention_multiplier", self.dh**-0.5), m.get("attention_softcap", 0)
        self.mask = None

    def forward(self, x, cos, sin):
        b, s, _ = x.shape
        q, k, v = self.qkv(x).split((self.h * self.dh, self.k * self.dh, self.k * self.dh), -1)
        q, k, v = (t.view(b, s, -1, self.dh).transpose(1, 2) for t in (q, k, v))
        q, k = rope(q, cos, sin).to(v.dtype), rope(k, cos, sin).to(v.dtype)
        if self.cap:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention
            if self.mask is None:
                self.mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, s, s, device=x.device)
            cap = self.cap
            y = flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: cap * torch.tanh(score / cap),
                               block_mask=self.mask, scale=self.scale, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(b, s, -1))


ACTIVATIONS = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu}


class Mlp(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.up = nn.Linear(m["hidden_size"], 2 * m["intermediate_size"], bias=False)
        self.down = nn.Linear(m["intermediate_size"], m["hidden_size"], bias=False)
        self.act = ACTIVATIONS[m["hidden_act"]]

    def forward(self, x):
        gate, up = self.up(x).chunk(2, -1)
        return self.down(self.act(gate) * up)


class Experts(nn.Module):
    def __init__(self, m):
        super().__init__()
        d, f = m["hidden_size"], m["intermediate_size"]
        self.e, self.k = m["moe"]["num_local_experts"], m["moe"]["num_experts_per_tok"]
        self.renormalize = m["moe"].get("renormalize", False)
        self.router = nn.Linear(d, self.e, bias=False)
        self.up = nn.Parameter(torch.empty(self.e, d, 2 * f).normal_(std=0.02))
        self.down = nn.Parameter(torch.empty(self.e, f, d).normal_(std=0.02))
        self.act = ACTIVATIONS[m["hidden_act"]]

    def forward(self, x):
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        probs, experts = torch.softmax(self.router(x).float(), -1).topk(self.k, -1)
        if self.renormalize:
            probs = probs / probs.sum(-1, keepdim=True)
        order = experts.flatten().argsort(stable=True)
        ends = torch.bincount(experts.flatten(), minlength=self.e).cumsum(0).to(torch.int32)
        rows = x[order // self.k].to(torch.bfloat16)
        gate, up = torch._grouped_mm(rows, self.up.to(torch.bfloat16), offs=ends).chunk(2, -1)
        y = torch._grouped_mm(self.act(gate) * up, self.down.to(torch.bfloat16), offs=ends)
        y = y * probs.flatten()[order].unsqueeze(-1).to(y.dtype)
        return torch.zeros_like(x, dtype=y.dtype).index_add(0, order // self.k, y).view(shape)


class Layer(nn.Module):
    def __init__(self, m):
        super().__init__()
        d, eps = m["hidden_size"], m.get("norm_eps", 1e-5)
        self.sandwich = m.get("norm_placement") == "sandwich"
        self.norms = nn.ModuleList(nn.RMSNorm(d, eps) for _ in range(4 if self.sandwich else 2))
        self.attention = Attention(m)
        self.mlp = Experts(m) if "moe" in m else Mlp(m)

    def forward(self, x, cos, sin):
        a = self.attention(self.norms[0](x), cos, sin)
        x = x + (self.norms[2](a) if self.sandwich else a)
        f = self.mlp(self.norms[1](x))
        return x + (self.norms[3](f) if self.sandwich else f)


class Model(nn.Module):
    def __init__(self, m, sequence):
        super().__init__()
        self.m = m
        self.embedding = nn.Embedding(m["vocab_size"], m["hidden_size"])
        self.layers = nn.ModuleList(Layer(m) for _ in range(m["num_hidden_layers"]))
        self.norm = nn.RMSNorm(m["hidden_size"], m.get("norm_eps", 1e-5))
        self.head = nn.Linear(m["hidden_size"], m["vocab_size"], bias=False)
        if m.get("tie_word_embeddings"):
            self.head.weight = self.embedding.weight
        frequency = m.get("rope_theta", 10000.0) ** (-torch.arange(0, m["head_dim"], 2).float() / m["head_dim"])
        angle = torch.arange(sequence).float()[:, None] * frequency
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, labels):
        x = self.embedding(tokens) * self.m.get("embedding_multiplier", 1.0)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = self.head(self.norm(x)).float() * self.m.get("output_multiplier", 1.0)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pure-bf16", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    m = read(options.model)
    m.setdefault("head_dim", m["hidden_size"] // m["num_attention_heads"])
    m.setdefault("num_key_value_heads", m["num_attention_heads"])
    with torch.device("cuda"):
        model = Model(m, options.sequence)
    if options.pure_bf16:
        model = model.to(torch.bfloat16)
        model.cos, model.sin = model.cos.float(), model.sin.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    step_fn = torch.compile(model)
    text = torch.randint(0, 256, (options.micro_batches, options.micro_batch, options.sequence + 1), device="cuda")
    times, losses = [], []
    for _ in range(options.steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        total = 0.0
        for tokens in text:
            with torch.autocast("cuda", torch.bfloat16, enabled=not options.pure_bf16):
                loss = step_fn(tokens[:, :-1], tokens[:, 1:]) / options.micro_batches
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(total))
        times.append(time.perf_counter() - begin)
    seconds = statistics.median(times[3:])
    tokens = options.micro_batches * options.micro_batch * options.sequence
    print(json.dumps({"torch": torch.__version__, "model": m["name"], "pure_bf16": options.pure_bf16,
                      "step_time_s": seconds, "tokens_per_s": tokens / seconds, "losses": losses,
                      "peak_bytes": torch.cuda.max_memory_allocated()}))


if __name__ == "__main__":
    main()
