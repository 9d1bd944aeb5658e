"""Hugging Face models from small configurations: name -> a function to a model and inputs of three sizes.

Texts come with a padding mask (decoders are padded on the left, as they are to generate), at three lengths; images,
sounds and series in three sizes. Models are built with the library's default attention (sdpa where there is one); those
named ``…(eager)`` with the other, ``…(lora)`` with low-rank adapters beside their projections, as fine-tuning has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["HUGGING_FACE", "LoRALinear", "add_lora"]

Inputs = dict[str, Any]
Entry = tuple[nn.Module, Callable[[int], Inputs], Sequence[int]]
Builder = Callable[[Any], Entry]

_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_DECODER = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "use_cache": False}
_GPT = {
    "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 100, "use_cache": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_T5 = {"d_model": 32, "num_layers": 4, "num_heads": 4, "d_ff": 64, "d_kv": 8, "vocab_size": 100, "use_cache": False}
_BART = {
    "d_model": 32, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 100, "max_position_embeddings": 64, "use_cache": False,
}  # fmt: skip
_IMAGES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_STAGES = {"hidden_sizes": [8, 16, 32, 64], "depths": [2, 2, 4, 2]}
_SPEECH = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "conv_dim": (16, 16),
    "conv_kernel": (4, 4), "conv_stride": (2, 2), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip
_LENGTHS = (16, 11, 24)


# Inputs ---------------------------------------------------------------------------------------------------------------


def _ids(length: int) -> torch.Tensor:
    return torch.randint(5, 90, (2, length))


def _masked(length: int) -> Inputs:
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, -3:] = 0
    return {"input_ids": _ids(length), "attention_mask": mask}


def _padded_left(length: int) -> Inputs:
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, :3] = 0
    return {"input_ids": _ids(length), "attention_mask": mask}


def _plain(length: int) -> Inputs:
    return {"input_ids": _ids(length)}


def _both(length: int) -> Inputs:
    return {**_masked(length), "decoder_input_ids": _ids(8)}


def _pixels(side: int) -> Inputs:
    return {"pixel_values": torch.randn(2, 3, side, side)}


def _waves(samples: int) -> Inputs:
    mask = torch.ones(2, samples, dtype=torch.long)
    mask[1, -80:] = 0
    return {"input_values": torch.randn(2, samples), "attention_mask": mask}


def _past(length: int) -> Inputs:
    return {"past_values": torch.randn(2, length, 3)}


def _series(length: int) -> Inputs:
    """Past and future of a series, each with two time features."""
    return {
        "past_values": torch.rand(2, length + 7),
        "past_time_features": torch.randn(2, length + 7, 2),
        "past_observed_mask": torch.ones(2, length + 7),
        "future_values": torch.rand(2, 8),
        "future_time_features": torch.randn(2, 8, 2),
    }


# Models ---------------------------------------------------------------------------------------------------------------


def _model(
    model: str,
    options: dict[str, Any],
    inputs: Callable[[int], Inputs],
    sizes: Sequence[int] = _LENGTHS,
    *,
    config: str = "",
    lora: Sequence[str] = (),
    **more: Any,
) -> Builder:
    """The builder of a model: of the configuration that its name says, or of ``config``."""
    stem = model
    for ending in ("LMHeadModel", "Model", "ForCausalLM", "ForMaskedLM", "ForPreTraining", "ForPrediction", "Encoder"):
        stem = stem.removesuffix(ending)

    def build(t: Any) -> Entry:
        made = getattr(t, model)(getattr(t, config or f"{stem}Config")(**{**options, **more}))
        if lora:
            add_lora(made, lora)
        return made, inputs, sizes

    return build


class LoRALinear(nn.Module):
    """A frozen linear map, and a low-rank one beside it that learns."""

    def __init__(self, base: nn.Module, size: tuple[int, int], rank: int = 4, alpha: float = 8.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.lora_a = nn.Parameter(torch.randn(rank, size[0]) * 0.1)
        self.lora_b = nn.Parameter(torch.randn(size[1], rank) * 0.1)
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.dropout(x.to(self.lora_a.dtype)) @ self.lora_a.T @ self.lora_b.T
        return self.base(x) + (low * self.scaling).to(x.dtype)


def add_lora(model: nn.Module, targets: Sequence[str]) -> nn.Module:
    """Freeze a model and put low-rank adapters beside its linear layers of these names."""
    model.requires_grad_(requires_grad=False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in targets:
                rows, columns = child.weight.shape
                size = (columns, rows) if isinstance(child, nn.Linear) else (rows, columns)  # GPT-2's Conv1D
                setattr(module, name, LoRALinear(child, size))
    return model


def _whisper(t: Any) -> Entry:
    config = t.WhisperConfig(
        d_model=32, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=64, num_mel_bins=16,
        max_source_positions=50,
    )  # fmt: skip
    encoder = t.models.whisper.modeling_whisper.WhisperEncoder(config)
    return encoder, lambda length: {"input_features": torch.randn(2, 16, length)}, (100,)


def _whisper_pair(t: Any) -> Entry:
    config = t.WhisperConfig(
        **_BART | {"max_target_positions": 64}, num_mel_bins=16, max_source_positions=50, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip

    def inputs(length: int) -> Inputs:
        return {"input_features": torch.randn(2, 16, 100), "decoder_input_ids": _ids(length)}

    return t.WhisperModel(config), inputs, (8, 5, 12)


def _spectrogram(t: Any) -> Entry:
    config = t.ASTConfig(
        **{**_IMAGES, "patch_size": 8}, num_mel_bins=16, max_length=64, frequency_stride=8, time_stride=8
    )
    return t.ASTModel(config), lambda length: {"input_values": torch.randn(2, length, 16)}, (64,)


def _layout(t: Any) -> Entry:
    def inputs(length: int) -> Inputs:
        corner = torch.randint(0, 400, (2, length, 2))
        return {**_masked(length), "bbox": torch.cat([corner, corner + 50], dim=-1)}

    return t.LayoutLMModel(t.LayoutLMConfig(**_TEXT)), inputs, _LENGTHS


def _time_series(model: str, **more: Any) -> Builder:
    options = {
        "prediction_length": 8, "context_length": 16, "lags_sequence": [1, 2, 7], "num_time_features": 2, "d_model": 16,
        "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "use_cache": False,
    }  # fmt: skip
    return _model(f"{model}Model", options, _series, (16,), config=f"{model}Config", **more)


_PATCHES = {
    "num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16,
    "num_hidden_layers": 4, "num_attention_heads": 2, "ffn_dim": 32, "prediction_length": 8,
}  # fmt: skip
_MIXER = {
    "num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16, "num_layers": 4,
    "prediction_length": 8,
}  # fmt: skip
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_ALL_LAYERS = {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
_EAGER = {"attn_implementation": "eager"}

_ENCODERS: dict[str, Builder] = {
    "BertModel": _model("BertModel", _TEXT, _masked),
    "BertModel(eager)": _model("BertModel", _TEXT, _masked, **_EAGER),
    "BertForSequenceClassification(lora)": _model(
        "BertForSequenceClassification", _TEXT, _masked, config="BertConfig", lora=["query", "value"]
    ),
    "BertForMaskedLM": _model("BertForMaskedLM", _TEXT, _plain),
    "RobertaModel": _model("RobertaModel", _TEXT, _masked, max_position_embeddings=64),
    "XLMRobertaModel(eager)": _model("XLMRobertaModel", _TEXT, _masked, max_position_embeddings=64, **_EAGER),
    "DistilBertModel": _model(
        "DistilBertModel",
        {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, "vocab_size": 100},
        _masked,
    ),
    "AlbertModel": _model("AlbertModel", _TEXT, _masked, embedding_size=16),
    "ElectraModel": _model("ElectraModel", _TEXT, _masked, embedding_size=32),
    "DebertaModel": _model("DebertaModel", _TEXT, _masked, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "DebertaV2Model": _model("DebertaV2Model", _TEXT, _masked, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "MPNetModel": _model("MPNetModel", _TEXT, _masked),
    "ModernBertModel": _model(
        "ModernBertModel", _TEXT, _masked, cls_token_id=1, sep_token_id=2, max_position_embeddings=64, local_attention=8
    ),
    "ModernBertModel(eager)": _model("ModernBertModel", _TEXT, _masked, cls_token_id=1, sep_token_id=2, **_EAGER),
    "EsmModel": _model("EsmModel", _TEXT, _masked, position_embedding_type="rotary", mask_token_id=4),
    "IBertModel": _model("IBertModel", _TEXT, _masked, max_position_embeddings=64),
    "RoFormerModel": _model("RoFormerModel", _TEXT, _masked),
    "ConvBertModel": _model("ConvBertModel", _TEXT, _masked, embedding_size=32, head_ratio=2, conv_kernel_size=3),
    "FunnelModel": _model(
        "FunnelModel",
        {"vocab_size": 100, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [2, 2]},
        _masked,
    ),
    "SqueezeBertModel": _model("SqueezeBertModel", _TEXT, _masked, embedding_size=32),
    "MobileBertModel": _model("MobileBertModel", _TEXT, _masked, embedding_size=32, intra_bottleneck_size=32),
    "BigBirdModel": _model("BigBirdModel", _TEXT, _masked, attention_type="original_full"),
    "FNetModel": _model("FNetModel", _TEXT, _plain, tpu_short_seq_length=16, max_position_embeddings=64),
    "Data2VecTextModel": _model("Data2VecTextModel", _TEXT, _masked, max_position_embeddings=64),
    "MegatronBertModel": _model("MegatronBertModel", _TEXT, _masked),
    "EuroBertModel": _model("EuroBertModel", _DECODER, _masked),
    "LayoutLMModel": _layout,
    "CLIPTextModel": _model("CLIPTextModel", _TEXT, _masked, max_position_embeddings=64),
    "T5EncoderModel": _model("T5EncoderModel", _T5, _masked, config="T5Config"),
}
_DECODERS: dict[str, Builder] = {
    "GPT2LMHeadModel": _model("GPT2LMHeadModel", _GPT, _padded_left),
    "GPT2LMHeadModel(eager)": _model("GPT2LMHeadModel", _GPT, _plain, **_EAGER),
    "GPT2LMHeadModel(lora)": _model("GPT2LMHeadModel", _GPT, _plain, lora=["c_attn"]),
    "GPTNeoXModel": _model("GPTNeoXModel", _TEXT, _padded_left, use_cache=False),
    "GPTNeoModel": _model(
        "GPTNeoModel",
        {**_TEXT, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 8},
        _padded_left,
        max_position_embeddings=64,
        use_cache=False,
    ),
    "GPTJModel": _model("GPTJModel", _GPT, _padded_left, rotary_dim=4),
    "CodeGenModel": _model("CodeGenModel", _GPT, _padded_left, rotary_dim=4),
    "LlamaForCausalLM": _model("LlamaForCausalLM", _DECODER, _padded_left),
    "LlamaForCausalLM(eager)": _model("LlamaForCausalLM", _DECODER, _padded_left, **_EAGER),
    "LlamaForCausalLM(lora)": _model("LlamaForCausalLM", _DECODER, _padded_left, lora=["q_proj", "v_proj"]),
    "MistralForCausalLM": _model("MistralForCausalLM", _DECODER, _padded_left, sliding_window=8),
    "Qwen2ForCausalLM": _model("Qwen2ForCausalLM", _DECODER, _padded_left),
    "Qwen3ForCausalLM": _model("Qwen3ForCausalLM", _DECODER, _padded_left),
    "Qwen3ForCausalLM(eager)": _model("Qwen3ForCausalLM", _DECODER, _plain, **_EAGER),
    "GemmaForCausalLM": _model("GemmaForCausalLM", _DECODER, _plain),
    "Gemma2ForCausalLM": _model("Gemma2ForCausalLM", _DECODER, _padded_left, sliding_window=8, **_EAGER),
    "PhiForCausalLM": _model("PhiForCausalLM", _TEXT, _padded_left, use_cache=False),
    "Phi3ForCausalLM": _model("Phi3ForCausalLM", _DECODER, _padded_left, rope_scaling=None),
    "OPTModel": _model(
        "OPTModel", _TEXT, _padded_left, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64, use_cache=False
    ),
    "BloomModel": _model("BloomModel", _TEXT, _padded_left, n_layer=4, n_head=4, use_cache=False),
    "FalconModel": _model("FalconModel", _TEXT, _padded_left, alibi=False, use_cache=False),
    "MptModel": _model("MptModel", {"d_model": 32, "n_heads": 4, "n_layers": 4, "vocab_size": 100}, _padded_left),
    "StableLmModel": _model("StableLmModel", _DECODER, _padded_left),
    "Starcoder2Model": _model("Starcoder2Model", _DECODER, _padded_left),
    "Olmo2Model": _model("Olmo2Model", _DECODER, _padded_left),
    "CohereModel": _model("CohereModel", _DECODER, _padded_left),
    "GraniteModel": _model("GraniteModel", _DECODER, _padded_left),
    "SmolLM3Model": _model("SmolLM3Model", _DECODER, _padded_left),
    "BioGptModel": _model("BioGptModel", _TEXT, _padded_left, max_position_embeddings=64, use_cache=False),
    "XGLMModel": _model(
        "XGLMModel", {**_BART, "num_layers": 4, "attention_heads": 4, "ffn_dim": 64}, _padded_left, pad_token_id=0
    ),
    "MixtralModel": _model("MixtralModel", _DECODER, _plain, num_local_experts=4),
    "MambaModel": _model("MambaModel", _TEXT, _plain, state_size=4, time_step_rank=4, use_cache=False),
    "RwkvModel": _model("RwkvModel", _TEXT, _plain, attention_hidden_size=32, use_cache=False),
}
_PAIRS: dict[str, Builder] = {
    "T5Model": _model("T5Model", _T5, _both),
    "BartModel": _model("BartModel", _BART, _both),
    "PegasusModel(eager)": _model("PegasusModel", _BART, _both, pad_token_id=0, **_EAGER),
    "M2M100Model": _model("M2M100Model", _BART, _both, encoder_layerdrop=0.0, decoder_layerdrop=0.0, pad_token_id=0),
}
_VISION: dict[str, Builder] = {
    "ViTForImageClassification": _model(
        "ViTForImageClassification", _IMAGES, _pixels, (32,), config="ViTConfig", num_labels=5
    ),
    "ViTModel(eager)": _model("ViTModel", _IMAGES, _pixels, (32,), **_EAGER),
    "ViTModel(lora)": _model("ViTModel", _IMAGES, _pixels, (32,), lora=["query", "value", "q_proj", "v_proj"]),
    "DeiTModel": _model("DeiTModel", _IMAGES, _pixels, (32,)),
    "BeitModel": _model("BeitModel", _IMAGES, _pixels, (32,)),
    "Data2VecVisionModel": _model("Data2VecVisionModel", _IMAGES, _pixels, (32,)),
    "Dinov2Model": _model("Dinov2Model", _IMAGES, _pixels, (32, 48, 64)),
    "SiglipVisionModel": _model("SiglipVisionModel", _IMAGES, _pixels, (32,)),
    "CLIPVisionModel": _model("CLIPVisionModel", _IMAGES, _pixels, (32,)),
    "YolosModel": _model("YolosModel", {**_IMAGES, "image_size": [32, 32]}, _pixels, (32, 48), num_detection_tokens=4),
    "ConvNextModel": _model("ConvNextModel", _STAGES, _pixels, (64, 96, 128)),
    "ConvNextV2Model": _model("ConvNextV2Model", _STAGES, _pixels, (64, 96, 128)),
    "SwinModel": _model("SwinModel", _SWIN, _pixels, (32, 48)),
    "Swinv2Model": _model("Swinv2Model", _SWIN, _pixels, (32, 48)),
    "ResNetModel": _model("ResNetModel", _STAGES, _pixels, (64, 96, 128), embedding_size=8),
    "RegNetModel": _model("RegNetModel", _STAGES, _pixels, (64, 96), embedding_size=8, groups_width=4),
    "SegformerModel": _model(
        "SegformerModel", {**_STAGES, "num_attention_heads": [1, 2, 2, 4], "depths": [2, 2, 2, 2]}, _pixels, (64, 96)
    ),
    "PoolFormerModel": _model("PoolFormerModel", {**_STAGES, "depths": [2, 2, 2, 2]}, _pixels, (64, 96)),
    "MobileNetV2Model": _model("MobileNetV2Model", {"depth_multiplier": 0.25}, _pixels, (64, 96, 128)),
    "FocalNetModel": _model(
        "FocalNetModel", {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2, 2, 2]}, _pixels, (32, 64)
    ),
    "DPTForDepthEstimation": _model(
        "DPTForDepthEstimation",
        {**_IMAGES, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8},
        _pixels,
        (32,),
        config="DPTConfig",
    ),
}
_AUDIO: dict[str, Builder] = {
    "Wav2Vec2Model": _model("Wav2Vec2Model", _SPEECH, _waves, (400, 330, 512)),
    "Wav2Vec2Model(eager)": _model("Wav2Vec2Model", _SPEECH, _waves, (400, 330, 512), **_EAGER),
    "HubertModel": _model("HubertModel", _SPEECH, _waves, (400, 330, 512)),
    "WavLMModel": _model("WavLMModel", _SPEECH, _waves, (400, 330, 512)),
    "Data2VecAudioModel": _model("Data2VecAudioModel", _SPEECH, _waves, (400, 330, 512)),
    "WhisperEncoder": _whisper,
    "WhisperModel": _whisper_pair,
    "ASTModel": _spectrogram,
}
_SERIES: dict[str, Builder] = {
    "PatchTSTModel": _model("PatchTSTModel", _PATCHES, _past, (32,)),
    "PatchTSTForPrediction": _model("PatchTSTForPrediction", _PATCHES, _past, (32,)),
    "PatchTSMixerModel": _model("PatchTSMixerModel", _MIXER, _past, (32,)),
    "TimeSeriesTransformerModel(layerdrop)": _time_series("TimeSeriesTransformer"),  # of 0.1, as it comes
    "TimeSeriesTransformerModel": _time_series("TimeSeriesTransformer", **_ALL_LAYERS),
    "InformerModel": _time_series("Informer", **_ALL_LAYERS),
    "AutoformerModel": _time_series("Autoformer", moving_average=5, **_ALL_LAYERS),
}
HUGGING_FACE = {**_ENCODERS, **_DECODERS, **_PAIRS, **_VISION, **_AUDIO, **_SERIES}
