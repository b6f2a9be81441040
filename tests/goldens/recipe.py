"""The masked autoencoder and its training in plain torch, written from the papers: what `make.py` makes goldens of."""

import math

import torch
import torch.nn.functional as F


class Draw:
    """Random float32 values, handed out in the type of the run."""

    def __init__(self, seed, dtype):
        self.rng, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape, std=1.0, mean=0.0):
        return (torch.randn(shape, generator=self.rng) * std + mean).to(self.dtype)

    def uniform(self, *shape):
        return torch.rand(shape, generator=self.rng).to(self.dtype)

    def classes(self, n, *shape):
        return torch.randint(n, shape, generator=self.rng)


# ---- the model, written from the paper -----------------------------------------------------------------------------------


def pair(size):
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


def grid_of(c):
    h, w = pair(c["img_size"])
    return h // c["patch_size"], w // c["patch_size"]


def sincos(dim, rows, cols, class_row=True):
    """[sin(x w) | cos(x w) | sin(y w) | cos(y w)], the column first."""
    w = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    x, y = x.reshape(-1, 1) * w, y.reshape(-1, 1) * w
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)
    table = torch.cat([torch.zeros(1, dim, dtype=torch.float64), table]) if class_row else table
    return table.float()


def patchify(x, p):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, h // p * (w // p), p * p * c)


