"""Writes the PyTorch files of this folder and, beside each, its tensors as safetensors.

    pip install torch numpy safetensors
    python tests/data/pth/make.py
"""

import argparse
import collections
import io
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
torch.manual_seed(0)


class Attention(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.proj = torch.nn.Linear(width, width)


class Mlp(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = torch.nn.Linear(width, 4 * width)
        self.fc2 = torch.nn.Linear(4 * width, width)


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(width)
        self.attn = Attention(width)
        self.norm2 = torch.nn.LayerNorm(width)
        self.mlp = Mlp(width)


class Patches(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = torch.nn.Conv2d(3, width, 2, 2)


class Mae(torch.nn.Module):
    """The parameters of a masked autoencoder under the names of its published checkpoints; computes nothing."""

    def __init__(self, width=8, decoder=4, patches=4):
        super().__init__()
        table = lambda d: torch.nn.Parameter(torch.randn(1, patches + 1, d), requires_grad=False)
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = table(width)
        self.patch_embed = Patches(width)
        self.blocks = torch.nn.ModuleList([Block(width)])
        self.norm = torch.nn.LayerNorm(width)
        self.decoder_embed = torch.nn.Linear(width, decoder)
        self.mask_token = torch.nn.Parameter(torch.randn(1, 1, decoder))
        self.decoder_pos_embed = table(decoder)
        self.decoder_blocks = torch.nn.ModuleList([Block(decoder)])
        self.decoder_norm = torch.nn.LayerNorm(decoder)
        self.decoder_pred = torch.nn.Linear(decoder, 12)


def expect(name, tensors):
    plain = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    save_file(plain, HERE / f"{name}.expected.safetensors")


def training():
    """A training file: model, optimizer, epoch, scaler and the arguments as a pickled namespace."""
    model = Mae()
    few = [model.cls_token, model.norm.weight]  # all of them would only make the file larger
    optimizer = torch.optim.AdamW(few, lr=1e-3, betas=(0.9, 0.95))
    sum(p.square().sum() for p in few).backward()
    optimizer.step()
    args = argparse.Namespace(
        norm_pix_loss=True,
        mask_ratio=0.75,
        lr=np.float64(2.4e-3),
        seed=np.int64(-3),
        ok=np.bool_(True),
        half=np.float32(0.5),
        output_dir=pathlib.PurePosixPath("runs/a"),
        device=torch.device("cpu"),
        resume="",
        dist_url=None,
        big=1 << 70,
        negative=-(1 << 40),
        raw=b"\x00\xff",
    )
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7}
    file = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "scaler": scaler, "args": args}
    torch.save(file, HERE / "training.pth")
    expect("training", model.state_dict())


def layouts():
    """All types and memory layouts, at the top level; storages shared between tensors."""
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) * 0.5
    tensors = collections.OrderedDict(
        base=base,
        transposed=base.transpose(0, 2),
        slice=base[:, 1:, ::2],
        row=base[1, 2],
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        expanded=torch.tensor([[1.0], [2.0]]).expand(2, 5),
        channels_last=torch.randn(1, 3, 2, 2).to(memory_format=torch.channels_last),
        parameter=torch.nn.Parameter(torch.randn(3)),
        half=torch.randn(5).half(),
        bfloat=torch.randn(5).bfloat16().reshape(5, 1).t(),
        double=torch.randn(5).double(),
        long=torch.tensor([-1, 2**31 - 1]),
        int=torch.tensor([-7, 9], dtype=torch.int32),
        short=torch.tensor([-300, 300], dtype=torch.int16),
        char=torch.tensor([-128, 127], dtype=torch.int8),
        byte=torch.tensor([0, 255], dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        word=torch.tensor([0, 65535], dtype=torch.uint16),
    )
    torch.save(tensors, HERE / "layouts.pth")
    expect("layouts", tensors)


def archive():
    """Saved through a buffer, which names the folder in the archive differently, and with a later pickle protocol."""
    model = torch.nn.Linear(3, 2)
    buffer = io.BytesIO()
    file = {"epoch": 5, "model_state": model.state_dict(), "history": [(0, 0.5), {"set": {1}, "size": torch.Size([2, 3])}]}
    torch.save(file, buffer, pickle_protocol=4)
    (HERE / "archive.pth").write_bytes(buffer.getvalue())
    expect("archive", model.state_dict())


def refused():
    """The format before the zip archives, and a whole module where its state is expected."""
    torch.save({"model": {"x": torch.ones(2)}}, HERE / "old_format.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 1), HERE / "whole_module.pth")


for make in (training, layouts, archive, refused):
    make()
