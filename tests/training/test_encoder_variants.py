"""Hosts that look at their name, stack deep prompts, run blocks alone, or have a teacher prompt."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import train
from anchoropt_plugin import UserError, anchoropt
from anchoropt_plugin.commands.check.probes import gain_of
from anchoropt_plugin.encoders.accelerate import accelerate, install, is_text_encoder
from anchoropt_plugin.encoders.clip_models import load_clip
from anchoropt_plugin.encoders.image_features import unprompted
from anchoropt_plugin.method.position import AnchorPositionModule
from dassl.engine import TRAINER_REGISTRY
from trainers.coop import PromptLearner

from ..encoders.test_deep_prompts import (
    NAMES,
    DeepEncoder,
    ForkedEncoder,
    K,
    M,
    anchored,
    deep_clip,
    parts,
    plain_features,
    position_module,
)
from .test_host_parts import odd_host
from .test_tokens_and_steps import trainer_of
from .test_two_stages import build, command, root

__all__ = ["root"]


# ---------------------------------------------------------------------- a host's own name
def test_a_host_finds_its_own_name_and_the_run_keeps_the_other(root, tmp_path):
    """Data sets, forks of CLIP and hosts themselves look at TRAINER.NAME."""

    def build_model(self):
        assert self.cfg.TRAINER.NAME == "Named" == self.dm.dataset.seen_name
        TRAINER_REGISTRY.get("CoOp").build_model(self)

    def build_data_loader(self):
        TRAINER_REGISTRY.get("CoOp").build_data_loader(self)
        self.dm.dataset.seen_name = self.cfg.TRAINER.NAME

    members = {"build_model": build_model, "build_data_loader": build_data_loader}
    name = odd_host("Named", **members)
    assert train.main(command(root, tmp_path, name)) == 0
    record = json.loads((tmp_path / "anchoropt.json").read_text())
    assert record["trainer"] == name == "Named_AnchorOPT"
    assert f"NAME: {name}" in (tmp_path / "config.yaml").read_text()


def test_the_node_of_a_host_need_not_be_in_capitals(root, tmp_path):
    keys = ["TRAINER.ANCHOROPT.N_CTX", "6"]
    anchoropt(TRAINER_REGISTRY.get("CoOp"), name="MixedCase", node="cooP")
    learner = build(root, tmp_path, trainer="MixedCase", keys=keys).model.prompt_learner
    assert learner.anchoropt.n_ctx == 6


# ---------------------------------------------------------------------- deep prompts
class StackedEncoder(ForkedEncoder):
    """Its deep prompts come as one tensor (blocks, M, d)."""


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "own"])
def test_stacked_deep_prompts_are_those_of_a_list(fast):
    clip, position = deep_clip(), position_module()
    tokens, prompts, (context, *_), deep = parts(clip, M + K)
    stacked = torch.stack(deep).detach().requires_grad_()
    want = plain_features(clip, prompts(), tokens, stacked, position)
    encoder = StackedEncoder(clip)
    forward = install(encoder, prompts=anchored(position), in_use=fast)
    got = encoder(prompts(), tokens, stacked)
    assert forward.in_use == fast and len(forward.deep_prompts) == len(deep)
    upstream = torch.randn_like(want)
    for ours, theirs in zip(
        torch.autograd.grad(got, [context, stacked], upstream),
        torch.autograd.grad(want, [context, stacked], upstream),
        strict=True,
    ):
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm()
    assert (got - want).norm() <= 1e-5 * want.norm()


class BlocksAlone(DeepEncoder):
    """Keeps the blocks of the transformer under its name, and runs them one by one."""

    def __init__(self, clip):
        super().__init__(clip)
        self.transformer = clip.transformer.resblocks

    def forward(self, prompts, tokens, deep=()):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        for number, block in enumerate(self.transformer):
            if 0 < number <= len(deep):
                x = torch.cat([x[:1], self.rows(deep[number - 1], x), x[1 + M :]])
            x = block(x)
        x = self.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection

    def rows(self, deep: Tensor, x: Tensor) -> Tensor:
        return deep[:, None].expand(-1, x.shape[1], -1)


class BlocksOfEachClass(BlocksAlone):
    """Each class has deep prompts of its own, (classes, M, d) a block."""

    def rows(self, deep: Tensor, x: Tensor) -> Tensor:
        return deep[: x.shape[1]].transpose(0, 1)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "own"])
def test_blocks_that_are_kept_alone_are_those_of_a_text_encoder(fast):
    clip, position = deep_clip(), position_module()
    tokens, prompts, _, deep = parts(clip, M + K)
    encoder = BlocksAlone(clip)
    forward = install(encoder, prompts=anchored(position), in_use=fast)
    got = encoder(prompts(), tokens, deep)
    assert forward.in_use == fast
    want = plain_features(clip, prompts(), tokens, deep, position)
    assert (got - want).norm() <= 1e-5 * want.norm()
    assert not is_text_encoder(nn.Linear(2, 2)) and not is_text_encoder(clip)


def test_deep_prompts_of_each_class_are_told():
    clip = deep_clip()
    tokens, prompts, _, deep = parts(clip, M + K)
    encoder = BlocksOfEachClass(clip)
    install(encoder, prompts=anchored(position_module()))
    each = torch.stack(deep)[:, None].expand(-1, len(NAMES), -1, -1)
    with pytest.raises(UserError, match="BlocksOfEachClass changes hidden states before text"):
        encoder(prompts(), tokens, each)


class WithClassVectors(DeepEncoder):
    """Its third argument is no deep prompts: it is added to the features."""

    def forward(self, prompts, tokens, vectors):
        return super().forward(prompts, tokens) + vectors.mean(1)


def test_what_is_not_written_over_rows_is_no_deep_prompt(caplog):
    """While they are zero the fast branch would give the same features."""
    clip = deep_clip()
    tokens, prompts, _, _ = parts(clip, M)
    vectors = torch.zeros(len(NAMES), 2, 32)
    encoder = WithClassVectors(clip)
    (forward,) = accelerate(encoder)
    encoder(prompts(), tokens, vectors)
    assert not forward.in_use and "WithClassVectors overwrites no rows" in caplog.text


def test_the_gain_is_measured_where_deep_prompts_are_computed():
    """The graph that they were computed by is gone after the step."""
    clip = deep_clip()
    tokens, prompts, _, deep = parts(clip, M)
    for computed in ([2 * prompt for prompt in deep], 2 * torch.stack(deep)):
        encoder = StackedEncoder(clip)
        (forward,) = accelerate(encoder)
        encoder(prompts(), tokens, computed).sum().backward()
        assert gain_of(forward, (prompts(), tokens, computed)).memory[0] > 0


# ---------------------------------------------------------------------- a prompt without anchors
class WithTeacher(PromptLearner):
    """Makes prompts of its parts in a second method too, as for a teacher."""

    def plain(self):
        context = self.ctx.detach().expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, context, self.token_suffix], 1)


@pytest.mark.parametrize("keys", [[], ["TRAINER.ANCHOROPT.FAST_TEXT", "False"]])
def test_prompts_without_anchors_are_read_at_their_eot(root, tmp_path, keys):
    model = trainer_of(
        root,
        tmp_path,
        f"WithTeacher{len(keys)}",
        keys=keys,
        build_learner=lambda self, names, clip: WithTeacher(self.cfg, names, clip),
    ).model.eval()
    learner, encoder = model.prompt_learner, model.text_encoder
    moved = model.tokenized_prompts.clone()
    with torch.no_grad():
        encoder(learner(), model.tokenized_prompts)
        got = encoder(learner.plain(), model.tokenized_prompts)
        clip = load_clip("tiny")
        x = clip.transformer((learner.plain() + clip.positional_embedding).permute(1, 0, 2))
        ends = model.tokenized_prompts.argmax(-1) - 1
        want = clip.ln_final(x.permute(1, 0, 2))[torch.arange(len(ends)), ends]
    torch.testing.assert_close(got, want @ clip.text_projection, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.tokenized_prompts, moved)


def test_a_teacher_s_deep_prompts_are_the_host_s_own():
    """Without anchors there is no layout to keep: their rows hold the class name."""
    clip, position = deep_clip(), position_module()
    tokens, prompts, _, deep = parts(clip, M)
    encoder = DeepEncoder(clip)
    plain = encoder(prompts(), tokens, deep)
    end = clip.token_embedding(tokens.max()).detach()
    install(encoder, prompts=anchored(position, end))
    moved = torch.cat([tokens[:, :1], tokens[:, 1:2].expand(-1, K), tokens[:, 1:-K]], 1)
    torch.testing.assert_close(encoder(prompts(), moved, deep), plain)


# ---------------------------------------------------------------------- image features
class StackedVision(nn.Module):
    """CLIP's image transformer, called with a shared prompt (1, n, d) that it lays on a batch."""

    def __init__(self, visual):
        super().__init__()
        names = "conv1", "class_embedding", "positional_embedding", "ln_pre", "ln_post", "proj"
        for name in (*names, "transformer"):
            setattr(self, name, getattr(visual, name))

    def forward(self, x, shared):
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = torch.cat([x + self.positional_embedding, shared.expand(len(x), -1, -1)], 1)
        x = self.transformer(self.ln_pre(x).permute(1, 0, 2))
        return self.ln_post(x[0]) @ self.proj, shared


