"""Ready-made distillations, by the name that the command line and the app use."""

from dataclasses import dataclass

from koala.distill.config import ATTENTION_STAGES, BK_LOSS, DistillConfig

PROMPTS = (
    "a red circle",
    "a small blue star on a cream background",
    "a yellow triangle on a night background",
    "a green square left of a red circle",
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named config, with what to expect of it."""

    name: str
    title: str
    text: str
    config: DistillConfig


# The embedded world on a CPU: Muon learns several times faster there than AdamW, and half of the timesteps lie where
# colour and layout are decided.
_SHAPES = dict(
    data="shapes",
    captions="mixed",
    optimizer="muon",
    learning_rate=1e-3,
    schedule="cosine",
    warmup_steps=20,
    min_snr_gamma=5.0,
    high_noise_lift=0.5,
    timesteps="high-noise",
    ema_decay=0.99,
    precision="fp32",
    teacher_precision="fp32",
    normalisation="per-kind",
    batch_size=8,
    validation_pictures=16,
    validation_prompts=PROMPTS,
    log_every=5,
)

# Phased consistency of the whole teacher. It walks from each of the student's four calls to the next: in the same time
# that taught this world more than one step of 40 did. Half of the timesteps are the first call, since it decides the
# layout. With guidance 4 the teacher's path without new noise ends right more often than with its own 2.
_FEW_STEPS = dict(
    method="phased",
    student_spec="sdxl",
    solver_steps=20,
    teacher_steps=5,
    guidance_min=4.0,
    guidance_max=4.0,
    data="shapes",
    num_pictures=2048,
    captions="mixed",
    empty_prompts=0.0,
    timesteps="calls",
    learning_rate=3e-4,
    beta2=0.99,
    weight_decay=0.0,
    schedule="cosine-tail",
    warmup_steps=10,
    ema_decay=0.99,
    precision="fp32",
    teacher_precision="fp32",
    batch_size=16,
    num_steps=120,
    checkpoint_every=50,
    validate_every=60,
    validation_pictures=16,
    validation_prompts=PROMPTS,
    score_prompts=20,
    log_every=5,
)

PRESETS = {
    p.name: p
    for p in (
        Preset(
            name="2-minutes",
            title="2 minutes",
            text="A first look: starting from the untrained cut, colours and backgrounds return. For two CPU cores.",
            config=DistillConfig(
                **_SHAPES,
                num_steps=150,
                num_pictures=256,
                checkpoint_every=50,
                validate_every=75,
            ),
        ),
        Preset(
            name="10-minutes",
            title="10 minutes",
            text="A student that draws what is asked: shape, colour and background of one object.",
            config=DistillConfig(
                **_SHAPES,
                num_steps=900,
                num_pictures=1024,
                checkpoint_every=150,
                validate_every=225,
                score_prompts=10,
            ),
        ),
        Preset(
            name="few-steps",
            title="Few steps",
            text="A copy of the teacher that draws in 4 steps without guidance: phased consistency.",
            config=DistillConfig(**_FEW_STEPS),
        ),
        Preset(
            name="koala",
            title="KOALA's recipe",
            text="The paper's losses and settings; name a teacher, a student and data of your own.",
            config=DistillConfig(stages=ATTENTION_STAGES, normalisation="raw"),  # eq. 1: the plain sum over layers
        ),
        Preset(
            name="bk-sdm",
            title="BK-SDM's loss",
            text="The loss that KOALA improves on, for comparison: outputs of whole blocks, summed as they are.",
            config=DistillConfig(**BK_LOSS),
        ),
    )
}
