"""A report in a few lines for people at a terminal; the JSON has the rest."""

from collections.abc import Iterator, Mapping

from koala.evaluate.steps import value


def _percent(found: Mapping) -> str:
    parts = ", ".join(f"{what} {100 * each['rate']:.1f} %" for what, each in found.get("by", {}).items())
    return f"{100 * found['rate']:.1f} %" + (f" ({parts})" if parts else "")


def _shapes(scores: Mapping) -> Iterator[str]:
    for kind, claims in scores.items():
        low, high = (f"{100 * x:.1f}" for x in claims["all"]["interval"])
        rates = ", ".join(f"{name} {_percent(found)}" for name, found in claims.items() if name != "all")
        yield f"{kind}: every claim holds in {100 * claims['all']['rate']:.1f} % ({low} to {high}); {rates}"


def _agreement(scores: Mapping) -> Iterator[str]:
    attention = scores["self_attention"]
    rows = {"output": scores["output"], "self-attention": attention, **attention["by_stage"]}
    for name, found in rows.items():
        layers = f", {found['layers']} layers" if "layers" in found else ""
        yield f"{name}: relative error {found['relative_error']:.4f}, cosine {found['cosine']:.4f}{layers}"


def _pictures(scores: Mapping) -> Iterator[str]:
    for name, found in scores.items():
        if name == "cmmd":
            yield f"cmmd: {found['minimum_variance']:.3f}, unbiased {found['unbiased']:.3f}"
        else:
            yield f"{name}: {found['mean']:.3f} ({found['interval'][0]:.3f} to {found['interval'][1]:.3f})"


def _judge(found: Mapping) -> Iterator[str]:
    clean, after = (100 * found["judge"][k]["perfect"] for k in ("clean", "round_trip"))
    yield f"read perfectly: {clean:.2f} % of clean pictures, {after:.2f} % after the VAE"
    yield f"the VAE: {found['vae']['psnr_db']:.1f} dB, {found['vae']['psnr_objects_db']:.1f} dB inside objects"


def _steps(found: Mapping) -> Iterator[str]:
    for title, path in found["panels"].items():
        yield f"{title}, at {', '.join(map(str, found['steps']))} steps:"
        for model in found["models"]:
            numbers = (value(point["scores"], path)[0] for point in model["points"])
            yield f"  {model['model']}: " + ", ".join(f"{n:.3f}" for n in numbers)


def lines(found: Mapping) -> list[str]:
    """What a report says, most important first."""
    suite = found["suite"]
    if suite == "steps":
        return list(_steps(found))
    if suite == "judge":
        return list(_judge(found))
    if suite == "prompts":
        return [f"{found['folder']}: {found['drawn']} pictures drawn, {found['found']} were there already"]
    kinds = {"shapes": _shapes, "agreement": _agreement, "clip": _pictures, "hpsv2": _pictures}
    broken = found.get("reference", {}).get("broken", ())
    told = (
        [f"{len(broken)} files of {found['reference']['source']} are no pictures: {', '.join(broken)}"]
        if broken
        else []
    )
    return [*kinds[suite](found["scores"]), *told]
