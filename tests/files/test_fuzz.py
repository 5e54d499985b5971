"""Whatever a file holds, its reader returns a valid result or raises a one-line ``UserError``."""

from __future__ import annotations

import io
import json
import pickle

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.config.record import final_epoch, merge_record
from anchoropt_plugin.config.same_run import check_same_model, check_same_run
from anchoropt_plugin.dassl_compat.data.datasets import Datum
from anchoropt_plugin.dassl_compat.utils.torchtools import load_checkpoint
from anchoropt_plugin.datasets.public_pickles import load_fewshot_pickle, read_public_pickle
from anchoropt_plugin.datasets.split_files import check_files
from anchoropt_plugin.datasets.splits import read_split
from anchoropt_plugin.files import checkpoints
from anchoropt_plugin.files.checkpoint_folder import last_checkpoint_name
from anchoropt_plugin.files.run_events import read_events, read_results
from anchoropt_plugin.method import descriptions
from anchoropt_plugin.method.anchors import AnchorTokens
from anchoropt_plugin.training import anchor_cache
from anchoropt_plugin.training.load_predictor import (
    _named,
    _recorded_cfg,
    _recorded_classes,
)
from anchoropt_plugin.training.run_record import read_history, read_record

fuzz = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

texts = st.text(max_size=6) | st.sampled_from(["", "../x", "/etc/passwd", "\0", "\ud800", "a/b"])
atoms = st.none() | st.booleans() | st.integers() | st.floats() | texts
keys = texts | st.sampled_from(
    [
        *("train", "val", "test", "cat", "epoch", "temperature", "P", "backbone", "classes"),
        *("settings", "anchor_len", "position", "state_dict", "anchor_ctx_1", "losses", "key"),
        *("OPTIM", "LR", "TRAINER", "NAME", "DATASET", "INPUT", "SIZE", "SEED", "MODEL", "_x"),
        *("IMMUTABLE", "__class__", "ANCHOROPT", "DESCRIPTIONS"),
    ]
)
values = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
items = st.lists(
    st.tuples(texts, st.integers(-1, 3) | st.sampled_from(["0", "1"]), texts).map(list) | values,
    max_size=4,
)
splits = st.fixed_dictionaries({"train": items, "test": items}, optional={"val": items}) | values
tables = st.dictionaries(texts, st.lists(texts, max_size=3)) | values
rows = st.fixed_dictionaries({"epoch": atoms, "temperature": atoms, "P": values})
records = st.fixed_dictionaries(
    {
        "backbone": texts,
        "classes": st.lists(texts | st.integers(), max_size=3) | values,
        "settings": st.dictionaries(keys, values, max_size=2) | values,
    }
)


def reads(reader, content, path):
    """Call a reader on a file; any exception but a UserError of one line fails the test."""
    path.write_bytes(content)
    try:
        return reader(path)
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 5000
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def as_json(value):
    return json.dumps(value).encode()


def whole_split(path):
    split = read_split(path)
    check_files(split, path.parent)
    return split


@fuzz
@given(st.one_of(splits.map(as_json), st.binary(max_size=60)))
def test_splits(folder, content):
    split = reads(whole_split, content, folder / "split.json")
    assert split is None or split.train


@fuzz
@given(st.one_of(tables.map(as_json), st.binary(max_size=60)))
def test_descriptions(folder, content):
    found = reads(lambda path: descriptions.read(path, ["cat"], 2), content, folder / "d.json")
    assert found is None or all(isinstance(text, str) for text in found[0])


@fuzz
@given(st.one_of((records | values).map(as_json), st.binary(max_size=60)))
@example(as_json({"backbone": "tiny", "classes": ["cat", 5], "settings": {}}))
def test_records(folder, content):
    record = reads(read_record, content, folder / "anchoropt.json")
    assert record is None or all(isinstance(name, str) for name in record["classes"])


@fuzz
@given(
    st.one_of(
        st.lists(rows | values, max_size=3).map(lambda x: b"\n".join(map(as_json, x))),
        st.binary(max_size=60),
    )
)
def test_histories(folder, content):
    history = reads(read_history, content, folder / "position.jsonl")
    assert history is None or all(isinstance(entry["epoch"], int) for entry in history)


events = st.fixed_dictionaries(
    {"event": st.sampled_from(["epoch", "anchors"]) | atoms},
    optional={"epoch": atoms, "epochs": atoms, "loss": atoms},
)


@fuzz
@given(
    st.one_of(
        st.lists(events | values, max_size=3).map(
            lambda x: b"".join(as_json(y) + b"\n" for y in x)
        ),
        st.binary(max_size=60),
    )
)
@example(as_json({"event": "epoch", "epoch": 1, "epochs": 2}) + b"\n")
def test_events(folder, content):
    found = reads(lambda path: read_events(path.parent), content, folder / "events.jsonl")
    assert found is None or all(isinstance(event["event"], str) for event in found)


numbers = st.integers() | st.floats(0, 100)
results = st.fixed_dictionaries(
    {
        "after_training": st.booleans() | atoms,
        "total": st.integers() | atoms,
        "correct": st.integers() | atoms,
        "accuracy": numbers | atoms,
        "macro_f1": numbers | atoms,
    }
)


