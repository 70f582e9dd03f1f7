"""The data of a run, opened and encoded by all of its processes: which of them does what, and which wait."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from koala.distill.config import DistillConfig
from koala.distill.data import cache
from koala.distill.data.encoded import EncodedData
from koala.distill.data.encoders import encoder_files
from koala.distill.processes import Processes
from koala.distill.run import snapshots
from koala.distill.run.claim import Claim
from koala.distill.run.folder import RunFolder
from koala.distill.run.reporter import Reporter
from koala.distill.run.resuming import beginning, from_student
from koala.distill.run.stopping import Pauses
from koala.errors import UserError


class Gathering:
    """For one process of a run, new or resumed from the checkpoint of step `resume_from`."""

    def __init__(
        self,
        run: RunFolder,
        config: DistillConfig,
        resume_from: int | None,
        *,
        processes: Processes,
        pauses: Pauses,
        claim: Claim,
        reporter: Reporter,
        say: Callable[[str], None],
    ):
        """`say` reports what is being prepared."""
        self.run, self.config, self.resume_from = run, config, resume_from
        self.processes, self.pauses, self.claim, self.reporter, self.say = processes, pauses, claim, reporter, say
        self.encoders = encoder_files(config.teacher, processes.device)
        self.shared = dict(should_stop=pauses.stops_or_waits, say=say)

    def encoded(self) -> EncodedData:
        """The data as latents and embeddings, the same in all processes. Stopped where one was asked to stop.

        A new run retries what was out of reach; a resumed one keeps what it has learned from. UserError for
        data that cannot be used or changed.
        """
        each, on_main = self.processes.on_each, self.processes.on_main
        on_main(self.say, "looking through the pictures")
        located = each(self._find)
        self.pauses.may_stop("while looking through the pictures")
        tries = on_main(self._try_again, located) if self.resume_from is None else 0
        self.pauses.may_stop("while encoding; what was encoded is kept")
        data = each(self._encode, located, tries)
        self.pauses.may_stop("while encoding; what was encoded is kept")
        if not self.processes.alike(data.key):
            raise UserError(
                f"the processes see different pictures in {self.config.data}, or different encoders; copy them again"
            )
        each(self._check, data)
        return data

    def _find(self) -> cache.Located | None:
        """The data on this machine; None when stopped."""
        with self._stoppable():
            located = cache.find(self.config, self.encoders, key=self._key(), **self.shared)
            if located is None:
                raise self._changed()
            return located
        return None

    def _try_again(self, located: cache.Located) -> int | None:
        with self._stoppable():
            return cache.try_again(
                located, self.encoders, device=self.processes.device, on_progress=self._tell, **self.shared
            )
        return None

    def _encode(self, located: cache.Located, tries: int) -> EncodedData | None:
        """Everyone encodes what the cache has not got; None when stopped."""
        with self._stoppable():
            data = cache.encode(
                located,
                self.encoders,
                device=self.processes.device,
                tries=tries,
                rank=self.processes.rank,
                world=self.processes.number,
                on_progress=self._tell,
                **self.shared,
            )
            self.claim.accept()
            return data
        return None

    def _tell(self, done: int, total: int, message: str) -> None:
        self.claim.accept()
        self.reporter.say("preparing", f"{message}: {done:,}" + (f" of {total:,}" if total else "") + " pictures")

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        try:
            yield
        except cache.EncodingStopped:  # all stop together afterwards
            pass
        except Exception:
            self.run.give_up()  # the others hear it between two pictures
            raise

    def _key(self) -> str:
        """What the run has learned from so far."""
        return "" if self.resume_from is None else snapshots.position(self.run, self.resume_from)[0].data

    def _check(self, data: EncodedData) -> None:
        if self.resume_from is not None and data.key != self._key():
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(
            f"{self.config.data}, or the teacher's encoders, changed since checkpoint step-{self.resume_from} was "
            "written; put them back (data=PLACE if they are elsewhere), or start a new run "
            f"{beginning(self.run)}: {from_student(self.run)}"
        )
