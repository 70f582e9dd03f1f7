"""The Architecture tab: what was removed, what it saves, a U-Net of one's own, and why the first blocks stay."""

from collections.abc import Iterator
from contextlib import closing
from html import escape
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import gradio as gr

from koala.errors import Cancelled, UserError
from koala.hardware.latency import HARDWARE
from koala.ui.architecture import data as architecture
from koala.ui.architecture import students
from koala.ui.architecture import svg as architecture_svg
from koala.ui.line import Work
from koala.ui.messages import complain, readable, safe
from koala.ui.session import Session
from koala.ui.theme import UI
from koala.ui.under_way import Life
from koala.unet.costs import parameters
from koala.unet.specs import SDXL, STAGES, TINY_SDXL, student

if TYPE_CHECKING:
    from koala.models.library import Library

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
STEPS = 4  # of each prompt of the live similarity
EMPTY = (
    '<p class="ka-hint">Eight prompts, four steps each: some seconds on a CPU. The curves grow prompt by prompt.</p>'
)


def _option(value: str, text: str) -> str:
    return f'<option value="{escape(value)}">{escape(text)}</option>'


def _radio(name: str, title: str) -> str:
    return f'<button type="button" role="radio" data-spec="{name}" aria-checked="false" tabindex="-1">{title}</button>'


def _row(stage: str) -> str:
    """One stage: its slider where it has transformers, MID's choice, and the two bars."""
    deepest = max(SDXL.depths()[stage])
    if stage == "MID":
        options = "".join(_option(value, text) for value, text in architecture.MID_CHOICES.items())
        control = f'<select class="ka-mid" aria-label="MID">{options}</select><output class="ka-mid-depth"></output>'
    elif deepest:
        control = (
            f'<input type="range" min="0" max="{deepest}" step="1" aria-label="Transformer blocks of {stage}">'
            "<output></output>"
        )
    else:
        control = '<span class="ka-none">no attention here</span>'
    bar = '<span class="ka-bar{}" aria-hidden="true"><i></i><i></i></span><span data-sum></span>'
    return (
        f'<li data-stage="{stage}"><b>{stage}</b><span class="ka-control">{control}</span>'
        f'<span class="ka-sums">{bar.format("")}{bar.format(" ka-flops")}</span></li>'
    )


def template() -> str:
    """architecture/architecture.html with its drawings, choices and rows."""
    page = (UI / "architecture" / "architecture.html").read_text()
    filled = {
        "presets": "".join(_radio(n, t) for n, t in architecture.TITLES.items()) + _radio("", "Your own"),
        "widths": "".join(_option(n, t) for n, t in architecture.WIDTHS.items()),
        "gpus": "".join(_option(key, card.name) for key, card in HARDWARE.items()),
        "wide": architecture_svg.draw(architecture_svg.WIDE),
        "tall": architecture_svg.draw(architecture_svg.TALL),
        "rows": "".join(map(_row, STAGES)),
        "most": str(students.MOST),
    }
    for name, html in filled.items():
        page = page.replace(f"@{name}", html)
    return page


