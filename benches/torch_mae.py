"""The training step of benches/recipes.rs in PyTorch: a peer of compare.py, same lines in and out."""

import json
import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

BATCH, GRID, KEPT, PATCH = 8, 14, 49, 16
PATCHES, PIXELS = GRID * GRID, 3 * PATCH * PATCH


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        b, n, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        if FUSED:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * (dim // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, dim))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Mae(nn.Module):
    def __init__(self, wide=192, dim=128):
        super().__init__()
        self.embed = nn.Linear(PIXELS, wide)
        self.cls = nn.Parameter(torch.randn(1, 1, wide) * 0.02)
        self.register_buffer("pos", torch.randn(1, PATCHES + 1, wide) * 0.5)  # fixed; its values cost nothing
        self.blocks = nn.ModuleList(Block(wide, 3) for _ in range(12))
        self.norm = nn.LayerNorm(wide, eps=1e-6)
        self.decoder_embed = nn.Linear(wide, dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.register_buffer("decoder_pos", torch.randn(1, PATCHES + 1, dim) * 0.5)
        self.decoder_blocks = nn.ModuleList(Block(dim, 4) for _ in range(4))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, PIXELS)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)

    def forward(self, images, kept, restore, masked):
        b, dim = images.shape[0], self.mask_token.shape[-1]
        cells = images.view(b, 3, GRID, PATCH, GRID, PATCH)
        patches = cells.permute(0, 2, 4, 1, 3, 5).reshape(b, PATCHES, PIXELS)
        # Only kept patches are embedded and only removed ones predicted: less work than the published code.
        x = self.embed(patches.gather(1, kept[..., None].expand(-1, -1, PIXELS)))
        x = x + self.pos[0, 1:][kept]
        x = torch.cat([(self.cls + self.pos[:, :1]).expand(b, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        z = self.decoder_embed(self.norm(x))
        tokens = torch.cat([z[:, 1:], self.mask_token.expand(b, PATCHES - KEPT, -1)], 1)
        tokens = tokens.gather(1, restore[..., None].expand(-1, -1, dim))
        y = torch.cat([z[:, :1], tokens], 1) + self.decoder_pos
        for block in self.decoder_blocks:
            y = block(y)
        y = y[:, 1:].gather(1, masked[..., None].expand(-1, -1, dim))
        pred = self.decoder_pred(self.decoder_norm(y))
        with torch.no_grad():
            target = cells.permute(0, 2, 4, 3, 5, 1).reshape(b, PATCHES, PIXELS)
            target = target.gather(1, masked[..., None].expand(-1, -1, PIXELS))
            var, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (var + 1e-6).sqrt()
        return F.mse_loss(pred, target)


def cpu_ms():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return 1e3 * (usage.ru_utime + usage.ru_stime)


FUSED = "matmul" not in sys.argv
torch.set_num_threads(2)
torch.manual_seed(0)
model = Mae()
optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
images = torch.randint(0, 256, (BATCH, 3, GRID * PATCH, GRID * PATCH)).float().sub(120).div(58)
shuffle = torch.rand(BATCH, PATCHES).argsort(1)
ids = (shuffle[:, :KEPT], shuffle.argsort(1), shuffle[:, KEPT:].sort(1).values)
run = torch.compile(model) if "compile" in sys.argv else model

for line in sys.stdin:
    ms, forward_ms, backward_ms = [], [], []
    before = cpu_ms()
    for _ in range(int(line)):
        start = time.perf_counter()
        loss = run(images, *ids)
        value = loss.item()
        forward_ms.append(1e3 * (time.perf_counter() - start))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        backward_ms.append(1e3 * (time.perf_counter() - start))
        optimizer.step()
        ms.append(1e3 * (time.perf_counter() - start))
    cpu = (cpu_ms() - before) / len(ms)
    print(json.dumps(dict(ms=ms, forward_ms=forward_ms, backward_ms=backward_ms, cpu_ms=cpu, loss=value)), flush=True)
