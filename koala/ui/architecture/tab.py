"""The Architecture tab: what a student lacks, what that saves, a U-Net of one's own, and why the first blocks stay."""

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import gradio as gr

from koala.errors import Cancelled, UserError
from koala.hardware.latency import HARDWARE
from koala.ui.architecture import data as architecture
from koala.ui.architecture import students
from koala.ui.architecture import svg as architecture_svg
from koala.ui.html import macros
from koala.ui.line import Work
from koala.ui.messages import complain, page_words, readable, sentence
from koala.ui.session import Session
from koala.ui.theme import UI
from koala.ui.under_way import Life
from koala.unet.costs import parameters
from koala.unet.specs import SDXL, STAGES, TINY_SDXL, student
from koala.words import parameters_text

if TYPE_CHECKING:
    from koala.models.library import Library

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
STEPS = 4  # of each prompt of the live similarity
HTML = macros("architecture/architecture.html")
EMPTY = HTML.empty()


def template() -> str:
    """The page with its drawings, choices and rows; architecture.js fills in the numbers."""
    return HTML.page(
        presets=architecture.TITLES,
        widths=architecture.WIDTHS,
        gpus={key: card.name for key, card in HARDWARE.items()},
        wide=architecture_svg.draw(architecture_svg.WIDE),
        tall=architecture_svg.draw(architecture_svg.TALL),
        stages={stage: max(SDXL.depths()[stage]) for stage in STAGES},
        mid_choices=architecture.MID_CHOICES,
        most=students.MOST,
    )


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
            gr.HTML(HTML.similarity(), apply_default_css=False)
            why_not = session.device.lent_too_short("this measurement")
            usable = {"interactive": not why_not}
            self.measure = gr.Button("Measure on Tiny SDXL", elem_id="k-similarity", size="md", **usable)
            first = HTML.hint(f"{sentence(why_not)}.") if why_not else EMPTY
            self.curves = gr.HTML(first, elem_id="k-curves", apply_default_css=False)
        self.page.input(
            self.change, None, self.page, queue=False, trigger_mode="multiple", concurrency_limit=None, **QUIET
        )
        self.page.submit(self.compress, None, self.page, concurrency_limit=1, **QUIET)
        shown = [self.curves, self.measure]
        run = self.measure.click(self.similarity, None, shown, concurrency_limit=None, **QUIET)
        run.failure(self.ready, None, self.measure, queue=False, concurrency_limit=None, **QUIET)

    # --- handlers

    def view(self, asked: dict, problem: str = "") -> dict:
        """The value of the page: the spec, and the students that this app has made."""
        spec = architecture.read(asked["spec"], asked["teacher"])
        value = architecture.view(spec, asked["teacher"], asked["side"], asked["gpu"])
        tiny = parameters_text(parameters(student(spec.notation, TINY_SDXL)))
        note = (
            "This is the whole teacher: remove something first."
            if value["complete"]
            else f"{tiny} of 6.44 M parameters"
        )
        return value | {
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
        """What the page sent: its spec with the controls moved since. UserError where that is not a spec."""
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
        """Cut the shown depths out of the embedded teacher; the other tabs offer the student as a model.

        With `cut` the page knows the answer that its button waits for.
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
        """The first view again, after a request that the page's own controls cannot make."""
        return self.view(architecture.BEGIN | {"turn": event._data.get("turn", 0)}, page_words(str(error)))

    def ready(self) -> dict:
        """Enable the button again after a measurement that failed or could not begin."""
        return gr.Button(interactive=True)

    def similarity(self, request: gr.Request) -> Iterator[tuple[str, dict]]:
        """The Measure button: the curves of the embedded teacher, prompt by prompt, once the device is free."""
        yield HTML.hint("Starting"), gr.Button(interactive=False)
        life = Life()

        def measured(library: "Library", _) -> None:
            from koala.evaluate.similarity import SHAPES, measure

            for report in measure(library.get(students.TEACHER), SHAPES, steps=STEPS):
                life.tell(report)
                if life.over.is_set():
                    raise Cancelled

        try:
            self.session.device.require_own("this measurement")
            work = Work(kind="similarity", amount=1)
            visitor = self.session.device.visitor(request)
            turn = self.session.device.turn([students.TEACHER], measured, life, visitor=visitor, work=work)
            with closing(turn):
                for events in turn:
                    last = events[-1] if events else None
                    shown = HTML.hint(sentence(last)) if isinstance(last, str) else curves(last) if last else gr.skip()
                    yield shown, gr.skip()
        except Exception as error:
            problem = readable(error)
            yield HTML.failed(sentence(problem)), gr.skip()
            raise complain(UserError(problem), "The measurement failed") from None
        yield gr.skip(), gr.Button(interactive=True)


def curves(report: dict) -> str:
    """The figure's panels side by side, and what they show."""
    from koala.evaluate import similarity_figure as figure

    low, stages = figure.floor(report), report["stages"]
    panels = [figure.FRAME.svg(figure.spoken(stage, c), figure.panel(stage, c, low)) for stage, c in stages.items()]
    done, of = len(report["prompts"]), report["num_prompts"]
    shows = figure.sentence(report) if done == of else f"Prompt {done} of {of} …"
    return HTML.curves(panels, figure.ORDINALS, shows, report["title"], done, report["steps"])


def build(session: Session) -> None:
    """Build it inside its gr.Tab."""
    Architecture(session)
