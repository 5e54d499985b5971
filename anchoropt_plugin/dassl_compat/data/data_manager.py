"""Build the loaders of a run from its configuration."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torchvision.transforms as T
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from ...errors import UserError
from ...files.images import read_image
from ...process import distributed
from ...process.open_files import TOO_MANY, is_too_many
from ...process.randomness import OwnRandomness, share_randomness
from .datasets import DatasetBase, Datum, build_dataset
from .image_cache import ImageCache
from .samplers import build_sampler
from .transforms import build_transform, interpolation_mode

Transform = Callable[[Any], Any]


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform | Sequence[Transform] | None = None,
    is_train: bool = True,
    dataset_wrapper: type[Dataset[Any]] | None = None,
) -> DataLoader[Any]:
    """Return a loader of images, as Dassl's function of this name does.

    Args:
        cfg: the configuration.
        sampler_type, n_domain, n_ins: see :func:`build_sampler`.
        data_source: the images.
        batch_size: images per batch.
        tfm: one transform, or a list of transforms.
        is_train: whether the images are training images; then a last, smaller batch is dropped.
        dataset_wrapper: a class that replaces :class:`DatasetWrapper`.

    Raises:
        UserError: there is no image.
    """
    if not data_source:
        raise UserError("a loader needs images, but its list of images is empty")
    wrapper: Any = dataset_wrapper or DatasetWrapper
    return _Loader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=cfg.USE_CUDA and torch.cuda.is_available(),
        is_train=is_train,
    )


class DataManager:
    """The data set of a run, and a loader for each of its parts.

    Args:
        cfg: the configuration.
        custom_tfm_train, custom_tfm_test: transforms that replace those of ``cfg.INPUT``. A list
            gives ``img``, ``img2``, ... in each batch.
        dataset_wrapper: a class that replaces :class:`DatasetWrapper`.

    Attributes:
        dataset: the data set, with ``train_x``, ``val``, ``test``.
        train_loader_x, train_loader_u, val_loader, test_loader: the loaders; the second and the
            third are None if the data set has no such part.
        num_classes, num_source_domains, lab2cname: facts about the data set.

    Raises:
        UserError: an unknown, missing or broken data set.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transform | Sequence[Transform] | None = None,
        custom_tfm_test: Transform | Sequence[Transform] | None = None,
        dataset_wrapper: type[Dataset[Any]] | None = None,
    ) -> None:
        self.dataset: DatasetBase = build_dataset(cfg)
        own = dataset_wrapper or (custom_tfm_train and custom_tfm_test)
        if cfg.INPUT.NO_TRANSFORM and not own:
            raise UserError(
                "INPUT.NO_TRANSFORM is True, but a batch needs tensors, not images: set it to False"
            )
        train = custom_tfm_train or build_transform(cfg, is_train=True)
        test = custom_tfm_test or build_transform(cfg, is_train=False)

        def loader(part: str, section: CfgNode, transform: Any, is_train: bool) -> Any:
            source = getattr(self.dataset, part)
            if not source:
                raise UserError(f"{cfg.DATASET.NAME} has no images in its part {part!r}")
            n_domain, n_ins = section.get("N_DOMAIN", 0), section.get("N_INS", 0)
            order = section.SAMPLER, source, section.BATCH_SIZE, n_domain, n_ins
            made = build_data_loader(cfg, *order, transform, is_train, dataset_wrapper)
            sampler: Any = made.sampler
            given = len(made) if is_train else len(sampler) == len(source)
            if not given:
                raise UserError(
                    f"the sampler {section.SAMPLER} with BATCH_SIZE {section.BATCH_SIZE} "
                    f"{'makes no batch' if is_train else 'leaves out some'} of the {len(source)} "
                    f"images of {part}: change SAMPLER or BATCH_SIZE in DATALOADER"
                )
            return made

        sections = cfg.DATALOADER
        section_u = sections.TRAIN_X if sections.TRAIN_U.SAME_AS_X else sections.TRAIN_U
        has_u, has_val = bool(self.dataset.train_u), bool(self.dataset.val)
        self.train_loader_x = loader("train_x", sections.TRAIN_X, train, True)
        self.train_loader_u = loader("train_u", section_u, train, True) if has_u else None
        self.val_loader = loader("val", sections.TEST, test, False) if has_val else None
        self.test_loader = loader("test", sections.TEST, test, False)

        self.num_classes = self.dataset.num_classes
        # The count is no use of the key: a data set that has domains reads it (config/reads.py).
        self.num_source_domains = len(dict(cfg.DATASET)["SOURCE_DOMAINS"])
        self.lab2cname = self.dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print the name of the data set and its numbers of classes and images."""
        rows = [("Dataset", cfg.DATASET.NAME), ("# classes", f"{self.num_classes:,}")]
        for part in ("train_x", "train_u", "val", "test"):
            items = getattr(self.dataset, part)
            if items:
                rows.append((f"# {part}", f"{len(items):,}"))
        for name, value in rows:
            print(f"{name:<9}  {value}")


class _Loader(DataLoader[Any]):
    def __init__(self, *args: Any, is_train: bool = False, **named: Any) -> None:
        super().__init__(*args, **named)
        self.is_train = is_train

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Any = None
        try:
            if self.num_workers and isinstance(self.dataset, DatasetWrapper):
                # Workers live for one epoch, and images cached there are lost with them.
                self.dataset.read_images()
            if self.is_train and distributed.is_started():
                yield from self._parts()
                return
            with _ctrl_c_waits():
                batches = super().__iter__()
            yield from batches
        except UserError as error:
            # A worker process sends its whole stack trace as the message.
            message = str(error).strip().splitlines()[-1]
            # The trace keeps the iterator alive in a reference cycle. To collect an iterator
            # whose workers still run, torch takes ten seconds.
            error.__traceback__ = None
            raise UserError(message.rpartition("UserError: ")[2]) from None
        except (ConnectionError, EOFError) as error:
            # A worker killed while it sends a batch: torch recognises the death only if the
            # system has reported it before the closed connection is read. A later report would
            # raise an exception in whatever statement runs then, so wait for it here.
            workers = getattr(batches, "_workers", [])
            end = time.monotonic() + 5
            while all(worker.is_alive() for worker in workers) and time.monotonic() < end:
                time.sleep(0.01)
            raise RuntimeError(f"DataLoader worker was lost ({error or 'end of file'}).") from None
        except (OSError, RuntimeError) as error:
            if not is_too_many(error):
                raise
            with _no_complaints():
                error.__traceback__ = None
            raise UserError(f"{TOO_MANY} (DATALOADER.NUM_WORKERS)") from None

    def _parts(self) -> Iterator[Any]:
        """Yield this process's part of every batch.

        All processes draw the same order as a single process would. Each draws its images' views
        from a random stream of its own, so that the shared streams stay equal.
        """
        share_randomness()
        torch.empty((), dtype=torch.int64).random_()  # DataLoader draws a seed for its workers
        order = list(self.batch_sampler)  # type: ignore[arg-type]
        smallest, n = min(map(len, order)), distributed.world_size()
        if smallest < n:
            raise UserError(
                f"{n} processes cannot share a batch of {smallest} image(s): raise "
                "DATALOADER.TRAIN_X.BATCH_SIZE, the total over all processes, or start fewer "
                "processes"
            )
        parts = [batch[distributed.part_of(len(batch))] for batch in order]
        own = OwnRandomness()
        batches = iter(self._of(parts))  # a generator: the first batch starts the workers
        for whole, part in zip(order, parts, strict=True):
            with own.active():
                batch = next(batches)
            distributed.set_batch_fraction(len(part) / len(whole))
            yield batch

    def in_turns(self) -> Iterator[Any]:
        """Yield every n-th batch of n processes; pad a short last round with None.

        The batches are the same as in a single process.
        """
        order = list(self.batch_sampler)  # type: ignore[arg-type]
        mine = iter(self._of(order[distributed.rank() :: distributed.world_size()]))
        for _ in range(0, len(order), distributed.world_size()):
            yield next(mine, None)

    def _of(self, batches: list[list[int]]) -> DataLoader[Any]:
        return _Loader(
            self.dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
        )


@contextmanager
def _no_complaints() -> Iterator[None]:
    # torch's iterator complains when it is deleted before it has started all its workers.
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    # Ctrl-C reaches all processes of a terminal. Workers forked in this block inherit a handler
    # that does nothing, so only this process reacts, and ends them. It reacts after the block,
    # because Python drops exceptions raised in the middle of a fork.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *event: pressed.append(event))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


class DatasetWrapper(Dataset[dict[str, Any]]):
    """A data set of dicts with ``img``, ``label``, ``domain``, ``impath`` and ``index``.

    Args:
        cfg: the configuration. With ``DATALOADER.K_TRANSFORMS`` k > 1, ``img`` of a training set
            is a list of k views. ``DATALOADER.RETURN_IMG0`` adds ``img0``, the image without
            augmentation. With ``DATALOADER.CACHE_VIEWS`` n > 0, each training image gets n
            augmented views, which are cached in memory; each access picks one at random.
        data_source: the images.
        transform: one transform, a list of transforms (``img``, ``img2``, ...), or None for the
            unchanged image.
        is_train: whether this is a training set.
    """

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence[Datum],
        transform: Transform | Sequence[Transform] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.images = ImageCache() if is_train else None
        self.n_views = cfg.DATALOADER.CACHE_VIEWS if is_train else 0
        self._views: dict[tuple[int, int], dict[str, Any]] = {}
        if self.k_tfm > 1 and transform is None:
            raise UserError("DATALOADER.K_TRANSFORMS above 1 needs INPUT.NO_TRANSFORM False")
        plain: list[Transform] = [
            T.Resize(cfg.INPUT.SIZE, interpolation=interpolation_mode(cfg)),
            T.ToTensor(),
        ]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            plain.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(plain)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        output: dict[str, Any] = {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": idx,
        }
        if not self.n_views:
            return output | self._view(item.impath)
        view = int(torch.randint(self.n_views, ()))
        if (idx, view) not in self._views:
            # A view depends on image and view number alone: not on the order of the images, nor
            # on the worker process that makes it.
            with torch.random.fork_rng(devices=[]):
                # Of the CPU alone: torch.manual_seed would seed the GPU's generator, too.
                seed = (self.cfg.SEED * len(self) + idx) * self.n_views + view
                torch.default_generator.manual_seed(seed)
                self._views[idx, view] = self._view(item.impath)
        return output | self._views[idx, view]

    def read_images(self) -> None:
        """Read the images of a training set into memory, up to the cache's budget."""
        if self.images is not None:
            self.images.read_all(item.impath for item in self.data_source)

    def _view(self, path: str) -> dict[str, Any]:
        image = read_image(path) if self.images is None else self.images.read(path)
        output: dict[str, Any] = {}
        several = isinstance(self.transform, Sequence)
        transforms: Any = self.transform if several else [self.transform]
        for number, transform in enumerate(transforms, start=1):
            key = "img" if number == 1 else f"img{number}"
            output[key] = image if transform is None else self._transformed(transform, image)
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _transformed(self, transform: Transform, image: Any) -> Any:
        views = [transform(image) for _ in range(self.k_tfm)]
        return views[0] if self.k_tfm == 1 else views
