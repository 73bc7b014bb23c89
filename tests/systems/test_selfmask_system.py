import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.saliency import LAYOUTS
from networks.clip import ClipDimensions, create_clip
from networks.selfmask import SelfMask
from networks.vit import VisionTransformer
from systems import selfmask
from systems.selfmask_encoder import build_network
from tests.pseudo_labels.voting_run import write_pictures
from training.loop_settings import Step
from training.metric_log import read_metrics
from training.selfmask_data import collate_samples
from utils.config import load_settings
from utils.errors import ConfigError, DataError, WeightsError

CONFIG = """
system: selfmask
name: run
dir_ckpt: runs
dir_dataset: pictures
device: cpu
features: [{network: vit, weights: ./vit.pth}]
cluster_counts: [2, 3]
voting_workers: 0
encoder: {weights: ./vit.pth}
num_queries: 3
num_decoder_layers: 2
train_image_size: 32
scale_range: [0.5, 1.0]
learning_rate: 1.0e-3
n_iters: 4
iter_log: 1
iter_eval: 2
train_dataloader_kwargs: {batch_size: 4, num_workers: 0}
val_dataloader_kwargs: {num_workers: 0}
selfmask_shorter_side: 48
solver: null
"""


@pytest.fixture
def world(tmp_path):
    write_pictures(tmp_path / "pictures", num=8)
    torch.manual_seed(0)
    vit = VisionTransformer(width=64, num_layers=1, patch_size=8, native_grid=4, hidden_width=64)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def settings_of(world: Path, *overrides: str, task: str | None = "train"):
    return load_settings(world / "config.yaml", overrides, task=task)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]


def write_benchmark(world: Path) -> Path:
    """The training pictures as ECSSD, with the red box as truth."""
    layout, folder = LAYOUTS["ecssd"], world / "ECSSD"
    (folder / layout.image_dir).mkdir(parents=True)
    (folder / layout.mask_dir).mkdir()
    for path in (world / "pictures").iterdir():
        image = Image.open(path)
        image.save(folder / layout.image_dir / f"{path.stem}.jpg")
        Image.fromarray((np.array(image)[..., 0] > 120).astype(np.uint8) * 255).save(
            folder / layout.mask_dir / path.name
        )
    return folder


def test_from_pictures_to_masks_and_on_after_an_interruption(world):
    whole = selfmask.train(settings_of(world, "name=whole"))
    expected = losses(whole.path)
    assert len(expected) == 4
    stopped = settings_of(world, "name=cut", "iter_checkpoint=1")
    original = selfmask.SelfMaskStep.__call__

    def stop_after_two(self, network, batch, step):
        if step.iteration == 2:
            raise KeyboardInterrupt
        return original(self, network, batch, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfmask.SelfMaskStep, "__call__", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            selfmask.train(stopped)
    cut = selfmask.train(stopped)
    assert losses(cut.path) == expected
    same = [torch.load(run.final_model_path, weights_only=True) for run in (whole, cut)]
    assert all(torch.equal(value, same[1][name]) for name, value in same[0].items())

    results = selfmask.segment_pictures(whole.path, [world / "pictures"], categories=None, output_dir=world / "out")
    assert len(results) == 8
    labels = np.asarray(Image.open(world / "out" / "labels" / "0.png"))
    assert labels.shape == (40, 56)
    assert labels.max() <= 1
    records = json.loads((world / "out" / "instances.json").read_text())
    assert records["categories"] == [{"id": 1, "name": "salient object"}]


def test_scores_during_and_after_training(world):
    write_benchmark(world)
    overrides = ("dataset_name=ecssd", f"dir_val_dataset={world}", "schedule=released", "ranking_sign=corrected")
    run = selfmask.train(settings_of(world, *overrides, "n_iters=2"))
    (row,) = [row for row in read_metrics(run.metrics_path) if row["kind"] == "eval"]
    assert run.best_path.is_file()
    scores = selfmask.evaluate(settings_of(world, *overrides, task="evaluate"), run.final_model_path)
    assert scores["num_images"] == 8
    assert scores["iou"] == pytest.approx(row["iou"], abs=1e-5)
    assert scores["ub_iou"] >= scores["iou"]
    (path,) = (world / "runs").glob("evaluation_*/results.json")
    assert "8 pictures at original size" in json.loads(path.read_text())["protocol"][0]


@pytest.mark.parametrize("empty", [[1], [0, 1], [0, 1, 2, 3]])
def test_parts_of_a_step_add_up_to_the_whole_batch(empty):
    torch.manual_seed(0)
    network = SelfMask(width=64, num_queries=3, num_layers=1, num_decoder_layers=2, native_grid=2)
    rng = np.random.default_rng(0)
    samples = [(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), rng.random((16, 16)) > 0.5) for _ in range(4)]
    samples = [(image, mask & (number not in empty)) for number, (image, mask) in enumerate(samples)]

    def mean_loss(*batches):
        mean_counts = torch.stack([selfmask.count_objects(batch).float() for batch in batches]).mean(0)
        step = Step(0, len(batches), mean_counts)
        return torch.stack([selfmask.SelfMaskStep()(network, batch, step)["loss"] for batch in batches]).mean()

    whole = mean_loss(collate_samples(samples))
    parts = mean_loss(collate_samples(samples[:2]), collate_samples(samples[2:]))
    assert torch.isfinite(whole)
    assert (float(whole.detach()) == 0) == (len(empty) == 4)
    assert torch.allclose(whole, parts, rtol=1e-5)


