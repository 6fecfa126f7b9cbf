"""Golden of a tiny GPT-3-like model: LayerNorm, learned positions, biases, plain GELU (tanh), tied head.

Plain torch, float64, with Hugging Face's GPT-2 tensor names and its Conv1D layout (weights stored
[in, out], q, k and v in one tensor). Run here: python3 gen_gpt3.py writes gpt3_f64.safetensors.
With --check-transformers it also compares losses and gradients with transformers' own GPT2LMHeadModel.
"""
import sys

import torch
import torch.nn.functional as F

from model import save_safetensors

VOCAB, HIDDEN, LAYERS, HEADS, WIDTH, POSITIONS, EPS = 64, 32, 2, 4, 64, 16, 1e-5
LEARNING_RATE, BETAS, ADAM_EPS, WEIGHT_DECAY, STEPS = 1e-2, (0.9, 0.95), 1e-8, 0.1, 3


def shapes():
    out = {"transformer.wte.weight": (VOCAB, HIDDEN), "transformer.wpe.weight": (POSITIONS, HIDDEN)}
    for layer in range(LAYERS):
        h = f"transformer.h.{layer}."
        for name, (rows, columns) in {
            "attn.c_attn": (HIDDEN, 3 * HIDDEN),
            "attn.c_proj": (HIDDEN, HIDDEN),
            "mlp.c_fc": (HIDDEN, WIDTH),
            "mlp.c_proj": (WIDTH, HIDDEN),
        }.items():
            out[h + name + ".weight"], out[h + name + ".bias"] = (rows, columns), (columns,)
        for name in ("ln_1", "ln_2"):
            out[h + name + ".weight"] = out[h + name + ".bias"] = (HIDDEN,)
    out["transformer.ln_f.weight"] = out["transformer.ln_f.bias"] = (HIDDEN,)
    return out


def initial(seed):
    """Biases and norms too start at random, so that none of them hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for name, shape in shapes().items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 1:
            value = 0.1 * value + (1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        else:
            value = value * (0.05 if ".wte." in name or ".wpe." in name else shape[0] ** -0.5)
        params[name] = value.requires_grad_(True)
    return params


def forward(params, tokens):
    batch, length = tokens.shape
    conv1d = lambda x, name: x @ params[name + ".weight"] + params[name + ".bias"]
    norm = lambda x, name: F.layer_norm(x, (HIDDEN,), params[name + ".weight"], params[name + ".bias"], EPS)
    heads = lambda x: x.view(batch, length, HEADS, HIDDEN // HEADS).transpose(1, 2)
    x = params["transformer.wte.weight"][tokens] + params["transformer.wpe.weight"][:length]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(LAYERS):
        h = f"transformer.h.{layer}."
        q, k, v = map(heads, conv1d(norm(x, h + "ln_1"), h + "attn.c_attn").split(HIDDEN, 2))
        scores = (q @ k.transpose(2, 3) * (HIDDEN // HEADS) ** -0.5).masked_fill(future, float("-inf"))
        o = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, HIDDEN)
        x = x + conv1d(o, h + "attn.c_proj")
        up = conv1d(norm(x, h + "ln_2"), h + "mlp.c_fc")
        x = x + conv1d(F.gelu(up, approximate="tanh"), h + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ params["transformer.wte.weight"].T


def loss_of(params, tokens):
    return F.cross_entropy(forward(params, tokens[:, :-1]).reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))


def check_transformers(out):
    """Two authors, one model: the same loss and gradients as transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCAB, n_positions=POSITIONS, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS,
                        n_inner=WIDTH, activation_function="gelu_new", layer_norm_epsilon=EPS,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    theirs = GPT2LMHeadModel(config).double()
    weights = {name[len("init."):]: value for name, value in out.items() if name.startswith("init.")}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name == "lm_head.weight" or ".attn.bias" in name or ".masked_bias" in name for name in missing), missing
    logits = theirs(out["tokens"][:, :-1]).logits
    loss = F.cross_entropy(logits.reshape(-1, VOCAB), out["tokens"][:, 1:].reshape(-1))
    loss.backward()
    worst = abs(loss.item() / out["loss.0"].item() - 1)
    for name, parameter in theirs.named_parameters():
        mine = out["grad." + name]
        worst = max(worst, ((parameter.grad - mine).norm() / mine.norm()).item())
    print("transformers: largest relative difference of loss and gradients", worst)
    assert worst < 1e-12


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    params = initial(1234)
    tokens = torch.randint(0, VOCAB, (2, POSITIONS + 1), generator=torch.Generator().manual_seed(7))
    out = {"tokens": tokens}
    out.update({"init." + name: p.detach().clone() for name, p in params.items()})
    groups = [{"params": [p for p in params.values() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
              {"params": [p for p in params.values() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=ADAM_EPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(params, tokens)
        loss.backward()
        if step == 0:
            out.update({"grad." + name: p.grad.clone() for name, p in params.items()})
        out[f"loss.{step}"] = loss.detach().reshape(1)
        out[f"gradnorm.{step}"] = torch.sqrt(sum((p.grad**2).sum() for p in params.values())).reshape(1)
        optimizer.step()
    out.update({"final." + name: p.detach().clone() for name, p in params.items()})
    save_safetensors("gpt3_f64.safetensors", out, {
        "torch": torch.__version__,
        "adamw": f"lr={LEARNING_RATE},betas={BETAS},eps={ADAM_EPS},wd={WEIGHT_DECAY} on 2-D",
        "cfg": f"vocab={VOCAB},d={HIDDEN},layers={LAYERS},heads={HEADS},ff={WIDTH},positions={POSITIONS},eps={EPS}",
    })
    print("losses", [out[f"loss.{s}"].item() for s in range(STEPS)], "gradient norm", out["gradnorm.0"].item())
    if "--check-transformers" in sys.argv:
        check_transformers(out)


if __name__ == "__main__":
    main()
