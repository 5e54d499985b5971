"""The parts of a host trainer, found while it builds them: CLIP, prompt learner, encoders."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..encoders.accelerate import install, is_text_encoder
from ..encoders.deep_prompts import Survivors
from ..encoders.feature_cache import cache_image_features
from ..encoders.plain_clip import PlainCLIP
from ..errors import UserError
from ..files.checkpoint_folder import CHILD
from ..method.position import AnchorPositionModule
from ..prompts.anchored_encoder import AnchoredEncoder
from ..prompts.attachment import attach, attachment_of
from ..prompts.class_tensors import changed_class_tensors, of_other_classes
from ..prompts.hooks import PromptHook, hook_for, is_prompt_learner
from .settings import AnchorOPTConfig

log = logging.getLogger("anchoropt_plugin")


class HostParts:
    """Watches a host's ``build_model`` register modules.

    The prompt learner gets anchors, the text encoder the fast branch, at once.

    Args:
        host: name of the host trainer, for messages.
        learner_name: name under which the host's model registers the prompt learner; "" takes the
            first module that is a prompt learner.
        settings: of the position matrix, the fast branch and the feature cache.
        replaces_weights: whether the host loads other weights into its model while it builds it.

    Attributes:
        hook: describes the host's learner.
        learner: the host's prompt learner, once it is registered.
        text_encoders: the host's text encoders.
        prompts: how these get the learner's prompts.
    """

    def __init__(
        self,
        host: str,
        learner_name: str,
        settings: AnchorOPTConfig,
        replaces_weights: bool = False,
    ) -> None:
        self.host = host
        self.learner_name = learner_name
        self.settings = settings
        self.hook = PromptHook()
        self.replaces_weights = replaces_weights
        self._clips: list[Any] = []
        self._plain: dict[nn.Module, PlainCLIP] = {}
        self._extended: set[nn.Module] = set()
        self._building = contextlib.ExitStack()
        self._owner: nn.Module | None = None
        self.learner: Any = None
        self._position: AnchorPositionModule | None = None
        self._image_encoders: list[tuple[nn.Module, nn.Module]] = []
        self.text_encoders: dict[nn.Module, None] = {}
        self.prompts = AnchoredEncoder(
            survivors=Survivors(early=int(settings.deep_early), first=settings.deep_first)
        )

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Attach the anchors at the moment the learner is registered.

        This is early enough: hosts read ``prompt_learner.tokenized_prompts`` afterwards.
        """
        with self._building:
            handle = register_module_module_registration_hook(self._registered)
            self._building.callback(handle.remove)
            yield

    def _registered(self, owner: nn.Module, name: str, module: nn.Module | None) -> None:
        # Hosts first read OpenAI's archive with torch.jit, then build their CLIP from it.
        if module is None or isinstance(owner, torch.jit.ScriptModule):
            return
        settings = self.settings
        if name == "token_embedding":
            self._clips.append(owner)
            # A function, as a host may copy its CLIP, and copies share functions.
            handle = owner.register_load_state_dict_post_hook(lambda clip, _: self._loaded(clip))
            self._building.callback(handle.remove)
            return
        is_learner = self._is_learner(name, module)
        if is_learner or name == "image_encoder":
            self._extended.update(self._plain)
        if name == "image_encoder":
            self._image_encoders.append((owner, module))
            if settings.keep_features:
                cache_image_features(module)
        elif is_text_encoder(module):
            self.text_encoders[module] = None
            install(
                module,
                prompts=self.prompts,
                chunk=settings.class_chunk,
                split=settings.split_classes,
                in_use=settings.fast_text,
            )
        elif is_learner and module is not self.learner:
            if self.learner is not None:
                if attachment_of(module) is not None:  # a copy, as for averages of weights
                    return
                log.warning(
                    "%s has a second prompt learner, %s: it gets no anchors", self.host, name
                )
                return
            self.learner, self._owner = module, owner
            hook = self.hook = hook_for(module)
            hook.check(module)
            self._position = attach(
                module,
                # Zeros until stage 1 has learned the anchors.
                torch.zeros(settings.anchor_len, hook.dim(module)),
                pooling=settings.pooling,
                relaxation=settings.position,
                temperature=settings.gumbel_temp,
                init=settings.position_init,
                init_std=settings.position_init_std,
                sample_at_eval=settings.sample_at_eval,
                task_dim=self.clip.text_projection.shape[1] if settings.position_task else 0,
            )
            self.prompts.attachment = attachment_of(module)
            if self.replaces_weights:
                self._building.enter_context(self._of_these_classes(module))

    @contextlib.contextmanager
    def _of_these_classes(self, learner: nn.Module) -> Iterator[None]:
        with changed_class_tensors(learner) as names:
            yield
        if names:
            raise of_other_classes(f"build_model of {self.host}, for MODEL.INIT_WEIGHTS,", names)

    def _loaded(self, clip: nn.Module) -> None:
        """Keep a CLIP whose weights were just loaded as it is, before its host extends it."""
        if clip in self._clips and clip not in self._extended:
            plain = self._plain[clip] = PlainCLIP(clip)
            if self.replaces_weights:
                self._building.enter_context(plain.unchanged([clip]))

    def plain(self, trained: Iterable[nn.Parameter]) -> PlainCLIP:
        """Return the host's CLIP as it was loaded, with its own values of ``trained`` weights."""
        clip = self.clip
        plain = self._plain.get(clip) or PlainCLIP(clip)
        plain.clip.known_tokens = getattr(clip, "known_tokens", None)  # set after the weights
        plain.note()
        plain.keep(trained)
        return plain

    def _is_learner(self, name: str, module: nn.Module) -> bool:
        return name == self.learner_name if self.learner_name else is_prompt_learner(module)

    @property
    def clip(self) -> Any:
        """The host's CLIP; if there are several (a teacher), the CLIP that made the prompts."""
        if not self._clips:
            raise UserError(
                f"{self.host} built no CLIP in build_model: AnchorOPT needs the CLIP whose "
                "token_embedding made the prompts"
            )
        return next((clip for clip in self._clips if self._embedded_by(clip)), self._clips[0])

    def _embedded_by(self, clip: Any) -> bool:
        """Whether ``clip`` embeds SOS as in the learner's prompts."""
        prefix = getattr(self.learner, "token_prefix", None)
        if prefix is None or prefix.shape[-1] != clip.token_embedding.weight.shape[1]:
            return False
        sos = self.hook.tokens(self.learner)[0, 0]
        embedded = clip.token_embedding.weight[sos.to(clip.token_embedding.weight.device)]
        # In float16 both are the same, whatever the precision of either.
        return torch.equal(embedded.detach().half().cpu(), prefix[0, 0].detach().half().cpu())

    @property
    def position(self) -> AnchorPositionModule:
        """The module attached to the host's learner."""
        if self._position is None:
            what = f"module named {self.learner_name!r}" if self.learner_name else "prompt learner"
            raise UserError(
                f"{self.host} has no {what}: AnchorOPT needs a module with the tensors "
                "token_prefix, token_suffix and tokenized_prompts, like CoOp's prompt learner, or "
                "a PromptHook for the learner (register_hook)"
            )
        return self._position

    def choose_trained(self) -> None:
        """Freeze the parts of the learner that the settings do not train."""
        # Some hosts freeze everything not named "ctx".
        self.position.requires_grad_(self.settings.position_trained)
        if not self.settings.modules_trained:
            for name, module in self.learner.named_children():
                if name != CHILD:
                    module.requires_grad_(False)

    @property
    def image_encoder(self) -> nn.Module:
        """The host's ``image_encoder`` beside its learner; without one, CLIP's own."""
        beside = [module for owner, module in self._image_encoders if owner is self._owner]
        others = [module for _, module in self._image_encoders]
        # A host may replace its encoder while it builds its model.
        return next(iter([*beside[-1:], *others]), None) or self.clip.visual
