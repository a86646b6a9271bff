"""Saves a run together with all ranks, beside the training.

`begin` only says what is to be saved. A thread then copies this rank's shards to host memory while the next
forward and backward pass runs (weights change only in the optimizer step, which `wait_until_copied`
precedes), and writes, checksums and forces them to the disk while training goes on. When every rank is
done, which ranks learn from the sum they make at each step anyway, `commit` gives the checkpoint its name.
"""

import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_pretrain.checkpoint.fence import Claim, check_owner, locked
from sparse_pretrain.checkpoint.integrity import FileFacts
from sparse_pretrain.checkpoint.layout import MODEL, STATE, staging_folder, weight_file
from sparse_pretrain.checkpoint.local_disk import copy_files, forget_local, local_folder, note_share
from sparse_pretrain.checkpoint.shards import Piece, write_rank
from sparse_pretrain.checkpoint.staging import (
    commit,
    delete_old,
    describe_files,
    discard_staging,
    prepare_staging,
)
from sparse_pretrain.config.training import CheckpointSection
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import write_json
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.pruning.verify import BrokenWeightsError, find_not_finite
from sparse_pretrain.training.callback import CheckpointReport
from sparse_pretrain.training.host_copies import HostCopies
from sparse_pretrain.training.state import pieces, random_states, shared_state
from sparse_pretrain.training.takeover import as_disk_error, on_disk, reason, take_over
from sparse_pretrain.training.trainer import Trainer
from sparse_pretrain.training.world import World

# Beside the shards: masks, state, tokenizer. A vocabulary and its merges are a few MB.
SHARED_BYTES = 16_000_000


@dataclass(frozen=True)
class Written:
    """What one rank says of its share of a checkpoint.

    Attributes:
        files: what it wrote.
        fault: weights that are not what they should be: nothing may be committed.
        error: what the disk said.
        failure: what else went wrong.
        masks: digest of the masks it holds; None without pruning.
    """

    files: dict[str, FileFacts] = field(default_factory=dict)
    fault: str | None = None
    error: str | None = None
    failure: str | None = None
    masks: str | None = None


@dataclass
class Share:
    """This rank's share of a save that is under way.

    Attributes:
        step: optimizer steps done when it began.
        began: time.perf_counter() then.
        copied: done when the optimizer may change the weights again.
        written: done when everything is on the disk.
        waited: seconds that training has stood still for it so far.
    """

    step: int
    began: float
    copied: Future[tuple[list[Piece], MaskSet | None, str | None]]
    written: Future[Written]
    waited: float = 0.0


