import json
import signal

import numpy as np
import pytest
from PIL import Image

from pseudo_labels import rle
from pseudo_labels.candidates import take_ballots, vote_pseudo_masks, working_size
from pseudo_labels.election import VotingSettings, elect_mask
from pseudo_labels.mask_collection import MaskCollection
from tests.processes import run_process, run_ranks
from tests.pseudo_labels.voting_run import (
    SETTINGS,
    run_and_die,
    run_in_group,
    run_voting,
    small_network,
    write_pictures,
)
from utils.errors import DataError, UserError
from utils.images import read_rgb


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "pictures")
    return tmp_path / "pictures"


def test_one_mask_per_picture_in_one_file(folder, tmp_path):
    report = run_voting(folder, tmp_path / "masks.json", preview_path=tmp_path / "preview.png")
    assert (report.made, report.skipped, report.refused) == (6, 0, {})
    masks = json.loads((tmp_path / "masks.json").read_text())
    assert list(masks) == [f"{number}.png" for number in range(6)]
    for name, code in masks.items():
        image = read_rgb(folder / name)
        mask = rle.decode(code)
        assert mask.shape == image.shape[:2]
        red = image[..., 0] > 120
        assert (mask & red).sum() / (mask | red).sum() > 0.5
        ballots = take_ballots(image, [small_network()], SETTINGS, "cpu")
        assert code == elect_mask(ballots, image.shape[:2], image.shape[:2], SETTINGS)
    assert not (tmp_path / "masks.json.parts").exists()
    assert Image.open(tmp_path / "preview.png").height == 240


def test_a_killed_run_goes_on_to_the_same_file(folder, tmp_path):
    whole, cut = tmp_path / "whole" / "masks.json", tmp_path / "cut" / "masks.json"
    run_voting(folder, whole)
    assert run_process(run_and_die, folder, cut, 3) == -signal.SIGKILL
    assert not cut.exists()
    report = run_voting(folder, cut)
    assert (report.made, report.skipped) == (3, 3)
    assert cut.read_bytes() == whole.read_bytes()
    assert run_voting(folder, cut).made == 0


def test_processes_share_the_pictures(folder, tmp_path):
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    run_voting(folder, alone)
    assert run_ranks(run_in_group, 2, folder, together) == [0, 0]
    assert together.read_bytes() == alone.read_bytes()


def test_new_pictures_are_added(folder, tmp_path):
    output = tmp_path / "masks.json"
    run_voting(folder, output)
    before = json.loads(output.read_text())
    (folder / "0.png").rename(folder / "9.png")
    report = run_voting(folder, output)
    assert (report.made, report.skipped) == (1, 5)
    after = json.loads(output.read_text())
    assert after["9.png"] == before["0.png"]
    assert "0.png" in after


def test_unreadable_pictures_are_refused_by_name(folder, tmp_path):
    (folder / "3.png").write_bytes(b"no picture")
    report = run_voting(folder, tmp_path / "masks.json")
    assert report.made == 5
    assert list(report.refused) == ["3.png"]
    assert "not a picture" in report.refused["3.png"]
    assert json.loads((tmp_path / "masks.json.settings.json").read_text())["refused"] == report.refused


def test_other_settings_do_not_mix(folder, tmp_path):
    output = tmp_path / "masks.json"
    run_voting(folder, output)
    with pytest.raises(DataError, match=r"made with other settings \(num_clusters: \[2, 3\] there, \[2, 3, 4\] now\)"):
        vote_pseudo_masks({}, output, [small_network()], settings=VotingSettings())
    with pytest.raises(DataError, match="networks: \\['small'\\] there, \\['other'\\] now"):
        vote_pseudo_masks({}, output, [small_network("other")], settings=SETTINGS)


def test_two_runs_on_one_file_are_told(tmp_path):
    first, second = (MaskCollection(tmp_path / "masks.json", {}) for _ in range(2))
    with first.part(), pytest.raises(UserError, match=r"another process is making these masks"), second.part():
        pass


def test_full_disk_is_told(tmp_path):
    collection = MaskCollection(tmp_path / "masks.json", {})
    collection.parts_dir.mkdir()
    (collection.parts_dir / "part-0000.jsonl").symlink_to("/dev/full")
    with collection.part() as append, pytest.raises(UserError, match=r"No space left on device\). Free some space"):
        append("a.png", {"size": [1, 1], "counts": "1"})


def test_a_damaged_file_is_told(folder, tmp_path):
    output = tmp_path / "masks.json"
    output.write_text('{"0.png": {"size"')
    with pytest.raises(DataError, match="pseudo-mask file is not valid JSON"):
        run_voting(folder, output)


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        ((300, 400), VotingSettings(), (300, 400)),
        ((300, 400), VotingSettings(shorter_side=150), (150, 200)),
        ((9000, 12000), VotingSettings(max_locations=None), (9000, 12000)),
        ((1, 1), VotingSettings(), (1, 1)),
    ],
)
def test_working_size(size, settings, expected):
    assert working_size(size, [8, 16], settings) == expected


def test_huge_pictures_are_shrunk_to_the_limit():
    height, width = working_size((9000, 12000), [8, 16], VotingSettings())
    assert 0.98 * 40_000 < (height / 4) * (width / 4) <= 40_000
    assert height / width == pytest.approx(0.75, rel=0.01)


@pytest.mark.parametrize("size", [(1, 1), (3, 50)])
def test_tiny_and_flat_pictures_have_a_mask(size):
    image = np.full((*size, 3), 7, np.uint8)
    ballots = take_ballots(image, [small_network()], SETTINGS, "cpu")
    assert rle.decode(elect_mask(ballots, size, size, SETTINGS)).shape == size
