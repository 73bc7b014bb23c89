"""Names of ReCo's files and folders."""

from __future__ import annotations

from utils.naming_reco import embedding_file_name, reco_folder, reference_file_name, reference_name


def test_published_names():
    name = reference_name(encoder_arch="DeiT-S/16-SIN")
    assert reference_file_name(name, 50) == "deit_s_16_sin_in_train_ce_ta_cat_to_img_feature_k50.pkl"
    folder = reco_folder(dataset="kitti_step", split="val", name=name, num_images=5, dense_clip_inference=True)
    assert folder.as_posix() == "kitti_step/val/reco/deit_s_16_sin_in_train_ce_ta_dc/k005"
    assert embedding_file_name("ViT-L/14@336px", "train") == "filename_to_ViT_L_14_336px_train_img_embedding.pkl"


def test_encoders_of_our_own(tmp_path):
    options = {"context_elimination": False, "text_attention": False, "imagenet_split": "index", "suffix": "try 2"}
    assert reference_name(encoder_arch="timm:vit_tiny.a", **options) == "timm_vit_tiny.a_in_index_try 2"
    path = tmp_path / "My-Encoder.pth"
    path.touch()
    assert reference_name(encoder_arch=str(path)) == "my_encoder_in_train_ce_ta"
