"""`hf`: BERT, GPT-2, ViT and their like from transformers (Wolf et al. 2020), by name, folder or config."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn

from modicum.core.errors import UserError
from modicum.core.spec import part
from modicum.core.types import Tokens
from modicum.nn.foreign import Brought, Foreign, library
from modicum.nn.hub import fetch, fetch_weights, maybe, read, read_json
from modicum.nn.layers import as_tokens

DROPPED = ("id2label", "label2id", "architectures", "_name_or_path", "dtype", "torch_dtype", "auto_map", "name_or_path")
"""Parts of a config that describe a file or a classifier, not the network."""
LONGEST = 256
"""Tokens of a text that are read where neither the user nor the network's makers say it."""


@final
class Hf(Foreign):
    """A network of transformers: `name` of the hub, or a folder with config.json, model.safetensors and a tokenizer.

    Adopted as an encoder it brings its input (tokenizer, or size, mean and std of images) and, unless
    `pretrained=False`, its weights; `config` is then filled in, from which alone it is built. `size`: the most tokens
    of a text, or the side of images. Texts are pooled by the mean over their tokens, as sentence-transformers do;
    images by the network's own summary or class token. Remote code is never run.
    """

    def __init__(
        self, dim: int, grid: tuple[int, ...], name: str, pretrained: bool = True, size: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if config is None:
            raise UserError(f"hf('{name}') is not adopted yet, so that its config is unknown: give it as an encoder")
        self.dim, self.grid, self.name, self.pretrained, self.size = dim, tuple(grid), name, pretrained, size
        self.config = config
        cls, options = _class(config)
        with _quiet():
            module = cls._from_config(_config(config), **options)
        self.texts = module.main_input_name == "input_ids"
        if (len(grid) == 1) != self.texts:
            wanted = "texts" if self.texts else "images"
            raise UserError(f"hf '{name}' ({config['model_type']}) takes {wanted}; this data has grid {tuple(grid)}")
        if self.texts:
            _without_words(module)
            causal = any(getattr(m, "is_causal", False) for m in module.modules())
            self.can = frozenset({"padding", "any_length", *(["causal"] if causal else [])})
        self.settle(module)

    @classmethod
    def bring(cls, trained: bool, **args: Any) -> Brought:
        name = args["name"]
        given = args.get("config") or read_json(fetch(name, "config.json"))
        if given.get("is_encoder_decoder"):
            raise UserError(
                f"hf '{name}' ({given.get('model_type')}) is an encoder with a decoder; wanted one of the two"
            )
        config = {k: v for k, v in _config(given).to_dict().items() if k not in DROPPED}
        network, _ = _class(config)
        texts = network.main_input_name == "input_ids"
        input = _texts(name, config, args.get("size")) if texts else _images(name, config, args.get("size"))
        tensors: dict[str, Tensor] | None = None
        if trained and args.get("pretrained", True):
            tensors = {k: v for file in fetch_weights(name) for k, v in read(file).items()}
        return Brought(input, {**args, "config": config}, tensors)

    def forward(self, tokens: Tokens, causal: bool = False) -> Tokens:
        del causal  # what can be causal here always is
        if self.texts:
            mask = None if tokens.mask is None else tokens.mask.long()
            x = self.module(inputs_embeds=tokens.x, attention_mask=mask).last_hidden_state
            return Tokens(x, tokens.mask, (x.shape[1],))
        resized = "interpolate_pos_encoding" in inspect.signature(self.module.forward).parameters
        out = self.module(pixel_values=self.as_image(tokens), **({"interpolate_pos_encoding": True} if resized else {}))
        x, summary = out.last_hidden_state, getattr(out, "pooler_output", None)
        summary = None if summary is None else summary.flatten(1)
        if x.dim() == 4:
            return Tokens(as_tokens(x), None, tuple(x.shape[2:]), pooled=summary)
        patch = self.config.get("patch_size", 0)
        sides = tuple(side // patch for side in self.grid) if isinstance(patch, int) and patch else (x.shape[1],)
        first = max(0, x.shape[1] - math.prod(sides))
        grid = sides if math.prod(sides) + first == x.shape[1] else (x.shape[1],)
        pooled = x[:, 0] if summary is None and first else summary
        return Tokens(x[:, first:], None, grid, pooled=pooled)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint of this architecture, with or without a head, as transformers reads it."""
        cls, options = _class(self.config)
        given = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        options = {**options, "config": _config(self.config), "state_dict": given, "output_loading_info": True}
        with _quiet():
            made, found = cls.from_pretrained(None, ignore_mismatched_sizes=True, **options)
        words = _without_words(made) if self.texts else None
        missing = sorted(k for k in found["missing_keys"] if words is None or not k.startswith(words))
        faults = [f"it lacks {', '.join(missing[:3])}"] if missing else []
        shapes = [f"{k} {tuple(a)}, wanted {tuple(b)}" for k, a, b in sorted(found["mismatched_keys"])]
        faults += [f"other shapes: {', '.join(shapes[:3])}"] if shapes else []
        if faults:
            more = sorted(found["unexpected_keys"])[:3]
            faults += [f"it has {', '.join(more)} more"] if more else []
            raise UserError(
                f"the checkpoint does not fit {self.config['model_type']} '{self.name}': {'; '.join(faults)}"
            )
        return {f"module.{k}": v for k, v in made.state_dict().items()}


def _config(given: dict[str, Any]) -> Any:
    """The config object of a known architecture."""
    tf = library("transformers")
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if k not in DROPPED}
    kind = given.pop("model_type", None)
    if kind not in tf.CONFIG_MAPPING:
        raise UserError(f"transformers has no architecture '{kind}' of its own, and remote code is never run")
    return tf.AutoConfig.for_model(kind, **{**given, "use_cache": False})


def _class(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class of the bare network, and how to make it without a pooling layer."""
    tf = library("transformers")
    kind = type(_config(config))
    if kind not in tf.MODEL_MAPPING:
        raise UserError(f"transformers has no bare network for '{config.get('model_type')}'")
    cls = tf.MODEL_MAPPING[kind]
    return cls, {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(
        cls.__init__
    ).parameters else {}


def _without_words(module: Any) -> str:
    """Take the vectors of words out of a network, which the input holds; where they were."""
    words = module.get_input_embeddings()
    name = next(n for n, m in module.named_modules() if m is words)
    module.set_input_embeddings(nn.Identity())
    return str(name)


def _texts(name: str, config: dict[str, Any], size: int | None) -> Any:
    tf = library("transformers")
    folder = fetch(name, "config.json").parent
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt"):
        if not (folder / file).is_file():
            try:
                folder = fetch(name, file).parent
            except UserError:  # of these a tokenizer needs some
                continue
    try:
        tokenizer = tf.AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer.to_str()
    except Exception as error:  # the library raises all kinds of errors
        raise UserError(f"'{name}' has no tokenizer that can be read: {str(error).splitlines()[0][:200]}") from None
    most = maybe(name, "sentence_bert_config.json").get("max_seq_length") or LONGEST
    places = getattr(_config(config), "max_position_embeddings", None)
    length = size or min(most, places or most)
    return part("modality", "text")(tokenizer, length, _width(config))


def _width(config: dict[str, Any]) -> int:
    made = _config(config)
    found = (getattr(made, key, None) for key in ("word_embed_proj_dim", "embedding_size", "hidden_size"))
    return int(next(v for v in found if v))


def _images(name: str, config: dict[str, Any], size: int | None) -> Any:
    """Images as the network's preprocessor makes them."""
    found = maybe(name, "preprocessor_config.json")
    sides = found.get("crop_size") or found.get("size") or config.get("image_size") or 224
    side = next(iter(sides.values())) if isinstance(sides, dict) else sides
    side = size or (side if isinstance(side, int) else side[0])
    channels = config.get("num_channels", 3)
    plain = ((0.0,) * channels, (1.0,) * channels)
    means, stds = tuple(found.get("image_mean", (0.5,) * channels)), tuple(found.get("image_std", (0.5,) * channels))
    return part("modality", "images")(side, channels, *((means, stds) if found.get("do_normalize", True) else plain))


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers would report of weights is checked here."""
    words = library("transformers").utils.logging
    level, shown = words.get_verbosity(), words.is_progress_bar_enabled()
    words.set_verbosity_error()
    words.disable_progress_bar()
    try:
        yield
    finally:
        words.set_verbosity(level)
        if shown:
            words.enable_progress_bar()
