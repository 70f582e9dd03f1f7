"""Files from strangers, through the doors that the page has for them, and files that they are not to see."""

import io
import json
import re
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from koala.errors import UserError
from koala.lora.moving import read_lora
from koala.request import GenerationRequest
from koala.sampling.result import KEY, read_png
from koala.ui.session import Session
from tests.safety.conftest import STUDENT, Refused
from tests.safety.test_endpoints import ANY, STEADY

FILE = {"meta": {"_type": "gradio.FileData"}}
SECRET = "root:x:0"  # of /etc/passwd


@pytest.fixture(scope="module", autouse=True)
def alive_afterwards(public):
    yield
    assert public.draws()


# --- what is not theirs to read


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "app.py",
        "./app.py",
        "koala/../app.py",
        "%2e%2e/%2e%2e/etc/passwd",
        "/proc/self/environ",
        "http://127.0.0.1:22/",
        "file:///etc/passwd",
        "C:\\Windows\\win.ini",
        ".git/config",
    ],
)
def test_no_address_of_the_app_gives_away_a_file(public, path):
    for door in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "theme.css/../", "stream/"):
        status, body = public.get(door + path.replace("\\", "%5C"))
        assert status >= 300 and SECRET.encode() not in body and b"argparse" not in body


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "app.py", "http://127.0.0.1:1/x.png", "file:///etc/passwd", "", "\x00"]
)
@pytest.mark.parametrize("door", ["k-restore", "kv-open"])
def test_a_forged_path_is_not_opened(public, path, door):
    """The page names an uploaded file by its path; a client may name any."""
    more = [""] if door == "kv-open" else []
    try:
        message = public.refusal(door, {"path": path, "url": path, "orig_name": "a.png", **FILE}, "forger", *more)
    except Refused as refused:
        message = str(refused)
    assert message and SECRET not in message and "Traceback" not in message


def test_an_uploads_name_leads_nowhere_else(public):
    for name in ("../../evil.png", "/tmp/evil.png", "..\\\\evil.png", "a" * 400 + ".png"):
        path = Path(public.upload(name, b"x"))
        assert path.parents[1] == public.log.parent / "files" and path.is_file() and path.resolve() == path


def test_an_upload_of_more_than_ten_megabytes_is_refused(public):
    with pytest.raises(Refused, match=r"413|[Mm]aximum|[Ll]arge"):
        public.upload("large.png", bytes(11_000_000))


# --- PNGs, which carry a request


