"""Writes golden files of the MAE kinds: inputs, weights, outputs and gradients of plain torch code in float64.

    pip install torch==2.11.0 transformers==5.23.0 safetensors numpy pillow
    python tests/goldens/make.py                   # the three kinds kept beside this script
    python tests/goldens/make.py --all some/folder # every case of every kind, to be run with OCELLUS_GOLDENS=some/folder

The code in `recipe.py` follows the papers (MAE arXiv 2111.06377, Adam with decoupled decay arXiv 1711.05101, LARS arXiv 1708.03888, stochastic
depth arXiv 1603.09382); Hugging Face kinds run `transformers`. Each case runs twice: the float64 run is stored (as float32,
integers as int64), the distance of the float32 run gives the tolerance, twenty times it, rounded up to 1, 2 or 5 times a power
of ten and at least 1e-6. All randomness is an input of the file. The same versions give the same bytes.
"""

import argparse
import json
import math
import pathlib
import tempfile

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from recipe import *

METRIC = (
    "max|a-b| / max(max|truth tensor|, 1e-3 * largest max|truth| in the category); key-bias slices left out of 'after' and "
    "'grad' (their true gradient is 0)"
)


# ---- kinds: config and type -> tensors, further metadata -------------------------------------------------------------------


def finetune_trajectory(c, dtype):
    r = Draw(c["seed"], dtype)
    p = encoder_params(r, c, "fc_norm" if c["global_pool"] else "norm")
    linear(r, p, "head", c["num_classes"], c["embed_dim"])
    out = {**named("param", p)}
    p, (h, w) = leaves(p), pair(c["img_size"])
    optimizer = adamw(p, c, finetune_groups(p, c))
    losses, lrs, norms = [], [], []
    for step in range(c["steps"]):
        imgs, target = r.normal(c["batch"], c.get("in_chans", 3), h, w), r.classes(c["num_classes"], c["batch"])
        out[f"input.imgs.{step}"], out[f"input.target.{step}"] = imgs, target
        drops = drop_factors(r, c, lambda name, u: out.update({f"input.drop_u.{step}.{name}": u}))
        loss = smoothed_loss(classify(p, c, imgs, drops), target, c["smoothing"])
        loss.backward()
        limit = math.inf if c["clip_grad"] is None else c["clip_grad"]
        norms.append(torch.nn.utils.clip_grad_norm_(list(p.values()), limit))
        lrs.append(lr_at(c, step / c["iters_per_epoch"]))
        adamw_step(optimizer, lrs[-1])
        losses.append(loss)
    out |= {"output.losses": torch.stack(losses), "output.lr": torch.tensor(lrs, dtype=dtype)}
    out |= {"output.grad_norm": torch.stack(norms), "output.logits_after": classify(p, c, out["input.imgs.0"])}
    return out | named("after", p), {"param_groups": finetune_groups(p, c)}


def finetune_forward(c, dtype):
    r = Draw(c["seed"], dtype)
    p = encoder_params(r, c, "fc_norm" if c["global_pool"] else "norm")
    linear(r, p, "head", c["num_classes"], c["embed_dim"])
    imgs, target = r.normal(c["batch"], 3, *pair(c["img_size"])), r.classes(c["num_classes"], c["batch"])
    out = named("param", p) | {"input.imgs": imgs, "input.target": target}
    drops = drop_factors(r, c, lambda name, u: out.update({f"input.drop_u.{name}": u}))
    p, s, lam, k = leaves(p), c["smoothing"], c["mixup_lam"], c["num_classes"]
    hot = F.one_hot(target, k).to(dtype) * (1 - s) + s / k
    out["input.soft_target"] = soft = (hot * lam + hot.flip(0) * (1 - lam)).float().to(dtype)
    logits = classify(p, c, imgs, drops)
    loss = -(soft * logits.log_softmax(-1)).sum(-1).mean()
    loss.backward()
    out |= {"output.logits": logits, "output.logits_eval": classify(p, c, imgs), "output.loss": loss}
    out |= {"output.features_eval": classifier_features(p, c, imgs), "output.loss_ce": smoothed_loss(logits, target, 0.0)}
    out["output.loss_label_smoothing"] = smoothed_loss(logits, target, s)
    return out | grads_of(p), {"param_groups": finetune_groups(p, c)}


def linprobe_trajectory(c, dtype):
    r = Draw(c["seed"], dtype)
    p = encoder_params(r, c, "fc_norm" if c["global_pool"] else "norm")
    probe = Probe(r, c, c["embed_dim"], c["num_classes"])
    out = named("param", p) | {f"param.{n}": t.detach().clone() for n, t in probe.p.items()}
    losses = []
    for step in range(c["steps"]):
        imgs, target = r.normal(c["batch"], 3, *pair(c["img_size"])), r.classes(c["num_classes"], c["batch"])
        out[f"input.imgs.{step}"], out[f"input.target.{step}"] = imgs, target
        loss = F.cross_entropy(probe(classifier_features(p, c, imgs)), target)
        loss.backward()
        probe.step()
        losses.append(loss)
    probe.norm.eval()
    features = classifier_features(p, c, out["input.imgs.0"])
    out |= {"output.losses": torch.stack(losses), "output.features": features, "output.logits_eval_after": probe(features)}
    probe.after(out)
    return out, {}


def linprobe_head(c, dtype):
    r = Draw(c["seed"], dtype)
    probe = Probe(r, c, c["dim"], c["classes"])
    out, losses, logits = {f"param.{n}": t.detach().clone() for n, t in probe.p.items()}, [], []
    scale = r.uniform(c["dim"]) * 0.1  # small variances, so that eps counts
    for step in range(c["steps"]):
        x, target = r.normal(c["batch"], c["dim"]) * scale + 0.5, r.classes(c["classes"], c["batch"])
        out[f"input.features.{step}"] = x = x.float().to(dtype).requires_grad_()
        out[f"input.target.{step}"] = target
        logits.append(probe(x))
        losses.append(F.cross_entropy(logits[-1], target))
        losses[-1].backward()
        if step == 0:
            out |= grads_of(probe.p) | {"grad_input.features.0": x.grad}
        probe.step()
    probe.norm.eval()
    out["input.eval_features"] = (r.normal(c["batch"] + 1, c["dim"]) * scale).float().to(dtype)
    out |= {"output.logits_eval_after": probe(out["input.eval_features"]), "output.losses": torch.stack(losses)}
    out |= {"output.logits_train": torch.stack(logits)} | named("after.mu", probe.mu)
    probe.after(out)
    return out, {}


def hf_model(c, dtype, whole):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

    own = {"batch", "height", "width", "seed"}
    config = ViTMAEConfig(**{k: v for k, v in c.items() if k not in own}, attn_implementation="eager")
    model = (ViTMAEForPreTraining if whole else ViTMAEModel)(config).to(dtype).eval()
    r, tables = Draw(c["seed"], dtype), ("position_embeddings", "decoder_pos_embed")
    with torch.no_grad():
        for n, t in model.named_parameters():
            std = 0.5 if n.endswith((*tables, "token")) else 0.2 if t.ndim == 1 else t[0].numel() ** -0.5
            t.copy_(r.normal(*t.shape, std=std, mean=1.0 if "norm" in n and n.endswith("weight") else 0.0))
    return model, r


def hub_spelling(model, values):
    """`values` by module name, under the names that `save_pretrained` writes."""
    import copy

    twin = copy.deepcopy(model).float()
    with torch.no_grad():
        for n, t in twin.named_parameters():
            t.copy_(values[n] if values.get(n) is not None else torch.full_like(t, math.nan))
    with tempfile.TemporaryDirectory() as folder:
        twin.save_pretrained(folder)
        return {n: t for n, t in load_file(f"{folder}/model.safetensors").items() if not t.isnan().any()}


