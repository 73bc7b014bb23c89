"""Every file that can be downloaded: one table of name, address, size and SHA-256 (where they are known)."""

from __future__ import annotations

from dataclasses import dataclass

_CLIP = "https://openaipublic.azureedge.net/clip/models"
_DEIT_SIN = (
    "https://github.com/Muzammal-Naseer/Intriguing-Properties-of-Vision-Transformers/releases/download/v0/"
    "deit_s_sin_dist.pth"
)
_VGG = "https://www.robots.ox.ac.uk/~vgg/research"
_DINO = "https://dl.fbaipublicfiles.com/dino"


@dataclass(frozen=True)
class RemoteFile:
    """One file behind an address.

    Attributes:
        url: where it is.
        file_name: its name in the cache, with a folder of its own where names would collide.
        num_bytes: exact size, if known.
        sha256: hexadecimal digest, if known.
        about: what it is, for people.
    """

    url: str
    file_name: str
    about: str
    num_bytes: int | None = None
    sha256: str | None = None


def _clip(name: str, file_name: str, sha256: str) -> tuple[str, RemoteFile]:
    return name, RemoteFile(f"{_CLIP}/{sha256}/{file_name}", f"clip/{file_name}", f"CLIP {name}", sha256=sha256)


def _vgg(path: str, about: str) -> tuple[str, RemoteFile]:
    """A file of the authors' server, named by its last part; its folders keep equal names apart in the cache."""
    project, _, rest = path.partition("/shared_files/")
    return path.rsplit("/", 1)[-1], RemoteFile(f"{_VGG}/{path}", f"{project}/{rest}", about)


def _dino(stem: str, about: str) -> tuple[str, RemoteFile]:
    """Self-supervised weights of DINO."""
    return f"{stem}.pth", RemoteFile(f"{_DINO}/{stem}/{stem}.pth", f"dino/{stem}.pth", about)


# Published files without an address that is known here -> what they are, and where they belong.
BY_HAND: dict[str, str] = {
    "namedmask_<benchmark>.pt": "NamedMask; its path is the first argument of the benchmark's script",
    "expert_<category>.pt": "NamedMask's experts of VOC2012; experts.dir_weights=FOLDER names their folder",
    "<benchmark>_category_to_p_images_n500.json": "images retrieved by NamedMask; into archives/namedmask/",
    "SelfMask's masks of ImageNet (zip)": "unpack as ImageNet2012/train_pseudo_masks_selfmask/",
    "NamedMask's experts' masks (zips)": "unpack as ImageNet2012/train_pseudo_masks_experts/<benchmark>/",
}
FILES: dict[str, RemoteFile] = dict(
    [
        _clip("RN50", "RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
        _clip("RN101", "RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
        _clip("RN50x4", "RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
        _clip("RN50x16", "RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
        _clip("RN50x64", "RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
        _clip("ViT-B/32", "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        _clip("ViT-B/16", "ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        _clip("ViT-L/14", "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        _clip(
            "ViT-L/14@336px", "ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
        ),
        _dino("dino_resnet50_pretrain", "DINO ResNet-50, where NamedMask's segmenters start from"),
        ("deit_s_sin_dist.pth", RemoteFile(_DEIT_SIN, "deit_s_sin_dist.pth", "DeiT-S/16 for shapes, ReCo's encoder")),
        _vgg("selfmask/shared_files/selfmask_nq20.pt", "SelfMask, 20 queries"),
        _vgg("zutis/shared_files/coco2017/coco_vit_b_16.pt", "ZUTIS for COCO2017 and COCO-20K, ViT-B/16"),
        _vgg("zutis/shared_files/coca/coca_vit_b_16.pt", "ZUTIS for CoCA, ViT-B/16"),
        _vgg("zutis/shared_files/imagenet-s919/imagenet_s919_vit_b_32.pt", "ZUTIS for ImageNet-S919, ViT-B/32"),
        _vgg("zutis/shared_files/imagenet-s919/imagenet_s919_vit_b_16.pt", "ZUTIS for ImageNet-S919, ViT-B/16"),
        _vgg(
            "zutis/shared_files/imagenet2012/filename_to_ViT_L_14_336px_train_img_embedding.pkl",
            "CLIP embeddings of the ImageNet training images, 4.1 GB",
        ),
        _vgg(
            "zutis/shared_files/pass/filename_to_ViT_L_14_336px_img_embedding.pkl",
            "CLIP embeddings of the PASS images, 4.6 GB",
        ),
        _vgg(
            "zutis/shared_files/index_dataset/coca_category_to_p_images_n500.json",
            "images retrieved for CoCA's categories",
        ),
        _vgg(
            "zutis/shared_files/index_dataset/coco2017_category_to_p_images_n500.json",
            "images retrieved for COCO's categories",
        ),
        _vgg(
            "zutis/shared_files/index_dataset/imagenet_s919_category_to_p_images_n500.json",
            "images retrieved for ImageNet-S919's categories",
        ),
    ]
)
