"""Hostile and broken files: one line, no code runs, no file is left behind."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import resource
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.config.merge import read_yaml
from anchoropt_plugin.datasets.public_pickles import load_fewshot_pickle
from anchoropt_plugin.encoders.clip_models import load_clip, tokenize
from anchoropt_plugin.files import checkpoints
from anchoropt_plugin.files.images import read_image
from anchoropt_plugin.method import descriptions
from anchoropt_plugin.method.anchors import PUBLISHED_NAME, AnchorTokens

from ..test_train_cli import TINY

TRACE = "anchoropt_hostile_trace"


class Reduces:
    def __reduce__(self):
        return os.mkdir, (TRACE,)


class Builds:
    """An object that runs code through its pickled state."""

    def __reduce__(self):
        return dict, (), None, None, iter([("a", Reduces())])


GLOBAL = b"\x80\x02cos\nmkdir\n(V" + TRACE.encode() + b"\ntR."
INST = b"(V" + TRACE.encode() + b"\nios\nmkdir\n."
OBJ = b"\x80\x02(cos\nmkdir\nV" + TRACE.encode() + b"\no."
NEWOBJ = b"\x80\x02cos\nmkdir\n(V" + TRACE.encode() + b"\nt\x81."
STACK_GLOBAL = b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93(\x8c" + bytes([len(TRACE)]) + TRACE.encode()
STACK_GLOBAL += b"tR."
BY_ATTRIBUTE = b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93cos\nmkdir\nV__call__\n\x86R("
BY_ATTRIBUTE += b"V" + TRACE.encode() + b"\ntR."
DOTTED = b"\x80\x04\x8c\x05torch\x8c\x0cos.mkdir\x93(V" + TRACE.encode() + b"\ntR."
PICKLES = {
    "reduce": pickle.dumps(Reduces()),
    "nested": pickle.dumps({"state_dict": {"ctx": [Reduces()]}, "epoch": 1}),
    "build": pickle.dumps(Builds()),
    "global": GLOBAL,
    "inst": INST,
    "obj": OBJ,
    "newobj": NEWOBJ,
    "stack global": STACK_GLOBAL,
    "getattr": BY_ATTRIBUTE,
    "dotted": DOTTED,
    "persistent id": b"\x80\x02" + GLOBAL[2:-1] + b"Q.",
    "extension": b"\x80\x02\x82\x01.",
    "huge memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 44) + b"a.",
    "no stop": b"\x80\x02N",
    "empty stack": b"\x80\x020.",
    "wrong memo": b"\x80\x02h\x05.",
}


def in_archive(payload, names=("archive/data.pkl",)):
    """Return a zip archive like torch's around a pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, payload)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(16))
    return content.getvalue()


FORMATS = {
    "bare": lambda payload: payload,
    "zip": in_archive,
    "legacy": lambda payload: (
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
        + pickle.dumps(1001, protocol=2)
        + pickle.dumps({"little_endian": True}, protocol=2)
        + payload
    ),
    "torchscript": lambda payload: in_archive(
        payload, ("archive/data.pkl", "archive/constants.pkl", "archive/code/x.py")
    ),
    "zip in a zip": lambda payload: in_archive(in_archive(payload)),
}


@pytest.fixture(autouse=True)
def _no_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(TRACE).exists(), "code from a file has run"


def test_the_traps_are_real(tmp_path):
    for name in ("reduce", "build", "global", "inst", "obj", "stack global"):
        pickle.loads(PICKLES[name])
        Path(TRACE).rmdir()