def unpatchify(x, p, grid):
    b, _, v = x.shape
    x = x.reshape(b, *grid, p, p, v // p // p).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, -1, grid[0] * p, grid[1] * p)


def linear(r, p, name, out, into):
    p[f"{name}.weight"] = r.normal(out, into, std=into**-0.5)
    p[f"{name}.bias"] = r.normal(out, std=0.1)


def norm(r, p, name, dim):
    p[f"{name}.weight"] = r.normal(dim, std=0.2, mean=1.0)
    p[f"{name}.bias"] = r.normal(dim, std=0.1)


def block_params(r, p, at, dim, hidden):
    norm(r, p, f"{at}norm1", dim)
    linear(r, p, f"{at}attn.qkv", 3 * dim, dim)
    linear(r, p, f"{at}attn.proj", dim, dim)
    norm(r, p, f"{at}norm2", dim)
    linear(r, p, f"{at}mlp.fc1", hidden, dim)
    linear(r, p, f"{at}mlp.fc2", dim, hidden)


def encoder_params(r, c, last="norm", table=None):
    p, dim, patch, chans = {}, c["embed_dim"], c["patch_size"], c.get("in_chans", 3)
    p["cls_token"] = r.normal(1, 1, dim, std=0.5)
    p["pos_embed"] = sincos(dim, *grid_of(c))[None].to(r.dtype) if table is None else table
    p["patch_embed.proj.weight"] = r.normal(dim, chans, patch, patch, std=(chans * patch * patch) ** -0.5)
    p["patch_embed.proj.bias"] = r.normal(dim, std=0.1)
    for i in range(c["depth"]):
        block_params(r, p, f"blocks.{i}.", dim, int(dim * c["mlp_ratio"]))
    norm(r, p, last, dim)
    return p


def decoder_params(r, c):
    p, dim = {}, c["decoder_embed_dim"]
    linear(r, p, "decoder_embed", dim, c["embed_dim"])
    p["mask_token"] = r.normal(1, 1, dim, std=0.5)
    p["decoder_pos_embed"] = sincos(dim, *grid_of(c))[None].to(r.dtype)
    for i in range(c["decoder_depth"]):
        block_params(r, p, f"decoder_blocks.{i}.", dim, int(dim * c["mlp_ratio"]))
    norm(r, p, "decoder_norm", dim)
    linear(r, p, "decoder_pred", c["patch_size"] ** 2 * c.get("in_chans", 3), dim)
    return p


def layer(p, name, x):
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def layer_norm(p, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)


def block(p, at, x, heads, eps, drop=(None, None)):
    """A pre-norm block; `drop`: factors [B] of the two branches. Returns the output and what else a file may pin."""
    b, n, d = x.shape
    scaled = lambda y, f: y if f is None else y * f[:, None, None]
    q, k, v = layer(p, f"{at}attn.qkv", layer_norm(p, f"{at}norm1", x, eps)).reshape(b, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
    probs = ((q @ k.transpose(-1, -2)) * (d // heads) ** -0.5).softmax(-1)
    attn = layer(p, f"{at}attn.proj", (probs @ v).transpose(1, 2).reshape(b, n, d))
    x = x + scaled(attn, drop[0])
    fc1 = layer(p, f"{at}mlp.fc1", layer_norm(p, f"{at}norm2", x, eps))
    y = x + scaled(layer(p, f"{at}mlp.fc2", F.gelu(fc1)), drop[1])
    return y, {"attn_out": attn, "attn_probs": probs, "fc1_out": fc1}


def embed(p, c, imgs):
    x = F.conv2d(imgs, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=c["patch_size"])
    return x.flatten(2).transpose(1, 2) + p["pos_embed"][:, 1:]


def with_class(p, x):
    return torch.cat([(p["cls_token"] + p["pos_embed"][:, :1]).expand(len(x), -1, -1), x], 1)


def masking(noise, ratio):
    """Kept ids in noise order, rank of each patch, mask (1 = removed)."""
    keep = int(noise.shape[1] * (1 - ratio))
    shuffle = noise.argsort(dim=1, stable=True)
    restore = shuffle.argsort(1)
    return shuffle[:, :keep], restore, (restore >= keep).to(noise.dtype)


def gather(x, ids):
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[2]))


def encode(p, c, imgs, noise):
    kept, restore, mask = masking(noise, c["mask_ratio"])
    x = with_class(p, gather(embed(p, c, imgs), kept))
    for i in range(c["depth"]):
        x, _ = block(p, f"blocks.{i}.", x, c["num_heads"], c["ln_eps"])
    return layer_norm(p, "norm", x, c["ln_eps"]), restore, mask


def decode(p, c, latent, restore):
    z = layer(p, "decoder_embed", latent)
    fill = p["mask_token"].expand(len(z), restore.shape[1] + 1 - z.shape[1], -1)
    x = torch.cat([z[:, :1], gather(torch.cat([z[:, 1:], fill], 1), restore)], 1) + p["decoder_pos_embed"]
    for i in range(c["decoder_depth"]):
        x, _ = block(p, f"decoder_blocks.{i}.", x, c["decoder_num_heads"], c["ln_eps"])
    return layer(p, "decoder_pred", layer_norm(p, "decoder_norm", x, c["ln_eps"]))[:, 1:]


def target_of(imgs, patch, norm_pix):
    t = patchify(imgs, patch)
    return (t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True) + 1e-6).sqrt() if norm_pix else t


def mae(p, c, imgs, noise):
    latent, restore, mask = encode(p, c, imgs, noise)
    pred = decode(p, c, latent, restore)
    each = (pred - target_of(imgs, c["patch_size"], c.get("norm_pix_loss", False))).square().mean(-1)
    return (each * mask).sum() / mask.sum(), latent, pred, restore, mask


def classifier_features(p, c, imgs, drops=None):
    x = with_class(p, embed(p, c, imgs))
    for i in range(c["depth"]):
        x, _ = block(p, f"blocks.{i}.", x, c["num_heads"], c["ln_eps"], drops[i] if drops else (None, None))
    if c["global_pool"]:
        return layer_norm(p, "fc_norm", x[:, 1:].mean(1), c["ln_eps"])
    return layer_norm(p, "norm", x, c["ln_eps"])[:, 0]


def classify(p, c, imgs, drops=None):
    return layer(p, "head", classifier_features(p, c, imgs, drops))


# ---- training ------------------------------------------------------------------------------------------------------------


def lr_at(c, epoch):
    if epoch < c["warmup_epochs"]:
        return c["lr"] * epoch / c["warmup_epochs"]
    part = (epoch - c["warmup_epochs"]) / (c["epochs"] - c["warmup_epochs"])
    return c["min_lr"] + (c["lr"] - c["min_lr"]) * 0.5 * (1 + math.cos(math.pi * part))


def drop_factors(r, c, store):
    """Factors of the branches of each block from uniform numbers, which go into `store`; rate 0 draws none."""
    factors = []
    for i, rate in enumerate(c["drop_path_per_block"]):
        both = []
        for branch in ("attn", "mlp"):
            u = r.uniform(c["batch"]) if rate else None
            if rate:
                store(f"{i}.{branch}", u)
            both.append(None if u is None else (1 - rate + u).floor() / (1 - rate))
        factors.append(tuple(both))
    return factors


def smoothed_loss(logits, target, s):
    logp = logits.log_softmax(-1)
    nll = -logp.gather(1, target[:, None])[:, 0]
    return ((1 - s) * nll - s * logp.mean(-1)).mean()


def finetune_groups(p, c):
    """name -> factor of the learning rate, weight decay."""
    groups, last = {}, c["depth"] + 1
    for name, t in p.items():
        at = 0 if name in ("cls_token", "pos_embed") or name.startswith("patch_embed") else last
        at = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else at
        exempt = t.ndim == 1 or name in ("cls_token", "pos_embed")
        groups[name] = {"lr_scale": c["layer_decay"] ** (last - at), "weight_decay": 0.0 if exempt else c["weight_decay"]}
    return groups


def adamw(p, c, groups):
    made = [{"params": [p[n]], "lr_scale": g["lr_scale"], "weight_decay": g["weight_decay"]} for n, g in groups.items()]
    return torch.optim.AdamW(made, lr=0.0, betas=tuple(c["betas"]), eps=c["adam_eps"], foreach=False)


def adamw_step(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    optimizer.step()
    optimizer.zero_grad()


def leaves(p, frozen=()):
    return {n: t.clone().requires_grad_(n not in frozen) for n, t in p.items()}


class Probe:
    """Batch norm without affine, a linear layer, LARS."""

    def __init__(self, r, c, dim, classes):
        self.c, self.norm = c, torch.nn.BatchNorm1d(dim, eps=c["bn_eps"], momentum=c["bn_momentum"], affine=False).to(r.dtype)
        self.p = leaves({"head.1.weight": r.normal(classes, dim, std=0.1), "head.1.bias": r.normal(classes, std=0.1)})
        self.mu = {n: torch.zeros_like(t) for n, t in self.p.items()}

    def __call__(self, x):
        return layer(self.p, "head.1", self.norm(x))

    @torch.no_grad()
    def step(self):
        for n, w in self.p.items():
            g = w.grad
            if w.ndim > 1:
                g = g + self.c["weight_decay"] * w
                if w.norm() > 0 and g.norm() > 0:
                    g = g * self.c["trust_coefficient"] * w.norm() / g.norm()
            self.mu[n] = self.c["momentum"] * self.mu[n] + g
            w -= self.c["lr"] * self.mu[n]
            w.grad = None

    def after(self, out):
        out.update({f"after.{n}": t for n, t in self.p.items()})
        out["after.head.0.running_mean"], out["after.head.0.running_var"] = self.norm.running_mean, self.norm.running_var


def grads_of(p):
    return {f"grad.{n}": t.grad for n, t in p.items() if t.grad is not None}


def named(prefix, p):
    return {f"{prefix}.{n}": t for n, t in p.items()}