def png(text: str | bytes | None = None, kind: bytes = b"tEXt", size: tuple[int, int] = (8, 8), claimed=None) -> bytes:
    """A picture whose header may lie, with a chunk of text of ours."""
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    content = buffer.getvalue()
    if claimed:
        header = b"IHDR" + struct.pack(">II", *claimed) + content[24:29]
        content = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    if text is not None:
        body = kind + KEY.encode() + b"\0" + (text if isinstance(text, bytes) else text.encode("latin-1", "replace"))
        content = (
            content[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + content[33:]
        )
    return content


def carried(**change) -> str:
    request = GenerationRequest(model=STUDENT, prompt="a star").to_dict()
    return json.dumps({"request": request | change.pop("request", {}), "compared": [], **change})


HOSTILE = {
    "a picture of 3.6 gigapixels": (png(claimed=(60_000, 60_000)), "not a readable PNG"),
    "one just below Pillow's own limit": (png(claimed=(9_000, 9_000)), "at most 2048"),
    "a compressed text of 200 MB": (png(b"\0" + zlib.compress(bytes(200_000_000), 9), b"zTXt"), "not a readable PNG"),
    "the same, international": (png(b"\1\0\0\0" + zlib.compress(bytes(200_000_000), 9), b"iTXt"), "not a readable PNG"),
    "a text that is no JSON": (png("{"), "damaged"),
    "ten thousand brackets": (png("[" * 100_000), "damaged"),
    "a list": (png("[]"), "damaged"),
    "a model of this machine": (png(carried(request={"model": "/etc"})), "nknown model"),
    "a LoRA of this machine, no .safetensors": (
        png(carried(request={"lora": "/etc/passwd"})),
        "must be a .safetensors",
    ),
    "a million steps": (png(carried(request={"steps": 10**6})), "10 to 50 is usual"),
    "a seed of 5,000 digits": (png(carried().replace('"seed": 0', '"seed": ' + "9" * 5000)), "damaged"),
    "guidance that is no number": (png(carried(request={"guidance": float("nan")})), "guidance must be a number"),
    "a strength that is no number": (png(carried(request={"lora_strength": float("nan")})), "strength must be"),
    "a preset that is a list": (png(carried(request={"preset": []})), "unknown preset"),
    "a hash that is a list": (png(carried(lora_sha256=[])), "damaged"),
    "a comparison that is a number": (png(carried(compared=3)), "damaged"),
    "unknown fields": (png(carried(request={"__class__": 1})), "unknown request field"),
    "a script": (png(carried(request={"model": "<script>alert(1)</script>"})), "nknown model"),
    "a GIF": (b"GIF89a" + bytes(20), "not a readable PNG"),
    "nothing": (b"", "not a readable PNG"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_restores_nothing_and_says_why(public, name):
    content, says = HOSTILE[name]
    before = public.tracebacks()
    path = public.upload("picture.png", content)
    message = public.refusal("k-restore", {"path": path, "orig_name": "picture.png", **FILE}, "painter")
    assert says in message and "<script>" not in message and len(message) < 1000
    assert public.tracebacks() == before, public.log.read_text()


@STEADY
@given(
    change=st.dictionaries(st.sampled_from([*GenerationRequest.__dataclass_fields__, "x"]), ANY, max_size=3), more=ANY
)
def test_a_picture_with_any_metadata_is_read_or_refused(change, more):
    try:
        metadata = read_png(png(carried(request=change, compared=more, lora_sha256=more)))
    except UserError as refused:
        assert str(refused)
    else:
        assert isinstance(metadata["request"], GenerationRequest)


@STEADY
@given(at=st.integers(0, 400), value=st.integers(0, 255), length=st.integers(0, 500))
def test_a_picture_with_any_byte_changed_is_read_or_refused(at, value, length):
    content = bytearray(png(carried()))
    content[at % len(content)] = value
    try:
        assert read_png(bytes(content[: max(length, at + 1)]))
    except UserError as refused:
        assert str(refused)


# --- captures, which are zips


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\3\4 no zip", "not a complete capture"),
        (zipped({"../../evil.json": b"{}"}), "it holds '../../evil.json'"),
        (zipped({"/etc/cron.d/evil": b"{}"}), "it holds '/etc/cron.d/evil'"),
        (zipped({"capture.json": b" " * 50_000_000}), "more than the 1.00 MB read here"),
        (zipped({"capture.json": b"[" * 100_000}), "damaged"),
        (zipped({"capture.json": b"{}"}), "damaged"),
    ],
    ids=["no zip", "traversal", "absolute", "bomb", "nested", "empty"],
)
def test_a_hostile_capture_is_not_opened_and_says_why(public, content, says):
    before = public.tracebacks()
    path = public.upload("capture.zip", content)
    message = public.refusal("kv-open", {"path": path, "orig_name": "capture.zip", **FILE}, "looker", "")
    assert says in message.replace("&#x27;", "'")
    assert public.tracebacks() == before, public.log.read_text()


# --- LoRAs, which are safetensors: on one's own machine


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


NAME = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FACTORS = {f"{NAME}.lora_A.weight": tensor(0, 128, [1, 32]), f"{NAME}.lora_B.weight": tensor(128, 256, [32, 1])}


def peft(settings: str) -> bytes:
    return safetensors(FACTORS | {"__metadata__": {"lora_adapter_metadata": settings}}, bytes(256))


LIARS = {
    "a header beyond the file": safetensors({}, length=2**40),
    "a header of more than any file": safetensors({}, length=2**64 - 1),
    "no header": b"\1",
    "a header that is no JSON": safetensors(b"{" * 64),
    "ten thousand brackets": safetensors(b"[" * 100_000),
    "tensors beyond the file": safetensors({"a": tensor(0, 4_000_000_000, [1_000_000_000])}),
    "tensors over each other": safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
    "negative places": safetensors({"a": tensor(-8, 0, [2])}, bytes(8)),
    "a shape that overflows": safetensors({"a": tensor(0, 8, [2**62, 4])}, bytes(8)),
    "an unknown type": safetensors({"a": tensor(0, 8, [2], "OBJECT")}, bytes(8)),
    "a hole": safetensors({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, bytes(12)),
    "bytes that belong to nothing": safetensors({"a": tensor(0, 4, [1])}, bytes(64)),
    "settings that are no JSON": peft("{"),
    "settings that are a list": peft("[]"),
    "a scale that is text": peft('{"unet.lora_alpha": "x"}'),
    "a pattern that is tried for hours": peft('{"unet.lora_alpha": 1, "unet.alpha_pattern": {"(.*.*)*x": 2}}'),
    "a pattern of alternatives, tried for hours": peft(
        '{"unet.lora_alpha": 1, "unet.alpha_pattern": {"' + "(a|a)" * 40 + '": 2}}'
    ),
    "a scale that is no number": peft('{"unet.lora_alpha": NaN}'),
    "a scale without an end": peft('{"unet.lora_alpha": 1, "unet.alpha_pattern": {"attn1.to_q": Infinity}}'),
    "a scale below nothing": peft('{"unet.lora_alpha": -1}'),
    "a magnitude of another layer": safetensors(
        FACTORS | {f"{NAME}.lora_magnitude_vector": tensor(256, 284, [7])}, bytes(284)
    ),
    "a pattern that is none": peft('{"unet.lora_alpha": 1, "unet.alpha_pattern": {"(": 2}}'),
    "factors of no rank": safetensors({f"{NAME}.lora_A.weight": tensor(0, 0, [0, 32])}),
    "a factor that is a scalar": safetensors({f"{NAME}.lora_A.weight": tensor(0, 4, [])}, bytes(4)),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/koala-was-here'\ntR.",
}


@pytest.fixture(scope="module")
def own_machine():
    return Session([STUDENT, STUDENT], device="cpu").start()


def asked_with(lora: Path) -> GenerationRequest:
    return GenerationRequest(model=STUDENT, prompt="a star", steps=1, width=64, height=64, lora=str(lora))


@pytest.mark.parametrize("name", LIARS)
def test_a_lora_that_lies_is_refused_in_words(own_machine, tmp_path, name):
    file = tmp_path / "style.safetensors"
    file.write_bytes(LIARS[name])
    with pytest.raises(UserError) as output:
        list(own_machine.device.run([own_machine.catalogue.check(asked_with(file))]))
    assert "style.safetensors" in str(output.value) or "LoRA" in str(output.value)


PATTERNS = (
    "unet.*",
    "unet.down_blocks.+",
    "unet.a?",
    "unet.a{9}",
    "unet.(a|a)",
    "text_encoder.(a*)*",
    "lora_te1_[",
    "",
)
OTHERS = ("unet.\x1b[31m", "unet.<img src=x onerror=alert(1)>", "unet.a\n", "unet.\u202e", "lora_unet_é", " ")


@pytest.mark.parametrize("key", PATTERNS + OTHERS)
def test_a_key_that_is_a_pattern_is_refused_by_its_name(own_machine, tmp_path, key):
    """peft takes layers' names for regular expressions."""
    file = tmp_path / "style.safetensors"
    own = {f"{key}.lora_A.weight": tensor(256, 384, [1, 32]), f"{key}.lora_B.weight": tensor(384, 512, [32, 1])}
    file.write_bytes(safetensors(FACTORS | own, bytes(512)))
    with pytest.raises(UserError) as output:
        list(own_machine.device.run([asked_with(file)]))
    assert repr(key)[1:-1] in str(output.value) and str(output.value).isprintable()


@pytest.mark.parametrize(
    "alpha", [(float("nan"),), (float("inf"),), (float("-inf"),), (-1.0,), (), (1.0, 1.0)], ids=str
)
@pytest.mark.parametrize("layer", [NAME, "lora_unet_" + NAME.removeprefix("unet.").replace(".", "_"), "lora_te1_x"])
def test_an_alpha_that_is_no_scale_is_refused_by_its_name(tmp_path, layer, alpha):
    file = tmp_path / "style.safetensors"
    beside = {f"{layer}.alpha": tensor(256, 256 + 4 * len(alpha), [len(alpha)])}
    file.write_bytes(safetensors(FACTORS | beside, bytes(256) + struct.pack(f"<{len(alpha)}f", *alpha)))
    with pytest.raises(UserError, match=rf"{re.escape(layer)}\.alpha in .+ is not a scale"):
        read_lora(file)


def test_keys_of_a_text_encoder_reach_neither_peft_nor_a_picture(own_machine, tmp_path):
    """diffusers stops at such keys; the text encoders are shared, so a request's LoRA leaves them alone anyway."""
    file = tmp_path / "style.safetensors"
    file.write_bytes(safetensors(FACTORS | {"lora_te_x": tensor(256, 260, [1])}, bytes(260)))
    (result,) = [r for update in own_machine.device.run([asked_with(file)]) for r in update.results.values()]
    assert result.lora_layers


@STEADY
@given(
    header=st.dictionaries(st.sampled_from([*FACTORS, "a"]), ANY, max_size=3), settings=ANY, data=st.binary(max_size=64)
)
def test_a_lora_with_any_header_is_read_or_refused(tmp_path, header, settings, data):
    file = tmp_path / "style.safetensors"
    for content in (
        safetensors(header, data),
        peft(json.dumps(settings)),
        peft(json.dumps({"unet.lora_alpha": settings})),
    ):
        file.write_bytes(content)
        try:
            read_lora(file)
        except UserError as refused:
            assert str(refused)
