"""The pseudo-mask stage: batches, workers, bad pictures, memory, interruptions and ranks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from networks.selfmask import SelfMask, SelfMaskPrediction
from pseudo_labels.batching import batch_by_size
from pseudo_labels.mask_predictors import SaliencyPredictor
from pseudo_labels.mask_stage import StageReport, make_pseudo_masks
from pseudo_labels.network_input import normalise, predict_masks, rebuild_reference, reference_levels
from pseudo_labels.preparation import MAX_ASPECT, resize_image, resize_mask, working_size
from pseudo_labels.store import is_complete, read_mask
from tests.pseudo_labels.tiny_selfmask import picture, tiny_selfmask, write_pictures
from utils.errors import DataError, UnreadableImageError, UserError

ROOT = Path(__file__).parents[2]
SIZES = [(40, 56), (39, 52), (56, 40), (33, 33), (40, 56), (1, 1), (3, 200), (90, 64), (41, 57)]


def run_stage(images: list[Path], mask_dir: Path, network: SelfMask | None = None, **settings: object) -> StageReport:
    masks = [mask_dir / f"{image.name}.json" for image in images]
    defaults = {"shorter_side": 32, "batch_size": 3, "num_workers": 0}
    return make_pseudo_masks(images, masks, SaliencyPredictor(network or tiny_selfmask()), **(defaults | settings))


def contents(mask_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(mask_dir.glob("*.json"))}


def test_masks_have_the_size_of_their_images_and_do_not_depend_on_batches_or_workers(tmp_path: Path):
    images = write_pictures(tmp_path / "pictures", SIZES)
    report = run_stage(images, tmp_path / "alone", batch_size=1)
    assert (report.made, report.skipped, report.refused) == (len(SIZES), 0, ())
    for image, size in zip(images, SIZES, strict=True):
        assert read_mask(tmp_path / "alone" / f"{image.name}.json", size).shape == size
    run_stage(images, tmp_path / "batched", batch_size=4)
    run_stage(images, tmp_path / "workers", num_workers=2)
    expected = contents(tmp_path / "alone")
    assert len(expected) == len(SIZES)
    assert 0 < sum(read_mask(tmp_path / "alone" / name).mean() for name in expected) < len(SIZES)
    assert contents(tmp_path / "batched") == expected
    assert contents(tmp_path / "workers") == expected


def test_mixed_sizes_of_one_padded_size_share_a_batch():
    network = tiny_selfmask()
    images = [torch.from_numpy(picture(height, width)) for height, width in [(33, 50), (40, 56), (36, 49)]]
    together = predict_masks(network, images)
    for image, mask in zip(images, together, strict=True):
        [alone] = predict_masks(network, [image])
        assert mask.shape == image.shape[:2]
        # The padding of a picture inside a larger common size is the padding it gets alone.
        assert torch.equal(alone, mask)
    with pytest.raises(ValueError, match="equally large when padded"):
        predict_masks(network, [images[0], torch.zeros(8, 8, 3, dtype=torch.uint8)])


def test_the_steps_are_those_of_the_specification(tmp_path: Path):
    from pseudo_labels.bilateral_solver import refine_mask

    [path] = write_pictures(tmp_path / "pictures", [(45, 61)])
    run_stage([path], tmp_path / "masks", shorter_side=40)
    resized = resize_image(np.array(Image.open(path)), 40)
    normalised = normalise(torch.from_numpy(resized.copy()))
    mask = tiny_selfmask().predict(normalised[None]).mask[0].numpy()
    expected = resize_mask(refine_mask(rebuild_reference(normalised), mask), 45, 61)
    np.testing.assert_array_equal(read_mask(tmp_path / "masks" / "000.png.json"), expected)
    run_stage([path], tmp_path / "raw", shorter_side=40, use_solver=False)
    np.testing.assert_array_equal(read_mask(tmp_path / "raw" / "000.png.json"), resize_mask(mask, 45, 61))


def test_the_reference_picture_of_the_stage_is_the_rebuilt_one():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    rebuilt = rebuild_reference(normalise(torch.from_numpy(image)))
    levels = reference_levels()
    np.testing.assert_array_equal(np.stack([levels[image[..., c], c] for c in range(3)], -1), rebuilt)
    lost = image.astype(int) - rebuilt
    assert set(np.unique(lost)) == {0, 1}


def test_finished_masks_are_skipped_and_damaged_ones_made_again(tmp_path: Path, log_text: pytest.LogCaptureFixture):
    images = write_pictures(tmp_path / "pictures", SIZES[:5])
    run_stage(images, tmp_path / "masks")
    expected = contents(tmp_path / "masks")
    first, second = tmp_path / "masks" / "000.png.json", tmp_path / "masks" / "001.png.json"
    first.write_bytes(first.read_bytes()[:20])
    second.unlink()
    report = run_stage(images, tmp_path / "masks")
    assert (report.made, report.skipped) == (2, 3)
    assert contents(tmp_path / "masks") == expected
    assert "5 images, 3 skipped because their mask exists, 2 to make" in log_text.text
    assert "2 made in" in log_text.text
    assert run_stage(images, tmp_path / "masks").made == 0


def test_bad_pictures_are_listed_and_do_not_stop_the_others(tmp_path: Path, log_text: pytest.LogCaptureFixture):
    images = write_pictures(tmp_path / "pictures", SIZES[:4])
    images[1].write_bytes(images[1].read_bytes()[:60])
    images[2].write_text("no picture")
    images.append(tmp_path / "pictures" / "absent.png")
    for num_workers in (0, 1):
        masks, listed = tmp_path / f"masks{num_workers}", tmp_path / f"refused{num_workers}.txt"
        report = run_stage(images, masks, num_workers=num_workers, refused_path=listed)
        assert (report.made, len(report.refused)) == (2, 3)
        assert sorted(contents(masks)) == ["000.png.json", "003.png.json"]
        lines = listed.read_text().splitlines()
        assert [line.split("\t")[0] for line in lines] == [str(images[i]) for i in (1, 2, 4)]
        assert "no such picture" in lines[2]
    assert "3 images refused" in log_text.text
    assert f"no pseudo-mask: {images[2]}" in log_text.text
    run_stage(images[:1], tmp_path / "masks0", refused_path=listed)
    assert not listed.exists()
    with pytest.raises(UnreadableImageError, match=r"001\.png"):
        run_stage(images, tmp_path / "strict", stop_at_bad_image=True)


class LimitedMemory:
    """Lets a network run out of memory above a number of pictures per batch."""

    def __init__(self, network: SelfMask, limit: int) -> None:
        self.predict, self.limit, self.sizes = network.predict, limit, []

    def __call__(self, images: torch.Tensor) -> SelfMaskPrediction:
        self.sizes.append(len(images))
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("out of memory (simulated)")
        return self.predict(images)


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path: Path, log_text: pytest.LogCaptureFixture):
    images = write_pictures(tmp_path / "pictures", [(40, 56)] * 11)
    network = tiny_selfmask()
    network.predict = memory = LimitedMemory(network, 2)
    report = run_stage(images, tmp_path / "masks", network, batch_size=8)
    assert (report.made, report.refused) == (11, ())
    assert memory.sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert "out of memory with 8 pictures in a batch: going on with 4. Set batch_size=4" in log_text.text
    run_stage(images, tmp_path / "expected")
    assert contents(tmp_path / "masks") == contents(tmp_path / "expected")


def test_a_picture_too_large_even_alone_is_refused_and_other_errors_are_not_hidden(tmp_path: Path):
    images = write_pictures(tmp_path / "pictures", [(40, 56)] * 2)
    network = tiny_selfmask()
    network.predict = LimitedMemory(network, 0)
    report = run_stage(images, tmp_path / "masks", network)
    assert report.made == 0
    assert [refusal.image_path for refusal in report.refused] == images
    assert "too large for the memory at 32×44 pixels; use a smaller shorter side" in report.refused[0].reason

    def broken(_: torch.Tensor) -> SelfMaskPrediction:
        raise RuntimeError("a kernel failed")

    network.predict = broken
    with pytest.raises(RuntimeError, match="a kernel failed"):
        run_stage(images, tmp_path / "masks", network)


def test_empty_masks_are_stored_and_counted(tmp_path: Path):
    images = write_pictures(tmp_path / "pictures", SIZES[:3])
    network = tiny_selfmask()
    with torch.no_grad():  # constant tokens and queries of opposite sign: no pixel reaches 0.5
        for norm, bias in ((network.encoder.norm, 1.0), (network.decoder.norm, -1.0)):
            norm.weight.zero_()
            norm.bias.fill_(bias)
    report = run_stage(images, tmp_path / "masks", network)
    assert (report.made, report.empty) == (3, 3)
    assert all(not read_mask(tmp_path / "masks" / name).any() for name in contents(tmp_path / "masks"))
    assert "3 made" in report.summary()
    assert "3 of them empty" in report.summary()


def test_preview_appears_before_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = write_pictures(tmp_path / "pictures", [(40, 56)] * 9)
    preview, network, seen = tmp_path / "preview.png", tiny_selfmask(), []
    predict = network.predict
    network.predict = lambda batch: seen.append(preview.exists()) or predict(batch)
    run_stage(images, tmp_path / "masks", network, preview_path=preview, num_preview=2, batch_size=1)
    assert seen[0] is False
    assert seen[-1] is True
    assert Image.open(preview).size[1] == 240


def test_two_images_cannot_share_a_mask(tmp_path: Path):
    images = [tmp_path / "a.jpg", tmp_path / "a.png"]
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png would share the pseudo-mask .*a\.json"):
        make_pseudo_masks(images, [tmp_path / "a.json"] * 2, SaliencyPredictor(tiny_selfmask()))
    report = run_stage(write_pictures(tmp_path / "pictures", [(40, 56)]) * 3, tmp_path / "masks")
    assert report.made == 1


@pytest.mark.parametrize("num_finishers", [0, 1])
def test_a_mask_that_cannot_be_written_stops_the_stage(tmp_path: Path, num_finishers: int):
    images = write_pictures(tmp_path / "pictures", SIZES[:2])
    (tmp_path / "masks").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="masks"):
        run_stage(images, tmp_path / "masks", num_finishers=num_finishers)


def test_working_sizes():
    assert working_size(375, 500) == (512, 682)
    assert working_size(1200, 900) == (682, 512)
    assert working_size(1, 1) == (512, 512)
    assert working_size(10, 10 * MAX_ASPECT, 64) == (64, 64 * MAX_ASPECT)
    assert working_size(1, 100_000, 64) == (1, 64 * MAX_ASPECT)
    assert working_size(2000, 100, 64) == (1024, 51)
    with pytest.raises(ValueError, match="sizes must be at least 1, received 0×5"):
        working_size(0, 5)


@pytest.mark.parametrize(("size", "new"), [((512, 682), (375, 500)), ((29, 31), (333, 1777)), ((7, 5), (7, 5))])
def test_nearest_resize_is_that_of_torch(size: tuple[int, int], new: tuple[int, int]):
    mask = np.random.default_rng(0).integers(0, 2, size, dtype=np.uint8)
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], size=new, mode="nearest")[0, 0]
    np.testing.assert_array_equal(resize_mask(mask, *new), expected.numpy())


def test_batching_is_complete_and_bounded():
    read = 0

    def stream():
        nonlocal read
        for number in range(50):
            read += 1
            yield number, "abcdefghij"[number * 7 % 10]

    seen = []
    for batch in batch_by_size(stream(), lambda item: item[1], lambda: 4, 12):
        assert len({size for _, size in batch}) == 1
        seen += [number for number, _ in batch]
        assert read - len(seen) <= 13
    assert sorted(seen) == list(range(50))


def start_process(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pseudo_labels.stage_process", *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE)


def children_of(pid: int) -> list[int]:
    """All living descendants of a process (Linux)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def test_a_killed_stage_goes_on_and_leaves_no_process(tmp_path: Path):
    write_pictures(tmp_path / "pictures", [(40, 56)] * 16)
    masks = tmp_path / "masks"
    process = start_process(tmp_path / "pictures", masks, 0.2, 1)
    deadline = time.monotonic() + 60
    while len(contents(masks)) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    while any(
        Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes() for child in children
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kept = contents(masks)
    assert 4 <= len(kept) < 16
    assert all(is_complete(masks / name) for name in kept)
    report = run_stage(sorted((tmp_path / "pictures").glob("*.png")), masks, batch_size=2)
    assert (report.made, report.skipped) == (16 - len(kept), len(kept))
    run_stage(sorted((tmp_path / "pictures").glob("*.png")), tmp_path / "expected")
    assert contents(masks) == contents(tmp_path / "expected")


def test_two_ranks_share_the_work_and_the_report(tmp_path: Path):
    images = write_pictures(tmp_path / "pictures", SIZES)
    images[3].write_text("no picture")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        start_process(tmp_path / "pictures", tmp_path / "masks", 0, 0, RANK=str(rank), LOCAL_RANK=str(rank), **group)
        for rank in range(2)
    ]
    lines = [process.communicate(timeout=120)[0].split() for process in processes]
    assert lines == [["0", "8", "0", "1"], ["1", "8", "0", "1"]]
    run_stage(images, tmp_path / "expected")
    assert contents(tmp_path / "masks") == contents(tmp_path / "expected")
    assert (tmp_path / "masks" / "refused.txt").read_text().startswith(str(images[3]))
    assert (tmp_path / "masks" / "preview.png").exists()
