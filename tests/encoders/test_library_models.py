"""The fast branch and stage 1 on models of open_clip and transformers, and their own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchoropt_plugin import AnchorTokens, StageOne, TextTower, UserError, accelerate, restore
from anchoropt_plugin.encoders.architecture import variant_of
from anchoropt_plugin.encoders.clip_models import load_clip, tokenize
from anchoropt_plugin.encoders.image_classifier import digest_of
from anchoropt_plugin.training.anchor_cache import content_key

from .foreign_clips import ALL, OPEN_CLIP, TEXT, VIT, new, open_clip, text_features, write_folder

NAMES = ["cat", "red fox", "a grand piano"]
TEXTS = [[f"a photo of a {name}.", f"a {name} in the snow."] for name in NAMES]
TOKENS = tokenize([f"X X X {name}." for name in NAMES])
PLAIN = [name for name in ALL if name != "custom text"]


class OpenCLIPEncoder(nn.Module):
    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.transformer, self.ln_final = clip.transformer, clip.ln_final
        self.positional_embedding, self.text_projection = (
            clip.positional_embedding,
            clip.text_projection,
        )
        self.register_buffer("attn_mask", clip.attn_mask)

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        x = self.transformer(prompts + self.positional_embedding, attn_mask=self.attn_mask)
        return self.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class TransformersEncoder(nn.Module):
    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.text_model, self.text_projection = clip.text_model, clip.text_projection

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        embedding = self.text_model.embeddings.token_embedding
        handle = embedding.register_forward_hook(lambda *_: prompts)
        try:
            return self.text_projection(self.text_model(input_ids=tokens).pooler_output)
        finally:
            handle.remove()


def encoder_of(name: str, clip: Any) -> tuple[nn.Module, nn.Embedding]:
    if name in OPEN_CLIP:
        return OpenCLIPEncoder(clip), clip.token_embedding
    return TransformersEncoder(clip), clip.text_model.embeddings.token_embedding


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", PLAIN)
def test_accelerate_gives_the_models_own_features_and_gradient(name: str) -> None:
    clip = new(name)
    encoder, table = encoder_of(name, clip)
    words = table(TOKENS)
    assert relative(encoder(words, TOKENS), text_features(clip, TOKENS)) < 1e-6
    upstream = torch.randn(len(NAMES), 32, generator=torch.Generator().manual_seed(2))

    def results() -> list[Tensor]:
        context = (0.02 * torch.ones(3, 64)).requires_grad_()
        prompts = torch.cat([words[:, :1], context.expand(3, -1, -1), words[:, 4:]], 1)
        features = encoder(prompts, TOKENS)
        (features * upstream).sum().backward()
        assert context.grad is not None
        return [features.detach(), context.grad]

    wanted = results()
    (fast,) = accelerate(encoder)
    found = results()
    assert fast.in_use
    assert max(map(relative, found, wanted)) < 1e-5
    restore(encoder)
    assert torch.equal(results()[0], wanted[0])


@pytest.mark.parametrize("name", PLAIN)
def test_stage_one_on_a_library_model(name: str, tmp_path: Any) -> None:
    clip = write_folder(name, tmp_path)
    settings = StageOne(epochs=3, mse_weight=1000.0)
    found = AnchorTokens.learn(clip, NAMES, TEXTS, settings)
    wanted = AnchorTokens.learn(load_clip(str(tmp_path)), NAMES, TEXTS, settings)
    assert relative(found.values, wanted.values) < 1e-5
    # The first loss, from the model's own features.
    targets = [F.normalize(text_features(clip, tokenize(texts)), dim=-1) for texts in TEXTS]
    start = 0.02 * torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    tokens = tokenize([f"X of {name}." for name in NAMES])
    encoder, table = encoder_of(name, clip)
    prompts = torch.cat([table(tokens)[:, :1], start.expand(3, 1, -1), table(tokens)[:, 2:]], 1)
    features = F.normalize(encoder(prompts, tokens), dim=-1)
    plain = 1000 * (features[:, None] - torch.stack(targets)).square().mean()
    assert found.losses[0] == pytest.approx(plain.item(), rel=1e-4)


def test_the_tower_of_transformers_follows_its_model() -> None:
    clip = new("transformers, GELU")
    tower = TextTower(clip)
    version = tower.version()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.mul_(1.1)
        assert relative(tower.encode_tokens(TOKENS), text_features(clip, TOKENS)) < 1e-5
    assert tower.version() > version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_cfg": {**TEXT, "ls_init_value": 0.5}}, "differ by"),
        ({"text_cfg": {**TEXT, "no_causal_mask": True}}, "differ by"),
        ({"text_cfg": {**TEXT, "pool_type": "last"}}, "differ by"),
        ({"text_cfg": {**TEXT, "proj_bias": True}}, "Linear"),
    ],
)
def test_text_towers_of_another_architecture_are_refused(changes: Any, message: str) -> None:
    clip = open_clip.CLIP(32, VIT, **changes).eval()
    with pytest.raises(UserError, match=f"CLIP has another text tower.*({message})"):
        AnchorTokens.learn(clip, NAMES, TEXTS, StageOne(epochs=1))


def test_a_text_tower_under_another_name_is_refused() -> None:
    with pytest.raises(UserError, match="CustomTextCLIP has another text tower"):
        AnchorTokens.learn(new("custom text"), NAMES, TEXTS, StageOne(epochs=1))


def test_deep_prompts_in_a_library_model_are_not_accelerated(caplog: Any) -> None:
    class Deep(OpenCLIPEncoder):
        def forward(self, prompts: Tensor, tokens: Tensor, deep: list[Tensor] = []) -> Tensor:  # noqa: B006
            x = prompts + self.positional_embedding
            for number, block in enumerate(self.transformer.resblocks):
                if 0 < number <= len(deep):
                    rows = deep[number - 1].expand(len(x), -1, -1)
                    x = torch.cat([x[:, :1], rows, x[:, 1 + rows.shape[1] :]], 1)
                x = block(x, attn_mask=self.attn_mask)
            return self.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection

    clip = new("ViT, GELU")
    encoder, deep = Deep(clip), [torch.randn(3, 64)]
    wanted = encoder(clip.token_embedding(TOKENS), TOKENS, deep)
    (fast,) = accelerate(encoder)
    assert torch.equal(encoder(clip.token_embedding(TOKENS), TOKENS, deep), wanted)
    assert not fast.in_use and "its own forward stays" in caplog.text


def test_weights_count_with_their_architecture(tmp_path: Any) -> None:
    """The same tensors with another activation are another model to the caches and exports."""
    write_folder("ViT, GELU", tmp_path)
    weights = str(tmp_path / "open_clip_pytorch_model.bin")
    config = tmp_path / "open_clip_config.json"
    gelu = load_clip(weights, config=str(config))
    config.write_text(config.read_text().replace('"embed_dim"', '"quick_gelu": true, "embed_dim"'))
    quick = load_clip(weights, config=str(config))
    assert variant_of(gelu.transformer) == "GELU, heads of 16"
    assert variant_of(quick.visual) == "heads of 16"
    keys = [content_key(TextTower(clip), NAMES, TEXTS, StageOne()) for clip in (gelu, quick)]
    assert len({*keys, *map(digest_of, (gelu.visual, quick.visual))}) == 4
