"""Zero-shot CLIP: one hand-written prompt for each class (Radford et al., arXiv 2103.00020).

Follows ``trainers/zsclip.py`` of https://github.com/KaiyangZhou/CoOp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anchoropt_plugin.encoders.class_names import as_words
from anchoropt_plugin.encoders.clip_models import warn_of_unknown_words
from anchoropt_plugin.encoders.text_tower import TextTower
from dassl.engine import TRAINER_REGISTRY, TrainerX

from .prompted_clip import load_host_clip


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(TrainerX):
    """CLIP without training: images (B, 3, R, R) → logits (B, C).

    Key: ``DATASET.TEMPLATE``, the prompt with ``{}`` for the class name.
    """

    def build_model(self) -> None:
        clip = load_host_clip(self.cfg, "fp32", self.device).to(self.device)
        class_names = self.dm.dataset.classnames
        warn_of_unknown_words(clip, class_names)
        template = self.cfg.DATASET.TEMPLATE
        prompts = [template.format(as_words(name)) for name in class_names]
        print(f"Prompts: {prompts}")
        self.text_features = TextTower(clip).encode_texts(prompts)
        self.model = clip

    def train(self) -> None:
        """Test: there is nothing to train."""
        self.test()

    def model_inference(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.model.encode_image(input)
            features = features / features.norm(dim=-1, keepdim=True)
            return self.model.logit_scale.exp() * features @ self.text_features.t()

    def set_model_mode(self, mode: str = "train", names: object = None) -> None:
        self.model.eval()
