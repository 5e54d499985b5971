from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clip.model import CLIP
from safetensors.torch import save_file

from anchoropt_plugin.encoders.architecture import ImagePreparation
from anchoropt_plugin.encoders.clip_models import load_clip, tokenize
from anchoropt_plugin.encoders.weight_files import read_architecture
from anchoropt_plugin.errors import UserError

from .foreign_clips import (
    ALL,
    OPEN_CLIP,
    TEXT,
    VIT,
    image_features,
    new,
    text_features,
    write_config,
    write_folder,
)
from .test_clip_models import Hostile

TOKENS = tokenize(["a photo of a cat.", "red fox", "a long description, of two elephants & a hut"])


def same(loaded: CLIP, model: Any) -> bool:
    """Whether both have the same features of random images and of texts, to 1e-5."""
    side = loaded.visual.input_resolution
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = image_features(model, images), text_features(model, TOKENS)
        found = loaded.encode_image(images), loaded.encode_text(TOKENS)
    errors = [(x - y).norm() / y.norm() for x, y in zip(found, wanted, strict=True)]
    return max(errors) < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_a_folder_gives_the_librarys_features(name: str, tmp_path: Path) -> None:
    model = write_folder(name, tmp_path)
    loaded = load_clip(str(tmp_path))
    assert same(loaded, model)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.logit_scale.item() == pytest.approx(model.logit_scale.item())


@pytest.mark.parametrize(
    ("name", "suffix", "wrapped"),
    [
        ("heads of 80", ".safetensors", False),
        ("heads of 80", ".pt", True),
        ("transformers, GELU", ".bin", False),
        ("transformers, GELU", ".safetensors", True),
    ],
)
def test_a_file_needs_the_configuration(
    name: str, suffix: str, wrapped: bool, tmp_path: Path
) -> None:
    model = write_folder(name, tmp_path / "folder")
    state = model.state_dict()
    path = tmp_path / f"weights{suffix}"
    if wrapped:
        state = {f"module.{key}": tensor for key, tensor in state.items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        content = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}
        torch.save(content if wrapped else state, path)
    with pytest.raises(UserError, match=r"GELU or QuickGELU.*heads.*MODEL\.BACKBONE\.CONFIG"):
        load_clip(str(path))
    config = "open_clip_config.json" if name in OPEN_CLIP else "config.json"
    assert same(load_clip(str(path), config=str(tmp_path / "folder" / config)), model)


def test_what_was_asked_for_decides(tmp_path: Path) -> None:
    model = new("ViT, GELU")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = load_clip(str(tmp_path / "weights.pt"), config="openai")
    assert not same(loaded, model)  # so neither activation nor heads may be guessed


def test_weights_that_transformers_split_are_read_whole(tmp_path: Path) -> None:
    model = new("transformers, GELU")
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(load_clip(str(tmp_path)), model)


@pytest.mark.parametrize("eos", [2, 49407])
def test_both_ways_of_transformers_to_find_eot(eos: int, tmp_path: Path) -> None:
    model = write_folder("transformers, QuickGELU", tmp_path)
    model.text_model.eos_token_id = eos  # 2: the highest token, as in OpenAI's first files
    change(tmp_path / "config.json", lambda config: config["text_config"].update(eos_token_id=eos))
    assert same(load_clip(str(tmp_path)), model)


def test_older_files_of_transformers_have_a_second_configuration(tmp_path: Path) -> None:
    model = write_folder("transformers, GELU", tmp_path)
    older = {"num_attention_heads": 4, "hidden_act": "gelu"}

    def to_older(config: dict[str, Any]) -> None:
        for kind in ("text", "vision"):
            config[f"{kind}_config_dict"] = older
            config[f"{kind}_config"].update(hidden_act="quick_gelu", num_attention_heads=2)

    change(tmp_path / "config.json", to_older)
    assert same(load_clip(str(tmp_path)), model)


