"""Writes a tiny random ViTMAE folder as `save_pretrained` of transformers does.

    pip install torch transformers safetensors
    python tests/data/hf/make.py
"""

import pathlib

import torch
from safetensors.torch import save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

torch.manual_seed(0)
config = ViTMAEConfig(
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    image_size=8,
    patch_size=4,
    layer_norm_eps=1e-6,
    decoder_hidden_size=4,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=12,
    mask_ratio=0.5,
    norm_pix_loss=True,
)
model = ViTMAEForPreTraining(config)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_()
model.save_pretrained(pathlib.Path(__file__).parent)
# The names that the modules of this version have in memory.
save_file(model.state_dict(), pathlib.Path(__file__).with_name("module_names.safetensors"))
