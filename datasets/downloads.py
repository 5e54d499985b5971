"""Download links of the public data sets, from public CoOp's DATASETS.md.

A link that users reported as dead has a note with the discussion and, if known, another source. No
link is tried here.
"""

from __future__ import annotations

from dataclasses import dataclass

_DRIVE = "https://drive.google.com/file/d/"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
_NO_CARS = (
    "dead since 2023, see CoOp issue #61; copies are named in "
    "https://github.com/pytorch/vision/issues/7545"
)
_NO_SUN = "dead since 2025, see CoOp issue #90 and https://github.com/pytorch/vision/issues/9348"
_NO_NAMES = "the file in imagenet/ is found without a copy"


@dataclass(frozen=True)
class Download:
    """Files or folders of a data set, and their source.

    Attributes:
        paths: the unpacked files or folders, relative to the data set's folder.
        url: the source.
        note: a remark, such as that the link is dead.
    """

    paths: tuple[str, ...]
    url: str
    note: str = ""


def _split(name: str, drive_id: str) -> Download:
    return Download((f"split_zhou_{name}.json",), _DRIVE + drive_id)


DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "ImageNet": (
        Download(("images/train",), "https://image-net.org", "needs an account"),
        Download(
            ("images/val",),
            "https://image-net.org",
            "needs an account; sort the images into a folder for each class",
        ),
        Download(("classnames.txt",), _DRIVE + "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"),
    ),
    "Caltech101": (
        Download(
            ("101_ObjectCategories",),
            "https://data.caltech.edu/records/mzrjq-6wc02",
            "CoOp's link to vision.caltech.edu is dead, see PromptKD issue #24",
        ),
        _split("Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
    ),
    "OxfordPets": (
        Download(("images",), _VGG + "pets/data/images.tar.gz"),
        Download(("annotations",), _VGG + "pets/data/annotations.tar.gz"),
        _split("OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
    ),
    "StanfordCars": (
        Download(
            ("cars_train",), "http://ai.stanford.edu/~jkrause/car196/cars_train.tgz", _NO_CARS
        ),
        Download(("cars_test",), "http://ai.stanford.edu/~jkrause/car196/cars_test.tgz", _NO_CARS),
        Download(("devkit",), "https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz", _NO_CARS),
        Download(
            ("cars_test_annos_withlabels.mat",),
            "http://ai.stanford.edu/~jkrause/car196/cars_test_annos_withlabels.mat",
            _NO_CARS,
        ),
        _split("StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
    ),
    "OxfordFlowers": (
        Download(("jpg",), _VGG + "flowers/102/102flowers.tgz"),
        Download(("imagelabels.mat",), _VGG + "flowers/102/imagelabels.mat"),
        Download(("cat_to_name.json",), _DRIVE + "1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0"),
        _split("OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
    ),
    "Food101": (
        Download(("images",), "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"),
        _split("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
    ),
    "FGVCAircraft": (
        Download(
            (
                "images",
                "variants.txt",
                "images_variant_train.txt",
                "images_variant_val.txt",
                "images_variant_test.txt",
            ),
            _VGG + "fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            "rename the archive's folder data to fgvc_aircraft",
        ),
    ),
    "SUN397": (
        Download(
            ("SUN397",), "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz", _NO_SUN
        ),
        Download(
            ("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
            "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",
            _NO_SUN,
        ),
        _split("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
    ),
    "DescribableTextures": (
        Download(("images",), _VGG + "dtd/download/dtd-r1.0.1.tar.gz"),
        _split("DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
    ),
    "EuroSAT": (
        Download(
            ("2750",),
            "https://zenodo.org/record/7711810",
            "the RGB images, class folders into 2750; the certificate of CoOp's link, "
            "madm.dfki.de, has expired, see phelber/EuroSAT issue #10",
        ),
        _split("EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
    ),
    "UCF101": (
        Download(
            ("UCF-101-midframes",),
            _DRIVE + "10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
            "the middle frame of each video",
        ),
        _split("UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
    ),
    "ImageNetV2": (
        Download(
            ("imagenetv2-matched-frequency-format-val",),
            "https://huggingface.co/datasets/vaishaal/ImageNetV2",
            "imagenetv2-matched-frequency.tar.gz; CoOp's link to amazonaws.com is refused, see "
            "modestyachts/ImageNetV2 issue #12",
        ),
        Download(("classnames.txt",), "imagenet/classnames.txt", _NO_NAMES),
    ),
    "ImageNetSketch": (
        Download(("images",), "https://github.com/HaohanWang/ImageNet-Sketch"),
        Download(("classnames.txt",), "imagenet/classnames.txt", _NO_NAMES),
    ),
    "ImageNetA": (
        Download(("imagenet-a",), "https://github.com/hendrycks/natural-adv-examples"),
        Download(("classnames.txt",), "imagenet/classnames.txt", _NO_NAMES),
    ),
    "ImageNetR": (
        Download(("imagenet-r",), "https://github.com/hendrycks/imagenet-r"),
        Download(("classnames.txt",), "imagenet/classnames.txt", _NO_NAMES),
    ),
}
"""The downloads of each ``DATASET.NAME``."""
