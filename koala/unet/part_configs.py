"""Checks the configs of the parts around a U-Net: text encoders, VAE, scheduler. An error names the damaged file.

Sizes have bounds, far above SDXL's: a config alone must not make a library build gigabytes.
"""

from pathlib import Path

from koala.files.fields import Fields, is_whole
from koala.files.reading import read_object
from koala.unet.costs import TOKENS

_WIDEST, _DEEPEST, _VOCABULARY = 16_384, 64, 1_000_000
_TORCH = ("float32", "float16", "bfloat16")
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SPACINGS = ("leading", "trailing", "linspace")


def check_text_encoder(file: Path) -> None:
    """UserError for a text_encoder/config.json that describes no CLIP text encoder that prompts can go through."""
    own = Fields(values=read_object(file), file=str(file))
    heads = own.whole("num_attention_heads", 1, _WIDEST)
    own.whole("num_hidden_layers", 2, _DEEPEST)  # the last but one is what the U-Net reads
    if own.whole("hidden_size", 1, _WIDEST) % heads:
        raise own.wrong("hidden_size", f"a multiple of num_attention_heads, {heads}")
    own.whole("intermediate_size", 1, 8 * _WIDEST)
    own.whole("projection_dim", 1, _WIDEST)
    own.whole("vocab_size", 4, _VOCABULARY)
    own.whole("max_position_embeddings", TOKENS, 4096, TOKENS)
    own.text("hidden_act", "quick_gelu")
    own.number("layer_norm_eps", 1e-12, 0.1, 1e-5)
    own.number("attention_dropout", 0, 1, 0.0)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if own.values.get(name) is not None:
            own.whole(name, 0, _VOCABULARY)
    for name in ("dtype", "torch_dtype"):
        if own.values.get(name) is not None:
            own.text(name, of=_TORCH)


def check_vae(file: Path) -> None:
    """UserError for a vae/config.json that describes no VAE of SDXL's kind."""
    own = Fields(values=read_object(file), file=str(file))
    groups = own.whole("norm_num_groups", 1, _WIDEST, 32)
    channels = own.each("block_out_channels", lambda c: is_whole(c, 1, _WIDEST), "whole numbers")
    if len(channels) != 4 or any(c % groups for c in channels):
        raise own.wrong("block_out_channels", f"four multiples of norm_num_groups, {groups}: one picture side in eight")
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if own.each(name, lambda value, kind=kind: value == kind, kind) != (kind,) * 4:
            raise own.wrong(name, f"{kind} four times")
    own.whole("layers_per_block", 1, 16)
    for name, count in (("in_channels", 3), ("out_channels", 3), ("latent_channels", 4)):
        own.whole(name, count, count)
    own.text("act_fn", "silu", of=("silu",))
    own.number("scaling_factor", 1e-6, 1e3)
    for name, default in (("force_upcast", True), ("use_quant_conv", True), ("use_post_quant_conv", True)):
        own.truth(name, default)
    own.truth("mid_block_add_attention", True)
    for name in ("latents_mean", "latents_std"):
        if own.values.get(name) is not None:
            least = 1e-6 if name == "latents_std" else -1e3
            values = own.each(name, lambda v: isinstance(v, int | float), "numbers")
            if len(values) != 4 or not all(least <= v <= 1e3 for v in values):
                raise own.wrong(name, "four numbers, one per channel")
    if own.values.get("shift_factor") is not None:
        own.number("shift_factor", -1e3, 1e3)


def check_scheduler(file: Path) -> None:
    """UserError for a scheduler_config.json without a noise schedule that any scheduler here could follow."""
    own = Fields(values=read_object(file), file=str(file))
    timesteps = own.whole("num_train_timesteps", 2, 10_000, 1000)
    start = own.number("beta_start", 1e-8, 0.999, 1e-4)
    own.number("beta_end", start, 0.999, 0.02)
    own.text("beta_schedule", "linear", of=_BETAS)
    own.text("prediction_type", "epsilon", of=_PREDICTIONS)
    own.text("timestep_spacing", "linspace", of=_SPACINGS)
    own.whole("steps_offset", 0, 1000, 0)
    if own.values.get("original_inference_steps") is not None:  # of a consistency model: the steps of its distillation
        own.whole("original_inference_steps", 2, min(1000, timesteps))
    own.number("timestep_scaling", 1e-6, 1e6, 10.0)
    own.truth("rescale_betas_zero_snr", False)
    if own.values.get("trained_betas") is not None:
        own.each("trained_betas", lambda b: isinstance(b, float) and 0 < b < 1, "numbers between 0 and 1")


def check_pipeline_configs(folder: Path, vae: Path | None = None) -> None:
    """All of a pipeline's; `vae` is the folder of a VAE from elsewhere."""
    check_text_encoder(folder / "text_encoder" / "config.json")
    check_text_encoder(folder / "text_encoder_2" / "config.json")
    check_vae((vae or folder / "vae") / "config.json")
    check_scheduler(folder / "scheduler" / "scheduler_config.json")
