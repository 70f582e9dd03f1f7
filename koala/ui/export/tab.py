"""The Export tab: write a model for other runtimes, watch the gates, take the files along. `export` is loaded here."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr

from koala.errors import UserError
from koala.request import MAX_LORA_STRENGTH
from koala.ui.export import lines as export_lines
from koala.ui.export import panel as export_panel
from koala.ui.export.jobs import within
from koala.ui.export.store import LARGEST_ZIP, Exports, Found, Order
from koala.ui.messages import complain
from koala.ui.session import Session
from koala.ui.theme import UI
from koala.words import size

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
CHEAP = QUIET | {"concurrency_limit": None}
INTERVAL = 1.0  # s between two looks at an export that goes on
FIRST = "tiny-koala-700m"  # model that is chosen at the start, where it is here
SAVE = """(file) => { if (!file) return;
  const link = document.createElement("a");
  link.href = file.url; link.download = file.orig_name; link.click(); }"""


class Export:
    """The tab's components and handlers. `tab` is what it is in, None in a page of its own."""

    def __init__(self, session: Session, tab: gr.Tab | None = None):
        self.session = session
        self.exports = Exports(session)
        if not self.exports.open:
            gr.HTML(export_panel.OFF, elem_id="kx-off", apply_default_css=False)
            return
        with gr.Row(elem_classes="k-panes kd-panes kx-panes"):
            with gr.Column(elem_classes="k-controls k-ask kd-ask"):
                self._ask()
            with gr.Column(elem_classes="k-results"):
                self._results()
        self._wire(tab)

    # --- components

    def _ask(self) -> None:
        models = self.exports.models()
        names = [name for _, name in models]
        self.model = gr.Dropdown(models, value=FIRST if FIRST in names else names[0], label="Model", elem_id="kx-model")
        targets = _targets()
        first = next(iter(targets.values()))
        self.target = gr.Radio(list(targets), value=first.name, label="For", elem_id="kx-target")
        self.told = gr.HTML(_tell(first.name), elem_id="kx-told", apply_default_css=False)
        self.dtype = gr.Radio(list(first.dtypes), value=first.dtypes[0], label="Weights", elem_id="kx-dtype")
        self.components = gr.Radio(
            [("Whole pipeline", "all"), ("U-Net alone", "unet")],
            value="all",
            label="Components",
            elem_id="kx-components",
        )
        with gr.Accordion("Fuse a LoRA into it", open=False, visible=self.session.local):
            self.lora = gr.File(
                label="LoRA for SDXL (.safetensors)",
                file_types=[".safetensors"],
                height=84,
                elem_id="kx-lora",
                elem_classes="k-drop",
            )
            self.strength = gr.Slider(-MAX_LORA_STRENGTH, MAX_LORA_STRENGTH, value=1, step=0.05, label="LoRA strength")
        with gr.Row(elem_classes="k-actions"):
            self.start = gr.Button("Start", variant="primary", elem_id="kx-start", scale=3, min_width=140)
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="kx-stop", scale=1, min_width=80)
        gr.HTML(
            "<p>The embedded models take some minutes, half of them for the gates. Large models need about three times "
            "the size of their U-Net in memory, and say so first.</p>",
            apply_default_css=False,
        )

    def _results(self) -> None:
        self.standing = gr.HTML("", elem_id="kx-standing", apply_default_css=False)
        self.list = gr.HTML(
            "", js_on_load=(UI / "distill" / "distill.js").read_text(), elem_id="kx-list", apply_default_css=False
        )
        self.details = gr.HTML(export_panel.NONE_YET, elem_id="kx-details", apply_default_css=False)
        with gr.Row(elem_classes="kd-actions"):
            self.save = gr.Button("Download zip", visible=False, elem_id="kx-save", size="md")
            self.check = gr.Button("Run the gates again", visible=False, elem_id="kx-check", size="md")
            self.ask_delete = gr.Button("Delete …", visible=False, elem_id="kx-delete", size="md")
        with gr.Row(visible=False, elem_classes="kd-sure") as self.sure:
            self.question = gr.HTML("", apply_default_css=False)
            self.delete = gr.Button("Delete it", variant="stop", elem_id="kx-delete-it", size="md", min_width=100)
            self.keep = gr.Button("Keep it", elem_id="kx-keep-it", size="md", min_width=100)
        with gr.Accordion("Lines that run it", visible=False) as self.more:
            self.lines = gr.HTML(
                "", js_on_load=(UI / "export" / "export.js").read_text(), elem_id="kx-lines", apply_default_css=False
            )
        with gr.Accordion("What it printed", open=False, visible=False) as self.printed:
            self.log = gr.HTML("", elem_id="kx-log", apply_default_css=False)
        self.file = gr.DownloadButton(visible="hidden", elem_id="kx-file")
        self.timer = gr.Timer(INTERVAL, active=False)
        self.chosen = gr.State("")
        self.sent = gr.State({})  # marks of what this page shows: only what changed is sent again

    def _wire(self, tab: gr.Tab | None) -> None:
        page = [self.chosen, self.sent]
        panels = [self.standing, self.details, self.lines, self.list, self.log]
        buttons = [self.start, self.stop, self.save, self.check, self.ask_delete, self.sure, self.more, self.printed]
        shown = [*panels, *buttons, self.timer, *page]
        asked = [self.model, self.target, self.dtype, self.components, self.lora, self.strength]
        self.timer.tick(self.look, page, shown, queue=False, **CHEAP)
        if tab:
            tab.select(self.turn, page, shown, queue=False, **CHEAP)
            tab.select(lambda: gr.Dropdown(self.exports.models()), None, self.model, queue=False, **CHEAP)
        self.list.click(self.choose, page, shown, queue=False, **CHEAP)
        self.target.input(self.aim, self.target, [self.told, self.dtype], queue=False, **CHEAP)
        # in the queue, but in no line of it: a complaint from outside the queue reaches the page without its words
        self.start.click(self.begin, [*page, *asked], shown, **CHEAP)
        self.stop.click(self.halt, page, shown, **CHEAP)
        self.check.click(self.again, [*page, self.lora], shown, **CHEAP)
        packed = self.save.click(self.pack, self.chosen, [self.file, self.save], **QUIET)
        packed.success(None, self.file, None, js=SAVE, **CHEAP)
        self.ask_delete.click(self.ask, self.chosen, [self.sure, self.question], **CHEAP)
        self.keep.click(lambda: gr.Row(visible=False), None, self.sure, queue=False, **CHEAP)
        self.delete.click(self.remove, page, shown, **CHEAP)

    # --- what is shown

    def aim(self, target: str) -> tuple:
        """A target was chosen: its text, and the types that its weights may have."""
        dtypes = _targets()[target].dtypes
        return _tell(target), gr.Radio(list(dtypes), value=dtypes[0])

    def look(self, chosen: str, sent: dict) -> dict:
        """What changed since the page was last told."""
        everything, job = self.exports.all(), self.exports.job
        coming = job.folder.name if job and job.alive else None
        names = [found.name for found in everything]
        if chosen not in (*names, coming):
            chosen = names[0] if names else ""
        shown = next((found for found in everything if found.name == chosen), None)
        told = self._told(shown, everything)
        marks = {name: hash(repr(value)) for name, value in told.items()}
        updates = {getattr(self, name): value for name, value in told.items() if sent.get(name) != marks[name]}
        return updates | {self.chosen: chosen, self.sent: marks}

    def _told(self, shown: Found | None, everything: Sequence[Found]) -> dict:
        """All of the page, by the components' names."""
        job, local = self.exports.job, self.session.local
        alive = job is not None and job.alive
        readable = shown is not None and shown.exported is not None
        details = export_panel.details(shown, self.exports.report(shown.name), self._where(shown)) if shown else ""
        return {
            "standing": export_panel.standing(job),
            "details": details or ("" if job else export_panel.NONE_YET),
            "lines": export_panel.to_copy(self._lines(shown)) if readable else "",
            "list": export_panel.table(everything, shown.name if shown else "") if len(everything) > 1 else "",
            "log": export_panel.log(job) if local else "",
            "start": gr.update(interactive=not alive),
            "stop": gr.update(visible=alive, interactive=alive and job.state == "running"),
            "save": gr.update(visible=readable and shown.bytes <= LARGEST_ZIP),
            "check": gr.update(visible=readable and local, interactive=not alive),
            "ask_delete": gr.update(visible=shown is not None and local),
            "more": gr.update(visible=readable),
            "printed": gr.update(visible=job is not None and local),
            "timer": gr.update(active=alive),
        }

    def _where(self, found: Found) -> str:
        """The folder as one would type it; strangers need not know this machine's."""
        if not self.session.local:
            return ""
        return str(found.folder.relative_to(Path.cwd()) if found.folder.is_relative_to(Path.cwd()) else found.folder)

    def _lines(self, found: Found) -> list[export_lines.Line]:
        from koala.export.to_tensorrt import recipe

        engines, why_not = {}, ""
        try:
            engines = recipe(found.folder).lines
        except UserError as error:
            why_not = within(self.exports.root, str(error))
        return export_lines.lines(found.exported, self._where(found) or found.name, engines, why_not)

    def turn(self, chosen: str, sent: dict) -> dict:
        """The tab was chosen: all of it is told again, for the page may have missed something."""
        return self.look(chosen, {})

    def choose(self, event: gr.EventData, chosen: str, sent: dict) -> dict:
        """An export of the list."""
        return self.look(str(event._data.get("run") or ""), sent) | {self.sure: gr.Row(visible=False)}

    # --- what can be done

    def begin(
        self,
        request: gr.Request,
        chosen: str,
        sent: dict,
        model: str,
        target: str,
        dtype: str,
        components: str,
        lora: str | None,
        strength: float,
    ) -> dict:
        """The Start button: a process of its own, shown at once."""
        order = Order(model=model, target=target, dtype=dtype, components=components, lora=lora, lora_strength=strength)
        try:
            job = self.exports.start(order, request.session_hash)
        except (UserError, OSError) as error:
            raise complain(error) from None
        return self.look(job.folder.name, sent) | {self.sure: gr.Row(visible=False)}

    def again(self, request: gr.Request, chosen: str, sent: dict, lora: str | None) -> dict:
        """The gates, over an export that is there; one with a LoRA in it needs that file."""
        try:
            self.exports.check(chosen, lora, request.session_hash)
        except (UserError, OSError) as error:
            raise complain(error) from None
        return self.look(chosen, sent)

    def halt(self, request: gr.Request, chosen: str, sent: dict) -> dict:
        """The Stop button: the process ends after the step that it is in, and leaves nothing."""
        try:
            self.exports.stop(request.session_hash)
        except UserError as error:
            raise complain(error) from None
        return self.look(chosen, sent)

    def pack(self, chosen: str) -> Iterator[tuple]:
        """The zip, which the page then saves."""
        yield gr.skip(), gr.Button("Packing …", interactive=False)
        try:
            yield str(self.exports.pack(chosen)), gr.Button("Download zip", interactive=True)
        except (UserError, OSError) as error:
            yield None, gr.Button("Download zip", interactive=True)
            raise complain(error) from None

    def ask(self, chosen: str) -> tuple:
        """The Delete button asks before it does."""
        try:
            found = self.exports.find(chosen)
        except UserError as error:
            raise complain(error) from None
        return gr.Row(visible=True), f"<p>Delete {found.name} for good, {size(found.bytes)}?</p>"

    def remove(self, chosen: str, sent: dict) -> dict:
        """Deleted, after the question."""
        try:
            self.exports.delete(chosen)
        except (UserError, OSError) as error:
            raise complain(error) from None
        return self.look("", sent) | {self.sure: gr.Row(visible=False)}


def _targets() -> dict:
    from koala.export.targets import TARGETS

    return TARGETS


def _tell(target: str) -> str:
    return f"<p>{_targets()[target].text}.</p>"


def build(session: Session) -> None:
    """Inside its gr.Tab."""
    Export(session, gr.context.Context.block)
