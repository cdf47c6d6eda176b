"""Every failure that reaches a person: what happened, why, what to run next, a stable code.

One class per exit status (design §11), so that the status follows from the kind of failure and
never from the place that noticed it. The code is stable and part of the public interface; `CODES`
lists all of them, and a test checks that no other is raised. Nothing here imports anything of ours.
"""

from __future__ import annotations

from typing import Any, ClassVar

CODES: dict[str, str] = {
    "UNEXPECTED": "A failure that nothing foresaw; the log has the details.",
    "USAGE": "The command's arguments are not of its form.",
    "DAEMON_UNREACHABLE": "No repld answers on the control socket.",
    "NO_SUCH_VOLUME": "This node's configuration has no volume of that name.",
    "NO_SUCH_PEER": "The volume has no peer of that name.",
    "WORKER_SILENT": "The volume's worker process does not answer; it is being restarted.",
    "TIMED_OUT": "The awaited state did not come within the time given.",
    "NOT_CONFIRMED": "The command needs a confirmation that was not given.",
    "CONFIG_INVALID": "The configuration cannot be used; nothing was started or changed.",
    "CONFIG_UNREADABLE": "The configuration file cannot be read.",
    "TLS_FILE_EXISTS": "A certificate or key is there already and is not overwritten.",
    "PERMISSION": "This user may not do that.",
    "ADDRESS_IN_USE": "Another process listens on the address or socket.",
    "STATE_DIR_IN_USE": "Another repld uses this state directory.",
    "VOLUME_BUSY": "Another role change of this volume is in progress.",
    "BACKING_MISSING": "Metadata exists, the backing does not: nothing is created in its place.",
    "BACKING_UNREADABLE": "The backing cannot be opened.",
    "BACKING_SIZE": "The backing has another size than the volume.",
    "BACKING_FOREIGN": "The backing is not the one that the metadata was made for.",
    "BACKING_UNKNOWN": "The backing holds data of unknown origin and the volume has no metadata.",
    "BACKING_IN_USE": "Another process holds the backing or the metadata.",
    "METADATA_CORRUPT": "The metadata cannot be trusted.",
    "METADATA_FORMAT": "The metadata was written by another format version.",
    "METADATA_MISMATCH": "The metadata belongs to another volume or size.",
    "DISK_FAILED": "The local copy failed (a read, a write or a sync returned an error).",
    "PROMOTE_NO_EVIDENCE": "Nothing shows that no other node may be primary.",
    "PROMOTE_OUTDATED": "This copy lacks writes that another copy has.",
    "PROMOTE_INCONSISTENT": "This copy is half copied.",
    "PROMOTE_CACHE_LOST": "This copy may have lost writes in a power cut.",
    "PROMOTE_FRESH": "This volume holds no data generation yet.",
    "PROMOTE_PEER_REFUSED": "The connected peer does not agree to the promotion.",
    "PROMOTE_HANDSHAKE": "A handshake with the peer is in progress.",
    "PROMOTE_SETTLING": "A comparison or copy between the two nodes has not ended.",
    "PROMOTE_RELEASED": "This node gave its right to be promoted to its peer when it was stopped.",
    "CONTINUE_NOT_NEEDED": "The volume does not wait for leave to go on alone.",
    "PEER_IS_CONNECTED": "The peer that was declared dead is connected.",
    "DEMOTE_CLIENTS": "Clients are attached to the export.",
    "ADOPT_NOT_NEEDED": "The volume already has metadata with data.",
    "ADOPT_LAST_COPY": "The copy to be discarded may be the only complete one.",
    "ADOPT_PRIMARY": "A primary's copy cannot be discarded.",
    "RESYNC_PRIMARY": "A primary's copy cannot be the target of a comparison.",
    "RESYNC_SOURCE": "The named node's copy cannot be the source of a comparison now.",
    "RESYNC_NEWER": "This copy holds writes that the named node's copy lacks.",
    "SPLIT_BRAIN": "Both copies were written without the other.",
    "ATTACH_IMPOSSIBLE": "This machine or this daemon has no way to give the volume a device.",
    "ATTACH_FAILED": "The volume's device could not be made or given back.",
    "ATTACH_BUSY": "Another command attaches, detaches, mounts or unmounts the volume now.",
    "ATTACH_FROZEN": "The requests of the volume's device wait for the daemon.",
    "NOT_ATTACHED": "The volume has no device on this node.",
    "NOT_PRIMARY": "The volume is not primary on this node.",
    "DEVICE_IN_USE": "The volume's device is mounted or in use otherwise.",
    "NOT_SPLIT": "There is no split-brain to resolve.",
    "RESOLVE_PRIMARY": "The copy to be given up is primary.",
    "RESOLVE_DECIDED": "The other copy was chosen to be kept, durably.",
    "RESOLVE_RACED": "The opposite was ordered on the other node at the same time.",
    "RESOLVE_INTERRUPTED": "The connection broke before the choice was confirmed.",
    "RESOLVE_PEER_REFUSED": "The peer does not take part in resolving the split-brain.",
    "MOUNT_DIRECTORY": "The directory cannot be mounted on.",
    "ALREADY_MOUNTED": "The volume is mounted on this node.",
    "NOT_MOUNTED": "No attached volume is mounted on the directory.",
    "MOUNT_BUSY": "The filesystem is in use and cannot be unmounted.",
    "MOUNT_FAILED": "The filesystem could not be mounted.",
    "UNFORMATTED": "The volume holds no filesystem.",
    "HOLDS_DATA": "The volume holds data, over which no filesystem is made.",
    "MKFS_FAILED": "The filesystem could not be made.",
    "FSCK_FAILED": "The filesystem is damaged beyond what is mended without a person.",
    "TOOL_MISSING": "A program that is needed is not installed.",
    "SHUTTING_DOWN": "The daemon is stopping.",
    "EVENTS_FOLLOWERS": "So many readers follow the events that no other is taken.",
    "ALREADY": "The volume is already in the asked state.",
}


