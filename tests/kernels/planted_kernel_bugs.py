"""Wrong kernels, by name: one line of the real source changed. The kernel checks must reject every one.

BUGS: name -> (module of kernels/, its line, the wrong line). CHECKS: module -> a check of what a mutant of the module computes.
"""
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from kernel_check import DEVICE, check_pair, close, tensors

import kernels
from kernels import reference
from minillama import nn, optim

RNG = np.random.default_rng(11)


def mutant(module, line, wrong, folder):
    """kernels/MODULE.py with one line changed, imported under another name; without its registration, which is the original's."""
    source = (Path(kernels.__file__).parent / f"{module}.py").read_text()
    assert source.count(line) >= 1, f"kernels/{module}.py has no {line!r} any more: the planted bug needs another line"
    path = folder / "mutant.py"
    path.write_text(source.replace(line, wrong, 1).split("@torch.library.custom_op")[0])
    spec = importlib.util.spec_from_file_location(f"kernels.{folder.name}", path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    try:
        spec.loader.exec_module(loaded)
    finally:
        del sys.modules[spec.name]
    return loaded


def rmsnorm(m):
    arrays = [RNG.standard_normal((500, 70)), RNG.standard_normal(70)]
    check_pair((m.rmsnorm_forward, m.rmsnorm_backward), (nn.rmsnorm_forward, nn.rmsnorm_backward), reference.rmsnorm_forward,
               arrays, torch.float32, ["dx", "dweight"], [1e-2])


def rope(m):
    cos, sin = nn.rope_tables(5, 6)
    tables = [torch.from_numpy(table).to(DEVICE) for table in (cos, sin)]
    check_pair((lambda x: m.rope_forward(x, *tables), m.rope_backward),
               (lambda x: nn.rope_forward(x, cos.astype(float), sin.astype(float)), nn.rope_backward),
               lambda x: reference.rope_forward(x, *tables), [RNG.standard_normal((2, 5, 3, 6))], torch.float32, ["dx"])


def swiglu(m):
    check_pair((m.swiglu_forward, m.swiglu_backward), (nn.swiglu_forward, nn.swiglu_backward), reference.swiglu_forward,
               list(RNG.standard_normal((2, 3, 1100))), torch.float32, ["dgate", "dup"])


def adamw(m):
    arrays = [*RNG.standard_normal((3, 40_000)).astype(np.float32), RNG.random(40_000, np.float32)]
    truth = [array.astype(float) for array in arrays]
    optim.clip_grad_norm(truth[1], 0.5)
    optim.adamw_step(*truth, 3, 1e-2)
    results = []
    for ops in (reference, m):
        tensors = [torch.from_numpy(array.copy()).to(DEVICE) for array in arrays]
        ops.adamw_step(*tensors, 3, 1e-2, coefficient=ops.clip_coefficient(tensors[1], 0.5)[1])
        results.append(tensors)
    for name, kernel, plain, true in zip(("param", "grad", "m", "v"), results[1], results[0], truth):
        if name != "grad":
            close(name, kernel, plain, true, torch.float32)


def cross_entropy(m):
    """The pair, over more than one block of columns, one of them all -inf; then in place, in one pass and in two."""
    targets = RNG.integers(5000, 5010, (2, 4))
    targets[0, 1] = nn.IGNORE
    logits = RNG.standard_normal((2, 4, 5010))
    logits[1, 2, :4096] = -np.inf
    check_pair((m.cross_entropy_forward, lambda dout, cache: (m.cross_entropy_backward(dout, cache),)),
               (nn.cross_entropy_forward, nn.cross_entropy_backward), reference.cross_entropy_forward,
               [logits, targets], torch.float32, ["dlogits"])
    for N, V in ((5, 300), (9, 16416), (5, 16401)):              # 9: more rows than programs
        logits, targets = RNG.standard_normal((N, V)), RNG.integers(0, V, N)
        targets[2] = nn.IGNORE
        logits, ids = tensors([logits, targets], torch.float32)
        seen = logits[None].double().cpu().numpy()
        truth = nn.cross_entropy_backward(1.0, nn.cross_entropy_forward(seen, targets[None])[1])[0]
        leaf = logits.clone().requires_grad_()
        plain, = torch.autograd.grad(reference.cross_entropy_forward(leaf[None], ids[None]), leaf)
        buffer = torch.cat([logits, logits], 1)
        m.cross_entropy_(buffer[:, :V], ids, m.inverse_count(ids))
        close("dlogits in place", buffer[:, :V], plain, truth, torch.float32)
        close("what lies beside them", buffer[:, V:], logits, seen[0], torch.float32)
        nats = m.cross_entropy_(logits.clone(), ids, m.inverse_count(ids))
        loss, plain = nn.cross_entropy_forward(seen, targets[None])[0], reference.cross_entropy_forward(logits[None], ids[None])
        close("loss in place", m.mean_nats(nats, m.inverse_count(ids)), plain, np.asarray(loss), torch.float32)


def linear_cross_entropy(m):
    """Chunks of 3 tokens, of which the first scores fewer than the others."""
    targets = RNG.integers(0, 33, (2, 5))
    targets[0, :2] = nn.IGNORE

    def forward(x, weight, targets):
        logits, linear = nn.linear_forward(x, weight)
        loss, cache = nn.cross_entropy_forward(logits, targets)
        return loss, (linear, cache)

    check_pair((lambda *arrays: m.linear_cross_entropy_forward(*arrays, chunk=3), m.linear_cross_entropy_backward),
               (forward, lambda dout, cache: nn.linear_backward(nn.cross_entropy_backward(dout, cache[1]), cache[0])),
               lambda x, weight, targets: reference.cross_entropy_forward(reference.linear_forward(x, weight), targets),
               [RNG.standard_normal((2, 5, 8)), RNG.standard_normal((33, 8)), targets], torch.float32, ["dx", "dweight"])


def embedding(m):
    """An id that fills tiles of the sorted positions, others that share one."""
    tokens = RNG.integers(0, 7, (2, 90))
    tokens[0] = 3
    forward = (lambda weight: m.embedding_forward(ids, weight)), (lambda weight: nn.embedding_forward(tokens, weight))
    ids, = tensors([tokens], torch.float32)
    check_pair((forward[0], m.embedding_backward), (forward[1], nn.embedding_backward),
               lambda weight: reference.embedding_forward(ids, weight),
               [RNG.standard_normal((7, 20))], torch.float32, ["dweight"])


def attention(m):
    """T is no multiple of any tile, and head_dim no power of two."""
    check_pair((m.attention_forward, m.attention_backward), (nn.attention_forward, nn.attention_backward), reference.attention_forward,
               list(RNG.standard_normal((3, 2, 77, 2, 10))), torch.float32, ["dq", "dk", "dv"])


CHECKS = {
    "rmsnorm": rmsnorm, "rope": rope, "swiglu": swiglu, "adamw": adamw,
    "cross_entropy": cross_entropy, "linear_cross_entropy": linear_cross_entropy, "embedding": embedding,
    "attention": attention,
}

BUGS = {
    "rmsnorm: eps outside the root": ("rmsnorm", "tl.sqrt(tl.sum(x * x, 1) / D + eps)", "(tl.sqrt(tl.sum(x * x, 1) / D) + eps)"),
    "rmsnorm: mean over the padded row": ("rmsnorm", "tl.sum(x * x, 1) / D", "tl.sum(x * x, 1) / BLOCK"),
    "rmsnorm: rows beyond the end are stored": ("rmsnorm", "tl.store(rstd_ptr + row, rstd, row < N)", "tl.store(rstd_ptr + row % N, rstd)"),
    "rmsnorm: one program's share of dweight is lost": ("rmsnorm", "(row < G)[:, None]", "(row < G - 1)[:, None]"),
    "rmsnorm: mean term has the wrong sign": ("rmsnorm", "(dn - n * along[:, None])", "(dn + n * along[:, None])"),
    "rmsnorm: gain forgotten": ("rmsnorm", "dn = dout * weight[None, :]", "dn = dout"),
    "rmsnorm: dweight of the last tile only": ("rmsnorm", "dweight += dout * n", "dweight = dout * n"),
    "rope: backward turns forward": ("rope", "sin = -sin", "sin = sin"),
    "rope: pairs of halves": (
        "rope", "tl.split(tl.reshape(x.to(tl.float32), (HEADS, BLOCK // 2, 2)))",
        "tl.split(tl.permute(tl.reshape(x.to(tl.float32), (HEADS, 2, BLOCK // 2)), (0, 2, 1)))"),
    "rope: every token at the first position": ("rope", "cos_ptr + time * half + pair", "cos_ptr + pair"),
    "swiglu: half of silu's derivative": ("swiglu", "(sigmoid + silu * (1.0 - sigmoid))", "sigmoid"),
    "swiglu: dup without the gate": ("swiglu", "(dout * silu)", "(dout * sigmoid)"),
    "swiglu: tail tile left out": ("swiglu", "return (N * triton.cdiv(F, block),)", "return (N * (F // block),)"),
    "adamw: eps inside the root": ("adamw", "(tl.sqrt(v) / root_correction + eps)", "tl.sqrt(v / root_correction / root_correction + eps)"),
    "adamw: no bias correction of v": ("adamw", "tl.sqrt(v) / root_correction", "tl.sqrt(v)"),
    "adamw: decay coupled to the moments": ("adamw", "beta1_rest * (grad - m)", "beta1_rest * (grad + 0.1 * param - m)"),
    "adamw: gradient not clipped": ("adamw", "grad *= coefficient", "grad *= 1.0"),
    "adamw: half of the norm": ("adamw", "tl.range(0, tl.cdiv(n, BLOCK), G", "tl.range(0, tl.cdiv(n, 2 * BLOCK), G"),
    "cross_entropy: sum not rescaled to the new maximum": ("cross_entropy", "total * _exp(peak - shift)[:, None] + ", "total + "),
    "cross_entropy: NaN from a block of -inf": (
        "cross_entropy", 'shift = tl.where(higher == float("-inf"), 0.0, higher)',
        "shift = higher"),
    "cross_entropy: onehot with the wrong sign": (
        "cross_entropy", "tl.where(hit, dlogits - factor, dlogits)",
        "tl.where(hit, dlogits + factor, dlogits)"),
    "cross_entropy: dout forgotten": (
        "cross_entropy", "tl.load(dout_ptr).to(tl.float32) * tl.load(scale_ptr) + nan",
        "tl.load(scale_ptr) + nan"),
    "cross_entropy: every program takes the first row": (
        "cross_entropy", "row = tl.cast(index, tl.int64)",
        "row = tl.cast(index, tl.int64) * 0"),
    "cross_entropy: rows taken to be dense": (
        "cross_entropy", "at = logits_ptr + row * stride + column\n",
        "at = logits_ptr + row * V + column\n"),
    "cross_entropy: last block keeps its logits": (
        "cross_entropy", "for behind in tl.range(0, blocks):",
        "for behind in tl.range(1, blocks):"),
    "cross_entropy: probability of the target with the wrong sign": ("cross_entropy", "(p - 1.0) * scale", "(p + 1.0) * scale"),
    "cross_entropy: targets of the program's first row only": (
        "cross_entropy", "(start + tl.arange(0, ROWS)).to(tl.int64) * G",
        "tl.arange(0, ROWS).to(tl.int64) * N"),
    "cross_entropy: padding counted": ("cross_entropy", "count += (target != IGNORED).to(tl.int32)", "count += 1"),
    "cross_entropy: last token left out": ("cross_entropy", "token < N, other=0.0)", "token < N - 1, other=0.0)"),
    "linear_cross_entropy: dweight of the last chunk only": ("linear_cross_entropy", "first=start == 0", "first=True"),
    "linear_cross_entropy: dout forgotten": ("linear_cross_entropy", "out = x * tl.load(dout_ptr).to(tl.float32)", "out = x"),
    "linear_cross_entropy: mean over one chunk": (
        "linear_cross_entropy", "inverse_count(flat_targets)",
        "inverse_count(flat_targets[:chunk])"),
    "linear_cross_entropy: dx always of the first chunk": (
        "linear_cross_entropy", "out=dx.view(N, D)[here])",
        "out=dx.view(N, D)[:len(logits)])"),
    "linear_cross_entropy: dweight summed in half precision": (
        "linear_cross_entropy", "torch.addmm(total, dlogits.t(), x, out=total, **options)",
        "total.copy_(torch.addmm(total, dlogits.t(), x).half())"),
    "embedding: rows between tiles twice": ("embedding", "tail = tl.maximum(head_end, last_tile * TILE)", "tail = last_tile * TILE"),
    "embedding: a shared tile taken as its own": ("embedding", "first_tile = tl.cdiv(first, TILE)", "first_tile = first // TILE"),
    "embedding: the tile after the last": ("embedding", "last_tile = end // TILE", "last_tile = tl.cdiv(end, TILE)"),
    "attention: a query sees the next key": ("attention", "s = tl.where(query[:, None] >= ", "s = tl.where(query[:, None] + 1 >= "),
    "attention: old output not shrunk": ("attention", "out *= shrink[:, None]", "out *= 1.0"),
    "attention: log-sum-exp in the wrong base": ("attention", "m + tl.log2(l)", "m + tl.log(l)"),
    "attention: dq without delta": ("attention", "ds = p * (dp - delta[:, None])", "ds = p * dp"),
    "attention: dq of the last tile only": ("attention", "dq = tl.dot(ds.to(k.dtype), k, dq, ", "dq = tl.dot(ds.to(k.dtype), k, "),
    "attention: dq without ln 2": ("attention", "dq = (dq * (scale * LN_2))", "dq = (dq * scale)"),
    "attention: dk and dv of the diagonal only": ("attention", "T if BEYOND else tl.minimum", "first if BEYOND else tl.minimum"),
    "attention: mask transposed": ("attention", "[None, :] >= key[:, None]", "[None, :] <= key[:, None]"),
    "attention: dk unscaled": ("attention", "dk = (dk * (scale * LN_2))", "dk = dk"),
}
