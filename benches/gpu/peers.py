"""PyTorch's times for the shapes of `ocellus bench` on the first GPU: peers.py FILE.json [PART...]

With parts only the cases whose `op/shape` contains one of them.

Medians of CUDA events around graphs of the calls, random bf16 inputs, input sets taking turns so that none is in the
cache. `forward` records no gradient, `step` is forward and backward. Every case tries each way PyTorch offers; the table
names the fastest.
"""

import itertools
import json
import statistics
import sys

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE, ROTATION = "cuda", 240 << 20
# Sequences, heads, tokens, head dimension: those of src/ops/attention/case.rs with one length.
ATTENTION = (
    (256, 16, 50, 64), (256, 16, 65, 80), (256, 16, 197, 32), (1024, 2, 64, 56), (128, 12, 257, 64),
    (64, 12, 1024, 64), (64, 16, 729, 72), (8, 16, 1370, 64), (1, 1, 4096, 256),
)  # fmt: skip
# The same with other keys: sequences, heads, queries, keys, head dimension.
CROSS = ((1, 1, 4096, 28736, 256), (256, 12, 1, 196, 64))
# The same with values of fewer columns: .., head dimension, that of values.
NARROW = ((1, 1, 4096, 28736, 256, 64),)


def randn(*shape, dtype=torch.bfloat16, grad=True):
    return torch.randn(shape, device=DEVICE, dtype=dtype).requires_grad_(grad)


def time_ms(f, sets):
    """Calls captured in a CUDA graph: what Python takes to launch them is not in the figure."""
    turns, calls = itertools.cycle(sets), max(4, len(sets))
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # as capturing wants it: what is compiled or allocated once is done before
        for _ in range(3):
            f(*next(turns))
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            f(*next(turns))
    times = []
    for turn in range(17):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if turn > 1:
            times.append(start.elapsed_time(end) / calls)
    return statistics.median(times)


