"""An operator's word that a copy of unknown origin is the volume's data (`volume adopt`).

Only a fresh copy can be adopted, and only where no peer is known to hold the data: otherwise two
copies would each claim to be the one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repl.core.verdict import granted, refused

if TYPE_CHECKING:
    from repl.core.volume import Volume


def adopt(volume: Volume, number: int) -> None:
    """Make the first generation, with the set {me}, or answer why not."""
    if not volume.facts.fresh:
        verdict = refused(
            "ADOPT_NOT_NEEDED",
            "this copy belongs to the volume already",
            f"replctl status {volume.name}",
        )
        volume.answer(number, verdict)
        return
    holder = next((s.name for s in volume.sessions.values() if s.shows_data), "")
    if volume.facts.inconsistent or holder:
        verdict = refused(
            "ADOPT_NOT_NEEDED",
            f"{holder or 'a peer'} holds the volume's data and this copy is new or half copied",
            f"replctl wait {volume.name} --for in-sync",
        )
        volume.answer(number, verdict)
        return
    if volume.changes.busy:
        volume.answer(number, refused("VOLUME_BUSY", "another change is in progress"))
        return
    for session in volume.sessions.values():
        session.drop("this copy was declared the one")
    volume.changes.adopt(lambda: volume.answer(number, granted("this copy is the one")))