READERS = {
    "checkpoint": checkpoints.load,
    "anchors": AnchorTokens.load,
    "backbone": lambda path: load_clip(str(path)),
    "few-shot": load_fewshot_pickle,
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("reader", READERS)
def test_no_pickle_runs_code(tmp_path, kind, reader):
    for name, payload in PICKLES.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(FORMATS[kind](payload))
        try:
            READERS[reader](path)
        except UserError as error:
            assert "\n" not in str(error), name
        else:
            assert reader == "checkpoint", name  # unknown objects are inert


@pytest.fixture
def little_memory():
    """Limit the memory to one gigabyte more; larger allocations raise a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        ("checkpoint", "zip"),
        ("checkpoint", "legacy"),
        ("backbone", "torchscript"),
        ("few-shot", "bare"),
    ],
)
def test_a_number_in_a_pickle_that_stands_for_gigabytes(tmp_path, little_memory, reader, kind):
    (tmp_path / "a.pt").write_bytes(FORMATS[kind](PICKLES["huge memo"]))
    with pytest.raises(UserError) as error:
        READERS[reader](tmp_path / "a.pt")
    assert "Memory" not in str(error.value)


def saved(content, path, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("reader", ["checkpoint", "anchors", "backbone"])
def test_files_cut_off_anywhere(tmp_path, reader):
    whole = saved({"state_dict": {PUBLISHED_NAME: torch.ones(1, 8)}}, tmp_path / "a").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(UserError):
            READERS[reader](tmp_path / "cut")


@pytest.mark.parametrize("reader", ["checkpoint", "anchors", "backbone"])
def test_claims_of_terabytes_take_no_memory(tmp_path, reader):
    huge = torch.zeros(1).as_strided((1 << 20, 1 << 20), (0, 0))
    path = saved({"state_dict": {PUBLISHED_NAME: huge}}, tmp_path / "strided.pt")
    with pytest.raises(UserError):
        READERS[reader](path)
    # Packed into less than they claim, and beside a record that makes the file as large as that.
    for more in (0, 1 << 22):
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
            for info in source.infolist():
                data = bytes(1 << 22) if "/data/" in info.filename else source.read(info)
                target.writestr(info.filename, data, zipfile.ZIP_DEFLATED)
            target.writestr("strided/more", bytes(more))
        with pytest.raises(UserError, match=r"claims \d+ bytes"):
            READERS[reader](tmp_path / "b.pt")


def test_a_header_that_claims_terabytes(tmp_path):
    path = saved({"state_dict": {"w": torch.zeros(4)}}, tmp_path / "a.pt")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    entry = content.index(b"PK\x01\x02", entry + 4)
    content[entry + 24 : entry + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="claims 4294967280 bytes"):
        checkpoints.load(path)


@pytest.mark.parametrize("value", [torch.zeros(2, 2).to_sparse(), torch.empty(2, device="meta")])
def test_tensors_without_values_of_their_own(tmp_path, value):
    with pytest.raises(UserError, match=r"w has no values|cannot read"):
        checkpoints.load(saved({"state_dict": {"w": value}}, tmp_path / "a.pt"))


def test_a_message_does_not_unfold_what_repeats_itself(tmp_path):
    epoch = []
    for _ in range(60):
        epoch = [epoch, epoch]
    with pytest.raises(UserError, match=r"its epoch is \[") as error:
        checkpoints.load(saved({"epoch": epoch}, tmp_path / "a.pt"))
    assert len(str(error.value)) < 1000


# ------------------------------------------------------------------ texts
BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 5000, "a: " + "{a: " * 5000, "- 1", "x", "a: b: c",
        "a: !!python/object/apply:os.mkdir [anchoropt_hostile_trace]", "? [1]\n: 2", "a: *b",
        "a: 2001-99-99", "a: " + "1" * 5000, "\0", "%YAML 9.9\n---\na: 1", "&a : *a",
    ],
)  # fmt: skip
def test_hostile_yaml(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        cfg = train.get_cfg_default()
        train.merge_file(cfg, path)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]"])
def test_aliases_that_stand_for_gigabytes(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="too large: yaml aliases expand it"):
        read_yaml(path)


def test_an_alias_or_two_is_fine(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &x [1, 2]\nb: *x\n")
    assert read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    "text", ["", "[" * 200_000, '{"a":' * 200_000, "1" * 5000, '{"cat": ["a", 5]}', '"\\ud800"']
)
def test_hostile_descriptions(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        descriptions.read(path, ["cat"], 10)
    assert "\n" not in str(error.value)


def test_texts_of_any_length_and_script():
    with pytest.raises(UserError, match="10003 letters") as error:
        tokenize([f"{'x' * 10_000} a."])
    assert len(str(error.value)) < 1000
    with pytest.raises(UserError, match="CLIP reads at most 77") as error:
        tokenize(["ab" * 4000])
    assert len(str(error.value)) < 1000
    names = ["猫", "e\u0301te\u0301", "\U0001f600", "\u202eabc", "a\ud800b", "<b>&amp;</b>", "''"]
    assert tokenize(names).shape == (len(names), 77)


# ------------------------------------------------------------------ images
def png(width, height, data=b""):
    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"x", png(60_000, 60_000), png(2**31 - 1, 2**31 - 1), png(4, 4, b"x"), png(0, 0), EPS],
)
def test_hostile_images(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read the image") as error:
        read_image(path)
    assert "\n" not in str(error.value)


def test_postscript_is_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(EPS)
    assert Image.open(tmp_path / "a.png").format == "EPS"  # PIL alone would have it run
    with pytest.raises(UserError, match="cannot identify"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tiff", "webp"])
def test_images_of_every_kind_are_read(tmp_path, suffix):
    Image.new("RGB", (4, 4), (250, 0, 0)).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}").size == (4, 4)


# ------------------------------------------------------------------ whole runs
@pytest.fixture
def own(tmp_path):
    """A user's data set with a split, and the command that trains on it."""
    folder = tmp_path / "data"
    split = {"train": [], "val": [], "test": []}
    for label, name in enumerate(("cat", "dog")):
        (folder / "images" / name).mkdir(parents=True)
        for number, part in enumerate(split):
            path = f"{name}/{part}.png"
            Image.new("RGB", (32, 32), (90 * number, 0, 90 * label)).save(folder / "images" / path)
            split[part].append([path, label, name])
    words = [
        *("--root", str(folder), "--output-dir", str(tmp_path / "out"), "--trainer", "CoOp"),
        *("--dataset-config-file", str(Path(TINY).parents[2] / "datasets/image_folder.yaml")),
        *("--config-file", TINY, "--seed", "1", "USE_CUDA", "False", "OPTIM.MAX_EPOCH", "1"),
        *("DATASET.NUM_SHOTS", "1"),
    ]
    return folder, split, words


def listing(folder):
    return sorted(path.as_posix() for path in folder.rglob("*"))


def with_path(path):
    return lambda split: split["train"][0].__setitem__(0, path)


def with_name(name):
    def change(split):
        for part in split.values():
            part[0][2] = name

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_path("../../etc/passwd"), "leads out of"),
        (with_path("/etc/passwd"), "leads out of"),
        (with_path("cat/../../../x.png"), "leads out of"),
        (with_path("link/x.png"), "is a symlink out of"),
        (with_path("cat\0.png"), "cannot be a file"),
        (with_path("x" * 10_000), "cannot be a file"),
        (with_name("dog"), "labels 0 and 1 are named 'dog' and 'dog'"),
        (with_name("x" * 10_000), "has 10000 characters: shorten it"),
        (with_name("many words " * 100), "has 1100 characters: shorten it"),
        (with_name("\u0007"), "control characters"),
        (lambda split: split.pop("train"), "a split is"),
    ],
)
def test_a_hostile_split_is_refused_and_nothing_is_left(own, tmp_path, capsys, change, message):
    folder, split, words = own
    (folder / "images" / "link").symlink_to("/etc")
    change(split)
    (folder / "split.json").write_text(json.dumps(split))
    before = listing(tmp_path)
    assert train.main([*words, "DATASET.NUM_SHOTS", "1"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert message in printed
    assert len(printed) < 1500
    assert listing(tmp_path) == before


def test_best_val_without_validation_images_writes_nothing(own, tmp_path, capsys):
    folder, split, words = own
    del split["val"]
    (folder / "split.json").write_text(json.dumps(split))
    before = listing(tmp_path)
    final = ["DATASET.NUM_SHOTS", "-1", "TEST.FINAL_MODEL", "best_val"]
    assert train.main([*words, *final]) == 2
    printed = capsys.readouterr().err
    assert "ImageFolder has no validation images" in printed and printed.count("\n") == 1
    assert listing(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", "null", '{"train": 5, "test": 5}'])
def test_a_broken_split(own, tmp_path, capsys, text):
    folder, _, words = own
    (folder / "split.json").write_text(text)
    before = listing(tmp_path)
    assert train.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert listing(tmp_path) == before


def test_a_log_that_was_there_stays(own, tmp_path, capsys):
    folder, _, words = own
    (folder / "split.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").write_text("before\n")
    before = listing(tmp_path)
    assert train.main(words) == 2
    assert listing(tmp_path) == before
    assert (tmp_path / "out" / "log.txt").read_text() == "before\n"


def test_names_in_any_script_train(own, tmp_path):
    folder, split, words = own
    for name, label in (("猫 😀", 0), ("\u202eдог", 1)):
        for part in split.values():
            part[label][2] = name
    (folder / "split.json").write_text(json.dumps(split))
    assert train.main(words) == 0
    assert json.loads((tmp_path / "out/classes.json").read_text()) == ["猫 😀", "\u202eдог"]


def test_a_corrupt_image_ends_the_run_in_one_line(own, tmp_path, capsys):
    folder, split, words = own
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "images/cat/train.png").write_bytes(png(60_000, 60_000))
    assert train.main(words) == 2
    printed = capsys.readouterr().err
    assert "cat/train.png: Image size (3600000000 pixels) exceeds limit" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ the code itself
SOURCES = ("anchoropt_plugin", "trainers", "train.py")


def called(node):
    """Return the dotted name of a called function."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_nothing_in_the_code_reads_a_file_by_running_it():
    root = Path(train.__file__).parent
    files = [file for name in SOURCES for file in [root / name, *(root / name).rglob("*.py")]]
    seen = []
    for file in filter(Path.is_file, files):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = called(node)
            if name == "torch.jit.load":  # the bytes inside a pickle that the user loads himself
                assert file.name == "portable.py"
                assert ast.unparse(node.args[0]) == "io.BytesIO(self.model)"
            if name == "np.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options["allow_pickle"] == "False"
            assert name not in (
                "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load",
                "yaml.full_load", "eval", "exec", "shelve.open", "joblib.load",
            ), file  # fmt: skip
            if name == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                seen.append(options.get("pickle_module") or options["weights_only"])
    assert sorted(seen) == ["True", "True", "_safe_pickle_module()"]
