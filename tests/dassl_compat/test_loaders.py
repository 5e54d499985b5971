"""Data sets and loaders: batches, few-shot draws, determinism and errors."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from anchoropt_plugin import UserError
from anchoropt_plugin.dassl_compat.data import data_manager, image_cache
from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.utils import set_random_seed


def items(counts):
    return [
        Datum(f"{label}/{i}.png", label, 0, f"class {label}")
        for label, count in counts.items()
        for i in range(count)
    ]


class Plain(DatasetBase):
    def __init__(self, train):
        super().__init__(train_x=train, val=train[:1], test=train)


def test_classes_of_a_data_set():
    dataset = Plain(items({2: 1, 0: 2, 1: 1}))
    assert dataset.num_classes == 3
    assert dataset.classnames == ["class 0", "class 1", "class 2"]
    assert dataset.lab2cname[2] == "class 2"
    assert dataset.train_u is None


def test_few_shots_are_drawn_with_the_global_random(capsys):
    train, val = items({1: 5, 0: 3, 2: 9}), items({0: 2, 1: 1})
    dataset = Plain(train)
    random.seed(7)
    drawn = dataset.generate_fewshot_dataset(train, val, num_shots=3)
    random.seed(7)
    by_hand = [random.sample([item for item in train if item.label == y], 3) for y in (1, 0, 2)]
    assert drawn[0] == [item for group in by_hand for item in group]
    assert drawn[1] == val, "a class with fewer images keeps all of them"
    assert capsys.readouterr().out == "Creating a 3-shot dataset\n"
    assert dataset.generate_fewshot_dataset(train, num_shots=-1) is train
    assert len(dataset.generate_fewshot_dataset(val, num_shots=4, repeat=True)) == 8


def test_batches(cfg):
    dm = DataManager(cfg)
    batch = next(iter(dm.train_loader_x))
    assert set(batch) == {"img", "label", "domain", "impath", "index"}
    assert batch["img"].shape == (4, 3, 8, 8)
    assert batch["img"].dtype == torch.float32
    assert batch["label"].dtype == torch.int64
    for path, label, index in zip(batch["impath"], batch["label"], batch["index"], strict=True):
        assert dm.dataset.train_x[index].impath == path
        assert dm.dataset.train_x[index].label == label
    assert (dm.num_classes, dm.num_source_domains, dm.lab2cname[1]) == (3, 0, "middle")
    assert dm.train_loader_u is None


def test_a_loader_of_a_hosts_own(cfg):
    dm = DataManager(cfg)
    few = dm.dataset.train_x[::3]
    arguments = {"data_source": few, "batch_size": 4, "tfm": T.ToTensor()}
    batches = list(build_data_loader(cfg, "SequentialSampler", **arguments, is_train=False))
    assert [path for batch in batches for path in batch["impath"]] == [x.impath for x in few]
    assert [len(batch["img"]) for batch in batches] == [4, 2]
    for image, path in zip(torch.cat([batch["img"] for batch in batches]), few, strict=True):
        assert torch.equal(image, T.ToTensor()(Image.open(path.impath).convert("RGB")))
    assert [len(batch["img"]) for batch in build_data_loader(cfg, **arguments)] == [4]
    with pytest.raises(UserError, match="list of images is empty"):
        build_data_loader(cfg)


def domains_and_classes():
    return [Datum(f"{i}", label=i % 5, domain=i % 3) for i in range(36)]


@pytest.mark.parametrize(
    ("name", "attribute", "groups"),
    [
        ("RandomDomainSampler", "domain", 2),
        ("SeqDomainSampler", "domain", 3),
        ("RandomClassSampler", "label", 3),
    ],
)
def test_batches_of_equal_parts(name, attribute, groups):
    source = domains_and_classes()
    set_random_seed(1)
    sampler = build_sampler(name, None, source, batch_size=6, n_domain=2, n_ins=2)
    order = list(sampler)
    assert len(order) % 6 == len(sampler) % 6 == 0
    assert len(set(order)) == len(order) >= 24, "no image twice, and not many left over"
    seen = [[getattr(source[i], attribute) for i in order[s : s + 6]] for s in range(0, 24, 6)]
    for batch in seen:
        parts = [batch[s : s + 6 // groups] for s in range(0, 6, 6 // groups)]
        assert all(len(set(part)) == 1 for part in parts)
        assert len({part[0] for part in parts}) == groups
    if name == "SeqDomainSampler":
        assert seen[0] == [0, 0, 1, 1, 2, 2]
    else:
        assert len({tuple(batch) for batch in seen}) > 1
    set_random_seed(1)
    again = list(build_sampler(name, None, source, batch_size=6, n_domain=2, n_ins=2))
    assert again == order


def test_a_class_with_too_few_images_repeats_them():
    source = [Datum("0", label=0), *[Datum("1", label=1)] * 4]
    order = list(build_sampler("RandomClassSampler", None, source, batch_size=4, n_ins=2))
    assert sorted(order[:4]).count(0) == 2 and len(set(order[:4]) - {0}) == 2


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("RandomClassSampler", {"n_ins": 4}, "N_INS is 4"),
        ("RandomClassSampler", {"n_ins": 1}, "parts of 6 labels; the images have 5"),
        ("RandomDomainSampler", {"n_domain": 4}, "parts of 4 domains; the images have 3"),
        ("NoSuchSampler", {}, "'NoSuchSampler'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name, numbers, message):
    with pytest.raises(UserError, match=message):
        build_sampler(name, None, domains_and_classes(), batch_size=6, **numbers)


@pytest.mark.parametrize("limit", [60, 20])
def test_too_many_open_files_are_one_line(cfg, limit):
    code = f"""
