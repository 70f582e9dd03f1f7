"""The Export tab: export a model for other runtimes, watch the gates, download the files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr

from koala.errors import UserError
from koala.request import MAX_LORA_STRENGTH
from koala.ui.export import panel as export_panel
from koala.ui.export.jobs import within
from koala.ui.export.store import LARGEST_ZIP, ExportFolder, Exports, Order
from koala.ui.messages import complain, page_words
from koala.ui.session import Session
from koala.ui.theme import UI

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
CHEAP = QUIET | {"concurrency_limit": None}
INTERVAL = 1.0  # s between two updates while an export runs
FIRST = "tiny-koala-700m"  # the model selected at first, where it is available
SAVE = """(file) => { if (!file) return;
  const link = document.createElement("a");
  link.href = file.url; link.download = file.orig_name; link.click(); }"""


class Export:
    """The tab's components and handlers. `tab` is None where it is a page of its own."""

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
        self.about = gr.HTML(_about(first.name), elem_id="kx-about", apply_default_css=False)
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
        gr.HTML(export_panel.HTML.cost(), apply_default_css=False)

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
        with gr.Accordion("Commands that run it", visible=False) as self.more:
            self.lines = gr.HTML(
                "", js_on_load=(UI / "export" / "export.js").read_text(), elem_id="kx-lines", apply_default_css=False
            )
        with gr.Accordion("Output of the process", open=False, visible=False) as self.printed:
            self.log = gr.HTML("", elem_id="kx-log", apply_default_css=False)
        self.file = gr.DownloadButton(visible="hidden", elem_id="kx-file")
        self.timer = gr.Timer(INTERVAL, active=False)
        self.chosen = gr.State("")
        self.sent = gr.State({})  # hashes of what this page shows; only what changed is sent again

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
        self.target.input(self.aim, self.target, [self.about, self.dtype], queue=False, **CHEAP)
        # queued, without a limit: Gradio drops the message of an error that is raised outside its queue
        self.start.click(self.begin, [*page, *asked], shown, **CHEAP)
        self.stop.click(self.halt, page, shown, **CHEAP)
        self.check.click(self.again, [*page, self.lora], shown, **CHEAP)
        packed = self.save.click(self.pack, self.chosen, [self.file, self.save], **QUIET)
        packed.success(None, self.file, None, js=SAVE, **CHEAP)
        self.ask_delete.click(self.ask, self.chosen, [self.sure, self.question], **CHEAP)
        self.keep.click(lambda: gr.Row(visible=False), None, self.sure, queue=False, **CHEAP)
        self.delete.click(self.remove, page, shown, **CHEAP)

    # --- updates

    def aim(self, target: str) -> tuple:
        """A target was chosen: show its description and the data types that it allows."""
        dtypes = _targets()[target].dtypes
        return _about(target), gr.Radio(list(dtypes), value=dtypes[0])

    def look(self, chosen: str, sent: dict) -> dict:
        """What has changed since the last update of the page."""
        everything, job = self.exports.all(), self.exports.job
        coming = job.folder.name if job and job.alive else None
        names = [export.name for export in everything]
        if chosen not in (*names, coming):
            chosen = names[0] if names else ""
        shown = next((export for export in everything if export.name == chosen), None)
        values = self._values(shown, everything)
        marks = {name: hash(repr(value)) for name, value in values.items()}
        updates = {getattr(self, name): value for name, value in values.items() if sent.get(name) != marks[name]}
        return updates | {self.chosen: chosen, self.sent: marks}

    def _values(self, shown: ExportFolder | None, everything: Sequence[ExportFolder]) -> dict:
        """The values of all components, by name."""
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

    def _where(self, export: ExportFolder) -> str:
        """The path of the folder as one would type it; empty on a public server."""
        if not self.session.local:
            return ""
        folder, here = export.folder, Path.cwd()
        return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)

    def _lines(self, export: ExportFolder) -> list[export_panel.Line]:
        from koala.export.to_tensorrt import recipe

        engines, why_not = {}, ""
        try:
            engines = recipe(export.folder).lines
        except UserError as error:
            why_not = within(self.exports.root, page_words(str(error)))
        return export_panel.lines_to_copy(export.exported, self._where(export) or export.name, engines, why_not)

    def turn(self, chosen: str, sent: dict) -> dict:
        """The tab was selected: update all of it, as the page may have missed something."""
        return self.look(chosen, {})

    def choose(self, event: gr.EventData, chosen: str, sent: dict) -> dict:
        """An export of the list was chosen: show it."""
        return self.look(str(event._data.get("run") or ""), sent) | {self.sure: gr.Row(visible=False)}

    # --- buttons

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
        """The Start button: start a process and show it at once."""
        order = Order(model=model, target=target, dtype=dtype, components=components, lora=lora, lora_strength=strength)
        try:
            job = self.exports.start(order, request.session_hash)
        except (UserError, OSError) as error:
            raise complain(error) from None
        return self.look(job.folder.name, sent) | {self.sure: gr.Row(visible=False)}

    def again(self, request: gr.Request, chosen: str, sent: dict, lora: str | None) -> dict:
        """Run the gates on an existing export; one with a fused LoRA needs the LoRA's file."""
        try:
            self.exports.check(chosen, lora, request.session_hash)
        except (UserError, OSError) as error:
            raise complain(error) from None
        return self.look(chosen, sent)

    def halt(self, request: gr.Request, chosen: str, sent: dict) -> dict:
        """The Stop button: the process ends after its current step and leaves no files."""
        try:
            self.exports.stop(request.session_hash)
        except UserError as error:
            raise complain(error) from None
        return self.look(chosen, sent)

    def pack(self, chosen: str) -> Iterator[tuple]:
        """Pack the zip, which the page then saves."""
        yield gr.skip(), gr.Button("Packing …", interactive=False)
        try:
            yield str(self.exports.pack(chosen)), gr.Button("Download zip", interactive=True)
        except (UserError, OSError) as error:
            yield None, gr.Button("Download zip", interactive=True)
            raise complain(error) from None

    def ask(self, chosen: str) -> tuple:
        """The Delete button: ask first."""
        try:
            export = self.exports.find(chosen)
        except UserError as error:
            raise complain(error) from None
        return gr.Row(visible=True), export_panel.HTML.question(export.name, export.bytes)

    def remove(self, chosen: str, sent: dict) -> dict:
        """Delete the export, once the question is answered."""
        try:
            self.exports.delete(chosen)
        except (UserError, OSError) as error:
            raise complain(error) from None
        return self.look("", sent) | {self.sure: gr.Row(visible=False)}


def _targets() -> dict:
    from koala.export.targets import TARGETS

    return TARGETS


def _about(target: str) -> str:
    return export_panel.HTML.target(_targets()[target].text)


def build(session: Session) -> None:
    """Build it inside its gr.Tab."""
    Export(session, gr.context.Context.block)
