from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clip.model import CLIP
from PIL import Image
from torchvision import transforms

from anchoropt_plugin.datasets.embedded import write_digits, write_shapes
from anchoropt_plugin.datasets.synthetic import BENCHMARK
from anchoropt_plugin.datasets.synthetic.images import benchmark_images
from anchoropt_plugin.encoders.clip_models import load_clip, tokenize, unknown_words

PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ASSETS = Path(__file__).parents[2] / "anchoropt_plugin" / "assets"


@pytest.fixture(scope="module")
def tiny() -> CLIP:
    return load_clip("tiny")


def test_tiny_is_the_same_every_time(tiny: CLIP) -> None:
    again = load_clip("tiny")
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_tiny_file_is_the_one_described() -> None:
    facts = json.loads((ASSETS / "tiny_clip.json").read_text(encoding="utf-8"))
    content = (ASSETS / "tiny_clip.pt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == facts["sha256"]
    assert len(content) < 4e6


def test_tiny_knows_its_words_only(tiny: CLIP) -> None:
    texts = ["a photo of a red striped circle.", "A Red GIRAFFE, and a giraffe of gold"]
    assert unknown_words(tiny, texts) == ["giraffe", "gold"]


@torch.no_grad()
@pytest.mark.parametrize(
    ("write", "parts", "figure"),
    [
        (write_digits, ("train", "val", "test"), "digits, all 1797"),
        (write_shapes, ("test",), "shapes, test"),
    ],
)
def test_tiny_is_as_good_as_described(
    write: Callable[[Path], None], parts: tuple[str, ...], figure: str, tiny: CLIP, tmp_path: Path
) -> None:
    write(tmp_path / "set")
    split = json.loads(next((tmp_path / "set").glob("split_*.json")).read_text())
    items = [item for part in parts for item in split[part]]
    transform = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(PIXEL_MEAN, PIXEL_STD),
        ]
    )
    images = torch.stack(
        [
            transform(Image.open(tmp_path / "set" / "images" / path).convert("RGB"))
            for path, _, _ in items
        ]
    )
    labels = torch.tensor([label for _, label, _ in items])
    names = [name for _, name in sorted({(label, name) for _, label, name in items})]
    logits, _ = tiny(images, tokenize([f"a photo of a {name}." for name in names]))
    accuracy = 100 * (logits.argmax(1) == labels).float().mean().item()
    facts = json.loads((ASSETS / "tiny_clip.json").read_text(encoding="utf-8"))
    assert accuracy == pytest.approx(facts["zero_shot_accuracy"][figure], abs=0.5)


@torch.no_grad()
@pytest.mark.parametrize("n_ctx", [4, 16])
def test_tiny_reads_past_random_soft_tokens(n_ctx: int, tiny: CLIP) -> None:
    images, labels = benchmark_images(torch.Generator().manual_seed(99), 4)
    mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
    tokens = tokenize([f"{triple}." for triple in BENCHMARK])
    soft = torch.randn(n_ctx, 128, generator=torch.Generator().manual_seed(1)) * 0.02
    words = tiny.token_embedding(tokens)
    prompts = torch.cat([words[:, :1], soft.expand(48, -1, -1), words[:, 1:-n_ctx]], dim=1)
    hidden = tiny.transformer((prompts + tiny.positional_embedding).permute(1, 0, 2))
    text = tiny.ln_final(hidden[tokens.argmax(-1) + n_ctx, torch.arange(48)]) @ tiny.text_projection
    image = tiny.encode_image((images - mean) / std)
    logits = image @ torch.nn.functional.normalize(text, dim=-1).T
    assert (logits.argmax(1) == labels).float().mean() > 0.75