def hf_encoder(c, dtype, hub=False, mean_loss=False):
    model, r = hf_model(c, dtype, whole=False)
    patch, grid = c["patch_size"], (c["height"] // c["patch_size"], c["width"] // c["patch_size"])
    length, chans = grid[0] * grid[1], c["num_channels"]
    out = {"input.pixel_values": r.normal(c["batch"], chans, c["height"], c["width"]), "input.noise": r.uniform(c["batch"], length)}
    got = model(out["input.pixel_values"], noise=out["input.noise"], interpolate_pos_encoding=True)
    out["input.probe"] = r.normal(*got.last_hidden_state.shape)
    loss = (got.last_hidden_state * out["input.probe"]).sum()
    loss = 10 * loss / got.last_hidden_state.numel() if mean_loss else loss
    loss.backward()
    out["input.patches"] = r.normal(c["batch"], length, patch * patch * chans)
    table = model.embeddings.interpolate_pos_encoding(torch.empty(1, length + 1, c["hidden_size"]), c["height"], c["width"])
    spelled = (lambda v: hub_spelling(model, v)) if hub else lambda v: {n: t for n, t in v.items() if t is not None}
    out |= named("param", spelled(dict(model.named_parameters())))
    out |= named("grad", spelled({n: t.grad for n, t in model.named_parameters()}))
    out |= {"output.latent": got.last_hidden_state, "output.ids_restore": got.ids_restore, "output.mask": got.mask}
    out |= {"output.loss": loss, "output.pos_embed": table, "output.patches": patchify(out["input.pixel_values"], patch)}
    return out | {"output.imgs": unpatchify(out["input.patches"], patch, grid)}, {}


def hf_pretraining(c, dtype):
    model, r = hf_model(c, dtype, whole=True)
    side, patch = c["image_size"], c["patch_size"]
    out = {"input.pixel_values": r.normal(c["batch"], c["num_channels"], side, side)}
    out["input.noise"] = r.uniform(c["batch"], (side // patch) ** 2)
    got = model(out["input.pixel_values"], noise=out["input.noise"])
    got.loss.backward()
    latent = model.vit(out["input.pixel_values"], noise=out["input.noise"]).last_hidden_state
    out |= named("param", hub_spelling(model, dict(model.named_parameters())))
    out |= named("grad", hub_spelling(model, {n: t.grad for n, t in model.named_parameters()}))
    out |= {"output.latent": latent, "output.logits": got.logits, "output.loss": got.loss, "output.mask": got.mask}
    return out | {"output.ids_restore": got.ids_restore}, {}


def block_kind(c, dtype):
    r, p = Draw(c["seed"], dtype), {}
    block_params(r, p, "", c["dim"], int(c["dim"] * c["mlp_ratio"]))
    x, probe = r.normal(c["batch"], c["tokens"], c["dim"]), r.normal(c["batch"], c["tokens"], c["dim"])
    x[0, 0] *= 1e-4  # a token whose variance is near eps
    out = named("param", p) | {"input.x": x.float().to(dtype), "input.probe": probe}
    p, x = leaves(p), out["input.x"].clone().requires_grad_()
    y, inner = block(p, "", x, c["heads"], c["ln_eps"])
    loss = (y * probe).sum()
    loss.backward()
    return out | grads_of(p) | named("output", inner) | {"output.y": y, "output.loss": loss, "grad_input.x": x.grad}, {}


FROZEN = ("pos_embed", "decoder_pos_embed")


def encoder(c, dtype):
    r = Draw(c["seed"], dtype)
    p, length = encoder_params(r, c), math.prod(grid_of(c))
    out = named("param", p) | {"input.imgs": r.normal(c["batch"], c.get("in_chans", 3), *pair(c["img_size"]))}
    out["input.noise"] = r.uniform(c["batch"], length)
    p, imgs = leaves(p, FROZEN), out["input.imgs"].clone().requires_grad_()
    latent, restore, mask = encode(p, c, imgs, out["input.noise"])
    out["input.probe"] = r.normal(*latent.shape)
    loss = (latent * out["input.probe"]).sum()
    loss.backward()
    out |= {"output.latent": latent, "output.ids_restore": restore, "output.mask": mask, "output.loss": loss}
    return out | grads_of(p) | {"grad_input.imgs": imgs.grad}, {}


def decoder(c, dtype):
    r, length = Draw(c["seed"], dtype), math.prod(grid_of(c))
    p = decoder_params(r, c)
    _, restore, _ = masking(r.uniform(c["batch"], length), c["mask_ratio"])
    latent = r.normal(c["batch"], int(length * (1 - c["mask_ratio"])) + 1, c["embed_dim"])
    out = named("param", p) | {"input.ids_restore": restore, "input.latent": latent}
    p, latent = leaves(p, FROZEN), latent.clone().requires_grad_()
    pred = decode(p, c, latent, restore)
    out["input.probe"] = r.normal(*pred.shape)
    loss = 10 * (pred * out["input.probe"]).mean()
    loss.backward()
    return out | grads_of(p) | {"output.pred": pred, "output.loss": loss, "grad_input.latent": latent.grad}, {}


def pretrain_forward(c, dtype):
    r = Draw(c["seed"], dtype)
    p = encoder_params(r, c) | decoder_params(r, c)
    imgs, noise = r.normal(c["batch"], c.get("in_chans", 3), *pair(c["img_size"])), r.uniform(c["batch"], math.prod(grid_of(c)))
    out, p = named("param", p) | {"input.imgs": imgs, "input.noise": noise}, leaves(p, FROZEN)
    loss, latent, pred, restore, mask = mae(p, c, imgs, noise)
    loss.backward()
    out |= {"output.loss": loss, "output.latent": latent, "output.pred": pred, "output.ids_restore": restore}
    return out | {"output.mask": mask} | grads_of(p), {}


def pretrain_trajectory(c, dtype):
    r = Draw(c["seed"], dtype)
    p = encoder_params(r, c) | decoder_params(r, c)
    out, p = named("param", p), leaves(p, FROZEN)
    trained = {n: t for n, t in p.items() if t.requires_grad}
    decay = sorted(n for n, t in trained.items() if t.ndim > 1)
    groups = {n: {"lr_scale": 1.0, "weight_decay": c["weight_decay"] if n in decay else 0.0} for n in trained}
    optimizer, losses, lrs, norms = adamw(p, c, groups), [], [], []
    for step in range(c["steps"]):
        for micro in range(step * c["accum_iter"], (step + 1) * c["accum_iter"]):
            out[f"input.imgs.{micro}"] = imgs = r.normal(c["batch"], c.get("in_chans", 3), *pair(c["img_size"]))
            out[f"input.noise.{micro}"] = noise = r.uniform(c["batch"], math.prod(grid_of(c)))
            losses.append(mae(p, c, imgs, noise)[0])
            (losses[-1] / c["accum_iter"]).backward()
        norms.append(torch.stack([t.grad.norm() for t in trained.values()]).norm())
        lrs.append(lr_at(c, step * c["accum_iter"] / c["iters_per_epoch"]))
        adamw_step(optimizer, lrs[-1])
    out |= {"output.losses": torch.stack(losses), "output.lr": torch.tensor(lrs, dtype=dtype), "output.grad_norm": torch.stack(norms)}
    out |= named("after", trained)
    if c["moments"]:
        for moment in ("exp_avg", "exp_avg_sq"):
            out |= {f"after.{moment}.{n}": optimizer.state[t][moment] for n, t in trained.items()}
    return out, {"decay": decay, "no_decay": sorted(set(trained) - set(decay))}


def masking_kind(c, dtype):
    r, out = Draw(c["seed"], dtype), {}
    for i, case in enumerate(c["cases"]):
        x, noise = r.normal(case["batch"], case["len"], case["dim"]).requires_grad_(), r.uniform(case["batch"], case["len"])
        kept, restore, mask = masking(noise, case["mask_ratio"])
        y = gather(x, kept)
        probe = r.normal(*y.shape)
        (y * probe).sum().backward()
        out |= {f"input.{i}.x": x, f"input.{i}.noise": noise, f"input.{i}.probe": probe, f"grad_input.{i}.x": x.grad}
        out |= {f"output.{i}.ids_keep": kept, f"output.{i}.ids_restore": restore, f"output.{i}.mask": mask, f"output.{i}.x_masked": y}
    return out, {}


def patchify_kind(c, dtype):
    r, p, grid = Draw(c["seed"], dtype), c["patch_size"], grid_of(c)
    shape = (c["batch"], c["in_chans"], *pair(c["img_size"]))
    flat = r.normal(*shape)
    flat[:, :, :p, :p], flat[:, :, :p, p : 2 * p] = 0.5, 2.7 + 1e-3 * flat[:, :, :p, p : 2 * p]
    flat = flat.float().to(dtype)
    out = {"input.imgs": r.normal(*shape), "input.imgs_flat": flat, "input.patches": r.normal(c["batch"], math.prod(grid), p * p * shape[1])}
    out |= {"output.patches": patchify(out["input.imgs"], p), "output.imgs": unpatchify(out["input.patches"], p, grid)}
    return out | {"output.target_raw": target_of(flat, p, False), "output.target_norm": target_of(flat, p, True)}, {}


def pos_embed(c, dtype):
    out = {f"output.d{s['dim']}_g{s['grid']}": sincos(s["dim"], s["grid"], s["grid"]) for s in c["square"]}
    return out | {f"output.d{s['dim']}_h{s['h']}_w{s['w']}_nocls": sincos(s["dim"], s["h"], s["w"], False) for s in c["rect"]}, {}


def pos_embed_interpolate(c, dtype):
    r, out = Draw(c["seed"], dtype), {}
    for case in c["cases"]:
        dim, old, new = case["dim"], case["old"], case["new"]
        table = r.normal(1, old * old + 1, dim)
        cells = table[:, 1:].reshape(1, old, old, dim).permute(0, 3, 1, 2)
        cells = F.interpolate(cells, size=(new, new), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
        out[f"input.d{dim}_g{old}_to_{new}"] = table
        out[f"output.d{dim}_g{old}_to_{new}"] = torch.cat([table[:, :1], cells.reshape(1, new * new, dim)], 1)
    return out, {}


def lr_schedule(c, dtype):
    out = {}
    for i, case in enumerate(c["cases"]):
        iters, accum = case["iters"], case["accum_iter"]
        lrs = [lr_at(case, at // iters + at % iters // accum * accum / iters) for at in range(case["epochs"] * iters)]
        out[f"output.{i}.lr"] = torch.tensor(lrs, dtype=dtype)
        out[f"output.{i}.lr_scaled_group"] = 0.25 * out[f"output.{i}.lr"]
    return out, {}


def visualise(c, dtype):
    r, p = Draw(c["seed"], dtype), c["patch_size"]
    params, (h, w) = encoder_params(r, c) | decoder_params(r, c), pair(c["img_size"])
    x, noise = r.normal(1, 3, h, w), r.uniform(1, math.prod(grid_of(c)))
    _, _, pred, _, mask = mae(params, c, x, noise)
    mask = unpatchify(mask[..., None].expand(-1, -1, p * p * 3), p, grid_of(c))
    y = unpatchify(pred, p, grid_of(c))
    forms = {"original": x, "masked": x * (1 - mask), "reconstruction": y, "pasted": x * (1 - mask) + y * mask}
    forms = {n: t[0].permute(1, 2, 0) for n, t in forms.items()}
    std, mean = torch.tensor(c["std"], dtype=dtype), torch.tensor(c["mean"], dtype=dtype)
    out = named("param", params) | {"input.img_hwc": forms["original"], "input.noise": noise} | named("output", forms)
    return out | {f"output.u8_{n}": ((t * std + mean) * 255).clip(0, 255).long() for n, t in forms.items()}, {}


def augment(c, dtype):
    import numpy
    from PIL import Image

    r, out = Draw(c["seed"], dtype), {}
    tensor = lambda i: ((torch.tensor(i).to(dtype) / 255 - torch.tensor(c["mean"]).to(dtype)) / torch.tensor(c["std"]).to(dtype)).permute(2, 0, 1)
    for name in ("train", "eval"):
        for i, case in enumerate(c[name]):
            pixels = r.classes(256, case["H"], case["W"], 3)
            image = Image.fromarray(pixels.numpy().astype(numpy.uint8))
            if name == "train":
                box = (case["left"], case["top"], case["left"] + case["crop_w"], case["top"] + case["crop_h"])
                image = image.crop(box).resize((case["out"], case["out"]), Image.BICUBIC)
                image = image.transpose(Image.FLIP_LEFT_RIGHT) if case["hflip"] else image
            else:
                s, (w, h), k = case["resize_short"], image.size, case["center_crop"]
                image = image.resize((s, int(s * h / w)) if w <= h else (int(s * w / h), s), Image.BICUBIC)
                top, left = round((image.height - k) / 2), round((image.width - k) / 2)
                image = image.crop((left, top, left + k, top + k))
            out[f"input.{name}{i}.img_u8"], done = pixels, numpy.array(image)
            out[f"output.{name}{i}.resized_u8"], out[f"output.{name}{i}.tensor"] = torch.tensor(done).long(), tensor(done)
    return out, {}


def mixup_cutmix(c, dtype):
    r, s, k, h, w = Draw(c["seed"], dtype), c["smoothing"], c["classes"], c["h"], c["w"]
    x, target = r.normal(c["batch"], c["channels"], h, w), r.classes(k, c["batch"])
    hot = F.one_hot(target, k).to(dtype) * (1 - s) + s / k
    box = [1, h - 2, 3, w]
    area = (box[1] - box[0]) * (box[3] - box[2])
    draws = {"mixup": {"lam_used": 0.37}, "cutmix": {"lam_used": 1 - area / (h * w), "yl_yh_xl_xh": box}}
    cut = x.clone()
    cut[:, :, box[0] : box[1], box[2] : box[3]] = x.flip(0)[:, :, box[0] : box[1], box[2] : box[3]]
    out = {"input.x": x, "input.target": target, "output.mixup.x": x * 0.37 + x.flip(0) * 0.63, "output.cutmix.x": cut}
    for name, draw in draws.items():
        out[f"output.{name}.target"] = hot * draw["lam_used"] + hot.flip(0) * (1 - draw["lam_used"])
    return out, {"draws": draws}


# ---- cases ---------------------------------------------------------------------------------------------------------------

TRUNK = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 4, "ln_eps": 1e-6, "batch": 3}
DECODER = {"decoder_embed_dim": 20, "decoder_depth": 1, "decoder_num_heads": 2}
SMALL = {**TRUNK, **DECODER}
TUNE = {**TRUNK, "depth": 3, "num_classes": 5, "drop_path_rate": 0.3, "drop_path_per_block": [0.0, 0.15000000596046448, 0.30000001192092896]}
TUNE |= {"weight_decay": 0.05, "layer_decay": 0.75}
SLIM = {"embed_dim": 16, "num_heads": 4}  # files of the repository are small
STEPS = {"steps": 5, "epochs": 4, "iters_per_epoch": 2, "warmup_epochs": 1, "lr": 2e-3, "min_lr": 1e-6, "betas": [0.9, 0.999], "adam_eps": 1e-8}
BN = {"bn_eps": 1e-6, "bn_momentum": 0.1, "momentum": 0.9, "trust_coefficient": 0.001, "weight_decay": 0.0, "steps": 4, "lr": 0.8}
HF = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 52, "image_size": 16, "patch_size": 4}
HF |= {"num_channels": 3, "decoder_hidden_size": 20, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
HF |= {"decoder_intermediate_size": 36, "mask_ratio": 0.6, "norm_pix_loss": False, "layer_norm_eps": 1e-12, "batch": 2}
NOT_IMAGENET = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}

SUM, MEAN = "output.loss = sum(latent*probe).", "output.loss = 10*mean(latent*probe)."
HUB, PLAIN = "transformers==5.23.0 models/vit_mae/modeling_vit_mae.py", "plain torch, tests/goldens/make.py"

# name, kind, function, config, notes, source; the first ones are kept in the repository
KEPT = [
    ("finetune_gap_steps", "finetune_trajectory", finetune_trajectory, {**TUNE, **STEPS, **SLIM, "global_pool": True, "smoothing": 0.1, "clip_grad": None, "seed": 1}, "", PLAIN),
    ("finetune_cls_steps", "finetune_trajectory", finetune_trajectory, {**TUNE, **STEPS, **SLIM, "img_size": [8, 16], "in_chans": 1, "num_heads": 2, "global_pool": False, "smoothing": 0.0, "clip_grad": 0.7, "layer_decay": 0.65, "betas": [0.8, 0.99], "adam_eps": 1e-6, "ln_eps": 1e-5, "seed": 2}, "", PLAIN),
    ("linprobe_cls_steps", "linprobe_trajectory", linprobe_trajectory, {**TRUNK, **BN, **SLIM, "batch": 8, "num_classes": 5, "global_pool": False, "seed": 3}, "", PLAIN),
    ("linprobe_gap_steps", "linprobe_trajectory", linprobe_trajectory, {**TRUNK, **BN, **SLIM, "img_size": [8, 20], "num_heads": 2, "batch": 6, "num_classes": 4, "global_pool": True, "bn_eps": 1e-3, "bn_momentum": 0.3, "momentum": 0.8, "trust_coefficient": 0.01, "weight_decay": 0.1, "seed": 4}, "", PLAIN),
    ("hf_encoder_wide", "hf_encoder", hf_encoder, {**HF, "height": 12, "width": 28, "seed": 5}, SUM, HUB),
    ("hf_encoder_tall", "hf_encoder", lambda c, t: hf_encoder(c, t, hub=True, mean_loss=True), {**HF, "height": 24, "width": 8, "mask_ratio": 0.7, "num_channels": 1, "num_attention_heads": 2, "layer_norm_eps": 1e-6, "seed": 6}, MEAN, HUB),
]

MORE = [
    ("finetune_one_block", "finetune_trajectory", finetune_trajectory, {**TUNE, **STEPS, "depth": 1, "drop_path_rate": 0.0, "drop_path_per_block": [0.0], "global_pool": True, "smoothing": 0.2, "clip_grad": 1.0, "warmup_epochs": 0, "weight_decay": 0.3, "seed": 7}, "", PLAIN),
    ("finetune_cls", "finetune_forward", finetune_forward, {**TUNE, "img_size": [12, 8], "global_pool": False, "smoothing": 0.2, "mixup_lam": 0.3, "layer_decay": 0.65, "num_heads": 2, "seed": 8}, "", PLAIN),
    ("finetune_gap", "finetune_forward", finetune_forward, {**TUNE, "global_pool": True, "smoothing": 0.0, "mixup_lam": 1.0, "ln_eps": 1e-5, "seed": 9}, "", PLAIN),
    ("linprobe_head_other", "linprobe_head", linprobe_head, {**BN, "dim": 18, "batch": 7, "classes": 4, "bn_eps": 1e-3, "bn_momentum": 0.4, "weight_decay": 0.05, "trust_coefficient": 0.02, "momentum": 0.7, "seed": 10}, "", PLAIN),
    ("hf_encoder_same", "hf_encoder", hf_encoder, {**HF, "height": 16, "width": 16, "seed": 11}, SUM, HUB),
    ("hf_encoder_one_row", "hf_encoder", lambda c, t: hf_encoder(c, t, mean_loss=True), {**HF, "image_size": 20, "height": 4, "width": 24, "mask_ratio": 0.5, "seed": 12}, MEAN, HUB),
    ("hf_pretraining_norm", "hf_pretraining", hf_pretraining, {**HF, "image_size": 20, "mask_ratio": 0.8, "norm_pix_loss": True, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "qkv_bias": True, "num_channels": 1, "seed": 13}, "", HUB),
    ("block_heads4", "block", block_kind, {"batch": 3, "tokens": 5, "dim": 40, "heads": 4, "mlp_ratio": 2.5, "ln_eps": 1e-12, "gelu": "erf", "seed": 14}, "", PLAIN),
    ("block_one_head", "block", block_kind, {"batch": 1, "tokens": 70, "dim": 20, "heads": 1, "mlp_ratio": 3, "ln_eps": 1e-3, "gelu": "erf", "seed": 15}, "", PLAIN),
    ("encoder_wide", "encoder", encoder, {**SMALL, "img_size": [12, 20], "mask_ratio": 0.9, "num_heads": 2, "seed": 16}, "output.loss = sum(latent*probe).", PLAIN),
    ("encoder_grey", "encoder", encoder, {**SMALL, "in_chans": 1, "mask_ratio": 0.3, "ln_eps": 1e-5, "mlp_ratio": 3, "seed": 17}, "output.loss = sum(latent*probe).", PLAIN),
    ("decoder_wide", "decoder", decoder, {**SMALL, "img_size": [8, 20], "mask_ratio": 0.45, "decoder_num_heads": 5, "decoder_depth": 2, "seed": 18}, "output.loss = 10*mean(pred*probe).", PLAIN),
    ("full_wide", "pretrain_forward", pretrain_forward, {**SMALL, "img_size": [20, 8], "mask_ratio": 0.6, "norm_pix_loss": True, "num_heads": 6, "seed": 19}, "", PLAIN),
    ("full_four_channels", "pretrain_forward", pretrain_forward, {**SMALL, "in_chans": 4, "mask_ratio": 0.85, "norm_pix_loss": False, "ln_eps": 1e-12, "seed": 20}, "", PLAIN),
    ("pretrain_accum", "pretrain_trajectory", pretrain_trajectory, {**SMALL, **STEPS, "img_size": [12, 16], "mask_ratio": 0.75, "norm_pix_loss": False, "accum_iter": 2, "steps": 3, "betas": [0.9, 0.95], "iters_per_epoch": 4, "weight_decay": 0.2, "moments": True, "seed": 21}, "", PLAIN),
    ("pretrain_plain", "pretrain_trajectory", pretrain_trajectory, {**SMALL, **STEPS, "mask_ratio": 0.6, "norm_pix_loss": True, "accum_iter": 1, "betas": [0.8, 0.99], "adam_eps": 1e-6, "weight_decay": 0.0, "moments": False, "warmup_epochs": 2, "seed": 22}, "", PLAIN),
    ("masking_awkward", "masking", masking_kind, {"cases": [{"batch": 2, "len": n, "dim": d, "mask_ratio": m, "len_keep": int(n * (1 - m))} for n, d, m in [(10, 3, 0.8), (100, 1, 0.71), (49, 33, 0.6), (7, 5, 0.3), (1000, 2, 0.999), (90, 4, 0.9)]], "seed": 23}, "", PLAIN),
    ("patchify_wide", "patchify", patchify_kind, {"img_size": [9, 21], "patch_size": 3, "in_chans": 2, "batch": 3, "eps": 1e-6, "seed": 24}, "", PLAIN),
    ("patchify_square", "patchify", patchify_kind, {"img_size": 14, "patch_size": 7, "in_chans": 5, "batch": 1, "eps": 1e-6, "seed": 25}, "", PLAIN),
    ("pos_embed", "pos_embed", pos_embed, {"square": [{"dim": 4, "grid": 1}, {"dim": 64, "grid": 14}], "rect": [{"dim": 12, "h": 7, "w": 2}, {"dim": 8, "h": 1, "w": 9}]}, "", PLAIN),
    ("pos_embed_interpolate", "pos_embed_interpolate", pos_embed_interpolate, {"cases": [{"dim": d, "old": o, "new": n} for d, o, n in [(8, 2, 14), (4, 14, 9), (12, 3, 3), (5, 7, 1), (6, 1, 4)]], "seed": 26}, "", PLAIN),
    ("lr_schedule", "lr_schedule", lr_schedule, {"cases": [{"lr": 1.0, "min_lr": 0.1, "warmup_epochs": 0, "epochs": 3, "iters": 5, "accum_iter": 1}, {"lr": 3e-4, "min_lr": 0.0, "warmup_epochs": 2.5, "epochs": 7, "iters": 8, "accum_iter": 4}, {"lr": 0.1, "min_lr": 0.0, "warmup_epochs": 1, "epochs": 2, "iters": 7, "accum_iter": 3}]}, "lr_scaled_group is a group with lr_scale 0.25.", PLAIN),
    ("visualise_other", "visualise", visualise, {**SMALL, "img_size": [12, 20], "mask_ratio": 0.55, **NOT_IMAGENET, "seed": 27}, "", PLAIN),
    ("augment_other", "augment", augment, {"train": [{"H": 30, "W": 50, "top": 0, "left": 3, "crop_h": 30, "crop_w": 40, "out": 24, "hflip": True}, {"H": 9, "W": 13, "top": 2, "left": 1, "crop_h": 5, "crop_w": 8, "out": 17, "hflip": False}], "eval": [{"H": 50, "W": 31, "resize_short": 21, "center_crop": 18}], **NOT_IMAGENET, "seed": 28}, "", PLAIN),
    ("mixup_other", "mixup_cutmix", mixup_cutmix, {"batch": 5, "channels": 1, "h": 7, "w": 9, "classes": 3, "smoothing": 0.2, "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.5, "seed": 29}, "", PLAIN),
]


def category(name):
    return name.split(".")[0]


def distances(truth, other):
    """The metric's worst value in each category of outputs."""
    largest, worst = {}, {}
    judged = {n: t for n, t in truth.items() if category(n) not in ("input", "param") and t.is_floating_point()}
    for n, t in judged.items():
        largest[category(n)] = max(largest.get(category(n), 0.0), t.abs().max().item())
    for n, t in judged.items():
        key_bias = n.endswith(("attn.qkv.bias", "attention.key.bias", "k_proj.bias"))
        if key_bias and category(n) in ("grad", "after"):
            continue  # true gradient 0: what float32 gets there is rounding noise
        scale = max(t.abs().max().item(), 1e-3 * largest[category(n)])
        error = (t - other[n].double()).abs().max().item() / scale if scale else 0.0
        worst[category(n)] = max(worst.get(category(n), 0.0), error)
    return worst


def tolerance(error):
    if error == 0.0:
        return 0.0
    at_least = max(20 * error, 1e-6)
    power = 10.0 ** math.floor(math.log10(at_least))
    return float(f"{next(f for f in (1, 2, 5, 10) if f * power >= at_least * 0.999) * power:.0e}")


def save(path, tensors, metadata):
    """A safetensors file with names in order: the library's own writer gives the metadata another order in each run."""
    header, parts, at = {"__metadata__": dict(sorted(metadata.items()))}, [], 0
    for name, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):  # aligned
        parts.append(t.numpy().tobytes())
        header[name] = {"dtype": {torch.float32: "F32", torch.int64: "I64"}[t.dtype], "shape": list(t.shape)}
        header[name]["data_offsets"] = [at, at + len(parts[-1])]
        at += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def write(folder, name, kind, function, config, notes, source):
    truth, more = function(config, torch.float64)
    single, _ = function(config, torch.float32)
    truth = {n: t.detach().double() if t.is_floating_point() else t for n, t in truth.items()}
    found = distances(truth, single)
    allowed = {k: tolerance(v) for k, v in found.items()}
    if kind == "patchify":  # a patch of tiny variance may cost a correct float32 implementation much more
        allowed = {"output": 0.0, "output.target_raw": 1e-6, "output.target_norm": 5e-3}
    if kind == "pos_embed":  # both runs compute the table in float64
        allowed = {"output": 1e-6}
    metadata = {"case": name, "kind": f"mae/{kind}", "source": source, "metric": METRIC, "notes": notes or "See tests/goldens/make.py."}
    metadata |= {"truth": "float64 run, stored as float32", "config": json.dumps(config), "tolerance": json.dumps(allowed)}
    metadata["f32_vs_f64"] = json.dumps({k: float(f"{v:.2e}") for k, v in found.items()})
    metadata["shapes"] = json.dumps({n: list(t.shape) for n, t in truth.items() if category(n) == "input"})
    metadata |= {k: json.dumps(v) for k, v in more.items()}
    stored = {n: (t.float() if t.is_floating_point() else t).contiguous().clone() for n, t in truth.items()}
    save(folder / f"{name}.safetensors", stored, metadata)
    print(f"{name}: {sum(t.numel() * t.element_size() for t in stored.values()) // 1024} KiB, tolerance {allowed}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", type=pathlib.Path, help="folder for the cases of all kinds")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one order of summation
    folder = args.all or pathlib.Path(__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    for case in KEPT + (MORE if args.all else []):
        write(folder, *case)


if __name__ == "__main__":
    main()