import resource, sys
sys.path.insert(0, "")
from tests.dassl_compat.conftest import GreyImages
from anchoropt_plugin.process.command_line import status_of
from dassl.config import get_cfg_default
from dassl.data import DataManager
cfg = get_cfg_default()
cfg.DATASET.NAME, cfg.DATASET.ROOT = "GreyImages", {cfg.DATASET.ROOT!r}
cfg.USE_CUDA, cfg.INPUT.SIZE, cfg.DATALOADER.NUM_WORKERS = False, (8, 8), 8
cfg.DATALOADER.TEST.BATCH_SIZE = 1
loader = DataManager(cfg).test_loader
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
sys.exit(status_of(lambda: len([batch for _ in range(3) for batch in loader])))
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (
        2,
        "error: too many open files: raise the limit (ulimit -n 4096), or use fewer worker "
        "processes (DATALOADER.NUM_WORKERS)\n",
    )


def test_only_the_test_order_is_fixed(cfg):
    dm = DataManager(cfg)
    assert torch.cat([batch["index"] for batch in dm.test_loader]).tolist() == list(range(12))
    seen = [torch.cat([batch["index"] for batch in dm.train_loader_x]).tolist() for _ in range(2)]
    assert seen[0] != seen[1]


@pytest.mark.parametrize(("batch_size", "batches"), [(4, 4), (18, 1), (19, 1), (7, 2)])
def test_an_incomplete_batch_is_dropped_only_after_a_full_one(cfg, batch_size, batches):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = batch_size
    loader = DataManager(cfg).train_loader_x
    sizes = [len(batch["label"]) for batch in loader]
    assert len(loader) == len(sizes) == batches
    assert set(sizes) == {min(batch_size, 18)}