def sets(make):
    first = make()
    size = sum(x.nbytes for x in first)
    return [first] + [make() for _ in range(min(15, ROTATION // size))]


def both(f, make, ways):
    """{what: {way: ms}} of `f` as it is and compiled."""
    inputs, result = sets(make), {"forward": {}, "step": {}}
    for way, g in ways(f):
        def step(*x):
            y = g(*x)
            y = y[0] if isinstance(y, tuple) else y
            leaves = [t for t in x if t.requires_grad]
            torch.autograd.grad(y, leaves, torch.ones_like(y) if y.dim() == 0 else y.detach())

        def forward(*x):
            with torch.no_grad():
                g(*x)

        kinds = [("forward", forward), ("step", step)]
        for what, h in kinds if any(x.requires_grad for x in inputs[0]) else kinds[:1]:
            try:
                result[what][way] = time_ms(h, inputs)
            except Exception as e:  # a backend that does not do this shape
                print(way, what, str(e).splitlines()[0][:100])
    return result


def usual(f):
    torch.compiler.reset()
    return [("eager", f), ("compile", torch.compile(f, dynamic=False))]


def backends(f):
    def by(backend):
        def g(*x):
            with sdpa_kernel(backend):
                return f(*x)
        return g
    names = ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"]
    return [(n.split("_")[0].lower(), by(getattr(SDPBackend, n))) for n in names]


def cross_attention(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))


def attention(qkv):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, N, 3, H, D]: views, as after a projection
    return F.scaled_dot_product_attention(q, k, v)


def sigmoid_pair_loss(x, y, t, b):
    """As open_clip writes it: the matrix of logits exists."""
    logits = x @ y.T * t.exp() + b
    labels = 2 * torch.eye(len(x), len(y), device=x.device, dtype=x.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(x)


def sinkhorn_knopp(z):
    """As DINOv2's repository writes it, on one device."""
    q = torch.exp(z.float() / 0.07).t()
    k, b = q.shape
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * k
        q /= q.sum(0, keepdim=True) * b
    return (q * b).t()


def prototype_cross_entropy(s, z):
    """Row by row, with a teacher by softmax: the probabilities exist."""
    return -(z.float().softmax(-1) * F.log_softmax(s.float() / 0.1, -1)).sum() / len(s)


def koleo(x):
    x = F.normalize(x.float(), eps=1e-8)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
    return -(F.pairwise_distance(x, x[nearest], 2, 1e-8) + 1e-8).log().mean()


def swiglu(x):
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


def fused_adamw(shapes):
    params = [torch.nn.Parameter(randn(*s, dtype=torch.float32, grad=False)) for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True, capturable=True)
    return {"forward": {"fused": time_ms(lambda: optimizer.step(), [()])}}


def cases():
    for b, h, n, d in ATTENTION:
        yield f"attention/{b}x{h}x{n}x{d}", lambda: both(attention, lambda: (randn(b, n, 3, h, d),), backends)
    for b, h, n, m, d in CROSS:
        operands = lambda: (randn(b, n, h, d), randn(b, m, h, d), randn(b, m, h, d))
        yield f"attention/{b}x{h}x{n}/{m}x{d}", lambda: both(cross_attention, operands, backends)
    for b, h, n, m, d, e in NARROW:
        operands = lambda: (randn(b, n, h, d), randn(b, m, h, d), randn(b, m, h, e))
        yield f"attention/{b}x{h}x{n}/{m}x{d}v{e}", lambda: both(cross_attention, operands, backends)
    weights = lambda c: (randn(c), randn(c))
    norm = lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, 1e-6)
    for r, c in ((12800, 1024), (50432, 512), (32896, 384), (46656, 1152)):
        yield f"layer_norm/{r}x{c}", lambda: both(norm, lambda: (randn(r, c), *weights(c)), usual)
        added = lambda x, y, w, b: norm(x + y, w, b)
        yield f"add_layer_norm/{r}x{c}", lambda: both(added, lambda: (randn(r, c), randn(r, c), *weights(c)), usual)
    for r, c in ((12800, 4096), (12800, 3072), (50432, 2048)):
        yield f"gelu/{r}x{c}", lambda: both(F.gelu, lambda: (randn(r, c),), usual)
    for r, c in ((16384, 1000), (49152, 257)):
        yield f"softmax/{r}x{c}", lambda: both(lambda x: x.softmax(-1), lambda: (randn(r, c),), usual)
    for r, c in ((50176, 3072), (46656, 4304)):
        yield f"gelu/{r}x{c}-tanh", lambda: both(lambda x: F.gelu(x, approximate="tanh"), lambda: (randn(r, c),), usual)
    for r, c in ((6448, 4096), (10968, 4096), (17416, 2736)):
        yield f"swiglu/{r}x{c}", lambda: both(swiglu, lambda: (randn(r, 2 * c),), usual)
    for n, d in ((4096, 768), (32768, 768)):
        scalars = lambda: (torch.tensor([x], device=DEVICE, requires_grad=True) for x in (2.3, -10.0))
        unit = lambda: F.normalize(randn(n, d, grad=False), dim=-1).requires_grad_()
        yield f"sigmoid_pair_loss/{n}x{d}", lambda: both(sigmoid_pair_loss, lambda: (unit(), unit(), *scalars()), usual)
        yield f"l2_normalize/{n}x{d}", lambda: both(lambda x: F.normalize(x, dim=-1), lambda: (randn(n, d),), usual)
    for r, k in ((64, 131072), (2458, 131072), (4096, 65536)):
        logits = lambda: (0.3 * randn(r, k, grad=False),)
        yield f"sinkhorn_knopp/{r}x{k}-t0.07-n3", lambda: both(sinkhorn_knopp, logits, usual)
    for r, k in ((2458, 131072), (4096, 65536)):
        pair = lambda: (randn(r, k), randn(r, k, grad=False))
        yield f"prototype_cross_entropy/{r}x{k}-of{r}x1", lambda: both(prototype_cross_entropy, pair, usual)
    yield "koleo/1x4096x1024", lambda: both(koleo, lambda: (randn(4096, 1024),), usual)
    import timm

    for name, id in (("vit_small_patch16_224", "vit_s"), ("vit_base_patch16_224", "vit_b")):
        shapes = [tuple(p.shape) for p in timm.create_model(name).parameters()]
        yield f"adamw/{id}", lambda: fused_adamw(shapes)


def main():
    x, y = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE), torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    x.random_()
    copy = time_ms(lambda: y.copy_(x), [()])
    a, b = randn(8192, 8192, grad=False), randn(8192, 8192, grad=False)
    gemm = time_ms(lambda: a @ b, [()])
    result = {
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
        "copy_tb_s": round(2 * x.nbytes / copy / 1e9, 3),
        "gemm_tflop_s": round(2 * 8192**3 / gemm / 1e9, 1),
        "cases": {},
    }
    print(result)
    del x, y, a, b
    parts = sys.argv[2:] or [""]
    for id, run in ((id, run) for id, run in cases() if any(part in id for part in parts)):
        result["cases"][id] = run()
        print(id, result["cases"][id], flush=True)
        json.dump(result, open(sys.argv[1], "w"), indent=1)


main()