class Architecture:
    """The tab's components and handlers."""

    def __init__(self, session: Session):
        self.session = session
        self.students = students.Students(session)
        self.page = gr.HTML(
            self.view(architecture.BEGIN),
            html_template=template(),
            js_on_load=(UI / "architecture" / "architecture.js").read_text(),
            apply_default_css=False,
            elem_id="k-architecture",
        )
        with gr.Column(elem_classes="ka-similarity"):
            gr.HTML(
                '<section class="k-panel"><h3>Why the first blocks stay</h3><p>Each point is the cosine between what '
                "a transformer block gives and what it was given. Near 1 the block hardly turns its input, and "
                "little is lost with it.</p></section>",
                apply_default_css=False,
            )
            why_not = session.device.lent_too_short("this measurement")
            usable = {"interactive": not why_not}
            self.measure = gr.Button("Measure on Tiny SDXL", elem_id="k-similarity", size="md", **usable)
            said = f'<p class="ka-hint">{safe(why_not)}.</p>' if why_not else EMPTY
            self.curves = gr.HTML(said, elem_id="k-curves", apply_default_css=False)
        self.page.input(
            self.change, None, self.page, queue=False, trigger_mode="multiple", concurrency_limit=None, **QUIET
        )
        self.page.submit(self.compress, None, self.page, concurrency_limit=1, **QUIET)
        shown = [self.curves, self.measure]
        run = self.measure.click(self.similarity, None, shown, concurrency_limit=None, **QUIET)
        run.failure(self.ready, None, self.measure, queue=False, concurrency_limit=None, **QUIET)

    # --- handlers

    def view(self, asked: dict, problem: str = "") -> dict:
        """The page's value: the spec, and the students that this app made."""
        spec = architecture.read(asked["spec"], asked["teacher"])
        found = architecture.view(spec, asked["teacher"], asked["side"], asked["gpu"])
        tiny = architecture.parameters_text(parameters(student(spec.notation, TINY_SDXL)))
        note = "All of it is left: remove something first." if found["complete"] else f"{tiny} of 6.44 M parameters"
        return found | {
            "turn": asked.get("turn", 0),
            "problem": problem,
            "cut_note": note,
            "made": [self._made(s) for s in self.students.all],
        }

    def _made(self, one: students.Student) -> dict:
        models = f"{students.TEACHER},{one.card.name}"
        return {
            "title": one.card.title,
            "parameters": f"{one.card.parameters:,}",
            "seconds": f"{one.seconds:.1f}",
            "folder": one.card.source if self.session.local else "",
            "link": "?" + urlencode({"models": models}),
        }

    def _asked(self, event: gr.EventData) -> dict:
        """The spec that the page sent with every control that was moved since; UserError where that is none."""
        sent = event._data
        asked = {name: str(sent.get(name, architecture.BEGIN[name])) for name in ("spec", "teacher", "gpu")}
        spec = architecture.change(architecture.read(asked["spec"], asked["teacher"]), sent)
        sides = architecture.SIDES[asked["teacher"]]
        return asked | {
            "spec": spec.notation,
            "side": next((s for s in sides if s == sent.get("side")), sides[-1]),
            "gpu": asked["gpu"] if asked["gpu"] in HARDWARE else architecture.BEGIN["gpu"],
            "turn": sent.get("turn", 0),
        }

    def change(self, event: gr.EventData) -> dict:
        """A slider or a choice was moved."""
        try:
            return self.view(self._asked(event))
        except UserError as error:
            return self._begin(event, error)

    def compress(self, event: gr.EventData) -> dict:
        """Cut the shown depths out of the embedded teacher; the student joins the other tabs' models.

        `cut` tells the page that this is the answer that its button waits for.
        """
        try:
            asked = self._asked(event)
        except UserError as error:
            return self._begin(event, error) | {"cut": True}
        try:
            self.session.loader.library()  # two threads must not import diffusers at once
            self.students.make(student(asked["spec"], TINY_SDXL))
        except Exception as error:
            return self.view(asked, readable(error)) | {"cut": True}
        return self.view(asked) | {"cut": True}

    def _begin(self, event: gr.EventData, error: UserError) -> dict:
        """What the page shows after a request that its own controls cannot make."""
        return self.view(architecture.BEGIN | {"turn": event._data.get("turn", 0)}, str(error))

    def ready(self) -> dict:
        """After a measurement that failed, or that could not begin."""
        return gr.Button(interactive=True)

    def similarity(self, request: gr.Request) -> Iterator[tuple[str, dict]]:
        """The curves of the embedded teacher, prompt by prompt, once the device is free."""
        yield _hint("Starting"), gr.Button(interactive=False)
        life = Life()

        def measured(library: "Library", _) -> None:
            from koala.evaluate.similarity import SHAPES, measure

            for found in measure(library.get(students.TEACHER), SHAPES, steps=STEPS):
                life.tell(found)
                if life.over.is_set():
                    raise Cancelled

        try:
            self.session.device.require_own("this measurement")
            work = Work(kind="similarity", amount=1)
            visitor = self.session.device.visitor(request)
            told = self.session.device.turn([students.TEACHER], measured, life, visitor=visitor, work=work)
            with closing(told):
                for news in told:
                    last = news[-1] if news else None
                    shown = _hint(last) if isinstance(last, str) else curves(last) if last else gr.skip()
                    yield shown, gr.skip()
        except Exception as error:
            said = readable(error)
            yield f'<p class="k-note k-needs" role="status">{safe(said)}</p>', gr.skip()
            raise complain(UserError(said), "The measurement failed") from None
        yield gr.skip(), gr.Button(interactive=True)


def _hint(text: str) -> str:
    """Where the measurement stands, as HTML."""
    return f'<p class="ka-hint" role="status">{safe(text)}</p>'


def curves(found: dict) -> str:
    """The figure's panels side by side, and what they show."""
    from koala.evaluate import similarity_figure as figure

    low = figure.floor(found)
    panels = "".join(
        f'<svg viewBox="0 0 {figure.WIDTH} {figure.HEIGHT}" role="img" aria-label="{escape(figure.spoken(stage, c))}">'
        f"{figure.panel(stage, c, low)}</svg>"
        for stage, c in found["stages"].items()
    )
    done, of = len(found["prompts"]), found["num_prompts"]
    keys = "".join(f'<span><i class="ks-key ks-{n}"></i>{n} transformer</span>' for n in figure.ORDINALS)
    shows = figure.sentence(found) if done == of else f"Prompt {done} of {of} …"
    return (
        f'<div class="ks-figure"><div class="ks-panels">{panels}</div><p class="ka-legend" aria-hidden="true">{keys}'
        f'</p><p role="status"><strong>{escape(shows)}</strong></p><p class="ka-hint">{escape(found["title"])}, mean '
        f"over {done} prompt{'s' * (done > 1)} and {found['steps']} steps; across: block of the transformer. "
        "For a real model: "
        "<code>python -m koala similarity --model sdxl-base --out curves.json</code></p></div>"
    )


def build(session: Session) -> None:
    """Inside its gr.Tab."""
    Architecture(session)
