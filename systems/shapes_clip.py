"""The built-in world's CLIP, taught from nothing but captioned pictures: build, train, export in OpenAI's names.

Stages: captioned pictures -> compact vocabulary -> contrastive training -> ``clip.pt``. Run by ``pretrain_world.sh``.
"""

from __future__ import annotations

import json
import multiprocessing
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from datasets.shapes.captions import mentioned_categories, write_caption
from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.scenes import make_scene
from training.clip_contrastive import CaptionedPictures, ClipTrainSettings, cut_tokens, train_clip
from utils.files import atomic_write
from utils.log import get_logger, progress

_logger = get_logger(__name__)

VOCABULARY_SIZE, CONTEXT_LENGTH, END_OF_TEXT = 49408, 77, 49407


@dataclass(frozen=True)
class WorldClipSettings:
    """Sizes of the world's CLIP and of its lessons; heads are width / 64, as everywhere in CLIP."""

    num_pictures: int = 40_000
    picture_size: int = 128
    captions_per_picture: int = 8
    caption_tokens: int = 24
    image_size: int = 64
    patch_size: int = 8
    vision_width: int = 192
    vision_layers: int = 4
    text_width: int = 128
    text_layers: int = 2
    embed_dim: int = 128
    seed: int = 0
    training: ClipTrainSettings = field(
        default_factory=lambda: ClipTrainSettings(num_steps=2400, batch_size=128, max_tokens=64)
    )


def build_world_clip(settings: WorldClipSettings, *, vocabulary_size: int = VOCABULARY_SIZE) -> nn.Module:
    """Build the untrained network.

    Args:
        settings: widths, layers, image and patch side.
        vocabulary_size: rows of the token embedding.

    Returns:
        open_clip's ``CLIP`` with QuickGELU, whose state dict has OpenAI's names.
    """
    vision = CLIPVisionCfg(
        layers=settings.vision_layers,
        width=settings.vision_width,
        head_width=64,
        patch_size=settings.patch_size,
        image_size=settings.image_size,
    )
    text = CLIPTextCfg(
        context_length=CONTEXT_LENGTH,
        vocab_size=vocabulary_size,
        width=settings.text_width,
        heads=max(1, settings.text_width // 64),
        layers=settings.text_layers,
    )
    return CLIP(settings.embed_dim, vision, text, quick_gelu=True)


def _captioned(index: int, settings: WorldClipSettings) -> tuple[np.ndarray, list[str]]:
    scene = make_scene("caption", index, image_size=settings.picture_size, seed=settings.seed)
    rng = np.random.default_rng([settings.seed, 77, index])
    return scene.image, [write_caption(scene.things, rng) for _ in range(settings.captions_per_picture)]


def _captioned_pictures(settings: WorldClipSettings, num_workers: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap(partial(_captioned, settings=settings), range(settings.num_pictures), chunksize=64)


def make_lessons(folder: Path, settings: WorldClipSettings, *, num_workers: int = 2) -> tuple[np.ndarray, list]:
    """Make the captioned pictures once and keep them as two files.

    Args:
        folder: where ``lessons.npy`` (pictures) and ``lessons.json`` (captions) are kept.
        settings: how many, how large, which seed.
        num_workers: processes.

    Returns:
        Memory-mapped uint8 pictures (N, S, S, 3), and N lists of captions.
    """
    images_path, captions_path = folder / "lessons.npy", folder / "lessons.json"
    if not captions_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (settings.num_pictures, settings.picture_size, settings.picture_size, 3)
        images = np.lib.format.open_memmap(images_path, "w+", np.uint8, shape)
        captions = []
        stream = progress(
            _captioned_pictures(settings, num_workers),
            total=settings.num_pictures,
            description="captioned pictures",
            unit="picture",
        )
        for row, (image, words) in enumerate(stream):
            images[row] = image
            captions.append(words)
        images.flush()
        with atomic_write(captions_path, "w") as file:
            json.dump(captions, file)
    return np.load(images_path, mmap_mode="r"), json.loads(captions_path.read_text())


def read_lessons(
    images: np.ndarray, captions: Sequence[Sequence[str]], *, max_tokens: int
) -> tuple[CaptionedPictures, Tensor]:
    """Turn pictures and their captions into what the loop learns from, with a compact vocabulary.

    Args:
        images: uint8 (N, S, S, 3).
        captions: N lists of equally many captions.
        max_tokens: longest caption in tokens, with both special ones.

    Returns:
        The lessons with token ids 0..V-1 (0 is padding, V-1 the end of text), and the V real ids, int64.
    """
    tokenizer = SimpleTokenizer(context_length=CONTEXT_LENGTH)
    flat = [caption for words in captions for caption in words]
    unique = sorted(set(flat))
    row_of = {caption: row for row, caption in enumerate(unique)}
    ids = cut_tokens(tokenizer([*unique, *CATEGORY_NAMES, "background"]), max_tokens)
    used, compact = np.unique(np.concatenate([[0], ids.ravel()]), return_inverse=True)
    compact = compact[1:].reshape(ids.shape).astype(np.int32)
    nouns = np.zeros((len(unique), len(CATEGORY_NAMES)), dtype=bool)
    for row, caption in enumerate(unique):
        for name in mentioned_categories(caption):
            nouns[row, CATEGORY_NAMES.index(name)] = True
    rows = np.array([row_of[caption] for caption in flat]).reshape(len(captions), -1)
    lessons = CaptionedPictures(images, compact[: len(unique)][rows], nouns[rows], compact[len(unique) :])
    return lessons, torch.from_numpy(used.astype(np.int64))


def round_weights(state_dict: dict[str, Tensor], *, num_bits: int = 8) -> dict[str, Tensor]:
    """Round to half precision with fewer significant bits: the zeros at the end of every number deflate.

    Args:
        state_dict: floating-point tensors.
        num_bits: significant bits kept, 1 to 11 (11 is all of half precision).

    Returns:
        The same names, float16.
    """
    dropped = 11 - num_bits
    rounded = {}
    for name, value in state_dict.items():
        codes = value.detach().half().contiguous().view(torch.int16)
        rounded[name] = (((codes + ((1 << dropped) >> 1)) >> dropped) << dropped).view(torch.float16)
    return rounded


def export_state_dict(state_dict: dict[str, Tensor], token_ids: Tensor) -> dict[str, Tensor]:
    """Spread the compact token embedding over CLIP's whole vocabulary and round all numbers, see `round_weights`.

    Args:
        state_dict: of the network with the compact vocabulary.
        token_ids: the real id of each compact row, int64 (V,).

    Returns:
        OpenAI's names, float16; tokens that no caption used have zero rows.
    """
    state = round_weights({name: value for name, value in state_dict.items() if name != "attn_mask"})
    compact = state["token_embedding.weight"]
    state["token_embedding.weight"] = compact.new_zeros(VOCABULARY_SIZE, compact.shape[1])
    state["token_embedding.weight"][token_ids] = compact
    return state


def save_compressed(state_dict: dict[str, Tensor], path: Path) -> None:
    """Write weights that ``torch.load(..., weights_only=True)`` reads, with the archive's entries deflated.

    Args:
        state_dict: plain tensors.
        path: target, replaced atomically.
    """
    raw_path = path.with_suffix(".raw")
    torch.save(state_dict, raw_path)
    with zipfile.ZipFile(raw_path) as source, atomic_write(path) as file, zipfile.ZipFile(file, "w") as target:
        for entry in source.infolist():
            target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry), zipfile.ZIP_DEFLATED, 9)
    raw_path.unlink()


