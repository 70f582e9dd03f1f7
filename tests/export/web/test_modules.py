"""The page's own arithmetic, in a browser: noise against torch, schedule against diffusers, tokens against
transformers, half precision against numpy, links against the app."""

import json
import struct
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from transformers import CLIPTokenizer

from koala.models.cards import EMBEDDED
from koala.models.registry import find
from koala.models.schedulers import build
from koala.request import GenerationRequest
from koala.sampling.tokens import read_text
from koala.ui.settings import from_query, to_query

pytestmark = pytest.mark.browser

SEEDS = (0, 1, 2, 3, 42, 1234, 2**16, 2**31, 2**32 - 2, 2**32 - 1)
COUNTS = (4 * 25 * 100, 4 * 32 * 32, 252, 17, 16, 5, 3, 1)  # drawn one after the other; 252 and 17 end within a block
TEXTS = (
    "a red circle left of a blue square",
    "A RED  Circle,\tand it's\n2 squares!",
    "",
    "   ",
    "can't won't I'm you're they'd we've she'll 's 't",
    "''s !'s '' ' \"q\" «q» 100% a_b-c 3.14 1234567890",
    "naïve café Zürich ångström",
    "nai\u0308ve cafe\u0301 Zu\u0308rich a\u030angstro\u0308m",
    "ﬁ ﬂ ① ½ ² ℌ K Å",
    "ÀÉÎÕÜ ŸŽŠ İstanbul ıIiİ ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ",
    "日本語の文章 漢字かな カタカナ ｶﾀｶﾅ が か\u3099",
    "한국어 문장 \u1112\u1161\u11ab\u1100\u116e\u11a8 가\u11a8",
    "русский текст Ёлка е\u0308лка",
    "العربية نص עברית שלום हिन्दी क\u093c ไทย",
    "🐨 👩‍🚀 🏳️‍🌈 🇰🇷 👍🏽 ☃️ ✨",
    "a\u00a0b\u2003c\u3000d\u0085e\u2028f\ufeffg\u200bh\u180ei",
    "<|startoftext|> a <|endoftext|> b <|ENDOFTEXT|> <|endoftext",
    "!! ! a!b ~`@#$%^&*()_+-={}[]|\\:;<>?,./",
    "word " * 90,
    "é" * 200,
    "🐨" * 60,
    "a1b2c3 4d 5e6f ٣٤٥ ⅷ",
    "\u0301\u0302 leading marks a\u0323\u0307 a\u0307\u0323",
)
WORDS = ("red", "Größe", "square's", "42", "円", "…", "cafe\u0301", "🐨x", "<|", "BLUE\u00a0ring", "и\u0306", "Ǆ")