def views(cfg):
    set_random_seed(5)
    return torch.cat([batch["img"] for batch in DataManager(cfg).train_loader_x])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_fixes_order_and_augmentation(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    first = views(cfg)
    assert torch.equal(views(cfg), first)
    set_random_seed(6)
    other = torch.cat([batch["img"] for batch in DataManager(cfg).train_loader_x])
    assert not torch.equal(other, first)


def test_several_transforms_views_and_the_plain_image(cfg):
    cfg.DATALOADER.K_TRANSFORMS, cfg.DATALOADER.RETURN_IMG0 = 2, True
    source = build_dataset(cfg).train_x
    two = [T.Compose([T.RandomCrop(8), T.ToTensor()]), T.ToTensor()]
    item = DatasetWrapper(cfg, source, transform=two, is_train=True)[3]
    assert [view.shape for view in item["img"]] == [(3, 8, 8)] * 2
    assert [view.shape for view in item["img2"]] == [(3, 10, 12)] * 2
    assert item["img0"].shape == (3, 8, 8)
    assert DatasetWrapper(cfg, source, transform=two[1])[3]["img"].shape == (3, 10, 12)
    untouched = DatasetWrapper(cfg, source)[3]["img"]
    assert isinstance(untouched, Image.Image)
    with pytest.raises(UserError, match="K_TRANSFORMS"):
        DatasetWrapper(cfg, source, is_train=True)


def test_custom_transforms_and_wrapper(cfg):
    class Numbered(DatasetWrapper):
        def __getitem__(self, idx):
            return {"img": self.transform(idx)}

    dm = DataManager(cfg, lambda i: -i, lambda i: 10 * i, dataset_wrapper=Numbered)
    assert next(iter(dm.test_loader))["img"].tolist() == [0, 10, 20, 30, 40]
    assert all(number <= 0 for number in next(iter(dm.train_loader_x))["img"].tolist())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_broken_image_is_named_in_one_line(cfg, images, tmp_path, workers, damage):
    cfg.DATASET.ROOT = str(shutil.copytree(images, tmp_path / "data"))
    cfg.DATALOADER.NUM_WORKERS = workers
    victim = Path(cfg.DATASET.ROOT, "test", "middle", "2.png")
    if damage == "remove":
        victim.unlink()
    else:
        noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(victim)
        victim.write_bytes(victim.read_bytes()[:1000])
    with pytest.raises(UserError) as caught:
        list(DataManager(cfg).test_loader)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(("the image", "cannot read the image"))
    assert str(victim) in message


def test_unknown_names(cfg):
    cfg.DATALOADER.TEST.SAMPLER = "SequentialSample"
    with pytest.raises(UserError, match="did you mean 'SequentialSampler'"):
        DataManager(cfg)
    cfg.DATASET.NAME = "GrayImages"
    with pytest.raises(UserError, match=r"DATASET\.NAME is .* \(did you mean 'GreyImages'\?\)"):
        DataManager(cfg)


def test_no_transform_makes_no_batch(cfg):
    cfg.INPUT.NO_TRANSFORM = True
    with pytest.raises(UserError, match=r"INPUT\.NO_TRANSFORM is True"):
        DataManager(cfg)
    assert len(DataManager(cfg, T.ToTensor(), T.ToTensor()).test_loader) == 3


def test_ctrl_c_in_the_middle_of_making_workers_comes_after_it(cfg, monkeypatch):
    cfg.DATALOADER.NUM_WORKERS = 2
    loader = DataManager(cfg).test_loader
    begun = []
    make = data_manager.DataLoader.__iter__

    def pressed(self):
        signal.raise_signal(signal.SIGINT)
        begun.append(make(self))
        return begun[0]

    monkeypatch.setattr(data_manager.DataLoader, "__iter__", pressed)
    with pytest.raises(KeyboardInterrupt):
        next(iter(loader))
    for worker in begun[0]._workers:
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(begun[0])) == 3, "the workers go on"


def test_a_part_without_images(cfg, monkeypatch):
    class Untested(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=items({0: 1}), test=[])

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Untested", Untested)
    cfg.DATASET.NAME = "Untested"
    with pytest.raises(UserError, match="Untested has no images in its part 'test'"):
        DataManager(cfg)


@pytest.fixture
def decoded(monkeypatch):
    """The paths of the images decoded in this process, in order."""
    paths = []
    plain = image_cache.read_image
    for module in (image_cache, data_manager):
        monkeypatch.setattr(module, "read_image", lambda path: paths.append(path) or plain(path))
    return paths


def epochs_of(cfg, count=4):
    """Return the images of some epochs by index: {index: [img, ...]}."""
    set_random_seed(3)
    loader = DataManager(cfg).train_loader_x
    seen = {}
    for _ in range(count):
        for batch in loader:
            for index, image in zip(batch["index"].tolist(), batch["img"], strict=True):
                seen.setdefault(index, []).append(image)
    return seen


@pytest.mark.parametrize("workers", [0, 1])
def test_training_images_are_decoded_once(cfg, decoded, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    epochs_of(cfg)
    assert len(decoded) == len(set(decoded)) == 18


def test_what_does_not_fit_into_memory_is_decoded_again(cfg, decoded):
    cache = image_cache.ImageCache(budget=2 * 3 * 10 * 12)
    paths = [item.impath for item in build_dataset(cfg).train_x]
    cache.read_all(paths)
    assert len(cache) == 2 and len(decoded) == 3
    assert np.array_equal(cache.read(paths[0]), cache.read(paths[0])) and len(decoded) == 3
    cache.read(paths[5]), cache.read(paths[5])
    assert len(cache) == 2 and len(decoded) == 5


def test_cached_views_have_the_given_number_and_depend_on_no_worker(cfg):
    cfg.DATALOADER.CACHE_VIEWS = 3
    alone = epochs_of(cfg, count=8)
    cfg.DATALOADER.NUM_WORKERS = 2
    by_workers = epochs_of(cfg, count=2)
    views = [
        {tuple(image.flatten().tolist()) for image in images + by_workers.get(index, [])}
        for index, images in alone.items()
    ]
    assert len(views) == 18 and max(map(len, views)) == 3


def test_without_cached_views_every_view_is_new(cfg):
    for images in epochs_of(cfg).values():
        assert len({tuple(image.flatten().tolist()) for image in images}) == len(images)
