"""`umount`: from a mounted filesystem back to a secondary.

What can be known before the first step is checked before it. What `mount` has attached is detached,
and what a dead guardian has left is cleared away.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import dataclass
from functools import partial

from repl.attach import mounts
from repl.attach.attaching import Attachment, Attachments, frozen_refusal
from repl.attach.directories import real_path
from repl.attach.machine import Machine
from repl.attach.record import still_unmounting
from repl.attach.volumes import Volumes
from repl.errors import Refused, ReplError

UNCLAIMED_TIMEOUT_S = 3.0
POLL_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Unmounted:
    """What `umount` did."""

    volume: str
    directory: str
    detached: bool
    demoted: bool
    #: Why what was not written yet is lost; empty when all was written.
    lost: str = ""


class Unmounting:
    """`umount` on one node."""

    def __init__(self, attachments: Attachments, volumes: Volumes, machine: Machine) -> None:
        self._attachments = attachments
        self._volumes = volumes
        self._machine = machine

    def umount(self, given: str, *, demote: bool = False, force: bool = False) -> Unmounted:
        """Unmount a volume's filesystem; detach what `mount` has attached. Raises ReplError."""
        self._attachments.check_allowed()
        directory = real_path(given)
        attachment = self._at(directory) or self._being_unmounted(directory, force)
        if attachment is None:
            return self._umount_leftover(given, directory, demote=demote, force=force)
        volume = attachment.volume
        with self._attachments.locked(volume, force=force):
            others = [
                mount.point
                for mount in mounts.of_device(self._machine.mounts(), attachment.device)
                if mount.point != directory
            ]
            if demote:
                self._check_demotion(given, attachment, others)
            if force:
                lost = "it was cut off" + (f": {attachment.frozen}" if attachment.frozen else "")
                self._attachments.detach(volume, force=True)
                detached = True
            else:
                if attachment.frozen:
                    command = f"replctl umount {shlex.quote(given)} --force"
                    raise frozen_refusal(volume, attachment.frozen, command)
                keep = bool(others) or not (demote or attachment.made_by == "mount")
                detached, lost = self._umount_in_order(volume, directory, attachment.device, keep)
            if demote:
                self._demote(volume, directory)
        return Unmounted(volume, directory, detached, demote, lost)

    def _umount_in_order(
        self, volume: str, directory: str, device: str, keep: bool
    ) -> tuple[bool, str]:
        """Unmount, and detach unless it is kept; return whether it is, and why data was lost."""
        self._unmount(volume, directory, device)
        if self._attachments.find(volume) is None:
            return True, "its device was cut off while it was unmounted"
        if not keep:
            self._attachments.detach(volume)
        return not keep, ""

    def _being_unmounted(self, directory: str, force: bool) -> Attachment | None:
        """Return what another umount has taken from the directory and not written out yet.

        Raises Refused (ATTACH_BUSY) unless it is to be cut off.
        """
        for attachment in self._attachments.all():
            unmount = self._attachments.unmount_of(attachment.volume)
            if unmount is not None and unmount.directory == directory:
                if not force:
                    raise still_unmounting(attachment.volume, unmount)
                return attachment
        return None

    def _umount_leftover(
        self, given: str, directory: str, *, demote: bool, force: bool
    ) -> Unmounted:
        """Unmount what a dead guardian has left; raises Refused (NOT_MOUNTED) for anything else."""
        found = mounts.at(self._machine.mounts(), directory)
        left = self._attachments.left_with(found) if found is not None else None
        if found is None or left is None:
            raise self._not_ours(given, directory, demote)
        volume = left.volume
        with self._attachments.locked(volume):
            if demote:
                dead = Attachment(volume, found.source, "", "mount")
                self._check_demotion(given, dead, [])
            if left.works and not force:
                self._unmount(volume, directory, found.source)
            self._attachments.clear_leftovers(volume, force=force)
            if demote:
                self._demote(volume, directory)
        lost = "" if left.works and not force else "the guardian of its device was dead"
        return Unmounted(volume, directory, True, demote, lost)

    def _at(self, directory: str) -> Attachment | None:
        found = mounts.at(self._machine.mounts(), directory)
        if found is None:
            return None
        for attachment in self._attachments.all():
            if mounts.of_device([found], attachment.device):
                return attachment
        return None

    def _not_ours(self, given: str, directory: str, demote: bool) -> Refused:
        mounted = mounts.at(self._machine.mounts(), directory)
        if mounted is None:
            return Refused(
                f"Nothing is mounted on {given}.",
                "it was not mounted, or unmounted already, or cut off from its device: because "
                "the daemon was gone, or another node became primary",
                self._what_to_unmount(demote),
                code="NOT_MOUNTED",
            )
        return Refused(
            f"What is mounted on {given} is not an attached volume.",
            f"it is {mounted.source} ({mounted.kind})",
            f"umount {shlex.quote(given)}",
            code="NOT_MOUNTED",
        )

    def _what_to_unmount(self, demote: bool) -> str:
        """Return the commands that undo what there is on this node, for a person to choose."""
        commands, attached = [], set()
        for attachment in self._attachments.all():
            volume = attachment.volume
            attached.add(volume)
            mounted = mounts.of_device(self._machine.mounts(), attachment.device)
            with_demote = " --demote" if demote else ""
            after = f" && replctl demote {volume}" if demote else ""
            commands += [
                f"replctl umount {shlex.quote(mount.point)}{with_demote}" for mount in mounted
            ] or [f"replctl detach {volume}{after}"]
        if demote:
            # Of a volume that is unmounted and detached already only this is left.
            with contextlib.suppress(ReplError):
                left = [name for name in self._volumes.primaries() if name not in attached]
                commands += [f"replctl demote {name}" for name in left]
        if not commands:
            return "nothing is attached on this node; see its volumes:  replctl status"
        found = "primary or attached" if demote else "attached"
        return f"what is {found} on this node:  " + "   or   ".join(commands[:8])

    def _check_demotion(self, given: str, attachment: Attachment, others: list[str]) -> None:
        """Refuse a demotion that would be refused, before anything is unmounted for its sake."""
        volume = attachment.volume
        if others:
            raise Refused(
                f"{volume} cannot be demoted: it is mounted on {others[0]} too.",
                "a secondary serves no device",
                f"replctl umount {shlex.quote(others[0])}",
                code="DEVICE_IN_USE",
            )
        self._volumes.role(volume)
        clients = self._volumes.other_clients(volume, attachment.guardian_pid)
        if clients:
            umount = f"replctl umount {shlex.quote(given)}"
            detach = f"replctl detach {volume} && " if attachment.made_by == "attach" else ""
            raise Refused(
                f"{volume} cannot be demoted: others use its export too.",
                f"attached: {', '.join(clients[:8])}; it is still mounted",
                f"detach them, then:  {umount} --demote   (or cut them off:  "
                f"{umount} && {detach}replctl demote {volume} --drop-clients)",
                code="DEMOTE_CLIENTS",
            )

    def _demote(self, volume: str, directory: str) -> None:
        try:
            self._volumes.demote(volume)
        except ReplError as error:
            raise type(error)(
                error.what,
                f"{error.why}; {directory} is unmounted and {volume} is detached already",
                f"{error.next_step}   (what is left to do:  replctl demote {volume})",
                code=error.code,
            ) from error

    def _await_unclaimed(self, device: str) -> None:
        """Wait a moment for a filesystem that was just unmounted to be gone in other namespaces."""
        deadline_s = time.monotonic() + UNCLAIMED_TIMEOUT_S
        while self._machine.is_claimed(device) and time.monotonic() < deadline_s:
            time.sleep(POLL_PAUSE_S)

    def _unmount(self, volume: str, directory: str, device: str) -> None:
        note = partial(self._attachments.note_unmount, volume, directory)
        ran = self._machine.run("umount", "--", directory, started=note)
        if not ran.status:
            self._await_unclaimed(device)
            return
        table = self._machine.mounts()
        below = [mount.point for mount in table if mount.point.startswith(f"{directory}/")]
        holders = self._machine.holders([directory])
        reasons = [f"mounted below it: {', '.join(below[:8])}"] if below else []
        reasons += [f"in use by {', '.join(holders[:8])}"] if holders else []
        raise Refused(
            f"{volume} could not be unmounted from {directory}.",
            "; ".join(reasons) or ran.last_line,
            f"unmount what is below it, the last one first:  umount {shlex.quote(below[-1])}   "
            "then run the command again"
            if below
            else "end what uses it, and run the command again",
            code="MOUNT_BUSY",
        )