class ReplError(Exception):
    """A failure with the three lines that an operator sees, its code and its exit status."""

    exit_status: ClassVar[int] = 1
    default_code: ClassVar[str] = "UNEXPECTED"

    def __init__(
        self, what: str, why: str = "", next_step: str = "", *, code: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.next_step = next_step
        self.code = code or self.default_code
        assert self.code in CODES, f"unregistered error code {self.code}"

    def lines(self) -> str:
        """Return the text for people: what with the code, then `Why` and `Next` where known."""
        text = f"{self.what}  [{self.code}]"
        if self.why:
            text += f"\nWhy   {self.why}"
        if self.next_step:
            text += f"\nNext  {self.next_step}"
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the same fields as an object; `from_json` is its inverse."""
        return {
            "code": self.code,
            "exit_status": self.exit_status,
            "what": self.what,
            "why": self.why,
            "next": self.next_step,
        }


class UsageError(ReplError):
    exit_status = 2
    default_code = "USAGE"


class DaemonUnreachable(ReplError):
    exit_status = 3
    default_code = "DAEMON_UNREACHABLE"


class NoSuchThing(ReplError):
    exit_status = 4
    default_code = "NO_SUCH_VOLUME"


class Refused(ReplError):
    exit_status = 5
    default_code = "PROMOTE_NO_EVIDENCE"


class TimedOut(ReplError):
    exit_status = 6
    default_code = "TIMED_OUT"


class NotConfirmed(ReplError):
    exit_status = 7
    default_code = "NOT_CONFIRMED"


class ConfigInvalid(ReplError):
    exit_status = 8
    default_code = "CONFIG_INVALID"


class PermissionRefused(ReplError):
    exit_status = 9
    default_code = "PERMISSION"


_BY_EXIT_STATUS: dict[int, type[ReplError]] = {
    family.exit_status: family
    for family in (
        ReplError,
        UsageError,
        DaemonUnreachable,
        NoSuchThing,
        Refused,
        TimedOut,
        NotConfirmed,
        ConfigInvalid,
        PermissionRefused,
    )
}


def from_json(fields: dict[str, Any]) -> ReplError:
    """Rebuild the error that `to_json` described; an unknown code becomes UNEXPECTED."""
    family = _BY_EXIT_STATUS.get(int(fields.get("exit_status", 1)), ReplError)
    code = str(fields.get("code", "UNEXPECTED"))
    return family(
        str(fields.get("what", "unknown failure")),
        str(fields.get("why", "")),
        str(fields.get("next", "")),
        code=code if code in CODES else "UNEXPECTED",
    )