def pretrain_clip(output_dir: Path, settings: WorldClipSettings, *, num_workers: int = 2) -> Path:
    """Teach the world's CLIP, or go on where it was cut off.

    Args:
        output_dir: receives ``clip.pt``, ``clip_log.jsonl`` and, while running, ``work/``.
        settings: sizes and lessons.
        num_workers: processes that make the pictures.

    Returns:
        Path of ``clip.pt``.
    """
    path, work_dir = output_dir / "clip.pt", output_dir / "work"
    if path.exists():
        _logger.info("%s exists: not trained again", path)
        return path
    images, captions = make_lessons(work_dir, settings, num_workers=num_workers)
    lessons, token_ids = read_lessons(images, captions, max_tokens=settings.caption_tokens)
    torch.manual_seed(settings.seed)
    clip = build_world_clip(settings, vocabulary_size=len(token_ids))
    checkpoint_path, log_path = work_dir / "clip_checkpoint.pt", output_dir / "clip_log.jsonl"
    start, optimiser_state = 0, None
    if checkpoint_path.exists():
        checkpoint = torch.load(checkpoint_path, weights_only=True)
        start, optimiser_state = checkpoint["step"], checkpoint["optimiser"]
        clip.load_state_dict(checkpoint["model"])
    else:
        log_path.write_text(json.dumps({"settings": asdict(settings)}) + "\n")

    def log(step: int, numbers: dict[str, float]) -> None:
        with log_path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        _logger.info("CLIP step %d of %d: %s", step, settings.training.num_steps, numbers)

    def save(step: int, state: dict) -> None:
        with atomic_write(checkpoint_path) as file:
            torch.save({"step": step, "model": clip.state_dict(), "optimiser": state}, file)

    train_clip(
        clip,
        lessons,
        settings.training,
        start_step=start,
        optimiser_state=optimiser_state,
        on_log=log,
        on_checkpoint=save,
    )
    save_compressed(export_state_dict(clip.state_dict(), token_ids), path)
    return path