def change(path: Path, edit: Any) -> None:
    """Edit a json file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_images_are_prepared_as_the_configuration_tells(tmp_path: Path) -> None:
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    one = write_config("ViT, GELU", tmp_path / "a", mean=mean, std=std, resize_mode="squash")
    given = {"image_mean": mean, "image_std": std, "resample": 2}
    other = write_config("transformers, GELU", tmp_path / "b", **given)
    assert read_architecture(one).preparation == (tuple(mean), tuple(std), "bicubic", True)
    assert read_architecture(other).preparation == (tuple(mean), tuple(std), "bilinear", False)
    write_folder("ViT, GELU", tmp_path / "a", mean=mean)
    assert load_clip(str(tmp_path / "a")).preparation == ImagePreparation(tuple(mean))
    assert load_clip("tiny").preparation is None


OF_OTHERS = {
    "CoCa": {"multimodal_cfg": {"width": 64}},
    "SigLIP": {"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}},
    "EVA-CLIP": {"vision_cfg": {"timm_model_name": "eva02_base_patch16_clip_224"}},
    "xlm-roberta-base": {"text_cfg": {"hf_model_name": "xlm-roberta-base"}},
    "google/mt5-base": {"text_cfg": {"hf_model_name": "google/mt5-base"}},
    r"vision_cfg\.ls_init_value 0\.0001": {"vision_cfg": {**VIT, "ls_init_value": 1e-4}},
    r"vision_cfg\.norm_kwargs": {"vision_cfg": {**VIT, "norm_kwargs": {"eps": 1e-6}}},
    r"text_cfg\.pool_type 'last'": {"text_cfg": {**TEXT, "pool_type": "last"}},
    r"text_cfg\.no_causal_mask True": {"text_cfg": {**TEXT, "no_causal_mask": True}},
    r"text_cfg\.hf_tokenizer_name": {"text_cfg": {**TEXT, "hf_tokenizer_name": "bert"}},
}


@pytest.mark.parametrize("what", OF_OTHERS)
def test_other_models_of_open_clip_are_refused_by_name(what: str, tmp_path: Path) -> None:
    path = write_config("ViT, GELU", tmp_path)
    change(path, lambda config: config["model_cfg"].update(OF_OTHERS[what]))
    with pytest.raises(UserError, match=f"{what}.*only CLIPs of OpenAI's architecture"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    ("what", "edit"),
    [
        ("SigLIP", {"model_type": "siglip"}),
        ("AltCLIP.*XLM-R", {"model_type": "altclip"}),
        ("Chinese-CLIP", {"model_type": "chinese_clip"}),
        ("a model of the type 'bert'", {"model_type": "bert"}),
        ("activation 'relu'", {"text_config": {"hidden_act": "relu"}}),
        ("layer_norm_eps 1e-06", {"vision_config": {"layer_norm_eps": 1e-6}}),
        ("end with the token 7", {"text_config": {"eos_token_id": 7}}),
    ],
)
def test_other_models_of_transformers_are_refused_by_name(
    what: str, edit: dict[str, Any], tmp_path: Path
) -> None:
    change(write_config("transformers, GELU", tmp_path), lambda config: config.update(edit))
    with pytest.raises(UserError, match=f"{what}.*only CLIPs of OpenAI's architecture"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    ("what", "key"),
    [
        ("SigLIP", "logit_bias"),
        ("CoCa", "text_decoder.resblocks.0.ln_1.weight"),
        ("timm .EVA", "visual.trunk.blocks.0.norm1.weight"),
        ("mT5", "text.transformer.encoder.block.0.layer.0.layer_norm.weight"),
        ("XLM-R", "text.transformer.embeddings.word_embeddings.weight"),
        ("AltCLIP", "text_model.roberta.embeddings.word_embeddings.weight"),
    ],
)
def test_tensors_of_other_models_are_refused_by_name(what: str, key: str, tmp_path: Path) -> None:
    torch.save({"logit_scale": torch.zeros(()), key: torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=f"{what}.*only CLIPs of OpenAI's architecture"):
        load_clip(str(tmp_path / "weights.pt"), config="openai")


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        ("vision_cfg", "layers", "image layers 3, but the weights have 2"),
        ("text_cfg", "width", "text width 3, but the weights have 64"),
        ("text_cfg", "heads", "3 attention heads do not divide the width 64"),
    ],
)
def test_the_configuration_of_other_weights_is_refused(
    part: str, key: str, message: str, tmp_path: Path
) -> None:
    write_folder("ViT, GELU", tmp_path)
    path = tmp_path / "open_clip_config.json"
    change(path, lambda config: config["model_cfg"][part].update({key: 3}))
    with pytest.raises(UserError, match=message):
        load_clip(str(tmp_path))


def test_a_configuration_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    write_folder("ViT, GELU", tmp_path)
    with pytest.raises(UserError, match=r"openai describes another CLIP"):
        load_clip(str(tmp_path), config="openai")
    same_again = str(tmp_path / "open_clip_config.json")
    assert same(load_clip(str(tmp_path), config=same_again), new("ViT, GELU"))
    with pytest.raises(UserError, match=r"'opneai' .* neither 'openai' nor a file"):
        load_clip("tiny", config="opneai")


def test_a_folder_without_one_set_of_weights_is_refused(tmp_path: Path) -> None:
    write_folder("ViT, GELU", tmp_path)
    weights = tmp_path / "open_clip_pytorch_model.bin"
    weights.rename(tmp_path / "epoch_3.pt")
    assert same(load_clip(str(tmp_path)), new("ViT, GELU"))
    (tmp_path / "epoch_4.pt").touch()
    with pytest.raises(UserError, match=r"but not its weights; it has epoch_3\.pt, epoch_4\.pt"):
        load_clip(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text('{"fc": 1}')
    (tmp_path / "epoch_4.pt").unlink()
    with pytest.raises(UserError, match="a model of the type None"):
        load_clip(str(tmp_path))


def test_a_hostile_file_does_not_run(tmp_path: Path) -> None:
    write_config("ViT, GELU", tmp_path)
    weights = tmp_path / "open_clip_pytorch_model.bin"
    torch.save({"extra": Hostile(tmp_path / "it-ran")}, weights)
    with pytest.raises(UserError, match="would run code in it"):
        load_clip(str(tmp_path))
    assert not (tmp_path / "it-ran").exists()
    weights.rename(tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="cannot be read as CLIP weights"):
        load_clip(str(tmp_path))
