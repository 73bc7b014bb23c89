"""Every dialect of weight files, and the words a user sees when a file does not fit."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from networks.checkpoints import load_strict, read_state_dict
from utils.errors import WeightsError


class Small(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)
        self.register_buffer("steps", torch.tensor(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict", "network"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_and_prefixed_files_read_the_same(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = Small().state_dict()
    named = {prefix + name: value for name, value in state.items()}
    torch.save({wrapper: named, "n_iters": 3} if wrapper else named, tmp_path / "weights.pt")
    assert_same(read_state_dict(tmp_path / "weights.pt"), state)


def test_doubly_wrapped_and_legacy_format(tmp_path: Path) -> None:
    state = Small().state_dict()
    torch.save({"state_dict": {"model": state}}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert_same(read_state_dict(tmp_path / "a.pt"), state)


def test_a_prefix_that_not_every_name_has_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.zeros(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "a.pt")
    assert_same(read_state_dict(tmp_path / "a.pt"), state)


def test_a_network_with_a_part_called_model_is_not_unwrapped(tmp_path: Path) -> None:
    state = {"model": torch.zeros(2), "scale": torch.ones(1)}
    torch.save(state, tmp_path / "a.pt")
    assert_same(read_state_dict(tmp_path / "a.pt"), state)


def test_torchscript_archive_drops_the_three_scalars(tmp_path: Path) -> None:
    module = Small()
    for name in ("input_resolution", "context_length", "vocab_size"):
        module.register_buffer(name, torch.tensor(77))
    torch.jit.trace(module, torch.zeros(1, 2)).save(str(tmp_path / "clip.pt"))
    found = read_state_dict(tmp_path / "clip.pt")
    assert set(found) == {"layer.weight", "layer.bias", "steps"}
    assert torch.equal(found["layer.weight"], module.layer.weight)


def test_half_precision_and_safetensors(tmp_path: Path) -> None:
    state = {"a": torch.randn(3).half(), "b": torch.arange(4)}
    save_file(state, tmp_path / "w.safetensors")
    found = read_state_dict(tmp_path / "w.safetensors")
    assert found["a"].dtype == torch.float16
    assert torch.equal(found["b"], state["b"])


class Malicious:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_a_malicious_file_is_refused_and_never_runs(tmp_path: Path, plain_pickle: bool) -> None:
    target = tmp_path / "owned"
    path = tmp_path / "evil.pt"
    payload = {"model": {"a": torch.zeros(1)}, "evil": Malicious(str(target))}
    if plain_pickle:
        path.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, path)
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert not target.exists()
    if not plain_pickle:
        assert "refused, because loading it would run code" in str(caught.value)
        assert "mkdir" in str(caught.value)


def test_unreadable_files_say_what_they_are(tmp_path: Path) -> None:
    torch.save(Small().state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    cases = {
        "cut.pt": (whole[: len(whole) // 2], "cut off or damaged"),
        "text.pt": (b"<html>404 not found</html>", "not a weight file (it starts with b'<html>404"),
        "empty.pt": (b"", "the file is empty"),
        "cut.safetensors": (b"\x10\x00\x00\x00", "looks like a safetensors file but is cut off or damaged"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=name) as caught:
            read_state_dict(tmp_path / name)
        assert message in str(caught.value)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_files_without_read_permission_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(Small().state_dict(), tmp_path / name)

    def refuse(path: str | Path, *args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))  # modes do not stop root

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("torch.load", refuse)
    monkeypatch.setattr("networks.checkpoints.load_file", refuse)
    with pytest.raises(WeightsError, match=rf"{name}: cannot be read \(Permission denied\)\. Check its permissions"):
        read_state_dict(tmp_path / name)


def test_missing_file_folder_and_contents_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.pt: no such weight file"):
        read_state_dict(tmp_path / "nothing.pt")
    with pytest.raises(WeightsError, match="is a folder, not a weight file"):
        read_state_dict(tmp_path)
    torch.save({"epoch": 3, "note": "x"}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="no tensors found; its top level holds 'epoch', 'note'"):
        read_state_dict(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(WeightsError, match="holds a list, not a state dict"):
        read_state_dict(tmp_path / "b.pt")


def test_strict_loading_lists_ten_names_of_each_kind_and_changes_nothing() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {f"other.{i}": torch.zeros(1) for i in range(12)} | {"0.weight": torch.zeros(3, 2)}
    with pytest.raises(WeightsError) as caught:
        load_strict(module, state, source="file.pt")
    text = str(caught.value)
    assert text.startswith("file.pt: these weights do not fit the network (Sequential).")
    assert "15 missing in the file:" in text
    assert "12 not known to the network:" in text
    assert "... and 5 more" in text
    assert "... and 2 more" in text
    assert "0.weight: file 3x2, network 2x2" in text
    assert text.count("other.") == 10
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


def test_strict_loading_of_fitting_weights() -> None:
    source, target = Small(), Small()
    load_strict(target, source.state_dict(), source="x")
    assert torch.equal(source.layer.weight, target.layer.weight)


def fake_zutis(width: int, patch: int, grid: int, *, queries: int = 100, layers: int = 6, blocks: int = 2) -> nn.Module:
    entries = {
        "query_embed": (queries, 4),
        "encoder.conv1.weight": (width, 3, patch, patch),
        "encoder.positional_embedding": (grid * grid + 1, width),
        "ffn1.layers.0.weight": (2, 2),
    }
    entries |= {f"decoder.layers.{i}.norm1.weight": (2,) for i in range(layers)}
    entries |= {f"encoder.transformer.resblocks.{i}.ln_1.weight": (2,) for i in range(blocks)}
    return from_shapes(entries)


def from_shapes(entries: dict[str, tuple[int, ...]]) -> nn.Module:
    root = nn.Module()
    for name, shape in entries.items():
        *path, leaf = name.split(".")
        part = root
        for key in path:
            if not hasattr(part, key):
                part.add_module(key, nn.Module())
            part = getattr(part, key)
        part.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))
    return root


@pytest.mark.parametrize(
    ("found", "expected", "sentence"),
    [
        (
            fake_zutis(8, 32, 7),
            fake_zutis(8, 16, 14),
            "ViT (width 8, patch 32, grid 7) weights; the config says ViT (width 8, patch 16, grid 14)",
        ),
        (fake_zutis(768, 32, 7), fake_zutis(768, 16, 14), "these look like ViT-B/32 weights; the config says ViT-B/16"),
        (fake_zutis(1024, 14, 24), fake_zutis(1024, 14, 16), "ViT-L/14@336px weights; the config says ViT-L/14"),
        (fake_zutis(8, 4, 2, queries=20), fake_zutis(8, 4, 2), "20-query weights; the config says 100-query"),
        (
            fake_zutis(8, 4, 2, layers=3),
            fake_zutis(8, 4, 2),
            "3-layer decoder weights; the config says 6-layer decoder",
        ),
        (fake_zutis(8, 4, 2, blocks=1), fake_zutis(8, 4, 2), "1-block transformer weights; the config says 2-block"),
        (
            from_shapes({"query_embed": (10, 4), "encoder.patch_embed.proj.weight": (4, 3, 8, 8)}),
            from_shapes({"query_embed": (20, 4), "encoder.patch_embed.proj.weight": (4, 3, 8, 8)}),
            "10-query (selfmask_nq10) weights; the config says 20-query (selfmask_nq20)",
        ),
        (
            from_shapes({"query_embed": (20, 4), "encoder.patch_embed.proj.weight": (4, 3, 8, 8)}),
            fake_zutis(8, 4, 2),
            "these look like SelfMask weights; the config asks for ZUTIS",
        ),
        (
            from_shapes({"text_projection": (4, 4), "token_embedding.weight": (4, 4)}),
            fake_zutis(8, 4, 2),
            "these look like CLIP weights; the config asks for ZUTIS",
        ),
        (from_shapes({"head.weight": (21, 4)}), from_shapes({"head.weight": (81, 4)}), "21-category weights"),
        (from_shapes({"net.a.weight": (4, 4)}), from_shapes({"a.weight": (4, 4)}), "carries the prefix 'net.'"),
        (from_shapes({"a.weight": (4, 4)}), from_shapes({"net.a.weight": (4, 4)}), "lack the prefix 'net.'"),
        (from_shapes({"a": (4, 4)}), from_shapes({"b": (4, 4)}), "belongs to another network: no name agrees"),
    ],
)
def test_likely_cause(found: nn.Module, expected: nn.Module, sentence: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load_strict(expected, found.state_dict(), source="w.pt")
    assert sentence in str(caught.value)


def test_resnet_architectures_are_told_apart() -> None:
    def resnet(stages: tuple[int, ...]) -> nn.Module:
        entries = {"encoder.conv1.weight": (4, 3, 3, 3), "query_embed": (4, 4), "ffn1.a": (1,)}
        for stage, count in enumerate(stages, start=1):
            entries |= {f"encoder.layer{stage}.{i}.conv1.weight": (1,) for i in range(count)}
        return from_shapes(entries)

    with pytest.raises(WeightsError, match="these look like RN101 weights; the config says RN50"):
        load_strict(resnet((3, 4, 6, 3)), resnet((3, 4, 23, 3)).state_dict(), source="w.pt")
