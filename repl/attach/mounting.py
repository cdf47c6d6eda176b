"""`mount`: from a secondary to a mounted filesystem, all of it or nothing.

Mounting is a ladder: promote, attach, make or check a filesystem, mount. Everything that can be
known before the first step is checked before it. The undoing of a step is put down before the step
is begun, and looks at what is there instead of trusting that the step was done or not; so an error
or a Ctrl-C at any point is followed by the undoing of exactly what this command has done, in
reverse order. A filesystem that was made stays made; a part of one does not, so that the same
command can be given again.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from repl import units
from repl.attach import filesystems, mounts
from repl.attach.attaching import Attachment, Attachments, frozen_refusal, not_primary
from repl.attach.blankness import Extents
from repl.attach.directories import empty_directory
from repl.attach.filesystems import Content
from repl.attach.hole_map import data_extents
from repl.attach.lifeline import DEAD_AFTER_S
from repl.attach.machine import Machine
from repl.attach.mounts import Mount
from repl.attach.volumes import Volumes
from repl.errors import Refused, ReplError, UsageError

#: Options that make of mount(8) something else than the mounting of a device, or have it make
#: another device of this one, which would stay in use.
FORBIDDEN_OPTIONS = frozenset(
    {"remount", "bind", "rbind", "move", "loop", "offset", "sizelimit", "encryption"}
)
UNDO_TIMEOUT_S = 30.0
POLL_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Wish:
    """What `mount` was told."""

    volume: str
    directory: str
    mkfs: str = ""
    options: str = ""
    promote: bool = False
    peer_dead: str | None = None
    dead_after_s: float = DEAD_AFTER_S
    way: str = ""

    @property
    def command(self) -> str:
        """The plainest form of this command, to be run again with something more."""
        return f"replctl mount {self.volume} {shlex.quote(self.directory)}"


@dataclass(frozen=True, slots=True)
class Mounted:
    """What `mount` did."""

    volume: str
    directory: str
    device: str
    filesystem: str
    promoted: bool
    attached: bool
    formatted: bool


#: Runs while a step is undone, so that a second Ctrl-C does not stop the undoing.
Shield = Callable[[], contextlib.AbstractContextManager[None]]
#: What undoes the steps that were begun, in the order of their beginning.
Undo = list[Callable[[], None]]


class Mounting:
    """`mount` on one node."""

    def __init__(
        self,
        attachments: Attachments,
        volumes: Volumes,
        machine: Machine,
        shield: Shield = contextlib.nullcontext,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._attachments = attachments
        self._volumes = volumes
        self._machine = machine
        self._shield = shield
        self._tell = tell

    def mount(self, wish: Wish) -> Mounted:
        """Mount the volume. Raises ReplError, with everything as it was before."""
        self._attachments.check_allowed()
        check_options(wish.options)
        if wish.mkfs:
            filesystems.check_maker(self._machine, wish.mkfs)
        with (
            self._attachments.locked(wish.volume),
            self._directory_locked(wish.directory),
            self._undoing() as undo,
        ):
            self._attachments.await_settled(wish.volume)
            self._attachments.clear_leftovers(wish.volume)
            self._check_not_mounted(wish.volume)
            directory = empty_directory(self._machine, wish.directory)
            role = self._volumes.role(wish.volume)
            if role != "primary" and not wish.promote:
                raise not_primary(wish.volume, role, f"{wish.command} --promote")
            promoted = self._promoted(wish, role, undo)
            attachment = self._attached(wish, undo)
            kind, formatted = self._filesystem(wish, attachment, promoted, undo)
            if not formatted:
                filesystems.prepare(self._machine, wish.volume, attachment.device, kind)
            self._mounted(wish, attachment.device, kind, directory, undo)
        return Mounted(
            volume=wish.volume,
            directory=directory,
            device=attachment.device,
            filesystem=kind,
            promoted=promoted,
            attached=attachment.new,
            formatted=formatted,
        )

    @contextlib.contextmanager
    def _directory_locked(self, directory: str) -> Iterator[None]:
        """Keep other volumes from being mounted there too, by commands that saw it empty."""
        with contextlib.ExitStack() as stack:
            # One that is not there is refused in a moment.
            with contextlib.suppress(OSError):
                stack.enter_context(self._attachments.locked_directory(directory))
            yield

    def _check_not_mounted(self, volume: str) -> None:
        found = self._attachments.find(volume)
        if found is None:
            return
        mounted = mounts.of_device(self._machine.mounts(), found.device)
        if mounted:
            point = mounted[-1].point
            raise Refused(
                f"{volume} is mounted already, on {point}.",
                f"its device {found.device} carries one filesystem for all of this node",
                f"replctl umount {shlex.quote(point)}",
                code="ALREADY_MOUNTED",
            )
        self._attachments.check_unused(found.device, volume)
        if found.frozen:
            raise frozen_refusal(volume, found.frozen, f"replctl detach {volume} --force")

    def _promoted(self, wish: Wish, role: str, undo: Undo) -> bool:
        if role == "primary":
            return False
        undo.append(lambda: self._undo_promotion(wish.volume))
        try:
            self._volumes.promote(wish.volume, wish.peer_dead)
        except Refused:
            # This command has promoted nothing, and what others do meanwhile is theirs.
            undo.pop()
            raise
        return True

    def _undo_promotion(self, volume: str) -> None:
        """Demote the volume, whatever its role is: the order to promote it may be under way."""
        deadline_s = time.monotonic() + UNDO_TIMEOUT_S
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                self._volumes.demote(volume, max(left_s, POLL_PAUSE_S))
                return
            except ReplError as error:
                if error.code != "VOLUME_BUSY" or left_s <= 0:
                    raise ReplError(
                        f"{volume} may be primary on this node ({error.what.rstrip('.')}: "
                        f"{error.why}): replctl demote {volume}",
                        code=error.code,
                    ) from error
            time.sleep(POLL_PAUSE_S)

    def _attached(self, wish: Wish, undo: Undo) -> Attachment:
        before = self._attachments.find(wish.volume)
        if before is None:
            undo.append(lambda: self._undo_attaching(wish.volume))
        where = self._volumes.address(wish.volume)
        return self._attachments.attach(wish.volume, where, "mount", wish.dead_after_s, wish.way)

    def _undo_attaching(self, volume: str) -> None:
        if self._attachments.find(volume) is not None:
            self._attachments.detach(volume)

    def _filesystem(
        self, wish: Wish, attachment: Attachment, promoted: bool, undo: Undo
    ) -> tuple[str, bool]:
        """Return the kind of filesystem to mount, and whether it was made just now."""
        volume, device = wish.volume, attachment.device
        extents = partial(data_extents, self._volumes.address(volume), volume)
        progress = partial(self._looking, volume)
        content = filesystems.look_at(self._machine, device, extents, progress)
        again = f"{wish.command}{' --promote' if wish.promote else ''}"
        if wish.mkfs:
            if not content.blank:
                clear = filesystems.clearing(volume, promote=promoted, detach=attachment.new)
                raise _holds_data(wish, content, again, clear)
            undo.append(lambda: self._undo_making(volume, device, extents))
            filesystems.make(self._machine, volume, device, wish.mkfs)
            # It is whole, and stays.
            undo.pop()
            return wish.mkfs, True
        if not content.filesystem:
            raise Refused(
                f"{volume} holds no filesystem.",
                f"it holds {content.other}" if content.other else "it is blank",
                f"replctl attach {volume}, and use its device"
                if content.other
                else f"make one:  {again} --mkfs ext4",
                code="UNFORMATTED",
            )
        return content.filesystem, False

    def _undo_making(self, volume: str, device: str, extents: Extents) -> None:
        # Whatever becomes of the rest, nothing may go on writing when this command has ended.
        self._machine.end_writing()
        found = self._attachments.find(volume)
        if found is None or found.frozen:
            # Nothing can be written to it, and whoever waited for it would wait for ever.
            raise ReplError(f"{volume} may hold a part of a filesystem.", code="MKFS_FAILED")
        filesystems.unmake(self._machine, volume, device, extents)

    def _looking(self, volume: str, looked_bytes: int, size_bytes: int) -> None:
        looked, size = units.format_size(looked_bytes), units.format_size(size_bytes)
        self._tell(f"{volume} is looked through for data: {looked} of {size}.")

    def _mounted(self, wish: Wish, device: str, kind: str, directory: str, undo: Undo) -> None:
        undo.append(lambda: self._undo_mount(device, directory))
        options = ["-o", wish.options] if wish.options else []
        ran = self._machine.run("mount", "-t", kind, *options, "--", device, directory)
        if ran.status:
            raise ReplError(
                f"{wish.volume} could not be mounted on {directory}.",
                ran.complaint,
                "see what the kernel says:  dmesg | tail",
                code="MOUNT_FAILED",
            )
        found = mounts.at(self._machine.mounts(), directory)
        if found is None or found not in mounts.of_device([found], device):
            self._refuse_other(wish, device, directory, found)

    def _refuse_other(self, wish: Wish, device: str, directory: str, found: Mount | None) -> None:
        """Refuse what mount(8) has mounted instead of the device, and take it away again."""
        what = f"{found.source} ({found.kind})" if found is not None else "nothing"
        why = f"mount put {what} there instead of {device}"
        if found is not None:
            ran = self._machine.run("umount", "--", directory, timeout_s=UNDO_TIMEOUT_S)
            why += f"; not undone: umount: {ran.last_line}" if ran.status else ""
        raise ReplError(
            f"{wish.volume} could not be mounted on {directory}.",
            why,
            f"leave out what does not belong to the filesystem from  --options {wish.options}"
            if wish.options
            else "see what the kernel says:  dmesg | tail",
            code="MOUNT_FAILED",
        )

    def _undo_mount(self, device: str, directory: str) -> None:
        found = mounts.at(self._machine.mounts(), directory)
        if found is not None and found in mounts.of_device([found], device):
            ran = self._machine.run("umount", "--", directory, timeout_s=UNDO_TIMEOUT_S)
            if ran.status:
                raise ReplError(f"umount: {ran.last_line}", code="MOUNT_FAILED")

    @contextlib.contextmanager
    def _undoing(self) -> Iterator[Undo]:
        """Collect undo steps; run them if the block fails, and say what could not be undone."""
        steps: Undo = []
        try:
            yield steps
        except BaseException as failure:
            with self._shield():
                troubles = _undo(steps)
            if troubles and isinstance(failure, ReplError):
                raise type(failure)(
                    failure.what,
                    "; ".join([failure.why, "not undone: " + "; ".join(troubles)]),
                    failure.next_step,
                    code=failure.code,
                ) from failure
            for trouble in troubles:
                self._tell(f"Not undone: {trouble}")
            raise


def check_options(options: str) -> None:
    """Raise UsageError for mount options that do not belong to mounting a device."""
    words = {word.partition("=")[0].strip() for word in options.split(",")}
    wrong = sorted(words & FORBIDDEN_OPTIONS)
    if wrong or not options.isprintable():
        raise UsageError(
            f"These mount options cannot be used: {options!r}.",
            f"{', '.join(wrong) or 'a control character'} has no meaning for a volume's device",
            "see which there are:  man 8 mount",
        )


def _holds_data(wish: Wish, content: Content, again: str, clear: str) -> Refused:
    held = content.filesystem or content.other
    zeroes = f"if nothing on it is needed, fill it with zeroes:  {clear}"
    why = "it would be overwritten"
    if content.filesystem:
        why += "; it may be half made, if the making of it was killed or the power was lost"
        zeroes = f"mount what is there:  {again}   or, {zeroes}"
    return Refused(
        f"No {wish.mkfs} is made on {wish.volume}: it holds {held}.", why, zeroes, code="HOLDS_DATA"
    )


def _undo(steps: Undo) -> list[str]:
    """Undo all steps, the last one first; return what each that could not be undone has said."""
    troubles = []
    for step in reversed(steps):
        try:
            step()
        except ReplError as error:
            troubles.append(error.what)
    return troubles
