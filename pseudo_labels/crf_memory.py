"""The memory of the dense CRF: what a picture takes, and how many pictures the free memory holds at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from utils.errors import UserError
from utils.log import get_logger
from utils.memory import available_memory, format_bytes

logger = get_logger(__name__)
_CLASSES_PER_GROUP = 16
_LATTICE_BYTES_PER_PIXEL = 800  # both lattices while built and with their values; a photograph takes half of it


def memory_need(num_classes: int, height: int, width: int, *, marginals: bool = False) -> int:
    """Bytes that the CRF of one picture takes on top of its picture and scores.

    Args:
        num_classes: C.
        height: H.
        width: W.
        marginals: whether the marginals are asked for, or only the labels.
    """
    groups = -(-num_classes // _CLASSES_PER_GROUP)
    floats = 2 * groups * _CLASSES_PER_GROUP + (num_classes if marginals else 2)
    return height * width * (4 * floats + _LATTICE_BYTES_PER_PIXEL)


def check_memory(num_classes: int, size: tuple[int, int], *, marginals: bool = False) -> None:
    """Refuse the CRF of one picture, whose scores are there, if the free memory cannot hold it.

    Args:
        num_classes: C.
        size: (H, W).
        marginals: as in `memory_need`.

    Raises:
        UserError: with the need and what lowers it.
    """
    need, free = memory_need(num_classes, *size, marginals=marginals), available_memory()
    if free is not None and need > free:
        raise _refusal((num_classes, *size), need, free)


class MemoryBudget:
    """The free memory, shared by the pictures that threads work on at the same time.

    A picture begins when what it needs is free and not promised to another; until then it waits. What others have
    reserved may or may not be in use yet, so the free memory alone does not tell what is left: the budget remembers how
    much there was, and corrects this by what the system tells (others take memory, too). It is refused only if there is
    too little of it with no other picture at work.
    """

    def __init__(self, num_threads: int) -> None:
        """Nothing is reserved.

        Args:
            num_threads: pictures at a time at most, for the warning when there is memory for fewer.
        """
        self._num_threads = num_threads
        self._total = self._reserved = self._largest_done = self._at_work = 0
        self._warned = self._closed = False
        self._line: deque[object] = deque()  # of those that wait, in the order of their coming
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, shape: tuple[int, int, int], *, lattices_only: bool = False) -> Iterator[None]:
        """Hold the memory of one picture and of its scores, which are not made yet; wait for it if others have it.

        Args:
            shape: of the scores, (C, H, W).
            lattices_only: class values lie elsewhere.

        Raises:
            UserError: if it is too little even with no other picture at work.
            CancelledError: if the budget was closed.
        """
        num_classes, height, width = (0 if lattices_only else shape[0]), *shape[1:]
        need = memory_need(num_classes, height, width) + 4 * num_classes * height * width
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                while not self._may_begin(place, shape, need):
                    self._changed.wait()
                self._reserved, self._at_work = self._reserved + need, self._at_work + 1
            finally:
                self._line.remove(place)
                self._changed.notify_all()
        finished = False
        try:
            yield
            finished = True
        finally:
            with self._changed:
                self._reserved, self._at_work = self._reserved - need, self._at_work - 1
                self._largest_done = max(self._largest_done, need if finished else 0)
                self._changed.notify_all()

    def close(self) -> None:
        """Let no further picture begin, and those that wait give up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _may_begin(self, place: object, shape: tuple[int, int, int], need: int) -> bool:
        """Whether it is a picture's turn and it fits; called with the lock."""
        if self._closed:
            raise CancelledError
        # First come, first served: a picture that small ones overtook again and again would hold up all results.
        return self._line[0] is place and self._fits(shape, need)

    def _fits(self, shape: tuple[int, int, int], need: int) -> bool:
        """Whether a picture has the memory it needs; called with the lock."""
        free = available_memory()
        if free is None:
            return True
        # Of what is reserved, anything between nothing and all is in use and not free. Nobody at work: the free memory.
        self._total = min(max(self._total, free), free + self._reserved)
        left = self._total - self._reserved
        if need <= left:
            return True
        if self._at_work:
            self._warn(shape, need, left)
            return False
        # What a picture has given back may stay with this process, unseen by the system, for the next of its size.
        if need > self._largest_done:
            raise _refusal(shape, need, free)
        return True

    def _warn(self, shape: tuple[int, int, int], need: int, left: int) -> None:
        """Say once that pictures wait for each other."""
        if self._warned:
            return
        self._warned = True
        logger.warning(
            "dense CRF: %d classes on %dx%d pixels need about %s of memory, and %s are left beside those at work (%d): "
            "some threads wait, fewer pictures are done at a time than the %d of crf.num_threads",
            *(*shape, format_bytes(need), format_bytes(max(left, 0)), self._at_work, self._num_threads),
        )


def _refusal(shape: tuple[int, int, int], need: int, free: int) -> UserError:
    return UserError(
        f"The dense CRF of {shape[0]} classes on {shape[1]}x{shape[2]} pixels needs about {format_bytes(need)} of "
        f"memory, but {format_bytes(free)} are free. Use a machine with more, or no CRF (crf=off). For your own "
        "pictures you can also give fewer names, or make them smaller: picture_long_edge for those to be segmented, "
        "picture_shorter_side for those that a network learns from."
    )
