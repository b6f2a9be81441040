"""The training step of benches/recipes.rs in PyTorch: a peer of compare.py, same lines in and out."""

import argparse
import json
import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

# Encoder width, depth, heads; decoder width, depth, heads: the presets of `ocellus pretrain mae` with 224 px, patch 16.
SIZES = {
    "tiny": ((192, 12, 3), (128, 4, 4)),
    "small": ((384, 12, 6), (256, 4, 8)),
    "base": ((768, 12, 12), (512, 8, 16)),
    "large": ((1024, 24, 16), (512, 8, 16)),
}
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("preset", choices=SIZES, nargs="?", default="tiny")
parser.add_argument("batch", type=int, nargs="?", default=8)
parser.add_argument("device", nargs="?", default="cpu")
parser.add_argument("dtype", choices=["f32", "bf16"], nargs="?", default="f32")
parser.add_argument("--matmul", action="store_true", help="attention by matmul and softmax")
parser.add_argument("--compile", action="store_true", help="torch.compile")
ARGS = parser.parse_args()
BATCH, GRID, KEPT, PATCH = ARGS.batch, 14, 49, 16
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
        if ARGS.matmul:
            y = (q * (dim // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, dim))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Mae(nn.Module):
    def __init__(self, encoder, decoder):
        super().__init__()
        (wide, depth, heads), (dim, decoder_depth, decoder_heads) = encoder, decoder
        self.embed = nn.Linear(PIXELS, wide)
        self.cls = nn.Parameter(torch.randn(1, 1, wide) * 0.02)
        self.register_buffer("pos", torch.randn(1, PATCHES + 1, wide) * 0.5)  # fixed; its values cost nothing
        self.blocks = nn.ModuleList(Block(wide, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(wide, eps=1e-6)
        self.decoder_embed = nn.Linear(wide, dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.register_buffer("decoder_pos", torch.randn(1, PATCHES + 1, dim) * 0.5)
        self.decoder_blocks = nn.ModuleList(Block(dim, decoder_heads) for _ in range(decoder_depth))
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


if ARGS.device == "cpu":
    torch.set_num_threads(2)
torch.manual_seed(0)
torch.set_default_device(ARGS.device)
model = Mae(*SIZES[ARGS.preset])
optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
images = torch.randint(0, 256, (BATCH, 3, GRID * PATCH, GRID * PATCH)).float().sub(120).div(58)
shuffle = torch.rand(BATCH, PATCHES).argsort(1)
ids = (shuffle[:, :KEPT], shuffle.argsort(1), shuffle[:, KEPT:].sort(1).values)
run = torch.compile(model) if ARGS.compile else model
autocast = torch.autocast(ARGS.device.split(":")[0], torch.bfloat16, enabled=ARGS.dtype == "bf16")


def finished():
    if ARGS.device != "cpu":
        torch.cuda.synchronize()


for line in sys.stdin:
    ms, forward_ms, backward_ms = [], [], []
    before = cpu_ms()
    for _ in range(int(line)):
        start = time.perf_counter()
        with autocast:
            loss = run(images, *ids)
        value = loss.item()
        forward_ms.append(1e3 * (time.perf_counter() - start))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        backward_ms.append(1e3 * (time.perf_counter() - start))
        optimizer.step()
        finished()
        ms.append(1e3 * (time.perf_counter() - start))
    cpu = (cpu_ms() - before) / len(ms)
    print(json.dumps(dict(ms=ms, forward_ms=forward_ms, backward_ms=backward_ms, cpu_ms=cpu, loss=value)), flush=True)
