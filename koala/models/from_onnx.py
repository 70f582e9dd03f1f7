"""An exported folder as a loaded model: ONNX Runtime replaces torch's modules, and the rest of a run is unchanged.

Latents and text stay in fp32 between the calls; a call casts to what its file declares, and back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from onnxruntime.capi import onnxruntime_pybind11_state as failures
from transformers import CLIPTextConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from koala.errors import UserError
from koala.files.reading import read_object
from koala.hardware.cuda import cards
from koala.models.cards import ModelCard
from koala.models.export_manifest import Exported
from koala.models.from_torch import load_tiny_vae, shared_part
from koala.models.layout import TOKENIZERS
from koala.models.loaded import STAGE_PARTS, LoadedModel, Shelf
from koala.models.locate import Location, locate, tiny_vae
from koala.models.reading import check_widths, from_files, load_noising, load_tokenizer
from koala.models.registry import find
from koala.models.semantics import UNET, VAE, check_config, zeros_for_empty
from koala.unet.config import from_config
from koala.unet.costs import LATENT_FACTOR
from koala.unet.part_configs import check_scheduler, check_text_encoder, check_vae

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}  # by torch's device type
_TYPES = {
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(float)": (torch.float32, np.float32),
    "tensor(int64)": (torch.int64, np.int64),
}
_FAILURES = (
    failures.Fail,
    failures.InvalidArgument,
    failures.InvalidGraph,
    failures.InvalidProtobuf,
    failures.NoSuchFile,
    failures.NotImplemented,
    failures.RuntimeException,
)
_REMEDY = {
    CUDA: "it needs onnxruntime-gpu with onnxruntime uninstalled, an NVIDIA driver, CUDA and cuDNN "
    "(pip install onnxruntime-gpu[cuda,cudnn] brings these two); or use --device cpu",
}


def open_session(
    file: Path, provider: str = CPU, options: Mapping[str, str] | None = None
) -> onnxruntime.InferenceSession:
    """A session that computes on this provider. UserError where ONNX Runtime would silently take another."""
    onnxruntime.disable_telemetry_events()  # on Windows; elsewhere koala/__init__.py has done it
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3  # errors; as warnings it reports shape arithmetic that it leaves to the CPU
    remedy = _REMEDY.get(provider, f"use {CPU}, or install the onnxruntime package that has it")
    providers = onnxruntime.get_available_providers()
    if provider not in providers:
        raise UserError(f"ONNX Runtime here has no {provider}, only {', '.join(providers)}; {remedy}")
    try:
        session = onnxruntime.InferenceSession(file, settings, providers=[(provider, dict(options or {}))])
    except _FAILURES as error:
        raise UserError(f"ONNX Runtime {onnxruntime.__version__} cannot open {file}: {error}") from error
    if (used := session.get_providers()[0]) != provider:
        raise UserError(f"ONNX Runtime could not start {provider} and would run {file} on {used}; {remedy}")
    return session


class _Graph(torch.nn.Module):
    """An ONNX graph that replaces a module. It stays on the device of its session; `to` does not move it."""

    dtype = torch.float32

    def __init__(self, session: onnxruntime.InferenceSession, config: object, device: torch.device):
        super().__init__()
        self.session, self.config, self.device = session, config, device
        self.outputs = {value.name: value for value in session.get_outputs()}

    def compute(self, given: Mapping[str, torch.Tensor], **sizes: int) -> dict[str, torch.Tensor]:
        """Every output by name, in fp32; `sizes` are those of named dimensions that no input has.

        All tensors are torch's, on its device; the outputs are new, so that none is an input of the same call.
        """
        binding, where = self.session.io_binding(), (self.device.type, self.device.index or 0)
        cast = {}  # kept until the session has read them
        for value in self.session.get_inputs():
            torch_type, numpy_type = _TYPES[value.type]
            one = cast[value.name] = given[value.name].to(self.device, torch_type).contiguous()
            sizes |= {dim: size for dim, size in zip(value.shape, one.shape, strict=True) if isinstance(dim, str)}
            binding.bind_input(value.name, *where, numpy_type, tuple(one.shape), one.data_ptr())
        outputs = {}
        for value in self.outputs.values():
            torch_type, numpy_type = _TYPES[value.type]
            shape = tuple(sizes.get(dim, dim) for dim in value.shape)
            one = outputs[value.name] = torch.empty(shape, dtype=torch_type, device=self.device)
            binding.bind_output(value.name, *where, numpy_type, shape, one.data_ptr())
        if self.device.type == "cuda":
            cards().current_stream(self.device).synchronize()  # the session has a stream of its own
        self.session.run_with_iobinding(binding)
        return {name: one.to(self.dtype) for name, one in outputs.items()}


class OrtUNet(_Graph):
    """A U-Net with the call of diffusers' UNet2DConditionModel, as SDXL's pipeline makes it."""

    def __init__(self, session: onnxruntime.InferenceSession, config: FrozenDict, device: torch.device):
        super().__init__(session, config, device)
        # The pipeline compares the width of its size embedding with what this layer takes.
        self.add_embedding = SimpleNamespace(
            linear_1=SimpleNamespace(in_features=config.projection_class_embeddings_input_dim)
        )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: None = None,
        cross_attention_kwargs: None = None,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """Noise (B, 4, h, w) of `sample`, in its type; the timestep is one number for all rows."""
        given = {
            "sample": sample,
            "timestep": torch.as_tensor(timestep).reshape(()),
            "encoder_hidden_states": encoder_hidden_states,
            **added_cond_kwargs,
        }
        noise = self.compute(given)["out_sample"].to(sample.dtype)
        return UNet2DConditionOutput(sample=noise) if return_dict else (noise,)


class OrtTextEncoder(_Graph):
    """A CLIP text encoder; all its hidden states are there whether they are asked for or not."""

    def forward(
        self, input_ids: torch.Tensor, output_hidden_states: bool = True
    ) -> CLIPTextModelOutput | BaseModelOutputWithPooling:
        """The states of (n, tokens) of ids, in the classes of transformers."""
        outputs = self.compute({"input_ids": input_ids})
        states = tuple(outputs[name] for name in self.outputs if name.startswith("hidden_states."))
        last = outputs["last_hidden_state"]
        if "text_embeds" in outputs:
            return CLIPTextModelOutput(text_embeds=outputs["text_embeds"], last_hidden_state=last, hidden_states=states)
        return BaseModelOutputWithPooling(
            last_hidden_state=last, pooler_output=outputs["pooler_output"], hidden_states=states
        )


class OrtVAE(_Graph):
    """The decoder of a VAE."""

    def decode(self, latents: torch.Tensor) -> DecoderOutput:
        """(n, 4, h, w) of unscaled latents to (n, 3, 8h, 8w) of pictures."""
        height, width = (LATENT_FACTOR * side for side in latents.shape[2:])
        outputs = self.compute({"latent_sample": latents}, pixel_height=height, pixel_width=width)
        return DecoderOutput(sample=outputs["sample"])


@dataclass(kw_only=True)
class OrtModel(LoadedModel):
    """A model in memory, of which at least the U-Net runs on ONNX Runtime."""

    exported: Exported

    @property
    def precision(self) -> str:
        """Of the exported weights."""
        return self.exported.dtype

    @property
    def software(self) -> dict[str, str]:
        """The version of ONNX Runtime, whose kernels affect the pixels too."""
        return {"onnxruntime": onnxruntime.__version__}


def load(card: ModelCard, library: Shelf, dtype: torch.dtype) -> OrtModel:
    """An exported folder on the library's device; what it lacks comes from the model that it was made of.

    `dtype` is that of torch's loaders: the types of an export are in its files.
    """
    folder, device = Path(card.source), library.device
    exported = Exported.read(folder)
    if device.type not in PROVIDERS:
        raise UserError(f"exports run on cpu or cuda here, not on {device.type}; use --device cpu")
    if exported.target == "cpu-int8" and device.type != "cpu":
        raise UserError(f"{folder} was exported for CPUs; use --device cpu, or export it with --target universal")
    exported.check(folder)

    def graph(kind: type[_Graph], name: str, config: object) -> _Graph:
        file = folder / name / "model.onnx"
        provider, number = PROVIDERS[device.type], device.index or 0
        options = {"device_id": str(number)} if provider == CUDA else {}
        key = ":".join([name, *exported.components[name].files.values(), provider, str(number)])
        return library.share(key, lambda: kind(open_session(file, provider, options), config, device))

    unet = graph(OrtUNet, "unet", _unet_config(folder / "unet" / "config.json", card))
    if exported.whole:
        parts = {n: graph(OrtTextEncoder, n, _text_config(folder / n)) for n in STAGE_PARTS["text"]}
        parts["vae"] = graph(OrtVAE, "vae_decoder", _vae_config(folder / "vae_decoder" / "config.json"))
        settings = folder
    else:
        source = _source(card, exported)
        parts, settings = _torch_parts(source, library), source.folder
    text = [parts[n].config for n in STAGE_PARTS["text"]]
    check_widths(folder, unet.config, text)
    check_scheduler(settings / "scheduler" / "scheduler_config.json")
    pipeline = StableDiffusionXLPipeline(
        unet=unet,
        scheduler=load_noising(settings / "scheduler"),
        force_zeros_for_empty_prompt=zeros_for_empty(settings / "model_index.json"),
        add_watermarker=False,
        **{name: load_tokenizer(settings / name, one.vocab_size) for name, one in zip(TOKENIZERS, text, strict=True)},
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    small = tiny_vae(card)
    return OrtModel(
        card=card,
        pipeline=pipeline,
        spec=card.spec,
        tiny_vae=load_tiny_vae(small, torch.float32) if small else None,
        library=library,
        revision=exported.revision,
        parameters=exported.components["unet"].parameters,
        exported=exported,
    )


def _unet_config(file: Path, card: ModelCard) -> FrozenDict:
    config = read_object(file)
    from_config(config, card.name, str(file))
    check_config(UNET, config, str(file))
    return FrozenDict(config)


def _vae_config(file: Path) -> FrozenDict:
    check_vae(file)
    config = read_object(file)
    check_config(VAE, config, str(file))
    return FrozenDict(config)


def _text_config(folder: Path) -> CLIPTextConfig:
    check_text_encoder(folder / "config.json")
    with from_files("the text encoder", folder):
        return CLIPTextConfig.from_pretrained(folder)


def _source(card: ModelCard, exported: Exported) -> Location:
    """The files of the model that a U-Net was exported of, for its text encoders and its VAE."""
    try:
        return locate(find(exported.model))
    except UserError as error:
        raise UserError(
            f"{card.name} is a U-Net alone; text encoders and VAE are those of {exported.model}, and {error}. Or "
            "export all of it: python -m koala export --components all"
        ) from error


def _torch_parts(source: Location, library: Shelf) -> dict[str, torch.nn.Module]:
    dtype = torch.float32 if library.device.type == "cpu" else torch.float16
    parts = {n: shared_part(library, n, source, dtype) for n in STAGE_PARTS["text"]}
    return parts | {"vae": shared_part(library, "vae", source, torch.float32)}