def prompts() -> list[str]:
    """A hundred: those above, and mixtures of words that meet in every order."""
    mixed = [" ".join(WORDS[(k * step + k // 12) % 12] for k in range(step)) for step in range(2, 2 + 100 - len(TEXTS))]
    return [*TEXTS, *mixed]


def run(page, module: str, script: str, given: object = None):
    """What `script`, a function of a module and of `given`, answers."""
    return page.evaluate(f"async (given) => ({script})(await import('./{module}'), given)", given)


def test_noise_is_that_of_torch(modules):
    """Each seed's values one draw after the other, as the steps of an ancestral sampler take them."""
    script = "({ Generator }, [seeds, counts]) => seeds.map((seed) => { const g = new Generator(seed); "
    script += "return counts.map((n) => Array.from(g.randn(n))); })"
    worst = 0.0
    for seed, drawn in zip(SEEDS, run(modules, "noise.js", script, [SEEDS, COUNTS]), strict=True):
        source = torch.Generator().manual_seed(seed)
        for count, values in zip(COUNTS, drawn, strict=True):
            wanted = torch.randn(count, generator=source, dtype=torch.float32)
            worst = max(worst, (torch.tensor(values, dtype=torch.float64) - wanted).abs().max().item())
    print(f"largest difference {worst:.1e}")
    assert worst <= 1e-6


@pytest.mark.parametrize("name", ["euler-trailing", "euler-ancestral-trailing"])
def test_the_schedule_is_that_of_diffusers(modules, name):
    config = json.loads((EMBEDDED / "tiny-sdxl" / "scheduler" / "scheduler_config.json").read_text())
    counts = [1, 2, 3, 7, 8, 10, 15, 16, 24, 25, 30, 48, 50, 60, 77, 200]
    result = run(
        modules, "euler.js", "({ schedule }, [own, counts]) => counts.map((n) => schedule(own, n))", [config, counts]
    )
    for count, one in zip(counts, result, strict=True):
        wanted = build(name, config)
        assert isinstance(wanted, EulerDiscreteScheduler | EulerAncestralDiscreteScheduler)
        wanted.set_timesteps(count)
        assert one["timesteps"] == wanted.timesteps.tolist()
        np.testing.assert_allclose(one["sigmas"], wanted.sigmas.tolist(), rtol=1e-5)  # torch multiplies in fp32


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_ids_are_those_of_transformers(modules, pages, name):
    file = next(n for n in json.loads((pages / "site.json").read_text())["files"] if f"/{name}-" in n)
    script = "async ({ Tokenizer }, [file, texts]) => { const packed = (await fetch(file)).body; "
    script += "const own = await new Response(packed.pipeThrough(new DecompressionStream('gzip'))).json(); "
    script += "const t = new Tokenizer(own); return texts.map((x) => [t.encode(x), x.slice(0, t.reach(x).end)]); }"
    texts, folder = prompts(), EMBEDDED / "tiny-koala-700m" / name
    assert len(set(texts)) >= 98 and sum(not t.isascii() for t in texts) > 50
    result = run(modules, "clip.js", script, [file, texts])
    ids = CLIPTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=77, truncation=True).input_ids
    for text, (own, read), wanted in zip(texts, result, ids, strict=True):
        assert own == wanted, text
        output = read_text(text, [folder])
        assert read == output.read or not text[len(read) :].strip(), text
    pad = {"tokenizer": 624, "tokenizer_2": 0}[name]  # <|endoftext|>, and `!`
    assert result[0][0][-1] == pad


def test_half_precision_is_that_of_numpy(modules):
    every = np.arange(2**16, dtype=np.uint16)
    result = run(modules, "half.js", "({ words }, n) => Array.from({ length: n }, (_, h) => words.fromHalf(h))", 2**16)
    np.testing.assert_array_equal(np.array(result, float), every.view(np.float16).astype(float))
    drawn = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32).view(np.float32)
    near = (every.view(np.float16).astype(np.float32)[:31744:7] * np.float32(1.00024414)).astype(np.float32)
    edges = np.array([0, -0.0, 65504, 65519.99, 65520, 1e-8, 2**-25, 2**-24, 2.0**-14, -1e5, np.inf], np.float32)
    values = np.concatenate([drawn[~np.isnan(drawn)], near, edges])
    words = [struct.unpack("<I", struct.pack("<f", v))[0] for v in values]
    script = "({ words }, given) => Array.from(new Float32Array(Uint32Array.from(given).buffer), words.toHalf)"
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(run(modules, "half.js", script, words), wanted)


SETTINGS = {
    "prompt": "a red circle & 2 squares, #1 = 100% 🐨",
    "negative_prompt": "blur",
    "seed": 2**32 - 1,
    "scheduler": "euler-ancestral-trailing",
    "width": 192,
    "height": 320,
}


def test_a_link_of_the_page_is_one_of_the_app_and_the_other_way_round(modules, pages):
    output = json.loads((pages / "site.json").read_text())
    asked = [
        SETTINGS | {"model": "tiny-koala-1b", "steps": 7, "guidance": 2.5},
        SETTINGS | {"model": "tiny-koala-700m", "steps": 30, "guidance": 1},
    ]
    fragment = run(modules, "request.js", "({ toFragment }, asked) => toFragment(asked)", asked)
    fields, complaints = from_query({k: v[0] for k, v in parse_qs(fragment).items()}, find)
    assert complaints == [] and fields["prompt"] == SETTINGS["prompt"] and fields["negative_prompt"] == "blur"
    assert (fields["model_a"], fields["steps_a"], fields["guidance_a"]) == ("tiny-koala-1b", 7, 2.5)
    assert (fields["model_b"], fields["steps_b"], fields["guidance_b"]) == ("tiny-koala-700m", 30, 1)
    assert (fields["seed"], fields["width"], fields["height"]) == (str(2**32 - 1), 192, 320)
    script = "({ fromFragment }, [text, site]) => fromFragment(text, site)"
    own = to_query([GenerationRequest(**a) for a in asked])[1:]
    assert run(modules, "request.js", script, [own, output])["requests"] == asked


@pytest.mark.parametrize(
    ("fragment", "words"),
    [
        ("seed=-1", "seed must be a whole number from 0 to 4294967295"),
        ("steps=500", "Steps must be a whole number from 1 to 200"),
        ("guidance=nan", "Guidance must be a number from 0 to 30"),
        ("width=4096", "width must be a multiple of 32 from 64 to 512"),
        ("scheduler=ddim-trailing", "has the schedulers euler-trailing and euler-ancestral-trailing"),
        ("models=tiny-sdxl", "names the model tiny-sdxl, which this page has not"),
    ],
)
def test_what_a_link_cannot_ask_for_is_said_and_left_out(modules, pages, fragment, words):
    output = json.loads((pages / "site.json").read_text())
    script = "({ fromFragment }, [text, site]) => fromFragment(text, site)"
    result = run(modules, "request.js", script, [fragment, output])
    assert any(words in c for c in result["complaints"]) and len(result["complaints"]) == 1
    assert [(r["seed"], r["steps"], r["width"]) for r in result["requests"]] == [(0, 25, 256)] * 2


def test_the_page_follows_the_samplers_that_the_export_allows(pages):
    source = (Path(pages) / "pipeline.js").read_text()
    assert 'request.scheduler === "euler-ancestral-trailing"' in source
    assert json.loads((pages / "site.json").read_text())["samplers"] == ["euler-trailing", "euler-ancestral-trailing"]
