"""The table of the fifteen public data sets of the CoOp family: folders, files and readers.

Folders, file names, class names and the yaml names in ``configs/datasets`` are those of public
CoOp, so data prepared for public CoOp is found.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .annotations import (
    read_aircraft,
    read_cars,
    read_class_folders,
    read_flowers,
    read_pets,
    read_sun,
    read_ucf,
)
from .imagenet import read_imagenet, read_numbered_folders, read_test_folders
from .splits import Split


@dataclass(frozen=True)
class PublicSet:
    """A row of the table.

    Attributes:
        name: the data set's ``DATASET.NAME``.
        n_classes: the number of its classes.
        config: the name of the data set's yaml.
        folder: the data set's folder in ``DATASET.ROOT``.
        images: the image folder in ``folder``.
        split_file: the file of the published split, or "" if there is none.
        read: a function of (folder, image folder, random generator) that returns a split if
            ``split_file`` is missing.
        annotations: the files that ``read`` needs besides the images.
        classes: the source of labels and class names in ``read``, in words.
        image_folders: the folders in ``images`` that may be symlinks.
        val_is_test: whether the test part is also the validation part.
        test_only: whether all images are for test; no shots are drawn and no classes dropped.
    """

    name: str
    n_classes: int
    config: str
    folder: str
    images: str
    split_file: str
    read: Callable[[Path, Path, random.Random], Split]
    annotations: tuple[str, ...] = ()
    classes: str = "folders"
    image_folders: tuple[str, ...] = ()
    val_is_test: bool = False
    test_only: bool = False


_CALTECH = partial(
    read_class_folders,
    ignored=("BACKGROUND_Google", "Faces_easy"),
    renamed={
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    },
)
_EUROSAT = partial(
    read_class_folders,
    renamed={
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    },
)

TABLE = (
    PublicSet(
        "ImageNet", 1000, "imagenet", "imagenet", "images", "", read_imagenet,
        classes="classnames.txt", image_folders=("train", "val"), val_is_test=True,
    ),
    PublicSet(
        "Caltech101", 100, "caltech101", "caltech-101", "101_ObjectCategories",
        "split_zhou_Caltech101.json", _CALTECH,
        classes="folders without BACKGROUND_Google and Faces_easy; four are renamed",
    ),
    PublicSet(
        "OxfordPets", 37, "oxford_pets", "oxford_pets", "images", "split_zhou_OxfordPets.json",
        read_pets, ("annotations/trainval.txt", "annotations/test.txt"), "lower-case breeds",
    ),
    PublicSet(
        "StanfordCars", 196, "stanford_cars", "stanford_cars", ".", "split_zhou_StanfordCars.json",
        read_cars,
        (
            "devkit/cars_meta.mat",
            "devkit/cars_train_annos.mat",
            "cars_test_annos_withlabels.mat",
        ),
        "class_names, year first", image_folders=("cars_train", "cars_test"),
    ),
    PublicSet(
        "OxfordFlowers", 102, "oxford_flowers", "oxford_flowers", "jpg",
        "split_zhou_OxfordFlowers.json", read_flowers, ("imagelabels.mat", "cat_to_name.json"),
        "cat_to_name.json",
    ),
    PublicSet(
        "Food101", 101, "food101", "food-101", "images", "split_zhou_Food101.json",
        read_class_folders,
    ),
    PublicSet(
        "FGVCAircraft", 100, "fgvc_aircraft", "fgvc_aircraft", "images", "", read_aircraft,
        (
            "variants.txt",
            "images_variant_train.txt",
            "images_variant_val.txt",
            "images_variant_test.txt",
        ),
        "variants.txt",
    ),
    PublicSet(
        "SUN397", 397, "sun397", "sun397", "SUN397", "split_zhou_SUN397.json", read_sun,
        ("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
        "parts of the path, in reverse order",
    ),
    PublicSet(
        "DescribableTextures", 47, "dtd", "dtd", "images", "split_zhou_DescribableTextures.json",
        read_class_folders,
    ),
    PublicSet(
        "EuroSAT", 10, "eurosat", "eurosat", "2750", "split_zhou_EuroSAT.json", _EUROSAT,
        classes="folders; eight are renamed",
    ),
    PublicSet(
        "UCF101", 101, "ucf101", "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", read_ucf,
        (
            "ucfTrainTestlist/classInd.txt",
            "ucfTrainTestlist/trainlist01.txt",
            "ucfTrainTestlist/testlist01.txt",
        ),
        "actions, with an underscore before each capital letter",
    ),
    PublicSet(
        "ImageNetV2", 1000, "imagenetv2", "imagenetv2", "imagenetv2-matched-frequency-format-val",
        "", read_numbered_folders, classes="lines of classnames.txt", test_only=True,
    ),
    PublicSet(
        "ImageNetSketch", 1000, "imagenet_sketch", "imagenet-sketch", "images", "",
        read_test_folders, classes="classnames.txt", test_only=True,
    ),
    PublicSet(
        "ImageNetA", 200, "imagenet_a", "imagenet-adversarial", "imagenet-a", "", read_test_folders,
        classes="classnames.txt", test_only=True,
    ),
    PublicSet(
        "ImageNetR", 200, "imagenet_r", "imagenet-rendition", "imagenet-r", "", read_test_folders,
        classes="classnames.txt", test_only=True,
    ),
)  # fmt: skip
