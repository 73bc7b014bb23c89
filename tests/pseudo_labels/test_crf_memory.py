"""The memory of the dense CRF: asked for beforehand, shared by threads, and never more than there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from pseudo_labels import crf_memory, crf_pool
from pseudo_labels.crf_memory import MemoryBudget, check_memory, memory_need
from pseudo_labels.crf_pool import PictureToLabel, label_pictures
from pseudo_labels.dense_crf import (
    DenseCrfSettings,
    colour_lattice,
    dense_crf,
    dense_crf_labels,
    place_lattice,
)
from pseudo_labels.lanes import LANES
from pseudo_labels.mean_field import MeanField
from utils.errors import UserError

SHAPE = (5, 8, 9)
NEED = memory_need(*SHAPE) + 4 * 5 * 8 * 9  # with the scores
LARGE = (5, 16, 9)


def noisy_scores(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def make_job(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(1).integers(0, 256, (*shape[1:], 3), dtype=np.uint8), noisy_scores(shape)


def to_label(shape: tuple[int, int, int]) -> PictureToLabel:
    return PictureToLabel(shape, partial(make_job, shape))


class Machine:
    """Memory of which pictures at work use a part.

    Attributes:
        total: bytes.
        used: of what a picture may use.
        at_work, most: pictures, now and at most.
        meet: called in the middle of a picture's work.
    """

    def __init__(self, total: float, used: float = 1, meet: Callable[[], object] = lambda: None) -> None:
        self.total, self.used, self.meet = total, used, meet
        self.bytes_at_work = self.at_work = self.most = 0
        self._lock = threading.Lock()

    def free(self) -> int:
        return int(self.total - self.used * self.bytes_at_work)

    def work(self, work: Callable[..., np.ndarray], picture: PictureToLabel, *arguments: object) -> np.ndarray:
        need = memory_need(*picture.shape) + 4 * np.prod(picture.shape)
        with self._lock:
            self.bytes_at_work, self.at_work = self.bytes_at_work + need, self.at_work + 1
            self.most = max(self.most, self.at_work)
            assert self.bytes_at_work <= self.total
        try:
            self.meet()
            return work(picture, *arguments)
        finally:
            with self._lock:
                self.bytes_at_work, self.at_work = self.bytes_at_work - need, self.at_work - 1


@pytest.fixture
def run_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    """Let the pool work on a machine."""

    def put(machine: Machine) -> None:
        monkeypatch.setattr(crf_memory, "available_memory", machine.free)
        monkeypatch.setattr(crf_pool, "_make_and_label", partial(machine.work, crf_pool._make_and_label))

    return put


def crf_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dense-crf")]


# ---- one picture ----------------------------------------------------------------------------------------------------


def test_memory_is_asked_for_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    image, scores = make_job((400, 24, 32))
    message = (
        "The dense CRF of 400 classes on 24x32 pixels needs about 3 MiB of memory, but 1 MiB are free. Use a machine "
        "with more, or no CRF (crf=off). For your own pictures you can also give fewer names, or make them smaller: "
        "picture_long_edge for those to be segmented, picture_shorter_side for those that a network learns from."
    )
    monkeypatch.setattr(crf_memory, "available_memory", lambda: 1 << 20)
    with pytest.raises(UserError) as error:
        dense_crf_labels(image, scores)
    assert str(error.value) == message
    with pytest.raises(UserError, match="needs about 4 MiB of memory, but 1 MiB are free"):
        dense_crf(image, scores)
    monkeypatch.setattr(crf_memory, "available_memory", lambda: 216 << 20)
    with pytest.raises(UserError, match="171 classes on 320x320 pixels needs about 216 MiB"):
        check_memory(171, (320, 320))
    monkeypatch.setattr(crf_memory, "available_memory", lambda: 217 << 20)
    check_memory(171, (320, 320))


def test_without_a_word_of_the_system_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf_memory, "available_memory", lambda: None)
    dense_crf_labels(*make_job(SHAPE))
    assert len(list(label_pictures([to_label(SHAPE)] * 3, num_threads=2))) == 3


def test_the_estimate_of_the_memory_holds() -> None:
    """Pure noise has the largest lattice: arrays that one picture holds at the same time."""
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    place, colour = place_lattice(96, 96, 1), colour_lattice(image, DenseCrfSettings())
    field = MeanField(noisy_scores((40, 96, 96)).reshape(40, -1), 1e-5)
    held = field._state.nbytes + field._unary.nbytes
    for lattice in (place, colour):
        held += lattice.vertices.nbytes + lattice.weights.nbytes + lattice.chains.nbytes
        held += 4 * LANES * (lattice.num_vertices + 2)
    assert 0.5 * memory_need(40, 96, 96) < held <= memory_need(40, 96, 96)
    assert memory_need(40, 96, 96, marginals=True) > memory_need(40, 96, 96)
    assert crf_memory._CLASSES_PER_GROUP == LANES


# ---- several at a time ----------------------------------------------------------------------------------------------


def test_one_picture_does_not_ask_for_the_other_threads(run_on: Callable, log_text) -> None:
    run_on(Machine(NEED))
    (labels,) = label_pictures([to_label(SHAPE)], num_threads=8)
    np.testing.assert_array_equal(labels, dense_crf_labels(*make_job(SHAPE)))
    assert "dense CRF" not in log_text.text


def test_memory_for_all_threads_is_shared_without_a_word(run_on: Callable, log_text) -> None:
    machine = Machine(3 * NEED, meet=threading.Barrier(3, timeout=30).wait)
    run_on(machine)
    assert len(list(label_pictures([to_label(SHAPE)] * 6, num_threads=3))) == 6
    assert machine.most == 3
    assert "dense CRF" not in log_text.text


@pytest.mark.parametrize("used", [0, 0.5, 1])
def test_fewer_at_a_time_where_not_all_fit(run_on: Callable, log_text, used: float) -> None:
    """Whatever part of the promised memory is in use when the next picture asks."""
    machine = Machine(2.5 * NEED, used, meet=partial(time.sleep, 0.05))  # long enough for others to ask
    run_on(machine)
    found = list(label_pictures([to_label(SHAPE)] * 8, num_threads=4))
    expected = dense_crf_labels(*make_job(SHAPE))
    assert len(found) == 8
    assert all(np.array_equal(labels, expected) for labels in found)
    assert machine.most == 2
    told = [record.getMessage() for record in log_text.records if "dense CRF" in record.getMessage()]
    assert len(told) == 1
    assert "5 classes on 8x9 pixels need about" in told[0]
    assert "fewer pictures are done at a time than the 4 of crf.num_threads" in told[0]


def test_larger_pictures_among_others_wait_for_their_memory(run_on: Callable) -> None:
    large = memory_need(*LARGE) + 4 * 5 * 16 * 9
    assert NEED < large < 2.5 * NEED
    machine = Machine(2.5 * NEED)
    run_on(machine)
    shapes = [SHAPE, SHAPE, LARGE, SHAPE, LARGE, LARGE, SHAPE]
    found = list(label_pictures(map(to_label, shapes), num_threads=3))
    assert [labels.shape for labels in found] == [shape[1:] for shape in shapes]
    assert machine.most <= 2


def test_what_never_fits_is_refused_after_those_before_it(run_on: Callable) -> None:
    run_on(Machine(1.5 * NEED))
    results = label_pictures(map(to_label, [SHAPE, SHAPE, LARGE, SHAPE]), num_threads=4)
    assert next(results).shape == next(results).shape == SHAPE[1:]
    with pytest.raises(UserError, match="5 classes on 16x9 pixels needs about"):
        next(results)
    assert not crf_threads()


def test_an_error_in_a_thread_stops_those_that_wait(run_on: Callable) -> None:
    made = []

    def fail() -> tuple[np.ndarray, np.ndarray]:
        made.append(None)
        raise UserError("no scores")

    run_on(Machine(NEED, meet=partial(time.sleep, 0.05)))
    with pytest.raises(UserError, match="no scores"):
        list(label_pictures([PictureToLabel(SHAPE, fail)] * 20, num_threads=20))
    assert len(made) < 20
    assert not crf_threads()


def test_a_stream_that_is_not_wanted_any_more_ends(run_on: Callable) -> None:
    machine = Machine(NEED)
    run_on(machine)
    results = label_pictures([to_label(SHAPE)] * 20, num_threads=5)
    next(results)
    results.close()
    assert not crf_threads()
    assert machine.at_work == 0


# ---- what is left ---------------------------------------------------------------------------------------------------


def test_memory_that_others_take_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    free, begun = [2 * NEED], threading.Event()
    monkeypatch.setattr(crf_memory, "available_memory", lambda: free[0])
    budget = MemoryBudget(2)

    def second() -> None:
        with budget.reserve(SHAPE):
            begun.set()

    with budget.reserve(SHAPE):
        free[0] = NEED - 1  # less than if the first one had touched all of it
        thread = threading.Thread(target=second)
        thread.start()
        assert not begun.wait(0.2)
        free[0] = NEED
    thread.join(30)
    assert begun.is_set()


def test_a_large_picture_is_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf_memory, "available_memory", lambda: 2.5 * NEED)
    budget, begun, threads = MemoryBudget(3), [], []

    def begin(shape: tuple[int, int, int]) -> None:
        with budget.reserve(shape):
            begun.append(shape)

    with budget.reserve(SHAPE):
        for count, shape in enumerate((LARGE, SHAPE), start=1):  # the second one would fit
            threads.append(threading.Thread(target=begin, args=(shape,)))
            threads[-1].start()
            while len(budget._line) < count:
                time.sleep(0.001)
        assert not begun
    for thread in threads:
        thread.join(30)
    assert begun == [LARGE, SHAPE]


def test_memory_that_becomes_free_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [NEED]
    monkeypatch.setattr(crf_memory, "available_memory", lambda: free[0])
    budget = MemoryBudget(2)
    with budget.reserve(SHAPE):
        free[0] = 2 * NEED
        with budget.reserve(SHAPE):
            pass


def test_what_this_process_keeps_of_an_earlier_picture_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator need not give everything back to the system: a run must not stop at its second picture."""
    free = [NEED]
    monkeypatch.setattr(crf_memory, "available_memory", lambda: free[0])
    budget = MemoryBudget(1)
    with budget.reserve(SHAPE):
        pass
    free[0] = NEED // 2
    with budget.reserve(SHAPE):
        pass
    with pytest.raises(UserError, match="16x9 pixels"), budget.reserve(LARGE):
        pass
