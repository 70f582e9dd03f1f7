"""A trainer's claim on the folder of its run: its lock, and its first and last writes there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from koala.distill.config import DistillConfig
from koala.distill.processes import Processes
from koala.distill.run.folder import RunFolder, check_place
from koala.distill.run.intact import manifest
from koala.distill.run.reporter import Reporter
from koala.distill.run.resuming import record
from koala.distill.run.student_folder import create_student, repair_student
from koala.errors import UserError
from koala.files.outputs import remove_partials


class Claim:
    """The claim of one process of a run, `new` or resumed. Only the first process writes; all take the same path."""

    def __init__(self, run: RunFolder, config: DistillConfig, processes: Processes, reporter: Reporter, *, new: bool):
        self.run, self.config, self.processes, self.reporter, self.new = run, config, processes, reporter, new
        self.began = not new  # whether there is anything in the folder that is worth keeping

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other trainers out of the folder; the system releases the lock however this process ends."""
        with ExitStack() as held:
            is_new, self.began = self.processes.on_main(self._take, held)
            try:
                yield
            finally:
                if self.processes.main:
                    self.run.forget_wishes()
                    if not self.run.holds_run():
                        self.run.forget_claim(folder=is_new)

    def _take(self, held: ExitStack) -> tuple[bool, bool]:
        """Whether the folder was made for the run, and whether a run had begun there."""
        if self.new:
            check_place(self.run)
        is_new = not self.run.path.exists()
        self.run.path.mkdir(parents=True, exist_ok=True)
        held.enter_context(self.run.alone())
        self.run.forget_wishes()
        began = self.run.holds_run()
        self.reporter.hold(not began)
        return is_new, began

    def accept(self) -> None:
        """The data can be read: from here on the run is there for everyone to see, and can be resumed."""
        if self.reporter.held and self.processes.main:
            self.reporter.hold(False)
            self.run.write_config(self.config)

    def begin(self, step: int | None, say: Callable[[str], None]) -> None:
        """The first permanent writes, once nothing can be refused any more; `step` is the checkpoint to resume from."""
        run, config = self.run, self.config
        for folder in (run.path / "checkpoints", run.student / "unet", run.samples):
            remove_partials(folder)
        if step is not None:
            self._note(step, say)
        run.write_config(config)
        if strays := run.strays():
            say(f"left out of {run.path / 'checkpoints'}, as no checkpoints: {', '.join(strays)}")
        run.forget_checkpoints_after(-1 if step is None else step)
        if step is None:
            create_student(run, config)
        elif fault := repair_student(run, config):
            say(f"student/ was recreated: {fault}")

    def _note(self, step: int, say: Callable[[str], None]) -> None:
        """Note in the run's history what is different from here on."""
        try:
            self.run.history()
        except UserError as error:
            say(str(error))
        record(self.run, step, self.config, manifest(self.run, step)[0], self.processes.number)

    def stopped(self, why: str) -> None:
        """The last status of a run that was asked to stop; it can be resumed even before its data were accepted."""
        if not self.run.holds_run():
            self.run.write_config(self.config)
        self.reporter.end("stopped", why)

    def failed(self, error: Exception) -> None:
        """The last status, from the first process where all know of the error, or else from the one that has it."""
        shared = error is self.processes.shared
        if shared and not self.processes.main:
            return
        if not self.began and not self.run.checkpoints() and isinstance(error, UserError):
            self.run.forget_beginning()
            return
        if not shared and self.processes.number > 1:
            status = self.run.status()
            if status and status.state == "failed":  # another process has given the reason; this one only lost contact
                return
            self.reporter.active = True
        self.reporter.end("failed", str(error) or type(error).__name__)
