"""A report in a few lines for the terminal; the JSON has the rest."""

from collections.abc import Iterator, Mapping

from koala.evaluate.steps import value
from koala.words import many


def _percent(claims: Mapping) -> str:
    parts = ", ".join(f"{what} {100 * each['rate']:.1f} %" for what, each in claims.get("by", {}).items())
    return f"{100 * claims['rate']:.1f} %" + (f" ({parts})" if parts else "")


def _shapes(scores: Mapping) -> Iterator[str]:
    for kind, claims in scores.items():
        low, high = (f"{100 * x:.1f}" for x in claims["all"]["interval"])
        rates = ", ".join(f"{name} {_percent(own)}" for name, own in claims.items() if name != "all")
        yield f"{kind}: every claim holds in {100 * claims['all']['rate']:.1f} % ({low} to {high}); {rates}"


def _agreement(scores: Mapping) -> Iterator[str]:
    attention = scores["self_attention"]
    rows = {"output": scores["output"], "self-attention": attention, **attention["by_stage"]}
    for name, own in rows.items():
        layers = f", {own['layers']} layers" if "layers" in own else ""
        yield f"{name}: relative error {own['relative_error']:.4f}, cosine {own['cosine']:.4f}{layers}"


def _pictures(scores: Mapping) -> Iterator[str]:
    for name, score in scores.items():
        if name == "cmmd":
            yield f"cmmd: {score['minimum_variance']:.3f}, unbiased {score['unbiased']:.3f}"
        else:
            yield f"{name}: {score['mean']:.3f} ({score['interval'][0]:.3f} to {score['interval'][1]:.3f})"


def _judge(report: Mapping) -> Iterator[str]:
    clean, after = (100 * report["judge"][k]["perfect"] for k in ("clean", "round_trip"))
    yield f"read perfectly: {clean:.2f} % of clean pictures, {after:.2f} % after the VAE"
    yield f"the VAE: {report['vae']['psnr_db']:.1f} dB, {report['vae']['psnr_objects_db']:.1f} dB inside objects"


def _steps(report: Mapping) -> Iterator[str]:
    for title, path in report["panels"].items():
        yield f"{title}, at {', '.join(map(str, report['steps']))} steps:"
        for model in report["models"]:
            numbers = (value(point["scores"], path)[0] for point in model["points"])
            yield f"  {model['model']}: " + ", ".join(f"{n:.3f}" for n in numbers)


def lines(report: Mapping) -> list[str]:
    """The lines of a report, most important first."""
    suite = report["suite"]
    if suite == "steps":
        return list(_steps(report))
    if suite == "judge":
        return list(_judge(report))
    if suite == "prompts":
        return [f"{report['folder']}: {report['drawn']} pictures drawn, {report['found']} were there already"]
    kinds = {"shapes": _shapes, "agreement": _agreement, "clip": _pictures, "hpsv2": _pictures}
    broken = report.get("reference", {}).get("broken", ())
    unread = (
        [f"{many(len(broken), 'unreadable file')} in {report['reference']['source']}: {', '.join(broken)}"]
        if broken
        else []
    )
    return [*kinds[suite](report["scores"]), *unread]
