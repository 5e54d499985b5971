"""Mistakes that once gave a number without a word: each is one line now, and nothing is written."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import train
from anchoropt_plugin import AnchorTokens, UserError, load_clip, load_predictor
from anchoropt_plugin.commands import predict
from anchoropt_plugin.config.merge import read_yaml
from anchoropt_plugin.config.record import hash_of_weights
from anchoropt_plugin.dassl_compat.evaluation.top_classes import TopClasses
from anchoropt_plugin.encoders.clip_models import words_of
from anchoropt_plugin.files import predictions
from anchoropt_plugin.files.readers import read_json
from anchoropt_plugin.files.training_images import (
    check_not_trained,
    digest_of_files,
    trained_marks,
    write_training_images,
)
from anchoropt_plugin.method import descriptions
from anchoropt_plugin.report.page import write_page
from anchoropt_plugin.training import run_record
from anchoropt_plugin.training.test_rule import TestRule

BATCH = ("DATALOADER.TRAIN_X.BATCH_SIZE", "32")
CLASSES = ["red circle", "blue star", "green heart"]


def images(folder, names=CLASSES):
    for number, name in enumerate(names):
        for part, n in (("train", 3), ("test", 2)):
            for image in range(n):
                path = folder / part / name.replace(" ", "_") / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (80 * number, 40 * image, 90)).save(path)
    return folder


def run(root, output, *words, trainer="CoOp", flags=()):
    return train.main(
        [
            *("--root", str(root), "--output-dir", str(output), "--trainer", trainer),
            *("--seed", "1", "--dataset-config-file", "configs/datasets/image_folder.yaml"),
            *("--config-file", "configs/trainers/CoOp/tiny.yaml", *flags),
            *("OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0"),
            *("DATALOADER.TRAIN_X.BATCH_SIZE", "9", *words),
        ]
    )


def test_a_refused_run_leaves_the_record_of_the_run_in_its_folder(tmp_path, capsys):
    root, out = images(tmp_path / "a"), tmp_path / "out"
    assert run(root, out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.[jy]*") if path.is_file()}
    others = images(tmp_path / "b", ["red star", "blue circle", "green oval"])
    assert run(others, out) == 2
    assert "holds a run with other classes (blue star, " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert json.loads((out / "classes.json").read_text()) == sorted(CLASSES)


def test_other_images_of_the_same_names_do_not_resume_a_run(tmp_path, capsys):
    root, out = images(tmp_path / "a"), tmp_path / "out"
    assert run(root, out) == 0
    root = root.rename(tmp_path / "moved")
    assert run(root, out) == 0
    Image.effect_noise((32, 32), 90).convert("RGB").save(root / "train/red_circle/1.png")
    before = (out / "training_images.json").read_bytes()
    capsys.readouterr()
    assert run(root, out) == 2
    assert "holds a run with other training images" in capsys.readouterr().err
    assert (out / "training_images.json").read_bytes() == before
    (out / "training_images.json").unlink()
    assert run(root, out) == 2  # the checkpoint knows them, too
    assert "digest of the training images was" in capsys.readouterr().err
    checkpoint = out / "prompt_learner/model.pth.tar-1"
    state = torch.load(checkpoint, weights_only=False)
    del state["run"]  # of an earlier version, which did not write the file either
    torch.save(state, checkpoint)
    (out / "training_images.json").unlink(missing_ok=True)
    assert run(root, out) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DATALOADER.TEST.SAMPLER", "RandomDomainSampler"], "leaves out some of the 6 images"),
        (["DATALOADER.TRAIN_X.SAMPLER", "RandomDomainSampler", *BATCH], "makes no batch of the 9"),
        (["TRAIN.LOGGERS", '[["csv"]]'], "TRAIN.LOGGERS is "),
        (["TEST.SPLIT", "val"], "TEST.SPLIT is val, but ImageFolder has no validation images"),
        (["INPUT.PIXEL_STD", "[1e-44, 1e-44, 1e-44]"], "of 6 images are not finite"),
    ],
)
def test_one_line_and_status_2(tmp_path, capsys, words, message):
    opts = ["DATALOADER.TEST.BATCH_SIZE", "4", *words]
    zero_shot = "ZeroshotCLIP" if "PIXEL_STD" in words[0] else "CoOp"
    assert run(images(tmp_path / "a"), tmp_path / "out", *opts, trainer=zero_shot) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test": [["a/0.png", 0, "a"]]}, "a/0.png is in train and in test"),
        ({"val": [["./a/0.png", 0, "a"]]}, "a/0.png is in train and in val"),
        ({"train": [["a/0.png", 0, "a"], ["a/0.png", 1, "b"]]}, "a/0.png has the labels 0 and 1"),
    ],
)
def test_a_split_with_one_image_twice_is_refused(tmp_path, capsys, changed, message):
    rows = {part: [[f"{name}/{n}.png", label, name] for label, name in enumerate("ab")]
            for n, part in enumerate(("train", "val", "test"))}  # fmt: skip
    root = tmp_path / "data"
    for path, _, _ in (row for part in rows.values() for row in part):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(root / path)
    (root / "split.json").write_text(json.dumps(rows | changed))
    assert run(root, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/log.txt").exists()
    rows |= {"train": rows["train"] * 2, "test": rows["test"] + rows["test"][:1]}
    (root / "split.json").write_text(json.dumps(rows))
    assert run(root, tmp_path / "out", "DATALOADER.TRAIN_X.BATCH_SIZE", "2") == 0
    told = f"Note: 1 test image(s) are listed several times, and count as often: {root}/a/2.png"
    assert told in (tmp_path / "out/log.txt").read_text()


def test_two_parts_in_one_folder_are_refused(tmp_path, capsys):
    root = images(tmp_path / "a")
    (root / "val").symlink_to(root / "test")
    assert run(root, tmp_path / "out") == 2
    assert "are the same folder" in capsys.readouterr().err


def test_flags_that_would_change_nothing_are_refused(tmp_path, capsys):
    root, out = images(tmp_path / "a"), tmp_path / "out"
    assert run(root, out) == 0
    flags = "--model-dir", str(out)
    assert run(root, tmp_path / "b", flags=flags) == 2
    assert "--model-dir has no effect on a training" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    tested = "--eval-only", *flags, "--load-epoch"
    assert run(root, tmp_path / "b", flags=(*tested, "-5")) == 2
    assert "--load-epoch is -5" in capsys.readouterr().err
    assert run(root, tmp_path / "b", flags=(*tested, "-1")) == 0
    assert run(root, tmp_path / "c", trainer="ZeroshotCLIP", flags=["--eval-only"]) == 0


@pytest.mark.parametrize(
    ("key", "file", "message"),
    [
        ("ANCHOR_WEIGHTS", (2, 128), "(2, 128), this run needs (1, 128): they were learned with"),
        ("ANCHOR_WEIGHTS", (1, 64), "(1, 64), this run needs (1, 128): they were learned with"),
        ("DESCRIPTIONS", '{"red circle": ["A circle."]}', "has no description of 2 of 3 classes"),
        ("ANCHOR", "a photo", "'a photo' is 2 tokens: give the length 2, not 1"),
        ("PATIENCE", "-1", "TRAIN.PATIENCE is -1, but must be 0 or more"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path, capsys, key, file, message):
    value = str(tmp_path / "file")
    if isinstance(file, tuple):
        AnchorTokens(torch.randn(file)).save(value)
    elif key == "DESCRIPTIONS":
        (tmp_path / "file").write_text(file)
    else:
        value = file
    words = f"TRAIN.{key}" if key == "PATIENCE" else f"TRAINER.ANCHOROPT.{key}", value
    assert run(images(tmp_path / "a"), tmp_path / "out", *words, trainer="CoOp_AnchorOPT") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_folder_without_checkpoints_is_not_resumed(tmp_path, capsys):
    root, out = images(tmp_path / "a"), tmp_path / "out"
    assert run(root, out, "TRAIN.CHECKPOINT_FREQ", "1") == 0
    inner = out / "prompt_learner"
    assert run(root, tmp_path / "b", flags=["--resume", str(inner)]) == 2
    assert f"--resume {inner} holds no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("OPTIM:\n  LR: 0.01\nTEST:\n  SPLIT: test\nOPTIM:\n  MAX_EPOCH: 3\n")
    with pytest.raises(UserError, match="line 5: not valid yaml: the key OPTIM is there twice"):
        read_yaml(path)
    path = tmp_path / "mine.json"
    path.write_text('{"red fox": ["A fox."], "owl": ["An owl."], "red fox": ["Another."]}')
    for read in (read_json, descriptions.load):
        with pytest.raises(UserError, match="the key 'red fox' is there twice"):
            read(path)


def test_logits_that_are_no_numbers_are_refused():
    top = TopClasses()
    top.add(["a.png"], torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    top.check_finite()
    top.add(["b.png"], torch.tensor([[torch.nan, 2.0]]), torch.tensor([0]))
    with pytest.raises(UserError, match="1 of 2 images are not finite, first those"):
        top.check_finite()


@pytest.mark.parametrize(("names", "averages"), [(["Red_Circle"], False), (["red oval"], True)])
def test_classes_that_are_one_to_clip_are_one_to_the_test(names, averages):
    run = SimpleNamespace(settings=SimpleNamespace(ensemble="auto"), classes=names)
    rule = TestRule(run, "all")
    rule.trained_classes = frozenset(map(words_of, CLASSES))
    assert rule.averages is averages


def test_a_run_is_resumed_with_the_same_descriptions(tmp_path, capsys):
    root, out, file = images(tmp_path / "a"), tmp_path / "out", tmp_path / "texts.json"
    texts = {name: [f"A {name}."] for name in CLASSES}
    words = "TRAINER.ANCHOROPT.DESCRIPTIONS", str(file), "TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "1"

    def again(content):
        file.write_text(json.dumps(content))
        return run(root, out, *words, trainer="CoOp_AnchorOPT")

    assert again(texts) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    assert again(texts | {"red circle": ["A round one."]}) == 2
    assert "another content of TRAINER.ANCHOROPT.DESCRIPTIONS" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before
    assert again(texts | {"a class of others": ["A text."]}) == 0
    record = json.loads((out / "anchoropt.json").read_text())
    del record["sources"]  # of an earlier version
    (out / "anchoropt.json").write_text(json.dumps(record))
    assert again(texts | {"red circle": ["A round one."]}) == 0


def test_a_folder_of_classes_that_has_grown_tests_no_trained_image(tmp_path, capsys):
    root, out = tmp_path / "a", tmp_path / "out"

    def add(*numbers):
        for name in CLASSES:
            (root / name).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                Image.effect_noise((32, 32), 90).save(root / name / f"{number:02}.png")

    def test(folder):
        return run(folder, tmp_path / "b", flags=["--eval-only", "--model-dir", str(out)])

    add(*range(1, 20, 2))
    assert run(root, out, "DATASET.NUM_SHOTS", "-1") == 0
    assert test(root) == 0
    assert test(root.rename(tmp_path / "moved")) == 0
    (tmp_path / "moved").rename(root)
    add(*range(0, 20, 2))
    assert test(root) == 2
    assert f"are training images of {out}: its data set was divided" in capsys.readouterr().err
    record = json.loads((out / "training_images.json").read_text())
    del record["images"]  # of an earlier version
    (out / "training_images.json").write_text(json.dumps(record))
    assert test(root) == 0


def test_a_training_image_that_was_moved_is_not_tested(tmp_path, capsys):
    root, out = images(tmp_path / "a"), tmp_path / "out"
    for number, path in enumerate(sorted(root.glob("*/*/*.png"))):
        Image.new("RGB", (32, 32), (7, 7, number)).save(path)
    known = root / "test/red_circle/a_copy.png"
    shutil.copy(root / "train/red_circle/0.png", known)

    def test():
        return run(root, tmp_path / "b", flags=["--eval-only", "--model-dir", str(out)])

    assert run(root, out) == 0
    assert test() == 0  # the log of the training has told of the copy
    shutil.copy(root / "train/blue_star/1.png", root / "test/blue_star/new.png")
    assert test() == 2
    (root / "train/blue_star/1.png").unlink()
    assert test() == 2
    said = f"1 of 8 images of this test, such as {root}/test/blue_star/new.png, are training images"
    assert capsys.readouterr().err.count(said) == 2


def test_a_test_with_another_seed_tests_no_trained_image(tmp_path):
    paths = [tmp_path / f"images/{number}.png" for number in range(6)]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(b"an image")

    def divided(trained, tested):
        data = [SimpleNamespace(impath=f"{path}") for path in paths]
        return SimpleNamespace(
            is_drawn=True, image_dir=paths[0].parent, train_x=data[:trained], test=data[tested:]
        )

    write_training_images(tmp_path, "digest", trained_marks(divided(3, 3)))
    check_not_trained(tmp_path, divided(2, 3), "test")
    with pytest.raises(UserError, match=r"1 of 4 images of this test, such as .*/2.png, are train"):
        check_not_trained(tmp_path, divided(3, 2), "test")
    published = divided(3, 0)
    published.is_drawn = False
    check_not_trained(tmp_path, published, "test")


def test_shots_cut_the_validation_images_too(tmp_path, capsys):
    root = images(tmp_path / "a")
    for folder in (root / "train").iterdir():
        shutil.copytree(folder, root / "val" / folder.name)
    for number, path in enumerate(sorted(root.glob("val/*/*.png"))):
        Image.new("RGB", (32, 32), (9, 9, number)).save(path)
    n = len([*root.glob("val/*/*.png")])
    keys = ("DATASET.NUM_SHOTS", "2", "TEST.FINAL_MODEL")
    assert run(root, tmp_path / "out", *keys, "best_val") == 0
    assert f"Note: 6 of {n} validation images are used: as in CoOp" in capsys.readouterr().out
    assert run(root, tmp_path / "last", *keys, "last_step") == 0
    assert "validation images are used" not in capsys.readouterr().out


def test_what_a_split_hides_is_told(tmp_path, capsys):
    root, log = images(tmp_path / "a"), tmp_path / "out/log.txt"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(root / "train/red_circle/3.png")
    for path in (root / "test/green_heart").iterdir():
        path.rename(root / "test/blue_star" / f"more_{path.name}")
    (root / "test/green_heart").rmdir()
    Image.new("RGB", (32, 32), (0, 40, 90)).save(root / "test/red_circle/copy.png")  # 1.png again
    assert run(root, tmp_path / "out", "DATASET.NUM_SHOTS", "4") == 0
    notes = [line for line in log.read_text().splitlines() if line.startswith("Note: ")]
    assert notes[:2] == [
        "Note: 2 of 3 classes have fewer than 4 images for training, and train with all of them: "
        "blue star 3, green heart 3",
        "Note: 1 of 3 classes have no image for test, so the accuracy does not count them: "
        "green heart",
    ]
    assert notes[2].startswith("Note: 7 image(s) for validation or test are copies of training")
    test, train_ = root / "test", root / "train"
    assert notes[3:5] == [
        "Note: 1 test image(s) are copies of other test images, and count again: "
        f"{test}/red_circle/copy.png of {test}/red_circle/1.png",
        "Note: 2 image(s) are copies of images with another label, which cannot both be right: "
        + ", ".join(
            f"{test}/blue_star/more_{n}.png (blue star) of {train_}/green_heart/{n}.png "
            "(green heart)"
            for n in range(2)
        ),
    ]


def test_keys_and_flags_without_effect_are_told(tmp_path, capsys, caplog):
    root, out = images(tmp_path / "a"), tmp_path / "out"
    keys = "TRAINER.MAPLE.N_CTX", "3", "TRAINER.COOP.N_CTX", "2"
    of_anchoropt = "TRAINER.ANCHOROPT.KD_WEIGHT", "2", "TRAINER.ANCHOROPT.KEEP_FEATURES", "False"
    assert run(root, out, *keys, *of_anchoropt) == 0
    notes = [line for line in (out / "log.txt").read_text().splitlines() if "Note: " in line]
    assert notes[0] == (
        "Note: keys of other trainers, without effect: "
        "TRAINER.ANCHOROPT.KD_WEIGHT, TRAINER.MAPLE.N_CTX"
    )
    assert notes[-1].startswith("Note: the warm-up (OPTIM.WARMUP_EPOCH 1) takes all epochs")
    flags = "--eval-only", "--model-dir", str(out)
    assert run(root, tmp_path / "b", trainer="ZeroshotCLIP", flags=flags) == 2
    assert "--model-dir has no effect on ZeroshotCLIP" in capsys.readouterr().err

    anchors = tmp_path / "anchors"
    AnchorTokens(torch.randn(1, 128)).save(anchors)
    words = "TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", str(anchors)
    flags = "--eval-only", "--model-dir", str(tmp_path / "ours")
    assert run(root, tmp_path / "ours", *words, trainer="CoOp_AnchorOPT") == 0
    told = "has no effect: a test takes the anchors of the checkpoint in"
    assert run(root, tmp_path / "b", *words, trainer="CoOp_AnchorOPT", flags=flags) == 0
    assert told not in caplog.text
    words = words[0], str(anchors.rename(tmp_path / "others"))
    assert run(root, tmp_path / "b", *words, trainer="CoOp_AnchorOPT", flags=flags) == 0
    assert told in caplog.text


@pytest.mark.parametrize(("names", "n_told"), [(["red fox", "owl"], 0), (["red fox, owl"], 1)])
def test_a_comma_in_class_names_of_the_command_line_is_told(names, n_told, caplog):
    args = SimpleNamespace(classes=names, classes_file=None)
    assert predict._class_names(args) == names
    assert caplog.text.count("a comma in --classes is part of a class name") == n_told


def test_other_weights_in_the_file_of_the_backbone_are_refused(tmp_path, capsys):
    root, out, file = images(tmp_path / "a"), tmp_path / "out", tmp_path / "clip.pt"
    clip = load_clip("tiny")
    torch.save(clip.state_dict(), file)
    words = "MODEL.BACKBONE.NAME", str(file), "MODEL.BACKBONE.CONFIG", "openai"
    assert run(root, out, *words, trainer="CoOp_AnchorOPT") == 0
    tested = "--eval-only", "--model-dir", str(out)
    before, image = load_predictor(out), str(next((root / "test").rglob("*.png")))
    file = file.rename(tmp_path / "moved.pt")
    words = words[0], str(file), *words[2:]
    for folder, flags in ((tmp_path / "b", tested), (out, ())):
        assert run(root, folder, *words, trainer="CoOp_AnchorOPT", flags=flags) == 0
    (out / "config.yaml").write_text((out / "config.yaml").read_text().replace("moved", "clip"))
    with pytest.raises(UserError, match=r"clip\.pt"):
        load_predictor(out)
    assert load_predictor(out, backbone=str(file))(image) == before(image)
    with torch.no_grad():
        clip.visual.proj.mul_(2)
    torch.save(clip.state_dict(), file)
    says = f"{file} holds other weights than when {out} was trained"
    for folder, flags in ((tmp_path / "c", tested), (out, ())):
        assert run(root, folder, *words, trainer="CoOp_AnchorOPT", flags=flags) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(UserError, match="holds other weights"):
        load_predictor(out, backbone=str(file))
    file.rename(tmp_path / "clip.pt")
    with pytest.raises(UserError, match="holds other weights"):
        load_predictor(out)
    (out / "weights.json").unlink()  # of an earlier version
    load_predictor(out)


def test_the_hash_of_a_folder_is_that_of_its_weights(tmp_path):
    parts = [tmp_path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert hash_of_weights(str(tmp_path)) == hash_of_weights("") == ""
    for part in parts:
        part.write_text(part.name)
    before = hash_of_weights(str(tmp_path))
    (tmp_path / "README.md").write_text("of the hub")
    assert hash_of_weights(str(tmp_path)) == before != ""
    parts[1].write_text("trained on")
    os.utime(parts[1], ns=(1, 1))  # a clock may be coarse
    assert hash_of_weights(str(tmp_path)) != before


def test_key_value_pairs_behind_a_flag_of_many_words_are_refused(tmp_path, capsys):
    flags = "--source-domains", "real", "OPTIM.LR", "0.1"
    assert run(images(tmp_path / "a"), tmp_path / "out", flags=flags) == 2
    assert "--source-domains takes all words after it, also OPTIM.LR" in capsys.readouterr().err


def test_images_that_choose_the_epoch_and_are_tested_are_told(tmp_path, capsys):
    root = images(tmp_path / "a")
    (root / "test").rename(root / "val")
    images(root)
    words = "TEST.FINAL_MODEL", "best_val", "TEST.SPLIT", "val"
    assert run(root, tmp_path / "out", *words) == 0
    assert "so the accuracy is too high" in capsys.readouterr().out


def test_anchors_of_another_clip_or_of_other_classes_are_told(tmp_path, caplog):
    file = tmp_path / "run/anchor_prompt_learner/model.pth.tar"
    run_record.note_other_anchors(file, "tiny", CLASSES)
    (tmp_path / "run").mkdir()
    record = {"backbone": "ViT-B/16", "classes": ["cat"], "settings": {}}
    (tmp_path / "run/anchoropt.json").write_text(json.dumps(record))
    assert not caplog.messages
    run_record.note_other_anchors(file, "ViT-B/16", ["cat", "dog"])
    assert not caplog.messages
    run_record.note_other_anchors(file, "tiny", CLASSES)
    assert "was learned with the CLIP ViT-B/16, not tiny" in caplog.text
    assert "was learned from other classes than those of this run" in caplog.text


def test_a_test_records_what_its_report_compares(tmp_path):
    out = tmp_path / "out"
    assert run(images(tmp_path / "a"), out, trainer="ZeroshotCLIP") == 0
    results = json.loads((out / "results.json").read_text())
    predictions.check_unedited(out / "predictions.csv", results["predictions"])
    tested = predictions.read_images(out / "predictions.csv")
    assert len(tested) == 6 and results["images"]["files"] == digest_of_files(tested) != ""


def test_class_names_that_were_swapped_after_the_training_are_refused(tmp_path, capsys):
    classes = [*CLASSES, "white square"]
    root, out = images(tmp_path / "a", classes), tmp_path / "out"
    folders = [name.replace(" ", "_") for name in classes]

    def name(*names):
        lines = map(" ".join, zip(folders, [*names, classes[-1]], strict=True))
        (root / "classnames.txt").write_text("\n".join(lines))

    def test(*words):
        flags = "--eval-only", "--model-dir", str(out)
        return run(root, tmp_path / "b", *words, flags=flags)

    name(*CLASSES)
    assert run(root, out) == 0
    assert test() == test("DATASET.SUBSAMPLE_CLASSES", "new") == 0
    name("blue star", "red circle", "green heart")
    capsys.readouterr()
    assert test() == 2
    says = f"{out} was trained with the same class names in another order: 'blue star' stood where"
    assert f"{says} 'red circle' is now" in capsys.readouterr().err
    name("red ring", "blue moon", "green heart")  # other names are another experiment
    assert test() == 0
    name("blue star", "red circle", "green heart")
    (out / "classes.json").unlink()  # of an earlier version
    assert test() == 0


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp", "MaPLe", "CoOp_AnchorOPT"])
def test_a_template_as_the_initial_words_is_refused(tmp_path, capsys, trainer):
    words = "a photo of a {}."
    node = trainer.partition("_")[0].upper()
    keys = f"TRAINER.{node}.CTX_INIT", words, f"TRAINER.{node}.PREC", "fp32"
    keys = *keys, "TRAINER.MAPLE.PROMPT_DEPTH", "2"
    assert run(images(tmp_path / "a"), tmp_path / "out", *keys, trainer=trainer) == 2
    assert f"CTX_INIT is {words!r}, but holds only the words before" in capsys.readouterr().err
    assert not (tmp_path / "out/log.txt").exists()


def test_keys_that_no_part_of_a_run_reads_are_told(tmp_path):
    without = {
        **{"DATASET.NUM_LABELED": "4", "DATASET.SOURCE_DOMAINS": "['real']"},
        **{"DATASET.VAL_PERCENT": "0.5", "INPUT.COLORJITTER_B": "0.9"},
        **{"MODEL.HEAD.BN": "False", "OPTIM.BASE_LR_MULT": "2", "OPTIM.RMSPROP_ALPHA": "0.5"},
    }
    used = "INPUT.SIZE", "[32, 32]", "OPTIM.EXTEND", "True", "DATASET.NUM_SHOTS", "2"
    words = [word for pair in without.items() for word in pair]
    root, log = images(tmp_path / "a"), tmp_path / "out/log.txt"
    assert run(root, tmp_path / "out", *used, *words, flags=["--head", "mlp"]) == 0
    keys = ", ".join(sorted([*without, "MODEL.HEAD.NAME"]))
    says = "Note: keys that no part of this run reads, without effect:"
    assert f"{says} {keys}\n" in log.read_text()
    more = "OPTIM.STAGED_LR", "True", "OPTIM.NEW_LAYERS", "['a']", "OPTIM.BASE_LR_MULT", "2"
    more = *more, "INPUT.TRANSFORMS", "['colorjitter']", "INPUT.COLORJITTER_B", "0.9"
    assert run(root, tmp_path / "b", *used, *more, trainer="CoOp_AnchorOPT") == 0
    assert says not in (tmp_path / "b/log.txt").read_text()


def test_a_checkpoint_or_a_draw_of_another_seed_is_refused(tmp_path, capsys):
    root, (one, two) = images(tmp_path / "a"), (tmp_path / "seed1", tmp_path / "seed2")
    draws = root / "split_fewshot"

    def refused(*words, flags):
        capsys.readouterr()
        assert run(root, tmp_path / "test", *words, flags=flags) == 2
        return capsys.readouterr().err

    for seed, folder in ((1, one), (2, two)):
        assert run(root, folder, "DATASET.NUM_SHOTS", "2", flags=["--seed", str(seed)]) == 0
    tested = "--eval-only", "--model-dir"
    assert run(root, tmp_path / "test", flags=["--seed", "2", *tested, str(one)]) == 0
    said = capsys.readouterr().out
    assert "Note: the model was trained with SEED 1, not 2\n" in said
    assert "Note: the model was trained with DATASET.NUM_SHOTS 2, not 16\n" in said
    content = json.loads((tmp_path / "test/results.json").read_text())
    assert (content["settings"]["SEED"], content["settings"]["DATASET.NUM_SHOTS"]) == (1, 2)
    page = write_page(tmp_path / "test").read_text()
    assert "up to 2 training images per class, seed 1," in page
    for source, folder in itertools.product((tmp_path / "test", one), (one, two)):
        shutil.copytree(folder, tmp_path / "mixed")
        for name in ("results.json", "predictions.csv"):
            shutil.copy(source / name, tmp_path / "mixed")
        of_it = contextlib.nullcontext()
        if folder == two:
            of_it = pytest.raises(UserError, match=r"results.json is not of .*: SEED was 1, now 2")
        with of_it:
            write_page(tmp_path / "mixed")
        shutil.rmtree(tmp_path / "mixed")

    checkpoint = two / "prompt_learner/model.pth.tar-1"
    before = checkpoint.read_bytes()
    checkpoint.write_bytes((one / "prompt_learner/model.pth.tar-1").read_bytes())
    says = f"{checkpoint} is not of the run in {two}: SEED was 1, now 2; digest of the training"
    assert says in refused(flags=["--seed", "2", *tested, str(two)])
    with pytest.raises(UserError, match="SEED was 1, now 2"):
        load_predictor(two)
    more = root / "train/red_circle/more.png"  # makes it another split, of which images are drawn
    more.write_bytes((root / "train/red_circle/0.png").read_bytes())
    kept = {path: path.read_bytes() for path in draws.iterdir()}
    assert says in refused("DATASET.NUM_SHOTS", "2", flags=["--seed", "2", *tested, str(two)])
    assert {path: path.read_bytes() for path in draws.iterdir()} == kept
    more.unlink()
    state = torch.load(io.BytesIO(before), weights_only=False)
    del state["run"]  # of an earlier version
    torch.save(state, checkpoint)
    load_predictor(two)

    draw = draws / "shot_2-seed_1.json"
    for name, what in (("2-seed_3", "seed 1, not 3"), ("3-seed_1", "shots 2, not 3")):
        (draws / f"shot_{name}.json").write_bytes(draw.read_bytes())
        shots, _, seed = name.partition("-seed_")
        flags = ["--seed", seed]
        assert f"{name}.json: drawn with {what}" in refused("DATASET.NUM_SHOTS", shots, flags=flags)
    content = {key: value for key, value in json.loads(draw.read_text()).items() if key != "seed"}
    (draws / "shot_2-seed_3.json").write_text(json.dumps(content))  # of an earlier version
    assert run(root, tmp_path / "c", "DATASET.NUM_SHOTS", "2", flags=["--seed", "3"]) == 0
