"""A sparse bitmap over the blocks (or extents) of a volume: dirty maps and write intents.

Pages are allocated when their first bit is set, so that the map of a huge clean volume costs
nothing. The map remembers which pages changed since they were last taken for a commit. It does no
I/O and knows nothing about what a bit means. Bits are set outwards and cleared inwards: `mark`
covers every block that a byte range touches, `clear` only the whole blocks inside it.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Bytes of bits in one page of a dirty map; with its 64-byte header a page fills 4 KiB on disk.
DIRTY_PAGE_BYTES = 4032
#: Bytes of bits in one page of the intent map; with its header it fills one 512-byte sector.
INTENT_PAGE_BYTES = 448


class BlockMap:
    """One bit for each block of `1 << block_shift` bytes of a volume of `size_bytes`."""

    __slots__ = (
        "_changed",
        "_in_page",
        "_pages",
        "bits",
        "block_shift",
        "count",
        "page_bytes",
        "size_bytes",
    )

    def __init__(self, size_bytes: int, block_shift: int, page_bytes: int) -> None:
        assert size_bytes > 0 and block_shift >= 0 and page_bytes > 0
        self.size_bytes = size_bytes
        self.block_shift = block_shift
        self.page_bytes = page_bytes
        #: Number of blocks; the last one may be cut short by the end of the volume.
        self.bits = (size_bytes + (1 << block_shift) - 1) >> block_shift
        #: Number of bits that are set.
        self.count = 0
        self._pages: dict[int, bytearray] = {}
        #: Set bits of each page; only pages with any are kept.
        self._in_page: dict[int, int] = {}
        self._changed: set[int] = set()

    @property
    def page_count(self) -> int:
        """Number of pages that cover the whole map, allocated or not."""
        bits_per_page = self.page_bytes * 8
        return (self.bits + bits_per_page - 1) // bits_per_page

    @property
    def set_bytes(self) -> int:
        """Bytes of the volume under set bits; a cut-short last block counts for what it has."""
        total = self.count << self.block_shift
        if self.count and self.is_set(self.bits - 1):
            total -= (self.bits << self.block_shift) - self.size_bytes
        return total

    def is_set(self, block: int) -> bool:
        """Whether the bit of this block is set."""
        page_no, bit = divmod(block, self.page_bytes * 8)
        page = self._pages.get(page_no)
        return page is not None and bool(page[bit >> 3] & (1 << (bit & 7)))

    def mark(self, offset: int, length: int) -> int:
        """Set every block that the byte range touches; return how many bits were newly set."""
        if length <= 0:
            return 0
        return self.mark_blocks(
            offset >> self.block_shift, (offset + length - 1 >> self.block_shift) + 1
        )

    def clear(self, offset: int, length: int) -> int:
        """Clear the blocks wholly inside the byte range; return how many bits were cleared.

        The cut-short last block counts as whole when the range reaches the end of the volume.
        """
        end = offset + length
        last = self.bits if end >= self.size_bytes else end >> self.block_shift
        first = (offset + (1 << self.block_shift) - 1) >> self.block_shift
        return self.clear_blocks(first, last)

    def mark_blocks(self, first: int, last: int) -> int:
        """Set the blocks `first` (inclusive) to `last` (exclusive); return how many were new."""
        assert 0 <= first <= last <= self.bits, (first, last, self.bits)
        added = 0
        for page_no, start, stop in self._spans(first, last):
            page = self._pages.get(page_no)
            if page is None:
                page = self._pages[page_no] = bytearray(self.page_bytes)
            if stop - start == 1:
                mask = 1 << (start & 7)
                if page[start >> 3] & mask:
                    continue
                page[start >> 3] |= mask
                new = 1
            else:
                new = _fill(page, start, stop)
            if new:
                added += new
                self._in_page[page_no] = self._in_page.get(page_no, 0) + new
                self._changed.add(page_no)
        self.count += added
        return added

    def clear_blocks(self, first: int, last: int) -> int:
        """Clear the blocks `first` (inclusive) to `last` (exclusive); return how many were set."""
        removed = 0
        for page_no, start, stop in self._spans(first, last):
            page = self._pages.get(page_no)
            if page is None:
                continue
            gone = _erase(page, start, stop)
            if gone:
                removed += gone
                self._changed.add(page_no)
                self._in_page[page_no] -= gone
                if not self._in_page[page_no]:
                    del self._pages[page_no], self._in_page[page_no]
        self.count -= removed
        return removed

    def mark_all(self) -> None:
        """Set every bit."""
        self.mark_blocks(0, self.bits)

    def clear_all(self) -> None:
        """Clear every bit. Whoever may call this has a finished copy or comparison to show."""
        self._changed.update(self._pages)
        self._pages.clear()
        self._in_page.clear()
        self.count = 0

    def any_in(self, offset: int, length: int) -> bool:
        """Whether the byte range touches a set bit."""
        if length <= 0 or not self.count:
            return False
        run = self.next_run(offset >> self.block_shift)
        return run is not None and run[0] << self.block_shift < offset + length

    def next_run(self, start: int, longest: int = 1 << 62) -> tuple[int, int] | None:
        """Return the first run (first, last exclusive) of set blocks at or after `start`.

        A run ends at `longest` blocks or at a page's end, whichever comes first.
        """
        bits_per_page = self.page_bytes * 8
        page_no, bit = divmod(start, bits_per_page)
        candidate: int | None = page_no
        while candidate is not None:
            page = self._pages.get(candidate)
            if page is not None:
                number = int.from_bytes(page, "little")
                if candidate == page_no:
                    number = number >> bit << bit
                if number:
                    first = (number & -number).bit_length() - 1
                    rest = ~(number >> first)
                    length = (rest & -rest).bit_length() - 1
                    base = candidate * bits_per_page + first
                    return base, base + min(length, longest)
            candidate = self._next_page(candidate)
        return None

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield every run of set blocks in ascending order."""
        position = 0
        while (run := self.next_run(position)) is not None:
            yield run
            position = run[1]

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield (length, set?) of the consecutive byte ranges that make up offset..offset+length.

        Neighbours are never alike; a block is told as a whole or as far as the range has of it.
        """
        end = offset + length
        assert offset >= 0 and length > 0 and end <= self.size_bytes
        shift = self.block_shift
        for first, last in self._joined_runs(offset >> shift, ((end - 1) >> shift) + 1):
            start, stop = first << shift, last << shift
            if start >= end:
                break
            if start > offset:
                yield start - offset, False
                offset = start
            yield min(stop, end) - offset, True
            offset = min(stop, end)
        if offset < end:
            yield end - offset, False

    def _joined_runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of set blocks from `start` on in ascending order, across page borders.

        No page behind the block `end` is looked at: a run is told at least as far as there.
        """
        bits_per_page = self.page_bytes * 8
        joined_first = joined_last = -1
        for page_no in range(start // bits_per_page, (end - 1) // bits_per_page + 1):
            if page_no not in self._pages:
                continue
            for first, last in self._runs_in_page(page_no, start):
                if first != joined_last:
                    if joined_last >= 0:
                        yield joined_first, joined_last
                    joined_first = first
                joined_last = last
        if joined_last >= 0:
            yield joined_first, joined_last

    def _runs_in_page(self, page_no: int, start: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of one page's set blocks from the block `start` on."""
        base = page_no * self.page_bytes * 8
        if self._in_page[page_no] == self.page_bytes * 8:
            yield max(start, base), base + self.page_bytes * 8
            return
        # Clients have this done many times a turn, and text is searched faster than bits.
        digits = f"{int.from_bytes(self._pages[page_no], 'little'):b}"[::-1]
        first = digits.find("1", max(start - base, 0))
        while first >= 0:
            last = digits.find("0", first)
            if last < 0:
                last = len(digits)
            yield base + first, base + last
            first = digits.find("1", last)

    def merge(self, other: BlockMap) -> int:
        """Set every byte range that is set in `other` (of any granularity); return new bits."""
        assert other.size_bytes == self.size_bytes
        added = 0
        for first, last in other.runs():
            start = first << other.block_shift
            stop = min(last << other.block_shift, self.size_bytes)
            added += self.mark(start, stop - start)
        return added

    def copy(self) -> BlockMap:
        """Return an independent map with the same bits and no changed pages."""
        twin = BlockMap(self.size_bytes, self.block_shift, self.page_bytes)
        twin._pages = {number: bytearray(page) for number, page in self._pages.items()}
        twin._in_page = dict(self._in_page)
        twin.count = self.count
        return twin

    # Pages, for the metadata file and the wire.

    def page(self, page_no: int) -> bytes:
        """The bits of one page, `page_bytes` long; bit 0 of byte 0 is the page's first block."""
        page = self._pages.get(page_no)
        return bytes(page) if page is not None else bytes(self.page_bytes)

    def load_page(self, page_no: int, bits: bytes) -> None:
        """Set every bit that is set in `bits`; bits beyond the volume's end are ignored."""
        assert len(bits) == self.page_bytes and 0 <= page_no < self.page_count
        base = page_no * self.page_bytes * 8
        room = min(self.page_bytes * 8, self.bits - base)
        number = int.from_bytes(bits, "little") & ((1 << room) - 1)
        if not number:
            return
        page = self._pages.get(page_no)
        before = int.from_bytes(page, "little") if page is not None else 0
        after = before | number
        self.count += after.bit_count() - before.bit_count()
        self._pages[page_no] = bytearray(after.to_bytes(self.page_bytes, "little"))
        self._in_page[page_no] = after.bit_count()
        if after != before:
            self._changed.add(page_no)

    def set_pages(self) -> list[int]:
        """The numbers of the pages that have a set bit, ascending."""
        return sorted(self._pages)

    def take_changed(self) -> list[int]:
        """Return, ascending, and forget the numbers of the pages changed since the last call."""
        changed = sorted(self._changed)
        self._changed.clear()
        return changed

    @property
    def has_changes(self) -> bool:
        """Whether a page changed since the last `take_changed`."""
        return bool(self._changed)

    def _spans(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        bits_per_page = self.page_bytes * 8
        while first < last:
            page_no, start = divmod(first, bits_per_page)
            stop = min(bits_per_page, start + last - first)
            yield page_no, start, stop
            first += stop - start

    def _next_page(self, page_no: int) -> int | None:
        if page_no + 1 in self._pages:
            return page_no + 1
        return min((number for number in self._pages if number > page_no), default=None)


def runs_of(bits: bytes, count: int) -> Iterator[tuple[bool, int, int]]:
    """Yield (set?, first, last exclusive) for the runs of equal bits among the first `count`."""
    number = int.from_bytes(bits, "little")
    first = 0
    while first < count:
        value = bool(number >> first & 1)
        last = first + 1
        while last < count and bool(number >> last & 1) is value:
            last += 1
        yield value, first, last
        first = last


def _fill(page: bytearray, start: int, stop: int) -> int:
    first, last = start >> 3, (stop + 7) >> 3
    part = int.from_bytes(page[first:last], "little")
    filled = part | (((1 << (stop - start)) - 1) << (start - first * 8))
    page[first:last] = filled.to_bytes(last - first, "little")
    return filled.bit_count() - part.bit_count()


def _erase(page: bytearray, start: int, stop: int) -> int:
    first, last = start >> 3, (stop + 7) >> 3
    part = int.from_bytes(page[first:last], "little")
    left = part & ~(((1 << (stop - start)) - 1) << (start - first * 8))
    page[first:last] = left.to_bytes(last - first, "little")
    return part.bit_count() - left.bit_count()
