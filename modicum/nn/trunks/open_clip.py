"""`open_clip`: the image or the text tower of a CLIP of open_clip (Radford et al. 2021; Ilharco et al. 2021)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from modicum.core.errors import UserError, need, unknown
from modicum.core.spec import part
from modicum.core.types import Tokens
from modicum.nn.foreign import Brought, Foreign, library
from modicum.nn.hub import fetch, read, read_json
from modicum.nn.keymap import translated

TOWERS = ("image", "text")
PREFIXES = {"image": ("visual.",), "text": ("text.", "")}
WEIGHTS = "open_clip_model.safetensors"


@final
class OpenClip(Foreign):
    """One `tower` ('image' or 'text') of the CLIP `name`: of open_clip's list, of the hub ('org/name'), or a folder.

    Adopted as an encoder it brings its input and its weights; those of a name of the list are told by their tag,
    `pretrained='laion2b_s34b_b79k'`. `config` is filled in, from which alone it is built. Pooled are the features that
    CLIP compares, before they are normalised; the text tower's tokens are those after its last norm.
    """

    def __init__(
        self, dim: int, grid: tuple[int, ...], name: str, tower: str = "image", pretrained: bool | str = True,
        config: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if tower not in TOWERS:
            raise unknown("tower", tower, TOWERS)
        if config is None:
            raise UserError(f"open_clip('{name}') is not adopted yet: give it as an encoder")
        if (len(grid) == 2) != (tower == "image"):
            raise UserError(f"the {tower} tower of a CLIP takes {tower}s; this data has grid {tuple(grid)}")
        self.dim, self.grid, self.name, self.tower, self.pretrained = dim, tuple(grid), name, tower, pretrained
        self.config = config
        if tower == "text":
            self.can = frozenset({"padding", "any_length"} | (set() if _both_ways(config) else {"causal"}))
        self.settle(_build(tower, config))

    @classmethod
    def bring(cls, trained: bool, **args: Any) -> Brought:
        name, tower, tag = args["name"], args.get("tower", "image"), args.get("pretrained", True)
        if tower not in TOWERS:
            raise unknown("tower", tower, TOWERS)
        clip, preprocess, repository = library("open_clip"), {}, name.removeprefix("hf-hub:")
        config = args.get("config") or clip.get_model_config(name)
        if config is None:
            if "/" not in name and not Path(name).is_dir():
                raise unknown("network of open_clip", name, clip.list_models())
            found = read_json(fetch(repository, "open_clip_config.json"))
            config, preprocess = found["model_cfg"], found.get("preprocess_cfg", {})
        elif isinstance(tag, str):
            preprocess = clip.get_pretrained_cfg(name, tag)
            repository = preprocess.get("hf_hub", "").rstrip("/")
        config = {
            k: _plain(v) for k, v in config.items() if k in ("embed_dim", "quick_gelu", f"{tower}_cfg", "vision_cfg")
        }
        if tower == "text":
            config.pop("vision_cfg")
        input = _images(config, preprocess) if tower == "image" else _texts(config)
        tensors = None
        if trained and tag is not False:
            if not repository or (tag is True and "/" not in name and not Path(name).is_dir()):
                tags = ", ".join(clip.list_pretrained_tags_by_model(name)) or "none"
                raise UserError(f"open_clip('{name}') needs pretrained='TAG' with weights on the hub; its tags: {tags}")
            tensors = read(fetch(repository, WEIGHTS))
        return Brought(input, {**args, "config": config}, tensors)

    def forward(self, tokens: Tokens, causal: bool = False) -> Tokens:
        del causal  # what can be causal here always is
        return self._image(tokens) if self.tower == "image" else self._text(tokens)

    def _image(self, tokens: Tokens) -> Tokens:
        pooled = self.module(self.as_image(tokens))
        return Tokens(pooled.unsqueeze(1), None, (1,), pooled=pooled)

    def _text(self, tokens: Tokens) -> Tokens:
        net, (b, t, _) = self.module, tokens.x.shape
        hidden = net.attn_mask
        hidden = tokens.x.new_zeros(t, t) if hidden is None else hidden[:t, :t].to(tokens.x.dtype)
        if tokens.mask is not None:
            gaps = torch.zeros_like(tokens.x[..., 0]).masked_fill(~tokens.mask, -torch.inf)
            hidden = (hidden + gaps.unsqueeze(1)).repeat_interleave(net.heads, 0)
        x = net.ln_final(net.transformer(tokens.x + net.positional_embedding[:t], attn_mask=hidden))
        last = torch.full((b,), t - 1, device=x.device)
        if tokens.mask is not None:
            last = (tokens.mask * torch.arange(t, device=x.device)).argmax(1)
        end = x[:, 0] if net.pool_type == "first" else x[torch.arange(b, device=x.device), last]
        project = net.text_projection
        pooled = project(end) if isinstance(project, nn.Module) else end if project is None else end @ project
        return Tokens(x, tokens.mask, (t,), pooled=pooled)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """This tower's part of a CLIP of open_clip; UserError where it does not fit."""
        own = self.module.state_dict().keys()
        start = next(
            (p for p in PREFIXES[self.tower] if any(k.startswith(p) and k[len(p) :] in own for k in tensors)), ""
        )
        mine = {
            f"module.{k.removeprefix(start)}": v.float() for k, v in tensors.items() if k.removeprefix(start) in own
        }
        return translated(self, mine, str, f"tower of open_clip's {self.name}")


