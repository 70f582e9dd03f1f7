"""The parts around an SDXL-family U-Net as data: text encoders and VAE, with exact costs by arithmetic."""

from dataclasses import dataclass

from koala.errors import UserError
from koala.unet.costs import LATENT_CHANNELS, LATENT_FACTOR, TOKENS, add, convolution, linear, norm
from koala.unet.specs import UNetSpec


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """A CLIP text encoder; `projection` is the width of its pooled output, None for one without."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    activation: str
    projection: int | None = None

    def config(self) -> dict:
        """Keyword arguments of transformers.CLIPTextConfig that build exactly this encoder."""
        return {
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": TOKENS,
            "hidden_act": self.activation,
            "projection_dim": self.projection or self.width,
            "bos_token_id": self.vocabulary - 2,
            "eos_token_id": self.vocabulary - 1,
        }

    @property
    def cost(self) -> tuple[int, int]:
        """(parameters, FLOPs of one prompt)."""
        width = self.width
        feed_forward = linear(width, 4 * width, TOKENS), linear(4 * width, width, TOKENS)
        layer = add(*[norm(width)] * 2, *[linear(width, width, TOKENS)] * 4, *feed_forward)
        products = (0, 4 * width * TOKENS**2)  # q k^T and p v
        pooled = linear(width, self.projection, 1, bias=False) if self.projection else (0, 0)
        embeddings = ((self.vocabulary + TOKENS) * width, 0)
        return add(embeddings, *[layer] * self.layers, *[products] * self.layers, norm(width), pooled)


def _resnet(inside: int, outside: int, tokens: int) -> tuple[int, int]:
    return add(
        norm(inside),
        convolution(inside, outside, tokens),
        norm(outside),
        convolution(outside, outside, tokens),
        convolution(inside, outside, tokens, kernel=1) if inside != outside else (0, 0),
    )


def _middle(channels: int, tokens: int) -> tuple[int, int]:
    attention = add(norm(channels), *[linear(channels, channels, tokens)] * 4, (0, 4 * channels * tokens**2))
    return add(*[_resnet(channels, channels, tokens)] * 2, attention)


@dataclass(frozen=True, kw_only=True)
class VAESpec:
    """An AutoencoderKL: one resolution per entry of `channels`, `layers` residual blocks each (decoder: one more)."""

    channels: tuple[int, int, int, int]
    layers: int
    norm_num_groups: int
    scaling_factor: float
    sample_size: int

    def config(self) -> dict:
        """Keyword arguments of diffusers.AutoencoderKL that build exactly this VAE."""
        return {
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "norm_num_groups": self.norm_num_groups,
            "latent_channels": LATENT_CHANNELS,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "scaling_factor": self.scaling_factor,
            "sample_size": self.sample_size,
            "force_upcast": False,
        }

    def decoder(self, *, width: int, height: int) -> tuple[int, int]:
        """(parameters, FLOPs of one picture of this size in px)."""
        tokens = (width // LATENT_FACTOR) * (height // LATENT_FACTOR)
        inside = self.channels[-1]
        parts = [
            convolution(LATENT_CHANNELS, LATENT_CHANNELS, tokens, kernel=1),
            convolution(LATENT_CHANNELS, inside, tokens),
            _middle(inside, tokens),
        ]
        for index, outside in enumerate(reversed(self.channels)):
            parts += [_resnet(inside if k == 0 else outside, outside, tokens) for k in range(self.layers + 1)]
            inside = outside
            if index < 3:
                tokens *= 4
                parts.append(convolution(outside, outside, tokens))
        return add(*parts, norm(inside), convolution(inside, 3, tokens))

    def encoder(self, *, width: int, height: int) -> tuple[int, int]:
        """(parameters, FLOPs of one picture of this size in px)."""
        tokens, inside = width * height, self.channels[0]
        parts = [convolution(3, inside, tokens)]
        for index, outside in enumerate(self.channels):
            parts += [_resnet(inside if k == 0 else outside, outside, tokens) for k in range(self.layers)]
            inside = outside
            if index < 3:
                tokens //= 4
                parts.append(convolution(outside, outside, tokens))
        moments = 2 * LATENT_CHANNELS  # mean and variance
        parts += [_middle(inside, tokens), norm(inside), convolution(inside, moments, tokens)]
        return add(*parts, convolution(moments, moments, tokens, kernel=1))

    @property
    def parameters(self) -> int:
        """Of encoder and decoder."""
        return self.encoder(width=0, height=0)[0] + self.decoder(width=0, height=0)[0]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a U-Net needs to turn a prompt into a picture: two text encoders and a VAE."""

    text: TextSpec
    text_2: TextSpec
    vae: VAESpec

    @property
    def text_cost(self) -> tuple[int, int]:
        """(parameters, FLOPs of one prompt), of both encoders."""
        return add(self.text.cost, self.text_2.cost)


SDXL_PARTS = Parts(
    text=TextSpec(width=768, layers=12, heads=12, vocabulary=49408, activation="quick_gelu"),
    text_2=TextSpec(width=1280, layers=32, heads=20, vocabulary=49408, activation="gelu", projection=1280),
    vae=VAESpec(channels=(128, 256, 512, 512), layers=2, norm_num_groups=32, scaling_factor=0.13025, sample_size=1024),
)
TINY_PARTS = Parts(
    text=TextSpec(width=32, layers=4, heads=2, vocabulary=625, activation="quick_gelu"),
    text_2=TextSpec(width=64, layers=4, heads=4, vocabulary=625, activation="gelu", projection=64),
    vae=VAESpec(channels=(16, 32, 64, 96), layers=1, norm_num_groups=2, scaling_factor=1.0, sample_size=256),
)


def parts_of(spec: UNetSpec) -> Parts:
    """The parts for a U-Net of this width: SDXL's, or those of the embedded models."""
    for parts in (SDXL_PARTS, TINY_PARTS):
        if parts.text.width + parts.text_2.width == spec.cross_attention_dim:
            return parts
    raise UserError(
        f"{spec.name} reads text {spec.cross_attention_dim} wide, and no text encoders of that width are known; "
        "SDXL's are 2048 wide, those of the embedded models 96"
    )
