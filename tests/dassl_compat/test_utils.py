"""Meters, registry, log files, seeds, files."""

from __future__ import annotations

import importlib.util
import io
import logging
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from anchoropt_plugin import UserError
from anchoropt_plugin.process.randomness import random_state, restore_random_state
from anchoropt_plugin.version import VERSION
from dassl.metrics import compute_accuracy
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    check_isfile,
    collect_env_info,
    count_num_param,
    listdir_nohidden,
    load_pretrained_weights,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    withdraw_log,
    write_json,
)


def test_average_meter():
    even, exponential = AverageMeter(), AverageMeter(ema=True)
    for value, n in ((2.0, 1), (torch.tensor(5.0), 3)):
        even.update(value, n)
        exponential.update(value, n)
    assert (even.val, even.avg, even.sum, even.count) == (5.0, 17 / 4, 17.0, 4)
    assert exponential.avg == pytest.approx(0.9 * 0.2 + 0.5)
    even.reset()
    assert (even.avg, even.count) == (0, 0)


def test_metric_meter():
    meter = MetricMeter()
    meter.update(None)
    meter.update({"loss": 1.0, "acc": torch.tensor(50.0)})
    meter.update({"loss": 2.0, "acc": 100})
    assert str(meter) == "loss 2.0000 (1.5000) acc 100.0000 (75.0000)"


def test_top_k_accuracy():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 5.0, 1.0]])
    top1, top2 = compute_accuracy((logits, "unused"), torch.tensor([0, 1, 0, 1]), topk=(1, 2))
    assert (top1.item(), top2.item()) == (50.0, 75.0)
    assert top1.shape == (1,)


def test_registry():
    registry = Registry("THING")

    @registry.register()
    class First: ...

    class Second: ...

    registry.register(Second)
    assert registry.registered_names() == ["First", "Second"]
    with pytest.raises(KeyError, match="First"):
        registry.register(First)
    registry.register(type("First", (), {}), force=True)
    assert registry.get("First") is not First
    with pytest.raises(KeyError, match="Third"):
        registry.get("Third")


