"""The settings: checked once, all faults at once."""

from __future__ import annotations

import pickle

import pytest
from yacs.config import CfgNode

from anchoropt_plugin import UserError, extend_cfg
from anchoropt_plugin.training.settings import AnchorOPTConfig
from dassl.config import get_cfg_default

PUBLIC_DEFAULTS = {
    "USE_ANCHOROPT": False,
    "ANCHOR_LEN": 1,
    "GUMBEL_TEMP": 1.0,
    "KD_TEMPERATURE": 1.0,
    "PROMPT_CE_WEIGHT": 1.0,
    "KD_WEIGHT": 1.0,
    "MAX_TEMPLATE_LENGTH": 10,
}


def cfg(**values):
    node = CfgNode({"TRAINER": {}})
    extend_cfg(node)
    node.TRAINER.ANCHOROPT.update(values)
    return node


def test_public_keys_have_their_public_defaults():
    node = cfg().TRAINER.ANCHOROPT
    assert {key: node[key] for key in PUBLIC_DEFAULTS} == PUBLIC_DEFAULTS


def test_extending_keeps_values_that_are_there():
    node = CfgNode({"TRAINER": {"ANCHOROPT": {"KD_WEIGHT": 5.0}}})
    extend_cfg(node)
    assert node.TRAINER.ANCHOROPT.KD_WEIGHT == 5.0 and node.TRAINER.ANCHOROPT.ANCHOR_LEN == 1


def test_a_node_that_a_train_py_makes_of_its_own_has_all_keys():
    node = get_cfg_default()
    node.TRAINER.ANCHOROPT = CfgNode()
    node.TRAINER.ANCHOROPT.MAX_TEMPLATE_LENGTH = 3
    node = node.clone()
    node.merge_from_list(["TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "5"])
    settings = AnchorOPTConfig.from_cfg(node, kd_weight=7.0, max_template_length=4)
    assert (settings.max_template_length, settings.anchor_epochs, settings.kd_weight) == (3, 5, 7.0)


def test_yacs_itself_merges_a_file(tmp_path):
    """As in a train.py over Dassl; this package's runtime merges files in a way of its own."""
    file = tmp_path / "config.yaml"
    file.write_text("TRAINER: {ANCHOROPT: {POSITION: sinkhorn}, COOP: {N_CTX: 4}}")
    node = CfgNode({"TRAINER": {"COOP": {"N_CTX": 16}}})
    extend_cfg(node)
    CfgNode.merge_from_file(node, str(file))
    assert node.TRAINER.COOP.N_CTX == 4
    assert AnchorOPTConfig.from_cfg(node, position="gumbel").position == "sinkhorn"
    again = CfgNode({"TRAINER": {"COOP": {"N_CTX": 16}}})
    extend_cfg(again)
    CfgNode.merge_from_other_cfg(again, node)
    assert again == node
    node.TRAINER.set_new_allowed(True)
    CfgNode.merge_from_other_cfg(node, CfgNode({"TRAINER": {"OTHER": {"X": {"Y": 1}}}}))
    assert type(node.TRAINER.OTHER) is type(node.TRAINER.OTHER.X) is CfgNode


def test_all_faults_are_told_in_one_line():
    with pytest.raises(UserError) as error:
        AnchorOPTConfig(position="sinkhron", anchor_len=0, kd_weight=-1.0)
    message = str(error.value)
    assert "did you mean 'sinkhorn'?" in message
    assert "ANCHOR_LEN must be positive" in message and "KD_WEIGHT must not be" in message
    assert "\n" not in message


def test_given_keys_win_over_arguments_and_arguments_over_defaults():
    settings = AnchorOPTConfig.from_cfg(cfg(KD_WEIGHT=5.0), kd_weight=7.0, position="gumbel")
    assert (settings.kd_weight, settings.position) == (5.0, "gumbel")
    with pytest.raises(UserError, match=r"no setting 'positon'.*'position'"):
        AnchorOPTConfig.from_cfg(cfg(), positon="gumbel")


def test_a_key_that_is_given_its_default_wins_over_arguments():
    node = cfg()
    assert AnchorOPTConfig.from_cfg(node.clone(), position="gumbel").position == "gumbel"
    node.merge_from_list(["TRAINER.ANCHOROPT.POSITION", "sinkhorn"])
    for same in (node, node.clone(), pickle.loads(pickle.dumps(node))):
        assert AnchorOPTConfig.from_cfg(same, position="gumbel").position == "sinkhorn"
        assert AnchorOPTConfig.from_cfg(same, preset="reference").position == "sinkhorn"


def test_dassl_s_default_configuration_has_the_keys():
    node = get_cfg_default()
    node.merge_from_list(["TRAINER.ANCHOROPT.KD_WEIGHT", "2.5"])
    assert AnchorOPTConfig.from_cfg(node).kd_weight == 2.5
    assert AnchorOPTConfig.from_cfg(get_cfg_default()) == AnchorOPTConfig()


def test_a_host_s_own_node_keeps_working():
    node = get_cfg_default()
    node.TRAINER.ANCHOROPT = CfgNode({"N_CTX": 4, "KD_WEIGHT": 100.0})
    settings = AnchorOPTConfig.from_cfg(node, position="gumbel", kd_weight=7.0)
    assert (settings.position, settings.kd_weight, settings.n_ctx) == ("gumbel", 100.0, 0)


def test_a_configuration_that_never_heard_of_the_keys_gives_the_defaults():
    node = CfgNode({"TRAINER": {}})
    assert AnchorOPTConfig.from_cfg(node) == AnchorOPTConfig()
    assert AnchorOPTConfig.from_cfg(node, position="gumbel").position == "gumbel"


def test_the_reference_preset_does_what_the_released_code_does():
    settings = AnchorOPTConfig.from_cfg(cfg(PRESET="reference", GUMBEL_TEMP=0.5))
    assert (settings.position, settings.position_init, settings.position_init_std) == (
        "gumbel",
        0.0,
        1.0,
    )
    assert settings.sample_at_eval and settings.pooling == "unshifted"
    assert settings.position_lr == 0 and settings.gumbel_temp == 0.5
    assert settings.deep_early and settings.deep_first
    assert settings.position_trained and settings.modules_trained
    own = AnchorOPTConfig.from_cfg(cfg(PRESET="reference"), host="CoCoOp")
    assert not (own.position_trained or own.modules_trained) and own.deep_early
    given = cfg(PRESET="reference")
    given.merge_from_list(["TRAINER.ANCHOROPT.MODULES_TRAINED", "True"])
    own = AnchorOPTConfig.from_cfg(given, host="CoCoOp", position_trained=True)
    assert own.position_trained and own.modules_trained


def test_the_temperature_falls_geometrically_or_stays():
    settings = AnchorOPTConfig(gumbel_temp=2.0, gumbel_temp_end=0.02)
    assert [settings.temperature_at(e, 3) for e in range(3)] == pytest.approx([2.0, 0.2, 0.02])
    assert AnchorOPTConfig(gumbel_temp=2.0).temperature_at(2, 3) == 2.0
    assert settings.temperature_at(0, 1) == 2.0