def test_an_image_encoder_that_takes_no_empty_prompts(clip):
    images, shared = torch.randn(2, 3, 32, 32), torch.randn(1, 2, 64)
    encoder = StackedVision(clip.visual)
    output = encoder(images, shared)
    got = unprompted(encoder, (images, shared), output)
    torch.testing.assert_close(got, clip.encode_image(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output[0], got)


def test_one_that_cannot_go_without_prompts_is_told():
    class Own(nn.Module):
        def forward(self, image, prompts):
            return image + prompts[0]

    given = torch.zeros(2, 4), torch.ones(1, 4)
    with pytest.raises(UserError, match=r"Own cannot be called without its prompts .* PromptHook"):
        unprompted(Own(), given, Own()(*given))


# ---------------------------------------------------------------------- another context
def test_a_checkpoint_of_another_context_is_told():
    one, other = (AnchorPositionModule(n, torch.ones(1, 4)) for n in (5, 4))
    with pytest.raises(UserError, match=r"is \(6, 6\), but here a prompt has 4 soft tokens"):
        other.load_state_dict(one.state_dict())
    with pytest.raises(UserError, match=r"position matrix of the checkpoint is \(\), but here"):
        other.load_state_dict({**one.state_dict(), "logits": torch.tensor(1.0)})