class Saver:
    """The checkpoints of one run.

    Not before `begin` anything is written, so that a run that turns out to be a mistake leaves its folder as
    it was.
    """

    def __init__(
        self,
        checkpoints: Path,
        section: CheckpointSection,
        teacher_identity: str | None,
        tokenizer: Any,
        config: Any,
        claimed: Claim | None = None,
    ) -> None:
        """Save into the folder `checkpoints`.

        Args:
            checkpoints: of the run.
            section: the recipe's.
            teacher_identity: what a resumed run compares.
            tokenizer: goes beside the weights.
            config: the architecture; goes beside the weights.
            claimed: when this start has already taken over.
        """
        self.checkpoints = checkpoints
        self.teacher_identity = teacher_identity
        self.broken: dict[int, str] = {}
        self.longest_seconds = 0.0
        self._section = section
        self._tokenizer = tokenizer
        self._config = config
        self._claim = claimed
        self._share: Share | None = None
        self._copies: HostCopies | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._cleaned: Future[None] | None = None
        self._cleaner = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-retention")

    # --- before training ---------------------------------------------------------------------------

    def take_over(self, world: World) -> Claim:
        """Become the one start of the run that may commit, and clear what dead ones left (collective).

        Raises:
            UserError: another process trains in the folder, or it cannot be written.
        """
        if self._claim is None:
            self._claim = take_over(self.checkpoints, world)
        return self._claim

    # --- what the trainer calls ---------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether a save is under way."""
        return self._share is not None

    @property
    def is_written(self) -> bool:
        """Whether this rank has done its share of the save that is under way, well or not."""
        return self._share is not None and self._share.written.done()

    def begin(self, trainer: Trainer) -> None:
        """Save the trainer's present step (collective); one that is still under way is committed first.

        Raises:
            UserError: the disk has no room, or the folder cannot be written.
            BrokenWeightsError: from the save before.
        """
        self.commit(trainer)
        began = time.perf_counter()
        world = trainer.world
        mine = self.take_over(world)
        listed = list(pieces(trainer))
        sizes = world.gather(sum(piece.values.nbytes for piece in listed))
        needed = sum(sizes) + SHARED_BYTES
        world.on_first(
            lambda: on_disk(
                self.checkpoints, lambda: prepare_staging(self.checkpoints, trainer.step, mine, needed)
            )
        )
        if self._copies is None:
            self._copies = HostCopies(world.device)
        self._copies.note_written()
        state = shared_state(trainer, self.teacher_identity) if world.is_first else None
        extra = random_states(world.device)
        copied = self._thread.submit(self._copy, trainer, listed, self._copies)
        written = self._thread.submit(self._write, trainer, mine, trainer.step, copied, extra, state)
        self._share = Share(trainer.step, began, copied, written, time.perf_counter() - began)
        if not self._section.asynchronous:
            self.commit(trainer)

    def wait_until_copied(self) -> None:
        """Return when the optimizer may change weights, moments and masks."""
        if self._share is not None and not self._share.copied.done():
            began = time.perf_counter()
            self._share.copied.exception()
            self._share.waited += time.perf_counter() - began

    def commit(self, trainer: Trainer) -> None:
        """Give the save that is under way its name, if there is one (collective); waits for this rank's share.

        Raises:
            BrokenWeightsError: a weight is NaN or does not obey its mask, on some rank.
            UserError: the disk refused.
            SupersededError: another start of the run has taken over.
        """
        share, mine, world = self._share, self._claim, trainer.world
        if share is None or mine is None:
            return
        began = time.perf_counter()
        everyone: list[Written] = world.gather(share.written.result())
        self._share = None
        last_good = trainer.last_checkpoint
        folder, size = world.on_first(
            lambda: on_disk(self.checkpoints, lambda: self._commit(share.step, mine, everyone, last_good))
        )
        now = time.perf_counter()
        self.longest_seconds = max(self.longest_seconds, now - share.began)
        trainer.announce_checkpoint(
            CheckpointReport(
                step=share.step,
                folder=folder,
                bytes=size,
                seconds=now - share.began,
                waited=share.waited + now - began,
                warning=self._cleaning_problem(),
            )
        )
        self._cleaned = self._cleaner.submit(self._clean, share.step, mine, world.is_first)

    def _cleaning_problem(self) -> str | None:
        """Return why old checkpoints could not be deleted after the save before; it may still be at it."""
        error = self._cleaned.exception() if self._cleaned is not None and self._cleaned.done() else None
        return None if error is None else f"old checkpoints were not deleted: {error}"

    def close(self) -> None:
        """Wait until old checkpoints are deleted; after the last save."""
        self._cleaner.shutdown(wait=True)
        self._thread.shutdown(wait=True)

    # --- in the background -----------------------------------------------------------------------------

    def _copy(
        self, trainer: Trainer, listed: list[Piece], copies: HostCopies
    ) -> tuple[list[Piece], MaskSet | None, str | None]:
        """Look at the weights, and copy what the coming optimizer step would change."""
        pruner, engine = trainer.pruner, trainer.engine
        fault = find_not_finite(engine.parameters, engine)
        if fault is None and pruner is not None:
            fault = pruner.find_fault()
        if fault is not None:
            return [], None, fault
        masks = None if pruner is None else pruner.masks.packed_copy()
        if not self._section.asynchronous and trainer.world.device.type == "cpu":
            return listed, masks, None
        return copies.copy(listed), masks, None

    def _write(
        self,
        trainer: Trainer,
        mine: Claim,
        step: int,
        copied: Future[tuple[list[Piece], MaskSet | None, str | None]],
        extra: dict[str, Any],
        state: dict[str, Any] | None,
    ) -> Written:
        """Write this rank's files and force them to the disk."""
        try:
            listed, masks, fault = copied.result()
            if fault is not None:
                return Written(fault=fault)
            shared = staging_folder(self.checkpoints, step, mine.start)
            local = self._section.local
            folder = shared if local is None else local_folder(local, mine, step)
            files = {}
            if state is not None:
                if masks is not None:
                    masks.save(folder / MASK_FILE)
                self._config.save_pretrained(folder / MODEL)
                self._tokenizer.save_pretrained(folder / MODEL)
                digest = None if masks is None else masks.digest()
                write_json(folder / STATE, {**state, "masks": digest, "run": mine.run, "start": mine.start})
                files = describe_files(folder)
            rank, ranks = trainer.world.rank, trainer.world.size
            shard = weight_file(folder, rank)
            shard.parent.mkdir(parents=True, exist_ok=True)
            files[shard.relative_to(folder).as_posix()] = write_rank(
                shard,
                listed,
                trainer.engine.shapes,
                extra,
                origin=f"run {mine.run}, step {step}",
                without_zeros=self._section.compression == "zeros",
            )
            if local is not None:
                note_share(folder, step, mine.start, rank, ranks, files)
                copy_files(folder, shared, files)
            return Written(files, masks=None if masks is None else masks.digest())
        except Exception as error:
            # Told to all ranks, which wait for this one's answer; the traceback is for the log, which may lie on
            # the same full disk.
            with suppress(OSError):
                traceback.print_exc()
            disk = as_disk_error(error)
            if disk is not None:
                return Written(error=reason(disk))
            return Written(failure=f"{type(error).__name__}: {error}")

    def _commit(
        self, step: int, mine: Claim, everyone: list[Written], last_good: Path | None
    ) -> tuple[Path, int]:
        try:
            with locked(self.checkpoints):
                # Who has been superseded finds its folder gone: the reason, not the consequence, is to be told.
                check_owner(self.checkpoints, mine)
            problem = self._problem_of(step, everyone, last_good)
            if problem is not None:
                raise problem
            files = {name: facts for written in everyone for name, facts in written.files.items()}
            folder, manifest = commit(self.checkpoints, step, mine, len(everyone), files)
            return folder, manifest.total_bytes
        except Exception:
            discard_staging(self.checkpoints, step, mine)
            raise

    def _problem_of(self, step: int, everyone: list[Written], last_good: Path | None) -> Exception | None:
        """Return why what the ranks wrote is no checkpoint, or None."""
        for rank, written in enumerate(everyone):
            if written.fault is not None:
                return BrokenWeightsError(f"step {step}, rank {rank}: {written.fault}")
        for rank, written in enumerate(everyone):
            if written.failure is not None:
                return RuntimeError(f"step {step} was not saved: rank {rank}: {written.failure}")
            if written.error is not None:
                return UserError(
                    f"{self.checkpoints}: step {step} was not saved: rank {rank}: {written.error}; "
                    f"newest checkpoint: {last_good or 'none'}"
                )
        if len({written.masks for written in everyone}) > 1:
            return BrokenWeightsError(f"step {step}: ranks hold different masks")
        return None

    def _clean(self, committed: int, mine: Claim, is_first: bool) -> None:
        """Delete checkpoints beyond what is kept, and what this machine's own disk holds of committed ones."""
        if self._section.local is not None:
            forget_local(self._section.local, mine.run, committed)
        if not is_first:
            return
        # What was just committed is none of the broken ones any more.
        self.broken.pop(committed, None)
        delete_old(self.checkpoints, self._section.keep.last, self._section.keep.every, self.broken)