@fuzz
@given(st.one_of((results | values).map(as_json), st.binary(max_size=60)))
def test_results(folder, content):
    found = reads(lambda path: read_results(path.parent), content, folder / "results.json")
    assert not found or isinstance(found["total"], int)


@fuzz
@given(st.one_of(values.map(as_json), st.binary(max_size=60)))
def test_class_names_of_a_predictor(folder, content):
    def read(path):
        return _named(_recorded_classes(path.parent))

    names = reads(read, content, folder / "classes.json")
    assert names is None or all(isinstance(name, str) for name in names)


@fuzz
@given(
    values.map(lambda value: yaml.safe_dump(value).encode()) | st.binary(max_size=60),
    st.one_of((records | values).map(as_json), st.binary(max_size=60)),
)
def test_the_record_of_a_predictor(folder, config, record):
    (folder / "anchoropt.json").write_bytes(record)
    reads(lambda path: _recorded_cfg(path.parent), config, folder / "config.yaml")


def merged(path):
    cfg = train.get_cfg_default()
    train.extend_cfg(cfg)
    train.merge_file(cfg, path)
    train.check_values(cfg)
    return cfg.dump()


def recorded(path):
    cfg = train.get_cfg_default()
    merge_record(cfg, path.parent)
    (path.parent / "model").mkdir(exist_ok=True)
    (path.parent / "model/checkpoint").touch()
    check_same_run(train.get_cfg_default(), path.parent)
    check_same_model(train.get_cfg_default(), path.parent, object, ["COOP"])
    final_epoch(path.parent, "learner")


@fuzz
@given(
    values.map(lambda value: yaml.safe_dump(value).encode())
    | st.text("[]{}&*!?|>-:,#'\"%@` \nab1", max_size=40).map(str.encode)
    | st.binary(max_size=60)
)
def test_configs(folder, content):
    reads(merged, content, folder / "method.yaml")
    reads(recorded, content, folder / "config.yaml")


@fuzz
@given(st.lists(st.tuples(texts | keys, texts), max_size=3))
def test_keys_and_values(pairs):
    cfg = train.get_cfg_default()
    try:
        train.merge_list(cfg, [word for pair in pairs for word in pair])
    except UserError as error:
        assert "\n" not in str(error)


tensors = st.sampled_from(
    [
        *(torch.ones(1, 4), torch.zeros(0), torch.tensor(1), torch.full((2, 2), float("nan"))),
        *(torch.zeros(1).expand(9, 9), torch.zeros(2, 2).to_sparse(), torch.ones(1, 4).half()),
        torch.ones(2, dtype=torch.complex64),
    ]
)
states = st.recursive(
    atoms | tensors | st.sets(st.integers(), max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
checkpoint_like = st.fixed_dictionaries(
    {"state_dict": st.dictionaries(keys, tensors | states) | states, "epoch": atoms},
    optional={"losses": states, "key": states},
)


@st.composite
def files_of_torch(draw):
    """Draw a file of torch, unchanged, truncated, or with a few bytes changed."""
    content = io.BytesIO()
    torch.save(
        draw(checkpoint_like | states), content, _use_new_zipfile_serialization=draw(st.booleans())
    )
    data = bytearray(content.getvalue())
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


@fuzz
@given(files_of_torch() | st.binary(max_size=60))
def test_checkpoints_and_anchors(folder, content):
    for reader in (checkpoints.load, load_checkpoint, AnchorTokens.load):
        reads(reader, content, folder / "model.pth.tar")
    (folder / "key.pth.tar").write_bytes(content)
    found = anchor_cache.get(folder, "key", (1, 4))
    assert found is None or found.values.shape == (1, 4)


@st.composite
def pickles(draw):
    datum = st.builds(Datum, atoms, atoms, atoms, atoms) | states
    lists = st.dictionaries(keys, st.lists(datum, max_size=3) | states, max_size=3) | states
    data = bytearray(pickle.dumps(draw(lists), protocol=draw(st.integers(2, 5))))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@fuzz
@given(pickles() | st.binary(max_size=60))
def test_few_shot_files(folder, content):
    def read(path):
        return read_public_pickle(path, folder / "pets", folder / "pets" / "images")

    lists = reads(load_fewshot_pickle, content, folder / "shot_1-seed_1.pkl")
    for datum in (datum for part in (lists or {}).values() for datum in part):
        assert tuple(map(type, datum)) == (str, int, int, str)
    reads(read, content, folder / "shot_1-seed_1.pkl")


@fuzz
@given(st.binary(max_size=30) | texts.map(lambda text: text.encode(errors="replace")))
def test_the_name_of_the_last_checkpoint(folder, content):
    (folder / "learner").mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("TEST: {FINAL_MODEL: last_step}")
    reads(
        lambda path: last_checkpoint_name(path.parent), content, folder / "learner" / "checkpoint"
    )
    reads(lambda _: final_epoch(folder, "learner"), content, folder / "learner" / "checkpoint")