def _plain(value: Any) -> Any:
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _both_ways(config: dict[str, Any]) -> bool:
    return bool(config["text_cfg"].get("no_causal_mask"))


def _build(tower: str, config: dict[str, Any]) -> Any:
    library("open_clip")
    made = need("open_clip.model", "hub")
    quick = config.get("quick_gelu", False)
    if tower == "image":
        vision = {k: list(v) if isinstance(v, tuple) else v for k, v in config["vision_cfg"].items()}
        vision.pop("timm_model_pretrained", None)
        return made._build_vision_tower(config["embed_dim"], made.CLIPVisionCfg(**vision), quick)
    text = made.CLIPTextCfg(**config["text_cfg"])
    if text.hf_model_name or text.embed_cls or text.pool_type not in ("argmax", "eos", "first"):
        raise UserError(
            "only text towers of open_clip's own kind that end in an end-of-text token are taken; for others use hf"
        )
    net = made._build_text_tower(config["embed_dim"], text, quick)
    net.token_embedding = nn.Identity()  # the input holds them
    return net


def _images(config: dict[str, Any], preprocess: dict[str, Any]) -> Any:
    constants = need("open_clip.constants", "hub")
    size = config["vision_cfg"].get("image_size", 224)
    size = size if isinstance(size, int) else size[0]
    mean = tuple(preprocess.get("mean", constants.OPENAI_DATASET_MEAN))
    return part("modality", "images")(size, 3, mean, tuple(preprocess.get("std", constants.OPENAI_DATASET_STD)))


def _texts(config: dict[str, Any]) -> Any:
    text = config["text_cfg"]
    named = text.get("hf_tokenizer_name")
    tokenizer = fetch(named, "tokenizer.json").read_text("utf-8") if named else _tokenizer()
    return part("modality", "text")(tokenizer, text.get("context_length", 77), text.get("width", 512))


def _tokenizer() -> str:
    """open_clip's own tokenizer as the content of a tokenizer.json."""
    tokenizers = need("tokenizers", "text")
    simple = need("open_clip.tokenizer", "hub").SimpleTokenizer()
    ends = simple.all_special_ids
    start, end = (simple.decoder[i] for i in ends)
    merges = [list(pair) for pair in simple.bpe_ranks]
    normal, before, after = tokenizers.normalizers, tokenizers.pre_tokenizers, tokenizers.processors
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(simple.encoder, [tuple(m) for m in merges], unk_token=end, end_of_word_suffix="</w>")
    )
    made.normalizer = normal.Sequence([normal.NFC(), normal.Replace(tokenizers.Regex(r"\s+"), " "), normal.Lowercase()])
    words = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    made.pre_tokenizer = before.Sequence(
        [before.Split(tokenizers.Regex(words), "removed", invert=True), before.ByteLevel(False, use_regex=False)]
    )
    made.post_processor = after.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, ends[0]), (end, ends[1])]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([start, end])
    return json.dumps(json.loads(made.to_str()), ensure_ascii=False, separators=(",", ":"))
