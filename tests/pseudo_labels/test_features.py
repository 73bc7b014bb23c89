import pytest
import timm
import torch
from torchvision.models import resnet50

from networks.clip import ClipDimensions, create_clip
from networks.clip_encoder import encoder_from_visual
from networks.vit import VisionTransformer
from pseudo_labels.features import FeatureSpec, load_feature_network
from pseudo_labels.preparation import IMAGENET_MEAN, IMAGENET_STD
from utils.errors import ConfigError, WeightsError

PICTURE = torch.rand(1, 3, 37, 52, generator=torch.Generator().manual_seed(0))


def normalised(mean=IMAGENET_MEAN, std=IMAGENET_STD, multiple=8):
    pixels = (PICTURE - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    return torch.nn.functional.pad(pixels, (0, -52 % multiple, 0, -37 % multiple))


def write_vit(path):
    torch.manual_seed(0)
    network = VisionTransformer(width=64, num_layers=3, patch_size=8, native_grid=4)
    torch.save({"state_dict": network.state_dict()}, path)
    return network.eval()


@torch.no_grad()
def test_vit_gives_patch_tokens(tmp_path):
    network = write_vit(tmp_path / "vit.pth")
    features = load_feature_network(FeatureSpec("dino_vits16", str(tmp_path / "vit.pth")))
    assert features.stride == 8
    expected = network(normalised())[:, 1:].transpose(1, 2).reshape(1, 64, 5, 7)
    assert torch.allclose(features(PICTURE), expected, atol=1e-6)


@torch.no_grad()
def test_block_is_counted_from_either_end(tmp_path):
    network = write_vit(tmp_path / "vit.pth")
    network.blocks = network.blocks[:2]
    expected = network(normalised())[:, 1:].transpose(1, 2).reshape(1, 64, 5, 7)
    for block in (2, -2):
        features = load_feature_network(FeatureSpec("vit", str(tmp_path / "vit.pth"), block))
        assert torch.allclose(features(PICTURE), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="block 4 was asked for, but this network has 3 blocks"):
        load_feature_network(FeatureSpec("vit", str(tmp_path / "vit.pth"), 4))


@torch.no_grad()
def test_clip_file_gives_patch_tokens_in_its_own_colours(tmp_path):
    torch.manual_seed(0)
    clip = create_clip(ClipDimensions(16, 32, 2, 64, 8, 77, 100, 64, 1, 1)).eval()
    torch.save(clip.model.state_dict(), tmp_path / "clip.pt")
    features = load_feature_network(FeatureSpec("clip", str(tmp_path / "clip.pt")))
    encoder = encoder_from_visual(clip.visual)
    pixels = normalised(clip.preprocess.mean, clip.preprocess.std)
    assert torch.allclose(features(PICTURE), encoder(pixels).permute(0, 3, 1, 2), atol=1e-5)
    early = load_feature_network(FeatureSpec("clip", str(tmp_path / "clip.pt"), 1))(PICTURE)
    assert early.shape == (1, 64, 5, 7)
    assert not torch.allclose(early, features(PICTURE), atol=1e-2)


@torch.no_grad()
def test_moco_file_loads_without_its_head(tmp_path):
    torch.manual_seed(0)
    state = {name: value for name, value in resnet50(weights=None).state_dict().items() if not name.startswith("fc.")}
    wrapped = {f"module.encoder_q.{name}": value for name, value in state.items()}
    wrapped |= {f"module.encoder_q.fc.{i}.{name}": torch.zeros(2) for i in (0, 2) for name in ("weight", "bias")}
    torch.save({"state_dict": wrapped}, tmp_path / "moco.pth")
    features = load_feature_network(FeatureSpec("mocov2_resnet50", str(tmp_path / "moco.pth")))
    assert len(features.body.state_dict()) == len(state) == 318
    assert features(PICTURE).shape == (1, 2048, 5, 7)
    with pytest.raises(ConfigError, match="has no blocks to choose from, received block 3"):
        load_feature_network(FeatureSpec("mocov2_resnet50", str(tmp_path / "moco.pth"), 3))


@torch.no_grad()
@pytest.mark.parametrize(("arch", "stride"), [("vit_tiny_patch16_224", 16), ("resnet10t", 32)])
def test_any_timm_backbone(tmp_path, arch, stride):
    network = timm.create_model(arch, pretrained=False)
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    features = load_feature_network(FeatureSpec(f"timm:{arch}", str(tmp_path / "timm.pth")))
    assert features.stride == stride
    assert features(PICTURE).shape[2:] == (-(-37 // stride), -(-52 // stride))


@torch.no_grad()
def test_timm_block_of_a_coarse_network(tmp_path):
    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "timm.pth")
    features = load_feature_network(FeatureSpec("timm:resnet10t", str(tmp_path / "timm.pth"), -3))
    assert features.stride == 8
    assert features(PICTURE).shape[2:] == (5, 7)


def test_errors_say_what_is_allowed(tmp_path):
    with pytest.raises(ConfigError, match="there is no network 'dino'; expected one of mocov2_resnet50"):
        FeatureSpec("dino", "x.pth")
    with pytest.raises(ConfigError, match="dino_vits16 needs weights, the path of a file"):
        FeatureSpec("dino_vits16")
    with pytest.raises(ConfigError, match="timm has no model 'vit_smal'"):
        load_feature_network(FeatureSpec("timm:vit_smal"))
    with pytest.raises(WeightsError, match="no such weight file"):
        load_feature_network(FeatureSpec("vit", str(tmp_path / "missing.pth")))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="a DINO vision transformer was expected"):
        load_feature_network(FeatureSpec("vit", str(tmp_path / "other.pth")))
