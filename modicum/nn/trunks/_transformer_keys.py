"""Checkpoints of ViT (timm, transformers), BERT and GPT-2 (transformers) under the names of `transformer`."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from modicum.core.errors import UserError
from modicum.nn.keymap import translated
from modicum.nn.patches import Patches

Tensors = dict[str, Tensor]
Rules = list[tuple[str, str]]
"""Patterns of foreign names and what they are here, tried in order; an empty one is left out."""

BLOCK = r"block.\1."
VIT: Rules = [
    (r"(head|fc_norm|head_drop)\..*", ""),
    (r"patch_embed\.proj\.", "embed.project.linear."),
    (r"blocks\.(\d+)\.attn\.qkv\.", BLOCK + "attention.qkv."),
    (r"blocks\.(\d+)\.attn\.proj\.", BLOCK + "attention.out."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", BLOCK + "mlp.up."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", BLOCK + "mlp.down."),
    (r"blocks\.(\d+)\.", BLOCK),
    (r"norm\.", "last."),
]
HF_VIT: Rules = [
    (r"(pooler|classifier)\..*", ""),
    (r"embeddings\.patch_embeddings\.projection\.", "embed.project.linear."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.)?qkv\.", BLOCK + "attention.qkv."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:output\.dense|o_proj)\.", BLOCK + "attention.out."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.", BLOCK + "mlp.up."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.(?:output\.dense|mlp\.fc2)\.", BLOCK + "mlp.down."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.", BLOCK + "norm1."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.", BLOCK + "norm2."),
    (r"layernorm\.", "last."),
]
BERT: Rules = [
    (r"(cls|classifier|qa_outputs|pooler)\..*|embeddings\.(word_embeddings\.weight|position_ids|token_type_ids)", ""),
    (r"embeddings\.LayerNorm\.", "embed.norm."),
    (r"encoder\.layer\.(\d+)\.attention\.self\.qkv\.", BLOCK + "attention.qkv."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", BLOCK + "attention.out."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", BLOCK + "norm1."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", BLOCK + "mlp.up."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", BLOCK + "mlp.down."),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.", BLOCK + "norm2."),
]
GPT2: Rules = [
    (r"(lm_head|score|wte|classifier)\..*|h\.\d+\.attn\.(masked_)?bias", ""),
    (r"h\.(\d+)\.ln_([12])\.", r"block.\1.norm\2."),
    (r"h\.(\d+)\.attn\.c_attn\.", BLOCK + "attention.qkv."),
    (r"h\.(\d+)\.attn\.c_proj\.", BLOCK + "attention.out."),
    (r"h\.(\d+)\.mlp\.c_fc\.", BLOCK + "mlp.up."),
    (r"h\.(\d+)\.mlp\.c_proj\.", BLOCK + "mlp.down."),
    (r"ln_f\.", "last."),
]


def translate(network: nn.Module, tensors: Tensors) -> Tensors:
    """The checkpoint under the network's names, without word embeddings and heads; UserError where it does not fit."""
    tensors = {re.sub(r"^(bert|vit|transformer)\.", "", k): v for k, v in tensors.items()}
    if "patch_embed.proj.weight" in tensors:
        source, rules, tensors = "timm ViT", VIT, _vit(tensors, "patch_embed.proj", "pos_embed", "cls_token")
    elif "embeddings.patch_embeddings.projection.weight" in tensors:
        patches, start = "embeddings.patch_embeddings.projection", "embeddings.cls_token"
        source, rules = "transformers ViT", HF_VIT
        tensors = _vit(_fused(tensors), patches, "embeddings.position_embeddings", start)
    elif "embeddings.word_embeddings.weight" in tensors:
        source, rules, tensors = "transformers BERT", BERT, _bert(network, _fused(tensors))
    elif "wpe.weight" in tensors:
        source, rules, tensors = "transformers GPT-2", GPT2, _gpt2(network, tensors)
    else:
        some = ", ".join(sorted(tensors)[:3]) or "none"
        raise UserError(
            f"this is no checkpoint of ViT (timm, transformers), BERT or GPT-2 (transformers): it has {some}, ...; a "
            "file of the transformer's own parameters needs no translation"
        )

    def rename(key: str) -> str | None:
        for pattern, own in rules:
            if re.match(pattern, key):
                return re.sub("^" + pattern, own, key) or None
        return key

    return translated(network, tensors, rename, source)


def _fused(tensors: Tensors) -> Tensors:
    """Separate queries, keys and values as one linear map `qkv`."""
    out, names = {}, {"query": "key", "q_proj": "k_proj"}
    for key, tensor in tensors.items():
        found = re.fullmatch(r"(.*\.)(query|q_proj)\.(weight|bias)", key)
        if found:
            stem, q, kind = found.groups()
            rest = [f"{stem}{name}.{kind}" for name in (names[q], names[q].replace("key", "value").replace("k_", "v_"))]
            if all(name in tensors and tensors[name].shape == tensor.shape for name in rest):
                out[f"{stem}qkv.{kind}"] = torch.cat([tensor, *(tensors[name] for name in rest)])
        elif not re.fullmatch(r".*\.(key|value|k_proj|v_proj)\.(weight|bias)", key):
            out[key] = tensor
    return out


def _vit(tensors: Tensors, patches: str, places: str, start: str) -> Tensors:
    """Patches as a linear map; the class token's position is added to it."""
    out = dict(tensors)
    weight = out.pop(f"{patches}.weight")
    out[f"{patches}.weight"] = Patches.from_conv(weight)
    if places in out:
        table = out.pop(places)[0]
        if start in out:
            out["embed.class_token"], table = out.pop(start).flatten() + table[0], table[1:]
        out["embed.positions"] = table
    return out


def _bert(network: nn.Module, tensors: Tensors) -> Tensors:
    """Positions with the vector of the first segment in them, cut to those that the network has."""
    out = {k: v for k, v in tensors.items() if "token_type_embeddings" not in k and "position_embeddings" not in k}
    table = tensors.get("embeddings.position_embeddings.weight")
    if table is not None:
        segment = tensors.get("embeddings.token_type_embeddings.weight")
        out["embed.positions"] = _cut(network, table if segment is None else table + segment[0])
    return out


def _gpt2(network: nn.Module, tensors: Tensors) -> Tensors:
    """Its weights are those of linear maps, transposed."""
    turned = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")
    out = {k: v.T if turned.fullmatch(k) else v for k, v in tensors.items()}
    out["embed.positions"] = _cut(network, out.pop("wpe.weight"))
    return out


def _cut(network: nn.Module, table: Tensor) -> Tensor:
    own = network.state_dict().get("embed.positions")
    return table if own is None else table[: len(own)]