def test_dry_run_writes_nothing(world, log_text):
    selfmask.train(settings_of(world), dry_run=True)
    assert not (world / "runs").exists()
    assert "none yet, they will be made as" in log_text.text


def test_encoder_from_clip_or_fresh(world):
    torch.manual_seed(0)
    clip = create_clip(ClipDimensions(16, 32, 2, 128, 8, 77, 100, 64, 1, 1))
    torch.save(clip.model.state_dict(), world / "clip.pt")
    pictures = sorted((world / "pictures").iterdir())
    network = build_network(settings_of(world, f"encoder.weights={world / 'clip.pt'}"), pictures)
    assert (network.encoder.width, len(network.encoder.blocks), network.query_embed.shape) == (128, 2, (3, 128))
    norm = clip.model.state_dict()["visual.transformer.resblocks.1.ln_1.weight"]
    assert torch.equal(network.encoder.blocks[1].norm1.weight, norm)
    fresh = build_network(
        settings_of(world, "encoder={weights: null, width: 64, depth: 1, patch_size: 16, table_size: 64}"), pictures
    )
    assert (fresh.patch_size, fresh.encoder.pos_embed.shape) == (16, (1, 17, 64))


def test_a_finished_mask_file_is_used_as_it_is(world):
    selfmask.train(settings_of(world, "n_iters=1"))
    masks = world / "runs" / "run" / "pseudo_masks.json"
    other = settings_of(world, "features=[]", f"pseudo_mask_path={masks}", "name=other", "n_iters=1")
    assert losses(selfmask.train(other).path) == losses(world / "runs" / "run")


def test_errors_say_what_to_do(world):
    with pytest.raises(ConfigError, match="SelfMask finds the salient object whatever it is; leave the names out"):
        selfmask.segment_pictures(world, [world], categories=["cat"], output_dir=world)
    (world / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"no weights in this run folder yet \(best.pt, final_model.pt\)"):
        selfmask.segment_pictures(world / "empty", [world / "pictures"], categories=None, output_dir=world / "out")
    with pytest.raises(ConfigError, match="expected at least one network to cluster with"):
        settings_of(world, "features=[]")
    for path in (world / "pictures").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of the 8 pictures can be read"):
        selfmask.train(settings_of(world, "encoder={width: 64, depth: 1}"))
