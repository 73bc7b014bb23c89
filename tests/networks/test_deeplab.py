"""DeepLabv3+: its names, its sizes, its weights in every dialect, and the words for weights that do not fit."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from networks import backbone_weights
from networks.backbone_weights import read_backbone_weights
from networks.checkpoints import load_strict
from networks.deeplab import BACKBONE_MOMENTUM, DeepLabV3Plus, build_deeplab, deeplab_from_state_dict
from networks.mobilenet import DilatedMobileNetV2
from networks.resnet import DilatedResNet
from utils.errors import ConfigError, UserError, WeightsError

CASES = Path(__file__).parents[1] / "parity" / "cases"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def mobilenet() -> DeepLabV3Plus:
    torch.manual_seed(0)
    return DeepLabV3Plus("mobilenet", 7).eval()


def shapes_of(case: str) -> dict[str, list[int]]:
    return json.loads((CASES / f"{case}.json").read_text(encoding="utf-8"))["weights"]["shapes"]


# ---- names and numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "num_classes", "case", "num_entries"),
    [
        ("resnet50", 21, "namedmask/deeplab_voc21_64x64", 372),
        ("resnet101", 19, "reco/deeplab_rn101", 678),
        ("mobilenet", 5, "reco/deeplab_mobilenet", 360),
    ],
)
def test_names_and_shapes_are_the_published_ones(backbone: str, num_classes: int, case: str, num_entries: int) -> None:
    with torch.device("meta"):
        network = DeepLabV3Plus(backbone, num_classes)
    state = network.state_dict()
    assert len(state) == num_entries
    assert {name: list(value.shape) for name, value in state.items()} == shapes_of(case)
    if backbone == "resnet50":
        assert sum(parameter.numel() for parameter in network.parameters()) == 26_614_373


def test_norms_and_initial_values_follow_the_recipe() -> None:
    torch.manual_seed(0)
    network = build_deeplab("mobilenet", 3)
    norms = {
        part: {module.momentum for module in getattr(network, part).modules() if isinstance(module, nn.BatchNorm2d)}
        for part in ("backbone", "classifier")
    }
    assert norms == {"backbone": {BACKBONE_MOMENTUM}, "classifier": {0.1}}
    assert {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}
    for module in network.classifier.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)


def test_parameter_groups_hold_everything_once(mobilenet: DeepLabV3Plus) -> None:
    backbone, head = mobilenet.parameter_groups(1e-5, 1e-4)
    assert (backbone["lr"], head["lr"]) == (1e-5, 1e-4)
    grouped = [id(parameter) for group in (backbone, head) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in mobilenet.parameters()}
    assert {id(parameter) for parameter in backbone["params"]} == {id(p) for p in mobilenet.backbone.parameters()}


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ValueError, match="no backbone 'vgg'; expected one of resnet50, resnet101, mobilenet"):
        DeepLabV3Plus("vgg", 2)


# ---- pictures of all sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 5), (33, 50)])
@torch.inference_mode()
def test_tiny_and_odd_pictures(backbone: str, size: tuple[int, int], mobilenet: DeepLabV3Plus) -> None:
    network = mobilenet if backbone == "mobilenet" else DeepLabV3Plus("resnet50", 7).eval()
    images = torch.randn(2, 3, *size)
    logits, (low, high) = network(images), network.backbone.low_and_high(images)
    assert logits.shape == (2, 7, *low.shape[2:])
    assert logits.isfinite().all()
    assert all(b <= a <= 2 * b for a, b in zip(low.shape[2:], high.shape[2:], strict=True))
    if backbone == "resnet50":
        assert low.shape[2:] == tuple(-(-side // 4) for side in size)


@torch.inference_mode()
def test_a_batch_gives_what_its_pictures_give_alone(mobilenet: DeepLabV3Plus) -> None:
    images = torch.randn(3, 3, 40, 51)
    together = mobilenet(images)
    for image, logits in zip(images, together, strict=True):
        assert torch.allclose(mobilenet(image[None])[0], logits, atol=1e-5)
        channels_last = image[None].contiguous(memory_format=torch.channels_last)
        assert torch.allclose(mobilenet(channels_last)[0], logits, atol=1e-5)


def test_one_picture_cannot_be_trained_on_but_can_be_segmented(mobilenet: DeepLabV3Plus) -> None:
    image = torch.randn(1, 3, 32, 32)
    assert mobilenet(image).shape[0] == 1
    network = DeepLabV3Plus("mobilenet", 2).train()
    with pytest.raises(UserError, match=r"cannot be trained on one picture at a time.*batch size of 2 or more"):
        network(image)
    network(image.expand(2, -1, -1, -1)).sum().backward()


def test_pictures_of_another_shape_are_refused(mobilenet: DeepLabV3Plus) -> None:
    with pytest.raises(ValueError, match=r"expected pictures \(B, 3, H, W\), received \(2, 32, 32, 3\)"):
        mobilenet(torch.randn(2, 32, 32, 3))


# ---- whole weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "mobilenet"])
def test_weights_tell_their_backbone_and_classes_and_need_no_network(
    backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = DeepLabV3Plus(backbone, 4).state_dict()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    random = torch.get_rng_state()
    network = deeplab_from_state_dict(state, num_classes=4)
    assert torch.equal(torch.get_rng_state(), random)
    assert not network.training
    assert network.num_classes == 4
    assert network.parameter_groups()[0]["lr"] == 5e-5
    loaded = network.state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_another_number_of_classes_says_both_and_what_to_change(mobilenet: DeepLabV3Plus) -> None:
    with pytest.raises(WeightsError) as caught:
        deeplab_from_state_dict(mobilenet.state_dict(), num_classes=21, source="coco.pt")
    assert str(caught.value) == (
        "coco.pt: these weights have 7 classes, the benchmark asks for 21. Use the script or config of the benchmark "
        "that they were trained for, or set dataset_name or categories to it."
    )


def test_missing_superfluous_and_misshapen_entries_are_listed(mobilenet: DeepLabV3Plus) -> None:
    state = mobilenet.state_dict()
    del state["classifier.project.0.weight"]
    state["classifier.extra"] = torch.zeros(1)
    state["classifier.aspp.project.0.weight"] = torch.zeros(256, 1024, 1, 1)
    with pytest.raises(WeightsError) as caught:
        deeplab_from_state_dict(state, source="w.pt")
    text = str(caught.value)
    assert "1 missing in the file:\n    classifier.project.0.weight" in text
    assert "1 not known to the network:\n    classifier.extra" in text
    assert "classifier.aspp.project.0.weight: file 256x1024x1x1, network 256x1280x1x1" in text


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}, "these look like ResNet weights"),
        ({"a": torch.zeros(1)}, r"these are not \(first entries: a\)"),
        ({}, r"these are not \(first entries: nothing\)"),
    ],
)
def test_weights_of_another_network_are_named(state: State, cause: str) -> None:
    with pytest.raises(WeightsError, match=rf"w\.pt: weights of a DeepLabv3\+ were expected.*{cause}"):
        deeplab_from_state_dict(state, source="w.pt")


def test_resuming_with_other_classes_or_another_backbone_tells_the_cause() -> None:
    with torch.device("meta"):
        networks = {key: DeepLabV3Plus(*key) for key in [("mobilenet", 2), ("mobilenet", 3), ("resnet50", 2)]}
    two, three, resnet = networks.values()
    with pytest.raises(WeightsError, match="these look like 3-category weights; the config says 2-category"):
        load_strict(two, three.state_dict(), source="w.pt")
    with pytest.raises(WeightsError, match="these look like resnet50 weights; the config says mobilenet"):
        load_strict(two, resnet.state_dict(), source="w.pt")
    with pytest.raises(WeightsError, match=r"these look like ResNet weights; the config asks for DeepLabv3\+"):
        load_strict(resnet, resnet.backbone.state_dict(), source="w.pt")


# ---- a backbone's weights -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet_state() -> State:
    torch.manual_seed(1)
    return DilatedResNet(50).state_dict()


def without_counters(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


HEADED = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
DIALECTS: dict[str, Callable[[State], State]] = {
    "dino": lambda state: state,
    "torchvision": lambda state: {**state, **HEADED},
    "torchvision before 2018": lambda state: {**without_counters(state), **HEADED},
    "data parallel": lambda state: prefixed(state, "module."),
    "moco v2": lambda state: (
        prefixed(state, "module.encoder_q.")
        | prefixed({**state, "fc.0.weight": torch.zeros(1)}, "module.encoder_k.")
        | {"module.encoder_q.fc.0.weight": torch.zeros(1), "module.queue": torch.zeros(1)}
    ),
    "moco v3": lambda state: (
        prefixed(state, "module.base_encoder.")
        | prefixed(state, "module.momentum_encoder.")
        | {"module.base_encoder.fc.0.weight": torch.zeros(1), "module.predictor.0.weight": torch.zeros(1)}
    ),
    "swav": lambda state: (
        prefixed(state, "module.")
        | {"module.projection_head.0.weight": torch.zeros(1), "module.prototypes.weight": torch.zeros(1)}
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_resnet_starts_from_every_dialect(dialect: str, resnet_state: State) -> None:
    network = build_deeplab("resnet50", 3, DIALECTS[dialect](resnet_state), source=dialect)
    assert network.training
    found = network.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in resnet_state.items())


def test_the_head_stays_random_and_a_backbone_may_be_too(resnet_state: State) -> None:
    first, second = (build_deeplab("resnet50", 3, resnet_state) for _ in range(2))
    assert not torch.equal(first.classifier.project[0].weight, second.classifier.project[0].weight)
    random = build_deeplab("mobilenet", 3)
    assert random.backbone.low_level_features[0][0].weight.std() > 0


def test_a_mobilenet_starts_from_torchvisions_names() -> None:
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    theirs = mobilenet_v2(weights=None).state_dict()
    found = build_deeplab("mobilenet", 3, theirs).backbone.state_dict()
    assert torch.equal(found["low_level_features.0.0.weight"], theirs["features.0.0.weight"])
    assert torch.equal(found["high_level_features.17.conv.3.running_var"], theirs["features.17.conv.3.running_var"])
    assert len(found) == len([name for name in theirs if not name.startswith(("features.18.", "classifier."))])


def test_a_backbone_that_does_not_fit_is_refused(resnet_state: State) -> None:
    with pytest.raises(WeightsError, match="these look like RN50 weights; the config says RN101"):
        build_deeplab("resnet101", 3, resnet_state, source="dino.pth")
    with pytest.raises(WeightsError, match=r"dino\.pth: a MobileNetV2 in torchvision's names was expected"):
        build_deeplab("mobilenet", 3, resnet_state, source="dino.pth")
    with pytest.raises(WeightsError, match=r"mobile\.pth: a ResNet was expected, but conv1\.weight is missing"):
        build_deeplab("resnet50", 3, DilatedMobileNetV2().state_dict(), source="mobile.pth")
    cut = {name: value for name, value in resnet_state.items() if not name.startswith("layer4.2.")}
    with pytest.raises(WeightsError, match=r"layer4\.2\.conv1\.weight"):
        build_deeplab("resnet50", 3, cut)


# ---- settings of a backbone's weights -------------------------------------------------------------------------------


def test_nothing_a_file_and_dino(tmp_path: Path, resnet_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_backbone_weights(None, "resnet50") is None
    torch.save(resnet_state, tmp_path / "dino.pth")
    assert set(read_backbone_weights(tmp_path / "dino.pth", "resnet50")) == set(resnet_state)
    asked: list[str] = []

    def fetch(name: str) -> Path:
        asked.append(name)
        return tmp_path / "dino.pth"

    monkeypatch.setattr(backbone_weights, "fetch", fetch)
    assert set(read_backbone_weights("dino", "resnet50")) == set(resnet_state)
    assert asked == ["dino_resnet50_pretrain.pth"]


def test_dino_is_in_the_table_of_downloads() -> None:
    from utils.download_table import FILES

    assert FILES["dino_resnet50_pretrain.pth"].url.endswith("/dino_resnet50_pretrain.pth")


def test_words_that_name_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'dino' are a ResNet-50's, but the backbone is resnet101"):
        read_backbone_weights("dino", "resnet101")
    with pytest.raises(ConfigError, match=r"expected dino, torchvision, timm:<name>, or a file, received 'imagenet'"):
        read_backbone_weights("imagenet", "resnet50")
    with pytest.raises(WeightsError, match=r"missing\.pth: no such weight file"):
        read_backbone_weights(tmp_path / "missing.pth", "resnet50")
    with pytest.raises(ConfigError, match="MobileNets of timm do not fit"):
        read_backbone_weights("timm:mobilenetv2_100", "mobilenet")
    with pytest.raises(ConfigError, match="timm has no model 'resnet51'"):
        read_backbone_weights("timm:resnet51", "resnet50")


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "mobilenet"])
def test_torchvisions_own_weights(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models

    asked: list[str] = []
    name = {"mobilenet": "mobilenet_v2"}.get(backbone, backbone)
    state = getattr(torchvision.models, name)(weights=None).state_dict()

    def load(url: str, **options: object) -> State:
        asked.append(url)
        assert options["check_hash"]
        assert options["weights_only"]
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    build_deeplab(backbone, 2, read_backbone_weights("torchvision", backbone))
    assert f"{name}-" in asked[0]

    def offline(url: str, **_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=r"'torchvision': .*cannot be had \(no route to host\)"):
        read_backbone_weights("torchvision", backbone)


def test_timms_resnets_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create, asked = timm.create_model, []

    def offline(name: str, pretrained: bool, **options: object) -> nn.Module:
        asked.append((name, pretrained))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    state = read_backbone_weights("timm:resnet50.a1_in1k", "resnet50")
    assert asked == [("resnet50.a1_in1k", True)]
    assert torch.equal(build_deeplab("resnet50", 2, state).backbone.conv1.weight, state["conv1.weight"])

    def refuse(*_: object, **__: object) -> None:
        raise OSError("cannot reach the server\nat all")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError, match=r"'timm:resnet50' could not be loaded \(cannot reach the server\)"):
        read_backbone_weights("timm:resnet50", "resnet50")
