"""Runs on CLIPs of open_clip and transformers: settings, prediction, export."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

import train
from anchoropt_plugin import load_predictor
from anchoropt_plugin.encoders.clip_models import load_clip
from anchoropt_plugin.files.class_weights import read_class_weights
from anchoropt_plugin.training.backbone import check_images

from ..encoders.foreign_clips import image_features, open_clip, write_folder
from .runs import command

MEAN = ["INPUT.PIXEL_MEAN", "[0.5, 0.5, 0.5]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a CLIP of open_clip whose images have another mean."""
    folder = tmp_path_factory.mktemp("clip")
    write_folder("ViT, GELU", folder, mean=[0.5, 0.5, 0.5])
    return folder


def of(backbone, *keys):
    return ["MODEL.BACKBONE.NAME", str(backbone), *keys]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "set INPUT.PIXEL_MEAN [0.5,0.5,0.5]"),
        ([*MEAN, "INPUT.INTERPOLATION", "nearest"], "set INPUT.INTERPOLATION bicubic"),
        ([*MEAN, "INPUT.TRANSFORMS", "[]"], "add normalize to INPUT.TRANSFORMS"),
        ([*MEAN, "INPUT.SIZE", "(64,64)"], "set INPUT.SIZE (32,32)"),
    ],
)
def test_images_prepared_otherwise_are_refused(folder, root, tmp_path, capsys, keys, message):
    words = command(root, tmp_path, "CoOp", keys=of(folder, *keys))
    assert train.main(words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_other_images_than_those_of_openai_are_told(capsys):
    clip, cfg = load_clip("tiny"), train.get_cfg_default()
    cfg.MODEL.BACKBONE.NAME = "tiny"
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS = (32, 32), ("normalize",)
    check_images(cfg, clip)  # the defaults of Dassl
    assert capsys.readouterr().out == (
        "Note: OpenAI's CLIP was trained on images prepared otherwise; for its weights set "
        "INPUT.PIXEL_MEAN [0.48145466,0.4578275,0.40821073] "
        "INPUT.PIXEL_STD [0.26862954,0.26130258,0.27577711] INPUT.INTERPOLATION bicubic\n"
    )
    cfg.INPUT.PIXEL_MEAN = [0.48145466, 0.4578275, 0.40821073]
    cfg.INPUT.PIXEL_STD, cfg.INPUT.INTERPOLATION = [0.2686, 0.2613, 0.2758], "bicubic"
    check_images(cfg, clip)
    assert not capsys.readouterr().out


def test_a_bare_file_asks_for_its_key(folder, root, tmp_path, capsys):
    bare = folder / "open_clip_pytorch_model.bin"
    assert train.main(command(root, tmp_path, "CoOp", keys=of(bare, *MEAN))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{bare} does not tell whether" in line
    assert "give load_clip(name, config=…) 'openai' for OpenAI's weights" in line
    assert "; a train.py with the key MODEL.BACKBONE.CONFIG takes it there" in line


@pytest.mark.parametrize("bare", [False, True])
def test_a_run_is_predicted_and_exported(folder, root, tmp_path, bare):
    backbone, keys = folder, MEAN
    if bare:
        shutil.copy(folder / "open_clip_pytorch_model.bin", backbone := tmp_path / "weights.bin")
        keys = [*MEAN, "MODEL.BACKBONE.CONFIG", str(folder / "open_clip_config.json")]
    out = tmp_path / "run"
    assert train.main(command(root, out, "CoOp_AnchorOPT", "all", keys=of(backbone, *keys))) == 0
    predictor = load_predictor(out)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = predictor.model(images)
    predictor.export(tmp_path / "weights.safetensors")
    weights = read_class_weights(tmp_path / "weights.safetensors")
    assert weights.images.mean == [0.5, 0.5, 0.5]
    again = load_predictor(tmp_path / "weights.safetensors")
    assert torch.allclose(again.model(images), wanted, atol=1e-6)
    # The exported numbers classify with the features of open_clip itself.
    config = json.loads((folder / "open_clip_config.json").read_text())
    model = open_clip.CLIP(**config["model_cfg"])
    model.load_state_dict(torch.load(folder / "open_clip_pytorch_model.bin"))
    found = torch.nn.functional.normalize(image_features(model.eval(), images), dim=-1)
    logits = weights.logit_scale * found @ weights.weights.T
    assert torch.allclose(logits.softmax(-1), wanted, atol=1e-5)


def test_a_run_of_an_earlier_version_reads_bare_weights_as_openais(root, tmp_path):
    from anchoropt_plugin import load_clip

    torch.save(load_clip("tiny").state_dict(), tmp_path / "tiny.pt")
    keys = of(tmp_path / "tiny.pt", "MODEL.BACKBONE.CONFIG", "openai")
    assert train.main(command(root, tmp_path / "run", "CoOp", keys=keys)) == 0
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = load_predictor(tmp_path / "run").model(images)
    record = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(record.read_text())
    del settings["MODEL"]["BACKBONE"]["CONFIG"]
    record.write_text(yaml.safe_dump(settings))
    assert torch.equal(load_predictor(tmp_path / "run").model(images), wanted)
