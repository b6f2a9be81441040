"""Writes golden files of the kind siglip/hf_siglip with options that the shared ones lack, by running `transformers`.

    pip install torch==2.15.0 transformers==5.24.0 safetensors numpy pillow
    python tests/goldens/siglip.py

Images wider and taller than the table of positions (resampled bicubically), the exact GELU, a border that belongs to no
patch, embeddings narrower than the text tower. Truth and tolerance as in `make.py`.
"""

import json
import pathlib

import torch
from transformers import SiglipConfig, SiglipModel

from make import METRIC, distances, save, tolerance

CASES = {
    "siglip_wide": dict(
        text=dict(hidden_size=18, intermediate_size=30, max_position_embeddings=6, num_attention_heads=2,
                  num_hidden_layers=1, vocab_size=23, projection_size=12),
        vision=dict(hidden_size=12, intermediate_size=22, num_attention_heads=3, num_hidden_layers=1, image_size=12,
                    patch_size=4),
        image=[10, 21], interpolate=True, batch=3, len=6, t=2.3, b=-4.0, seed=11,
    ),
    "siglip_erf": dict(
        text=dict(hidden_size=12, intermediate_size=20, max_position_embeddings=7, num_attention_heads=3,
                  num_hidden_layers=2, vocab_size=23, hidden_act="gelu"),
        vision=dict(hidden_size=12, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2, image_size=14,
                    patch_size=4, hidden_act="gelu"),
        image=[14, 14], interpolate=False, batch=4, len=5, t=1.7, b=-3.0, seed=12,
    ),
}  # fmt: skip


def run(c, dtype):
    r = torch.Generator().manual_seed(c["seed"])
    draw = lambda *shape: torch.randn(*shape, generator=r).to(dtype)
    model = SiglipModel(SiglipConfig(text_config=dict(c["text"]), vision_config=dict(c["vision"]))).to(dtype)
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2
            p.copy_(draw(*p.shape) * scale + ("norm" in name and name.endswith("weight")))
            p.copy_(p.float())  # what the file can hold
        model.logit_scale.fill_(c["t"]).copy_(model.logit_scale.float())
        model.logit_bias.fill_(c["b"])
    params = dict(model.named_parameters())
    x = draw(c["batch"], 3, *c["image"]).float().to(dtype).requires_grad_()
    ids = torch.randint(0, c["text"]["vocab_size"], (c["batch"], c["len"]), generator=r)
    y = model(input_ids=ids, pixel_values=x, return_loss=True, interpolate_pos_encoding=c["interpolate"])
    y.loss.backward()
    out = {f"param.{n}": p for n, p in params.items()} | {f"grad.{n}": p.grad for n, p in params.items()}
    out |= {"input.pixel_values": x, "input.input_ids": ids, "grad_input.pixel_values": x.grad}
    out |= {f"output.{n}": getattr(y, n) for n in ["image_embeds", "text_embeds", "logits_per_image", "logits_per_text"]}
    for tower, of in [("vision", y.vision_model_output), ("text", y.text_model_output)]:
        out[f"output.{tower}_last_hidden_state"], out[f"output.{tower}_pooler_output"] = of[:2]
    return {n: t.detach() for n, t in (out | {"output.loss": y.loss.reshape(1)}).items()}


def main():
    torch.set_num_threads(1)  # one order of summation
    for name, c in CASES.items():
        truth, single = run(c, torch.float64), run(c, torch.float32)
        zero = [n for n in truth if n.startswith("grad.") and n.endswith("k_proj.bias")]
        rest = lambda tensors: {n: t for n, t in tensors.items() if n not in zero}
        found = distances(rest(truth), rest(single))
        metadata = {"case": name, "kind": "siglip/hf_siglip", "metric": METRIC, "config": json.dumps(c)}
        metadata |= {"source": "transformers==5.24.0 models/siglip/modeling_siglip.py", "notes": "See tests/goldens/siglip.py."}
        metadata |= {"tolerance": json.dumps({k: tolerance(v) for k, v in found.items()}), "near_zero": json.dumps(zero)}
        metadata |= {"near_zero_abs": "1e-06", "f32_vs_f64": json.dumps({k: float(f"{v:.2e}") for k, v in found.items()})}
        stored = {n: (t.float() if t.is_floating_point() else t).contiguous().clone() for n, t in truth.items()}
        save(pathlib.Path(__file__).parent / f"{name}.safetensors", stored, metadata)


if __name__ == "__main__":
    main()
