import numpy as np
import pytest
from PIL import Image

from datasets.saliency import LAYOUTS, SaliencyBenchmark
from utils.errors import ConfigError, DataError


def write_benchmark(folder, name, num=3, mask_mode="L"):
    layout = LAYOUTS[name]
    for part in (layout.image_dir, layout.mask_dir):
        (folder / part).mkdir(parents=True)
    for number in range(num):
        Image.fromarray(np.full((6, 8, 3), 40 * number, np.uint8)).save(folder / layout.image_dir / f"{number}.jpg")
        mask = np.zeros((6, 8), np.uint8)
        mask[: number + 1] = 1 if number == 0 else 255
        Image.fromarray(mask).convert(mask_mode).save(folder / layout.mask_dir / f"{number}.png")


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("below", [False, True])
def test_reads_pairs(tmp_path, name, below):
    for folder in [LAYOUTS[name].folders[-1] if below else "."]:
        write_benchmark(tmp_path / folder, name)
    benchmark = SaliencyBenchmark(name, tmp_path)
    assert len(benchmark) == 3
    assert benchmark[2].path.name == "2.jpg"
    item = benchmark[0]
    assert item.image.shape == (6, 8, 3)
    assert item.truth.dtype == bool
    assert item.truth.sum() == 8
    assert benchmark[2].truth.sum() == 24
    assert "3 pictures at original size" in benchmark.protocol[0]
    assert len(SaliencyBenchmark(name, tmp_path, max_images=2)) == 2


def test_colour_masks_are_read(tmp_path):
    write_benchmark(tmp_path, "ecssd", mask_mode="RGB")
    assert SaliencyBenchmark("ecssd", tmp_path)[1].truth.sum() == 16


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="received 'duts', expected one of duts-te, dut-omron, ecssd"):
        SaliencyBenchmark("duts", tmp_path)
    with pytest.raises(DataError, match="expected the folders images and ground_truth_mask of ecssd there or in ECSSD"):
        SaliencyBenchmark("ecssd", tmp_path)
    write_benchmark(tmp_path, "ecssd")
    masks = tmp_path / "ground_truth_mask"
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(masks / "1.png")
    with pytest.raises(DataError, match=r"1.png: the mask is \(2, 2\), its picture \(6, 8\)"):
        SaliencyBenchmark("ecssd", tmp_path)[1]
    (masks / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: the mask cannot be read"):
        SaliencyBenchmark("ecssd", tmp_path)[1]
    (masks / "1.png").unlink()
    with pytest.raises(DataError, match="3 pictures but 2 masks; without a partner: 1"):
        SaliencyBenchmark("ecssd", tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"there are no \.jpg pictures"):
        SaliencyBenchmark("ecssd", tmp_path)