@pytest.fixture
def stdout(monkeypatch, capsys):
    """Undo what setup_logger does to sys.stdout."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    yield capsys
    sys.stdout.close() if hasattr(sys.stdout, "console") else None


def test_log_file(stdout, tmp_path):
    setup_logger(str(tmp_path / "run"))
    print("printed")
    logging.getLogger("anchoropt_plugin").info("logged")
    log = tmp_path / "run" / "log.txt"
    assert log.read_text() == "printed\nlogged\n", "there before the file is closed"

    setup_logger(str(tmp_path / "run"))
    print("second")
    assert stdout.readouterr().out == "printed\nlogged\nsecond\n"
    assert log.read_text() == "printed\nlogged\nsecond\n"
    assert [*log.parent.glob("log*")] == [log]  # the public parser reads this one alone
    withdraw_log()
    assert log.read_text() == "printed\nlogged\n"


def test_a_terminal_that_lacks_a_letter(monkeypatch, tmp_path):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    setup_logger(str(tmp_path))
    print("猫 \ud800")
    sys.stdout.flush()
    sys.stdout.close()
    assert console.buffer.getvalue() == b"\\u732b \\ud800\n"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "猫 \\ud800\n"


def test_log_file_by_name(stdout, tmp_path):
    setup_logger(None)
    assert not hasattr(sys.stdout, "console")
    setup_logger(str(tmp_path / "train.log"))
    print("here")
    assert (tmp_path / "train.log").read_text() == "here\n"


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_seeds(seed):
    set_random_seed(seed)
    first = draw()
    set_random_seed(seed)
    assert draw() == first
    assert first[0] == random.Random(seed).random()


def test_random_state_survives_a_file(tmp_path):
    set_random_seed(5)
    torch.save(random_state(), tmp_path / "state")
    first = draw()
    restore_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert draw() == first


def test_json(tmp_path):
    path = tmp_path / "new" / "split.json"
    write_json({"train": [["a.jpg", 0, "à"]]}, path)
    assert read_json(path) == {"train": [["a.jpg", 0, "à"]]}
    path.write_text('{\n"train": [1,\n}')
    with pytest.raises(UserError, match=r"split\.json, line 3: not valid json"):
        read_json(path)
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        read_json(tmp_path / "none.json")
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_json(path)
    path.write_bytes(b"\xef\xbb\xbf[1]")  # as Windows writes UTF-8
    assert read_json(path) == [1]
    for text in ("[" * 100_000, "9" * 5000):
        path.write_text(text)
        with pytest.raises(UserError, match=r"split\.json: not valid json"):
            read_json(path)


def test_images(tmp_path):
    path = tmp_path / "grey.png"
    Image.effect_noise((40, 40), 50).save(path)
    assert read_image(path).mode == "RGB"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot read the image .*grey\.png"):
        read_image(path)
    path.write_text("not a image")
    with pytest.raises(UserError, match=r"cannot read the image .*grey\.png"):
        read_image(path)
    with pytest.raises(UserError, match=r"gone\.png is missing"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_images_of_16_bits_keep_their_greys(tmp_path, name):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert np.asarray(read_image(tmp_path / name))[0].tolist() == [
        [x] * 3 for x in (0, 1, 128, 255)
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 2), 65536, dtype=np.int32), "more than 16 bits"),
        (np.full((2, 2), -1, dtype=np.int32), "more than 16 bits"),
        (np.full((2, 2), 0.5, dtype=np.float32), "float pixels"),
    ],
)
def test_images_without_a_known_white(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "a.tif")


def test_a_image_too_large_to_decode(tmp_path, monkeypatch):
    Image.new("L", (60, 60)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="exceeds limit"):
        read_image(tmp_path / "bomb.png")


def test_folders(tmp_path):
    mkdir_if_missing(tmp_path / "a" / "b")
    mkdir_if_missing(tmp_path / "a" / "b")
    (tmp_path / "a" / ".hidden").touch()
    (tmp_path / "a" / "c").touch()
    assert listdir_nohidden(tmp_path / "a", sort=True) == ["b", "c"]
    assert check_isfile(tmp_path / "a" / "c")
    with pytest.warns(UserWarning, match="No file found"):
        assert not check_isfile(tmp_path / "d")
    assert (tolist_if_not("a"), tolist_if_not(["a"])) == (["a"], ["a"])


def test_environment():
    said = collect_env_info()
    assert f"torch: {torch.__version__}" in said and f"anchoropt-plugin: {VERSION}" in said


def test_pretrained_weights(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    state = {
        "module.0.weight": torch.full((2, 2), 7.0),
        "1.weight": torch.zeros(5, 5),
        "else": torch.zeros(1),
    }
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "weights")
    bias = model[1].bias.clone()
    load_pretrained_weights(model, tmp_path / "weights")
    assert torch.equal(model[0].weight, torch.full((2, 2), 7.0))
    assert torch.equal(model[1].bias, bias)
    torch.save({"else": torch.zeros(1), 5: "name"}, tmp_path / "weights")
    with pytest.raises(UserError, match=r"nothing in .*weights fits the model"):
        load_pretrained_weights(model, tmp_path / "weights")


def test_pretrained_weights_bring_no_classes(tmp_path):
    model = nn.Module()
    model.ctx = nn.Parameter(torch.zeros(2))
    for name in ("token_prefix", "token_suffix"):
        model.register_buffer(name, torch.zeros(3))
    torch.save({name: torch.ones_like(x) for name, x in model.state_dict().items()}, tmp_path / "w")
    load_pretrained_weights(model, tmp_path / "w")
    sums = {name: x.sum().item() for name, x in model.state_dict().items()}
    assert sums == {"ctx": 2.0, "token_prefix": 0.0, "token_suffix": 0.0}


def test_counting_parameters():
    model = nn.Linear(3, 2)
    assert count_num_param(model) == 8
    assert count_num_param(params=model.parameters()) == 8
    assert count_num_param(params=[{"params": list(model.parameters())}, model.bias]) == 10


def test_scalars_without_tensorboard(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it now fails
    spec = importlib.util.find_spec("anchoropt_plugin.dassl_compat.utils.writer")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    writer = module.SummaryWriter(log_dir="scalars")
    writer.add_scalar("train/loss", 1.0, 0)
    writer.close()
    assert capsys.readouterr().out.count("pip install tensorboard") == 1
