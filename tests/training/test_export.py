"""Exported models give the probabilities of a test, in every format, or are refused."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

import train
from anchoropt_plugin import UserError, load_clip, load_predictor, tokenize
from anchoropt_plugin.__main__ import main
from anchoropt_plugin.encoders.image_classifier import digest_of
from anchoropt_plugin.files.class_weights import ClassWeights, ImageInput, write_class_weights
from anchoropt_plugin.training.predictor import Predictor
from anchoropt_plugin.training.traced import traced

from ..trainers.runs import ROOT, command

HOSTS = ("CoOp", "CoOp_AnchorOPT", "CoCoOp_AnchorOPT", "MaPLe_AnchorOPT", "DePT_AnchorOPT")
NEW = ("seven", "red fox", "eight")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output folders of short runs on the base classes of Digits, by trainer."""
    folder = tmp_path_factory.mktemp("runs")
    keys = ("OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2", "USE_CUDA", "False")
    for host in HOSTS:
        assert train.main(command(folder / "data", folder / host, host, keys=keys)) == 0
    return folder


@pytest.fixture(scope="module")
def images(runs):
    """Ten images: nine of Digits, and a wide one in colours."""
    wide = Image.effect_noise((75, 50), 90)
    digits = [Image.open(path) for path in sorted(runs.glob("data/**/*.png"))[::200][:9]]
    return [*digits, Image.merge("RGB", [wide, wide.rotate(180), wide.point(lambda x: x // 2)])]


@pytest.fixture(scope="module")
def loaded(runs):
    """Return a function (host, classes) → predictor, which loads each once."""
    return functools.cache(lambda host, classes=None: load_predictor(runs / host, classes))


@pytest.mark.parametrize(
    ("host", "classes", "suffix"),
    [
        ("CoOp", None, ".npz"),
        ("CoOp_AnchorOPT", None, ".safetensors"),
        ("CoOp_AnchorOPT", NEW, ".npz"),
        ("DePT_AnchorOPT", NEW, ".safetensors"),  # without its second head
    ],
)
def test_class_weights_give_the_probabilities(loaded, images, tmp_path, host, classes, suffix):
    path, predictor = tmp_path / "in" / f"weights{suffix}", loaded(host, classes)
    predictor.export(path)
    found, wanted = load_predictor(path), predictor.probabilities(images)
    assert found.classes == predictor.classes
    torch.testing.assert_close(found.probabilities(images), wanted, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(predictor.probabilities(images), wanted, atol=1e-5, rtol=0)
    assert found(images[0]) == pytest.approx(predictor(images[0]), abs=1e-5)


def test_the_rows_have_length_one_or_are_the_mean_of_two_such_rows(loaded, tmp_path):
    predictor = loaded("CoOp_AnchorOPT")
    predictor.export(tmp_path / "base.safetensors")
    new = loaded("CoOp_AnchorOPT", NEW)
    new.export(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "base.safetensors", "pt") as file:
        about = file.metadata()
        weights, scale = file.get_tensor("weights"), file.get_tensor("logit_scale")
    assert tuple(json.loads(about["classes"])) == predictor.classes
    assert (about["backbone"], about["interpolation"]) == ("tiny", "bicubic")
    assert json.loads(about["image_size"]) == [32, 32]
    assert json.loads(about["mean"]) == [0.48145466, 0.4578275, 0.40821073]
    assert scale == load_clip("tiny").logit_scale.exp()
    torch.testing.assert_close(weights.norm(dim=-1), torch.ones(len(predictor.classes)))
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        folded = file.get_tensor("weights")
    model = new._trainer.model
    with torch.no_grad():
        features = model.text_encoder(model.prompt_learner(), model.tokenized_prompts)
    prompts = F.normalize(features, dim=-1)
    mean = (prompts + new._trainer.anchoropt.class_features()) / 2
    torch.testing.assert_close(folded, mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("host", "classes"),
    [
        ("CoOp", None),
        ("CoOp_AnchorOPT", NEW),
        ("CoCoOp_AnchorOPT", NEW),
        ("MaPLe_AnchorOPT", NEW),
        ("DePT_AnchorOPT", None),
    ],
)
def test_onnx_gives_the_probabilities_of_any_batch(loaded, images, tmp_path, host, classes):
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    predictor = loaded(host, classes)
    predictor.export(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(about["classes"])) == predictor.classes
    assert json.loads(about["image_size"]) == [32, 32]
    wanted = predictor.probabilities(images)
    batch = torch.stack([predictor.transform(image.convert("RGB")) for image in images]).numpy()
    for part in (slice(0, 1), slice(3, 10), slice(0, 10)):
        (found,) = session.run(None, {"images": batch[part]})
        np.testing.assert_allclose(found, wanted[part].numpy(), atol=1e-4)


UNPICKLE = """
import pickle, sys
sys.modules["trainers"] = None  # importing it fails
predictors, images, path = pickle.load(open(sys.argv[1], "rb"))
pickle.dump([predictor.probabilities(images) for predictor in predictors], open(path, "wb"))
"""


def test_class_names_of_a_predictor_cannot_be_changed():
    """New names would have the probabilities of others."""
    predictor = Predictor(["cat", "dog"], 1, None)
    with pytest.raises(AttributeError):
        predictor.classes = ["dog", "cat"]
    with pytest.raises(TypeError):
        predictor.classes[0] = "dog"
    earlier = Predictor.__new__(Predictor)
    vars(earlier).update(classes=["cat", "dog"])  # as pickles of earlier versions have them
    assert earlier.classes == predictor.classes == ("cat", "dog")


def test_what_is_no_list_of_images_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    predictor = Predictor(["cat", "dog"], 1, None)
    for one in (str(tmp_path / "a.png"), tmp_path / "a.png", Image.new("RGB", (8, 8))):
        with pytest.raises(UserError, match="one image alone is given, "):
            predictor.probabilities(one)
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    for images in (pixels, [pixels[0]], torch.zeros(1, 3, 8, 8)):
        with pytest.raises(UserError, match=r"given as (ndarray|Tensor): give its path, or a PIL"):
            predictor.probabilities(images)
    with pytest.raises(UserError, match="given as ndarray"):
        predictor(pixels[0])
    with pytest.raises(UserError, match="mode F cannot be used: the white level of float pixels"):
        predictor(Image.fromarray(np.zeros((8, 8), np.float32)))


def test_a_pickle_needs_neither_the_trainer_nor_its_folder(loaded, images, tmp_path):
    predictors = [loaded(host, NEW) for host in ("CoOp_AnchorOPT", "CoCoOp_AnchorOPT")]
    predictors.append(loaded("DePT_AnchorOPT"))
    predictors.append(pickle.loads(pickle.dumps(predictors[1])))
    wanted = [predictor.probabilities(images) for predictor in predictors]
    content = pickle.dumps((predictors, images, str(tmp_path / "found")))
    (tmp_path / "predictors").write_bytes(content)
    words = [sys.executable, "-W", "ignore", "-c", UNPICKLE, "predictors"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(words, cwd=tmp_path, env=environment, check=True)
    found = pickle.loads((tmp_path / "found").read_bytes())
    for here, there, predictor in zip(found, wanted, predictors, strict=True):
        torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
        # The one that was pickled still works as before.
        assert torch.equal(predictor.probabilities(images), there)


def test_clip_without_a_learned_prompt_is_predicted_and_exported(runs, images, tmp_path):
    words = command(runs / "data", tmp_path / "zero", "CoOp", keys=("USE_CUDA", "False"))
    words[words.index("CoOp")] = "ZeroshotCLIP"
    assert train.main(words) == 0
    predictor, clip = load_predictor(tmp_path / "zero", NEW), load_clip("tiny")
    pixels = torch.stack([predictor.transform(image.convert("RGB")) for image in images])
    template = predictor._trainer.cfg.DATASET.TEMPLATE
    texts = tokenize([template.format(name) for name in NEW])
    with torch.no_grad():
        features = [F.normalize(clip.encode_image(pixels)), F.normalize(clip.encode_text(texts))]
        wanted = (clip.logit_scale.exp() * features[0] @ features[1].t()).softmax(-1)
    torch.testing.assert_close(predictor.probabilities(images), wanted, atol=1e-5, rtol=0)
    predictor.export(tmp_path / "zero.safetensors")
    found = load_predictor(tmp_path / "zero.safetensors").probabilities(images)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="ZeroshotCLIP trains nothing, so it has no epochs"):
        load_predictor(tmp_path / "zero", epoch=1)
    with pytest.raises(UserError, match="the epoch is '1': give a whole number"):
        load_predictor(tmp_path / "zero", epoch="1")


def test_several_threads_get_the_probabilities_of_their_own_images(loaded, images, monkeypatch):
    predictor = loaded("CoOp_AnchorOPT", NEW)
    wanted = [predictor.probabilities([image]) for image in images]
    encode = predictor._trainer.model_inference

    def slowly(batch):
        time.sleep(0.01)  # other threads come between its images and its logits
        return encode(batch)

    monkeypatch.setattr(predictor._trainer, "model_inference", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: predictor.probabilities([image]), images * 3))
    assert all(map(torch.equal, found, wanted * 3))


@pytest.mark.parametrize("host", ["CoOp_AnchorOPT", "CoCoOp_AnchorOPT", "MaPLe_AnchorOPT"])
def test_the_model_goes_through_tracers(loaded, images, host):
    predictor = loaded(host)
    wanted = predictor.probabilities(images)
    batch = torch.stack([predictor.transform(image.convert("RGB")) for image in images])
    model = predictor.model
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(model, batch[:2])
        dynamic = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(
            model, (batch[:2],), strict=False, dynamic_shapes=dynamic
        ).module()
        for found in (model(batch), script(batch), program(batch)):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("CoCoOp_AnchorOPT", "its text features depend on the image"),
        ("MaPLe_AnchorOPT", "is prompted"),
        ("DePT_AnchorOPT", "a further head counts"),
    ],
)
def test_hosts_without_class_weights_are_refused(runs, tmp_path, capsys, host, reason):
    words = ["--model-dir", str(runs / host), "--output", str(tmp_path / "x.npz")]
    assert main(["export", "--import", "trainers", *words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {host} has no class weights: ") and reason in line
    assert line.endswith("export to .onnx") and list(tmp_path.iterdir()) == []


def test_the_command_writes_what_predict_reads(runs, tmp_path, monkeypatch, capsys):
    output, image = str(tmp_path / "weights.safetensors"), str(tmp_path / "image.png")
    Image.effect_noise((40, 60), 90).save(image)
    run_folder = ["--model-dir", str(runs / "CoOp_AnchorOPT"), "--import", "trainers"]
    assert main(["export", *run_folder, "--output", output, "--classes", *NEW]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Wrote {output}: 3 classes"
    assert main(["export", *run_folder, "--output", output, "--classes", *NEW]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Replaced {output}: 3 classes"
    monkeypatch.chdir(tmp_path)  # a folder without trainers
    assert main(["predict", "--model-dir", output, "--json", image]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert main(["predict", *run_folder, "--json", image, "--classes", *NEW]) == 0
    (wanted,) = json.loads(capsys.readouterr().out)
    assert found["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)


def test_a_backbone_in_a_file_is_found_from_elsewhere_and_compared(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load_clip("tiny").state_dict()
    torch.save(state, "clip.pt")
    keys = ("OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2", "USE_CUDA", "False")
    own = ("MODEL.BACKBONE.NAME", "clip.pt", "MODEL.BACKBONE.CONFIG", "openai")
    words = command(runs / "data", "out", "CoOp", keys=(*keys, *own))
    assert train.main(words) == 0
    image = Image.effect_noise((40, 60), 90)
    predictor = load_predictor("out")
    wanted = predictor.probabilities([image])
    predictor.export("weights.npz")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    torch.testing.assert_close(load_predictor("../weights.npz").probabilities([image]), wanted)
    Path("../clip.pt").rename("moved.pt")
    with pytest.raises(UserError, match=r"there is no file .*clip\.pt"):
        load_predictor("../weights.npz")
    moved = load_predictor("../weights.npz", backbone="moved.pt")
    torch.testing.assert_close(moved.probabilities([image]), wanted)
    state["visual.proj"] = state["visual.proj"] + 1e-3
    torch.save(state, "other.pt")
    with pytest.raises(UserError, match=r"another CLIP than other\.pt: give the weights"):
        load_predictor("../weights.npz", backbone="other.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_damaged_files_are_one_line(loaded, tmp_path, suffix):
    path, damaged = tmp_path / f"good{suffix}", tmp_path / f"bad{suffix}"
    loaded("CoOp").export(path)
    content = path.read_bytes()
    for bad in (b"", b"no weights", content[:40], content[:-20], content.replace(b"mean", b"main")):
        damaged.write_bytes(bad)
        with pytest.raises(UserError, match=r"holds no class weights"):
            load_predictor(damaged)
    with pytest.raises(UserError, match="cannot open"):
        load_predictor(tmp_path / f"none{suffix}")
    with pytest.raises(UserError, match="of its own classes and epoch alone"):
        load_predictor(path, NEW)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": np.array('["dog", "cat"]')}, "edited after its export"),
        ({"weights": np.eye(2, 128, 1, np.float32)}, "edited after its export"),
        ({"logit_scale": np.float32(0)}, "logit scale is not a number above 0"),
        ({"std": np.array("[0.2, 0.2, 0.0]")}, r"its std \[0.2, 0.2, 0.0\]"),
        ({"image_size": np.array("[64, 32]"), "digest": None}, r"images of \[64, 32\]"),
        ({"weights": np.eye(2, 64, dtype=np.float32), "digest": None}, "weights of 64 numbers"),
        ({"backbone": np.array("moved/clip.pt")}, None),
        ({"digest": None}, None),  # a file of an earlier version
    ],
)
def test_entries_that_were_edited_are_refused(tmp_path, changes, reason):
    clip, path = load_clip("tiny"), tmp_path / "weights.npz"
    images = ImageInput([32, 32], "bicubic", [0.5] * 3, [0.2] * 3)
    about = (100.0, ["cat", "dog"], "tiny", "", digest_of(clip.visual), images)
    write_class_weights(ClassWeights(torch.eye(2, 128), *about), path)
    entries = {**np.load(path), **changes}
    np.savez(path, **{key: value for key, value in entries.items() if value is not None})
    with pytest.raises(UserError, match=reason) if reason else contextlib.nullcontext():
        load_predictor(path, backbone="tiny")


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", weights=np.zeros((2, 3)))
    with pytest.raises(UserError, match="its format is None"):
        load_predictor(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", format=np.array(["code"], dtype=object))
    with pytest.raises(UserError, match="holds no class weights"):
        load_predictor(tmp_path / "x.npz")


def test_errors_of_export(runs, tmp_path, monkeypatch, capsys):
    words = ["export", "--import", "trainers", "--model-dir", str(runs / "CoOp"), "--output"]
    assert main([*words, str(tmp_path / "x.pt")]) == 2
    assert "give a file that ends in .safetensors, .npz or .onnx" in capsys.readouterr().err
    with pytest.raises(UserError, match="was trained with tiny, whose weights it did not record"):
        load_predictor(runs / "CoOp", backbone="clip.pt")
    with pytest.raises(UserError, match="device is 'tpu'"):
        load_predictor(runs / "CoOp", device="tpu")
    predictor = load_predictor(runs / "CoOp_AnchorOPT")
    predictor._trainer.anchoropt.position.sample_at_eval = True
    with pytest.raises(UserError, match="SAMPLE_AT_EVAL"):
        predictor.export(tmp_path / "x.npz")
    predictor = load_predictor(runs / "CoOp")
    predictor.transform = lambda image: torch.zeros(3, 32, 32)
    with pytest.raises(UserError, match=r"leave predictor\.transform as it was"):
        predictor.export(tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []


class Looping(torch.nn.Module):
    """A public CoCoOp: a loop over the images of a batch."""

    def forward(self, images):
        return torch.stack([image.mean((1, 2)).softmax(-1) for image in images])


class Drawing(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) + float(torch.rand(()))


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Looping(), "must treat all images"), (Drawing(), "a probability differs")],
)
def test_a_program_that_differs_is_refused(tmp_path, model, reason):
    images = torch.randn(3, 3, 8, 8)
    with pytest.raises(UserError, match=reason):
        traced(model, model, images)
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    from anchoropt_plugin.training.onnx_file import write_onnx

    with pytest.raises(UserError, match=reason):
        write_onnx(model, model, images, {}, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []
