"""The built-in world's CLIPs, taught from nothing but captioned pictures: build, train, export in OpenAI's names.

Stages: captioned pictures -> compact vocabulary -> contrastive training -> ``clip.pt``, and from there with pictures of
the stuff world -> ``clip_stuff.pt``. Run by ``pretrain_world.sh``.
"""

from __future__ import annotations

import json
import multiprocessing
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from datasets.shapes.captions import mentioned_categories, write_caption, write_stuff_caption
from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.scenes import make_scene
from datasets.shapes.stuff_scenes import make_stuff_scene
from datasets.shapes.surfaces import SURFACE_NAMES
from networks.checkpoints import read_state_dict
from training.clip_contrastive import CaptionedPictures, ClipTrainSettings, cut_tokens, train_clip
from utils.files import atomic_write
from utils.log import get_logger, progress

_logger = get_logger(__name__)

VOCABULARY_SIZE, CONTEXT_LENGTH, END_OF_TEXT = 49408, 77, 49407


@dataclass(frozen=True)
class WorldClipSettings:
    """Sizes of the world's CLIP and of its lessons; heads are width / 64, as everywhere in CLIP.

    ``num_pictures`` are of things on a ground without a name, ``num_stuff_pictures`` of things on named grounds.
    """

    num_pictures: int = 40_000
    num_stuff_pictures: int = 0
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


STUFF_SETTINGS = WorldClipSettings(
    num_pictures=6000,
    num_stuff_pictures=10_000,
    caption_tokens=40,
    training=ClipTrainSettings(num_steps=700, batch_size=96, lr=6e-4, warmup_steps=50, max_tokens=56),
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
    """Picture and captions of a lesson: things first, then stuff."""
    options = {"image_size": settings.picture_size, "seed": settings.seed}
    rng, num_captions = np.random.default_rng([settings.seed, 77, index]), range(settings.captions_per_picture)
    if index < settings.num_pictures:
        scene = make_scene("caption", index, **options)
        return scene.image, [write_caption(scene.things, rng) for _ in num_captions]
    stuff = make_stuff_scene("stuff_caption", index - settings.num_pictures, **options)
    return stuff.image, [write_stuff_caption(stuff.shares, stuff.things, rng) for _ in num_captions]


def _captioned_pictures(settings: WorldClipSettings, num_workers: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    indices = range(settings.num_pictures + settings.num_stuff_pictures)
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap(partial(_captioned, settings=settings), indices, chunksize=64)


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
        num_pictures = settings.num_pictures + settings.num_stuff_pictures
        shape = (num_pictures, settings.picture_size, settings.picture_size, 3)
        images = np.lib.format.open_memmap(images_path, "w+", np.uint8, shape)
        captions = []
        stream = progress(
            _captioned_pictures(settings, num_workers),
            total=num_pictures,
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
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    *,
    max_tokens: int,
    names: Sequence[str] = CATEGORY_NAMES,
    has_background: np.ndarray | None = None,
    pool_captions: bool = False,
) -> tuple[CaptionedPictures, Tensor]:
    """Turn pictures and their captions into what the loop learns from, with a compact vocabulary.

    Args:
        images: uint8 (N, S, S, 3).
        captions: N lists of equally many captions.
        max_tokens: longest caption in tokens, with both special ones.
        names: nouns that patches learn to tell apart.
        has_background: whether a part of the picture has none of the names, bool (N,); None: always.
        pool_captions: take what any caption of a picture names to be in it; otherwise only what the drawn one names.

    Returns:
        The lessons with token ids 0..V-1 (0 is padding, V-1 the end of text), and the V real ids, int64.
    """
    tokenizer = SimpleTokenizer(context_length=CONTEXT_LENGTH)
    flat = [caption for words in captions for caption in words]
    unique = sorted(set(flat))
    row_of = {caption: row for row, caption in enumerate(unique)}
    ids = cut_tokens(tokenizer([*unique, *names, "background"]), max_tokens)
    used, compact = np.unique(np.concatenate([[0], ids.ravel()]), return_inverse=True)
    compact = compact[1:].reshape(ids.shape).astype(np.int32)
    nouns = np.zeros((len(unique), len(names)), dtype=bool)
    for row, caption in enumerate(unique):
        for name in mentioned_categories(caption, names):
            nouns[row, list(names).index(name)] = True
    rows = np.array([row_of[caption] for caption in flat]).reshape(len(captions), -1)
    token_rows, noun_ids = compact[: len(unique)][rows], compact[len(unique) :]
    shown = nouns[rows].any(axis=1) if pool_captions else None
    lessons = CaptionedPictures(images, token_rows, nouns[rows], noun_ids, has_background, shown)
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


def import_state_dict(clip: nn.Module, state_dict: Mapping[str, Tensor], token_ids: Tensor) -> None:
    """Let a network begin with the weights of an exported one; words that it never read keep their random rows.

    Args:
        clip: with a compact vocabulary; changed.
        state_dict: what `export_state_dict` made, of the same sizes.
        token_ids: the real id of each compact row of ``clip``, int64 (V,).
    """
    state = {name: value.float() for name, value in state_dict.items()}
    rows = state["token_embedding.weight"][token_ids]
    is_new = ~rows.any(dim=1, keepdim=True)
    state["token_embedding.weight"] = torch.where(is_new, clip.token_embedding.weight.detach(), rows)
    clip.load_state_dict(state)


def pretrain_clip(
    output_dir: Path,
    settings: WorldClipSettings,
    *,
    name: str = "clip",
    start_path: Path | None = None,
    num_workers: int = 2,
) -> Path:
    """Teach the world's CLIP, or go on where it was cut off.

    Args:
        output_dir: receives the weights, ``<name>_log.jsonl`` and, while running, ``work/``.
        settings: sizes and lessons.
        name: of the weight file, without its ending.
        start_path: weights of the same sizes to begin with; None: random ones.
        num_workers: processes that make the pictures.

    Returns:
        Path of the weights, ``<name>.pt``.
    """
    path, work_dir = output_dir / f"{name}.pt", output_dir / "work"
    if path.exists():
        _logger.info("%s exists: not trained again", path)
        return path
    images, captions = make_lessons(work_dir / f"{name}_lessons", settings, num_workers=num_workers)
    has_stuff = settings.num_stuff_pictures > 0  # whose captions often name a part only
    lessons, token_ids = read_lessons(
        images,
        captions,
        max_tokens=settings.caption_tokens,
        names=(*CATEGORY_NAMES, *SURFACE_NAMES) if has_stuff else CATEGORY_NAMES,
        has_background=np.arange(len(images)) < settings.num_pictures,
        pool_captions=has_stuff,
    )
    torch.manual_seed(settings.seed)
    clip = build_world_clip(settings, vocabulary_size=len(token_ids))
    if start_path is not None:
        import_state_dict(clip, read_state_dict(start_path), token_ids)
    _train(clip, lessons, settings, work_dir / f"{name}_checkpoint.pt", output_dir / f"{name}_log.jsonl")
    save_compressed(export_state_dict(clip.state_dict(), token_ids), path)
    return path


def _train(
    clip: nn.Module, lessons: CaptionedPictures, settings: WorldClipSettings, checkpoint_path: Path, log_path: Path
) -> None:
    """Train in place, from the checkpoint on if there is one."""
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
