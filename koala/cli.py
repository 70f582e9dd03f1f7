"""python -m koala <verb>: options derived from the request's own fields; JSON on stdout, progress on stderr.

Exit status: 0 done, 1 failed, 2 bad use. A bad request is one line that names the remedy, never a traceback.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from koala.console import no_bars, quiet
from koala.registry import CARDS, find
from koala.request import GenerationRequest, RequestError


def _number(text: str) -> int | float | str:
    """The number that a text spells; text that spells none is kept, and the request's own check names the remedy."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _add_request_options(parser: argparse.ArgumentParser, *, leave_out: Sequence[str] = ()) -> None:
    for field in dataclasses.fields(GenerationRequest):
        if field.name in leave_out:
            continue
        required = field.default is dataclasses.MISSING
        text = "str" in str(field.type)
        default = "the model's own" if field.default is None else field.default
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=str if text else _number,
            required=required,
            default=argparse.SUPPRESS,
            metavar="TEXT" if text else "N",
            help=field.metadata["help"] + ("" if required or default == "" else f" (default: {default})"),
        )


def _request_values(args: argparse.Namespace) -> dict:
    names = {f.name for f in dataclasses.fields(GenerationRequest)}
    return {n: v for n, v in vars(args).items() if n in names}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _emit(args: argparse.Namespace, values: object, text: str) -> None:
    """One JSON object with --json, otherwise `text`."""
    print(json.dumps(values, indent=1) if args.json else text)


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png; pictures are PNG files")
    return path


def _seconds(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def _timing_line(entry: dict) -> str:
    t = entry["timing"]
    unet = sum(t["unet_ms"])
    memory = f", peak memory {t['peak_memory_bytes'] / 1e6:.0f} MB" if t["peak_memory_bytes"] else ""
    return (
        f"text {_seconds(t['text_ms'])}, U-Net {t['unet_calls']} calls x {unet / t['unet_calls']:.1f} ms"
        f" = {_seconds(unet)}, VAE {_seconds(t['vae_ms'])}, total {_seconds(t['total_ms'])}{memory}"
    )


def _claims_line(entry: dict) -> str:
    if entry["claims"] is None:
        return "no verdict: the prompt names no shape that the judge knows"
    return "; ".join(
        f"{'holds' if c['holds'] else 'FAILS'}: {c['claim']}" + ("" if c["holds"] else f" (seen: {c['seen']})")
        for c in entry["claims"]
    )


def models(args: argparse.Namespace) -> int:
    from koala.locate import availability

    rows = []
    for card in CARDS.values():
        available, location = availability(card)
        rows.append(
            {
                "name": card.name,
                "title": card.title,
                "parameters": card.parameters,
                "location": location if available else card.source,
                "available": available,
                "needs": None if available else location,
                "licence": card.licence,
                "steps": card.steps,
                "guidance": card.guidance,
                "scheduler": card.scheduler,
                "teacher": card.teacher,
            }
        )
    width = max(len(r["name"]) for r in rows)
    lines = [
        f"{r['name']:{width}}  {r['parameters']:>13,}  {'ready' if r['available'] else '-':5}  {r['licence']}"
        for r in rows
    ]
    _emit(args, rows, "\n".join([f"{'name':{width}}  {'U-Net params':>13}  here   licence", *lines]))
    return 0


def _progress(name: str):
    def on_step(step) -> None:
        if step.index == step.total or step.index % 5 == 0:
            _say(f"{name}: step {step.index} of {step.total}")

    return on_step


def generate(args: argparse.Namespace) -> int:
    request = GenerationRequest(**_request_values(args))
    find(request.model)  # an unknown name fails before torch is even imported
    from koala.generate import generate as run
    from koala.loading import Library
    from koala.report import entry

    no_bars()
    result = run(request, Library(args.device).get(request.model), on_step=_progress(request.model), num_previews=0)
    files = [str(p) for p in result.save(args.out)]
    found = entry(result, files)
    _emit(args, found, "\n".join([*files, _timing_line(found), _claims_line(found)]))
    return 0


def compare(args: argparse.Namespace) -> int:
    requests = [GenerationRequest(model=m, **_request_values(args)) for m in args.models]
    for request in requests:
        find(request.model)
    from koala.compare import compare as run
    from koala.compare import speedup
    from koala.loading import Library
    from koala.report import comparison

    no_bars()
    results = run(
        requests,
        Library(args.device),
        on_step=lambda position, step: _progress(requests[position].model)(step),
        num_previews=0,
    )
    together = tuple(r.request for r in results)
    files = [
        [str(p) for p in r.save(args.out / f"{k}-{Path(r.request.model).name}.png", together)]
        for k, r in enumerate(results, 1)
    ]
    found = comparison(results, files)
    lines = []
    for one in found["models"]:
        lines += [f"{one['model']}: {one['image']}", f"  {_timing_line(one)}", f"  {_claims_line(one)}"]
    for result in results[1:]:
        gained = speedup(results[0].timing, result.timing)
        lines.append(f"{result.request.model} against {results[0].request.model}: {gained.sentence()}")
    _emit(args, found, "\n".join([*lines, f"on {found['device']}; warm-up is not counted"]))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    find(args.model)
    if not 1 <= args.num_prompts <= 2000:
        raise RequestError(f"--num-prompts must lie between 1 and 2000, not {args.num_prompts}; the score uses 500")
    from koala.evaluate import reports
    from koala.loading import Library

    no_bars()
    model = Library(args.device).get(args.model)
    found = reports.SUITES[args.suite](model, args.num_prompts, lambda text: _say(text))
    found |= reports.circumstances(sys.argv[1:], model)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    _emit(args, found, json.dumps(found, indent=1))
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m koala", description="KOALA: small, fast SDXL.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.set_defaults(run=run)
        return sub

    verb("models", models, "list every model by name, with its size, licence and whether it is here")

    sub = verb("generate", generate, "draw a picture")
    _add_request_options(sub)
    sub.add_argument("--out", type=_png, required=True, metavar="FILE.png", help="where the picture goes")

    sub = verb("compare", compare, "draw the same noise with several models, timed")
    sub.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL", help="two or more; the first is the baseline"
    )
    _add_request_options(sub, leave_out=("model",))
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")

    sub = verb("eval", evaluate, "score a model")
    sub.add_argument("--model", required=True, metavar="MODEL", help="model name or folder")
    sub.add_argument(
        "--suite",
        choices=("shapes", "judge"),
        default="shapes",
        help="shapes: which claims hold in its pictures; judge: how exact the judge is, before and after its VAE",
    )
    sub.add_argument("--num-prompts", type=int, default=500, metavar="N", help="prompts per suite (default 500)")
    sub.add_argument("--out", type=Path, metavar="FILE.json", help="where the report goes")

    for sub in verbs.choices.values():
        if sub.prog.split()[-1] != "models":
            sub.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: the best one here)")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    quiet()
    try:
        return args.run(args)
    except RequestError as error:
        _say(f"koala: {error}")
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _say(f"koala: {error}")
        return 1
    except KeyboardInterrupt:
        _say("koala: stopped")
        return 1
