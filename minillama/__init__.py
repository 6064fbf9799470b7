"""minillama: LLaMA-1 from scratch in readable NumPy, every gradient written by hand.

The contract, once for every op of `minillama.nn` (and its twin of the same name in `kernels`):

    out, cache = X_forward(arrays..., scalars...)
    dA, dB, ... = X_backward(dout, cache)

1. Backward returns one gradient per differentiable array of forward, in forward's order, with that array's
   shape and dtype. `dname` always means dLoss/d(name).
2. Ops are pure: no argument, cache or `dout` is modified, and calling backward twice gives the same arrays.
   `out=` (where an op takes it) is a buffer the caller owns; the result is written there and returned.
3. Backward returns, it never accumulates: a `+` stands exactly where forward uses a value more than once.
4. `cache` is a plain tuple, private to its forward/backward pair.
5. Composites keep their children's caches and call the children in reverse order.
6. dtype in = dtype out, float32 or float64.
7. Ops do not validate, so that the math stays visible; `model_forward`, the data loader and the command line do.
8. Parameters are one flat dict with Meta's names: `tok_embeddings`, `layers.0.attention_norm`, `layers.0.wq`, ...
   `norm`, `output`; `w1`, `w2`, `w3` are gate, down, up. Gradients have the same keys.
9. RoPE rotates adjacent pairs (x0, x1), (x2, x3), ... as LLaMA-1 does.

The project's words, one meaning each:

    checkpoint        the folder of one finished step: the model, and what training needs to go on from it
    document          one text of a source; in a shard it stands between <s> and </s>
    piece             an entry of a tokenizer's vocabulary, and nothing else
    source            where text comes from: a file, or one of the built-in languages
    shard             one source, tokenised, on disk: a training stream and a validation stream
    batch_splits      sub-batches of a batch that threads compute side by side; changes speed and rounding, nothing else
    grad_accum_steps  micro-batches per optimiser step; their gradients are averaged by token
    world, rank       the processes that train one run together, and the number of one of them
    entropy floor     the exact information of a text, nats/token: no model does better on average. No other limit is a floor
    roofline          the bytes or FLOPs that an op must spend at least, and the time that follows from them
    ModelConfig       the shape of a model: sizes, no arrays
    params            the arrays of a model in memory: the flat dict of point 8
    Model             a model as `minillama.interop` reads and writes it: ModelConfig, tensors, tokenizer

The axis letters of every shape comment:

    B  batch    T  time (positions)    D   dim (model width)      H  heads    Dh  head_dim = D / H
    F  hidden (feed-forward width)     V   vocabulary             L  layers   N   tokens = B * T
"""

__version__ = "0.1.0"
