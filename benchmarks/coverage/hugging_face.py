"""Thirty Hugging Face models from small configurations: name -> a function of the library to (model, inputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["HUGGING_FACE"]

Made = tuple[nn.Module, dict[str, torch.Tensor]]

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_IMAGES = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_DECODER = {**_SMALL, "num_key_value_heads": 2, "use_cache": False}


def _ids(length: int = 16) -> torch.Tensor:
    return torch.randint(5, 90, (2, length))


def _text(model: str, config: str, **options: Any) -> Callable[[Any], Made]:
    return lambda t: (getattr(t, model)(getattr(t, config)(**options)), {"input_ids": _ids()})


def _masked(model: str, config: str, **options: Any) -> Callable[[Any], Made]:
    return lambda t: (
        getattr(t, model)(getattr(t, config)(**options)),
        {"input_ids": _ids(), "attention_mask": torch.ones(2, 16, dtype=torch.long)},
    )


def _pair(model: str, config: str, **options: Any) -> Callable[[Any], Made]:
    return lambda t: (
        getattr(t, model)(getattr(t, config)(**options)),
        {"input_ids": _ids(), "decoder_input_ids": _ids(8)},
    )


def _image(model: str, config: str, side: int = 32, **options: Any) -> Callable[[Any], Made]:
    return lambda t: (getattr(t, model)(getattr(t, config)(**options)), {"pixel_values": torch.randn(2, 3, side, side)})


def _wav2vec2(t: Any) -> Made:
    config = t.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64, conv_dim=(16, 16),
        conv_kernel=(4, 4), conv_stride=(2, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, mask_time_prob=0.0, layerdrop=0.0,
    )  # fmt: skip
    return t.Wav2Vec2Model(config), {"input_values": torch.randn(2, 400)}


def _whisper(t: Any) -> Made:
    config = t.WhisperConfig(
        d_model=32, encoder_layers=6, encoder_attention_heads=4, encoder_ffn_dim=64, num_mel_bins=16,
        max_source_positions=50,
    )  # fmt: skip
    return t.models.whisper.modeling_whisper.WhisperEncoder(config), {"input_features": torch.randn(2, 16, 100)}


HUGGING_FACE: dict[str, Callable[[Any], Made]] = {
    "BertModel": _masked("BertModel", "BertConfig", **_SMALL),
    "BertForSequenceClassification": _text("BertForSequenceClassification", "BertConfig", **_SMALL),
    "RobertaModel": _text("RobertaModel", "RobertaConfig", **_SMALL, max_position_embeddings=64),
    "DistilBertModel": _text(
        "DistilBertModel", "DistilBertConfig", dim=32, n_layers=6, n_heads=4, hidden_dim=64, vocab_size=100
    ),
    "AlbertModel": _text("AlbertModel", "AlbertConfig", **_SMALL, embedding_size=16),
    "ElectraModel": _text("ElectraModel", "ElectraConfig", **_SMALL, embedding_size=32),
    "DebertaV2Model": _text(
        "DebertaV2Model", "DebertaV2Config", **_SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "MPNetModel": _text("MPNetModel", "MPNetConfig", **_SMALL),
    "GPT2LMHeadModel": _text(
        "GPT2LMHeadModel",
        "GPT2Config",
        n_embd=32,
        n_layer=6,
        n_head=4,
        vocab_size=100,
        n_positions=64,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "GPTNeoXModel": _text("GPTNeoXModel", "GPTNeoXConfig", **_SMALL, use_cache=False),
    "LlamaForCausalLM": _text("LlamaForCausalLM", "LlamaConfig", **_DECODER),
    "MistralForCausalLM": _text("MistralForCausalLM", "MistralConfig", **_DECODER),
    "Qwen2ForCausalLM": _text("Qwen2ForCausalLM", "Qwen2Config", **_DECODER),
    "GemmaForCausalLM": _text("GemmaForCausalLM", "GemmaConfig", **_DECODER, head_dim=8),
    "PhiForCausalLM": _text("PhiForCausalLM", "PhiConfig", **_SMALL, use_cache=False),
    "OPTModel": _text(
        "OPTModel",
        "OPTConfig",
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        ffn_dim=64,
        vocab_size=100,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        use_cache=False,
    ),
    "T5EncoderModel": _text(
        "T5EncoderModel", "T5Config", d_model=32, num_layers=6, num_heads=4, d_ff=64, d_kv=8, vocab_size=100
    ),
    "T5Model": _pair(
        "T5Model", "T5Config", d_model=32, num_layers=4, num_heads=4, d_ff=64, d_kv=8, vocab_size=100, use_cache=False
    ),
    "BartModel": _pair(
        "BartModel",
        "BartConfig",
        d_model=32,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=100,
        use_cache=False,
    ),
    "ViTForImageClassification": _image("ViTForImageClassification", "ViTConfig", **_IMAGES),
    "DeiTModel": _image("DeiTModel", "DeiTConfig", **_IMAGES),
    "BeitModel": _image("BeitModel", "BeitConfig", **_IMAGES),
    "Dinov2Model": _image(
        "Dinov2Model",
        "Dinov2Config",
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    ),
    "ConvNextModel": _image("ConvNextModel", "ConvNextConfig", 64, hidden_sizes=[8, 16, 32, 64], depths=[2, 2, 4, 2]),
    "SwinModel": _image(
        "SwinModel",
        "SwinConfig",
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    "ResNetModel": _image(
        "ResNetModel", "ResNetConfig", 64, embedding_size=8, hidden_sizes=[16, 32, 64, 64], depths=[2, 2, 2, 2]
    ),
    "SegformerModel": _image(
        "SegformerModel",
        "SegformerConfig",
        64,
        hidden_sizes=[16, 32, 32, 64],
        depths=[2, 2, 2, 2],
        num_attention_heads=[1, 2, 2, 4],
    ),
    "Wav2Vec2Model": _wav2vec2,
    "WhisperEncoder": _whisper,
    "CLIPVisionModel": _image("CLIPVisionModel", "CLIPVisionConfig", **_IMAGES),
}
