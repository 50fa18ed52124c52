# The same workloads in PyTorch, one thread: a JSON line each with the least milliseconds.
import ctypes
import json
import math
import resource
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
SIZES = json.loads(sys.argv[1])


def report(name, ms, **more):
    print(json.dumps({"name": name, "ms": ms, **more}), flush=True)


def least(run, budget):
    run()
    best, end = math.inf, time.perf_counter() + budget
    for i in range(200):
        if i >= 3 and time.perf_counter() > end:
            break
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best * 1000


def weight(*shape):
    return (torch.randn(*shape) * 0.02).requires_grad_()


def zeros(*shape):
    return torch.zeros(*shape).requires_grad_()


def ones(*shape):
    return torch.ones(*shape).requires_grad_()


def attention(qkv, s):
    b, n, h, d = s["batch"], s["seq"], s["heads"], s["d"]
    q, k, v = qkv.view(b, n, 3, h, d // h).permute(2, 0, 3, 1, 4).unbind(0)
    scores = q @ k.transpose(-1, -2) / math.sqrt(d // h)
    hidden = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
    out = F.softmax(scores.masked_fill(hidden, -1e9), -1) @ v
    return out.transpose(1, 2).reshape(b * n, d)


def tokens(s, shift):
    return torch.tensor([(i * 7919 + shift) % s["vocab"] for i in range(s["batch"] * s["seq"])])


def trainer(loss, variables):
    optimizer = torch.optim.Adam(variables, lr=1e-3)

    def step():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def transformer(s):
    d, f = s["d"], s["ffn"]
    embedding, places, head = weight(s["vocab"], d), weight(s["seq"], d), weight(d, s["vocab"])
    blocks = [
        dict(n1=(ones(d), zeros(d)), qkv=(weight(d, 3 * d), zeros(3 * d)), out=(weight(d, d), zeros(d)),
             n2=(ones(d), zeros(d)), up=(weight(d, f), zeros(f)), down=(weight(f, d), zeros(d)))
        for _ in range(s["layers"])
    ]
    norm = (ones(d), zeros(d))
    variables = [embedding, places, head, *norm] + [v for b in blocks for pair in b.values() for v in pair]
    x, y = tokens(s, 0), tokens(s, 1)

    def loss():
        h = (F.embedding(x, embedding).view(s["batch"], s["seq"], d) + places).view(-1, d)
        for b in blocks:
            a = attention(torch.addmm(b["qkv"][1], F.layer_norm(h, (d,), *b["n1"]), b["qkv"][0]), s)
            h = h + torch.addmm(b["out"][1], a, b["out"][0])
            u = F.gelu(torch.addmm(b["up"][1], F.layer_norm(h, (d,), *b["n2"]), b["up"][0]))
            h = h + torch.addmm(b["down"][1], u, b["down"][0])
        return F.cross_entropy(F.layer_norm(h, (d,), *norm) @ head, y)

    return trainer(loss, variables)


def lora(s):
    d, f, r = s["d"], s["ffn"], s["rank"]
    variables = []

    def linear(n, m):
        w, a, b = torch.randn(n, m) * 0.02, weight(n, r), zeros(r, m)
        variables.extend([a, b])
        return lambda x: x @ w + (x @ a) @ b

    norm = (torch.ones(d), torch.zeros(d))
    embedding, head = torch.randn(s["vocab"], d) * 0.02, torch.randn(d, s["vocab"]) * 0.02
    blocks = [(linear(d, 3 * d), linear(d, d), linear(d, f), linear(f, d)) for _ in range(s["layers"])]
    x, y = tokens(s, 0), tokens(s, 1)

    def loss():
        h = F.embedding(x, embedding)
        for qkv, out, up, down in blocks:
            h = h + out(attention(qkv(F.layer_norm(h, (d,), *norm)), s))
            h = h + down(F.gelu(up(F.layer_norm(h, (d,), *norm))))
        return F.cross_entropy(F.layer_norm(h, (d,), *norm) @ head, y)

    return trainer(loss, variables)


def cnn(s):
    image = torch.randn(s["batch"], 1, s["size"], s["size"])
    labels = torch.tensor([i % s["classes"] for i in range(s["batch"])])
    f1, f2 = s["filters"]
    flat = (s["size"] // 4) ** 2 * f2
    convs = [(weight(f1, 1, 3, 3), zeros(f1)), (weight(f2, f1, 3, 3), zeros(f2))]
    w1, b1, w2, b2 = weight(flat, s["hidden"]), zeros(s["hidden"]), weight(s["hidden"], s["classes"]), zeros(s["classes"])

    def loss():
        h = image
        for w, b in convs:
            h = F.max_pool2d(F.relu(F.conv2d(h, w, b, padding=1)), 2)
        h = F.relu(torch.addmm(b1, h.flatten(1), w1))
        return F.cross_entropy(torch.addmm(b2, h, w2), labels)

    return trainer(loss, [v for pair in convs for v in pair] + [w1, b1, w2, b2])


SECTIONS = (sys.argv[2] if len(sys.argv) > 2 else "transformer,lora,cnn,adam,matmul").split(",")
for name, make in dict(transformer=transformer, lora=lora, cnn=cnn).items():
    if name not in SECTIONS:
        continue
    step = make(SIZES[name])
    first = step()
    report(name, least(step, 2), first=first)

if "adam" in SECTIONS:
    w, g = weight(SIZES["adam"]), torch.randn(SIZES["adam"])
    optimizer = torch.optim.Adam([w], lr=1e-3)
    w.grad = g
    report("adam", least(optimizer.step, 1))

for n in SIZES["matmul"] if "matmul" in SECTIONS else []:
    a, b = torch.randn(n, n), torch.randn(n, n)
    for ta in (False, True):
        for tb in (False, True):
            x, y = a.t() if ta else a, b.t() if tb else b
            report(f"matmul {n} {'t' if ta else 'n'}{'t' if tb else 'n'}", least(lambda: x @ y, 0.25))

if "structured" in SECTIONS:
    rows = SIZES["structured"]["rows"]
    for n in SIZES["structured"]["widths"]:
        x, k, dy = weight(rows, n), weight(n, n), torch.randn(rows, n)
        report(f"dense {n}", least(lambda: torch.autograd.grad(x @ k, (x, k), dy), 0.3))

if "factors" in SECTIONS:
    (n, m), rank = SIZES["pissa"]["kernel"], SIZES["pissa"]["rank"]
    square, kernel = torch.randn(512, 512), torch.randn(n, m) / math.sqrt(n)
    report("svd 512", least(lambda: torch.linalg.svd(square, full_matrices=False), 0.5))
    report(f"svd {n}x{m}", least(lambda: torch.linalg.svd(kernel, full_matrices=False), 0.5))
    report(f"randomized svd {n}x{m}", least(lambda: torch.svd_lowrank(kernel, rank, niter=4), 0.5))


def blas():
    """The BLAS that this process has really loaded, and the core that OpenBLAS chose: names of packages say neither."""
    files = {line.split()[-1] for line in open("/proc/self/maps") if "blas" in line.split()[-1]}
    for file in sorted(files):
        if "openblas" in file:
            library = ctypes.CDLL(file)
            library.openblas_get_corename.restype = ctypes.c_char_p
            return {"blas": "openblas", "core": library.openblas_get_corename().decode()}
    return {"blas": "mkl" if torch.backends.mkl.is_available() else "reference" if files else "unknown", "core": None}


report("memory", 0, **blas(), rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, version=torch.__version__)
