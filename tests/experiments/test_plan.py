"""Plans of experiments: folders, settings, and refusals before anything is written."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.__main__ import main
from anchoropt_plugin.config.merge import read_yaml
from anchoropt_plugin.experiments import ablate, compare
from anchoropt_plugin.experiments.checkout import CHECKOUT, Checkout
from anchoropt_plugin.experiments.command import _summary, with_preset
from anchoropt_plugin.experiments.estimate import Estimate, Kind, Parts
from anchoropt_plugin.experiments.execution import Event
from anchoropt_plugin.experiments.factors import parse_grid, varied
from anchoropt_plugin.experiments.files import ASSETS
from anchoropt_plugin.experiments.flags import add_ablate
from anchoropt_plugin.experiments.plan import host_method, plan, zero_shot_method
from anchoropt_plugin.experiments.progress import follow
from anchoropt_plugin.experiments.protocols import read_protocol
from anchoropt_plugin.experiments.published import (
    check_anchors,
    published_numbers,
    published_settings,
)
from anchoropt_plugin.process.command_line import Parser
from anchoropt_plugin.training.host_cfg import host_cfg
from dassl.engine import TRAINER_REGISTRY

from .fork_of_coop import write_fork


def planned(tmp_path, protocol, methods, opts=(), **changes):
    chosen = read_protocol(protocol).with_changes({"seeds": [1], **changes})
    return plan(chosen, methods, tmp_path / "data", tmp_path, list(opts))


def coop(**rest):
    return [
        host_method("CoOp", "tiny", anchoropt=False),
        host_method("CoOp", "tiny", anchoropt=True, reference="CoOp", **rest),
    ]


def folders(jobs, tmp_path):
    return [str(run.folder.relative_to(tmp_path)) for job in jobs for run in job.runs]


def test_base_to_new_has_the_public_folders(tmp_path):
    jobs = planned(tmp_path, "base2new", coop(), datasets=["digits"])
    assert folders(jobs, tmp_path) == [
        f"base2new/{part}/digits/shots_16/{trainer}/tiny/seed1"
        for trainer in ("CoOp", "CoOp_AnchorOPT")
        for part in ("train_base", "test_new")
    ]
    trained, tested = jobs[1].runs
    assert tested.model == trained.folder
    assert tested.argv[tested.argv.index("--load-epoch") + 1] == "50"
    assert trained.settings["DATASET.SUBSAMPLE_CLASSES"] == "base"
    assert tested.settings["DATASET.SUBSAMPLE_CLASSES"] == "new"


def test_few_shot_has_the_public_folders(tmp_path):
    jobs = planned(tmp_path, "few_shot", coop()[:1], datasets=["digits"], shots=[1, 2])
    assert folders(jobs, tmp_path) == [
        f"digits/CoOp/tiny_{shots}shots/nctx4_cscFalse_ctpend/seed1" for shots in (1, 2)
    ]
    assert [run.score for job in jobs for run in job.runs] == ["1", "2"]


def test_cross_dataset_tests_lie_in_evaluation(tmp_path):
    (job,) = planned(tmp_path, "embedded_transfer", coop()[1:], datasets=["shapes"])
    assert folders([job], tmp_path) == [
        "shapes/CoOp_AnchorOPT/tiny_16shots/seed1",
        "evaluation/CoOp_AnchorOPT/tiny_16shots/digits/seed1",
    ]
    assert [run.score for run in job.runs] == ["shapes", "digits"]
    assert job.runs[1].settings["DATASET.NAME"] == "Digits"


def test_one_job_is_not_called_jobs(tmp_path):
    jobs = planned(tmp_path, "base2new", coop()[:1], datasets=["digits"], seeds=[1, 2])
    for number, says in ((1, "2 to do, 1 job at a time;"), (2, "4 to do, 2 jobs at a time;")):
        assert says in _summary(jobs[:number], 3, Estimate([], 3))


def test_several_numbers_of_shots_need_columns(tmp_path):
    with pytest.raises(UserError, match="base2new has no columns for several numbers of shots"):
        planned(tmp_path, "base2new", coop()[:1], datasets=["digits"], shots=[1, 2])


@pytest.mark.parametrize(
    "path", sorted((ASSETS / "protocols").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_protocol_can_be_read(path):
    protocol = read_protocol(path.stem)
    assert protocol.name == path.stem and protocol.seeds and protocol.datasets


def test_jobs_that_share_a_stage_1_say_so(tmp_path):
    methods = [*coop(), host_method("MaPLe", "tiny", anchoropt=True)]
    methods.append(coop(settings={"TRAINER.ANCHOROPT.ANCHOR": "random"}, name="random")[1])
    jobs = planned(tmp_path, "base2new", methods[:3], datasets=["digits"], seeds=[1, 2])
    plain, first, second = (job.anchors for job in (jobs[0], jobs[2], jobs[3]))
    assert plain == "" and first == second != ""
    assert jobs[4].anchors != first  # another batch size, so another number of steps
    (control,) = planned(tmp_path, "base2new", methods[3:], datasets=["digits"])
    assert control.anchors == ""


def test_a_factor_at_test_shares_the_training(tmp_path):
    methods = varied(coop()[1], {"averaging": ["auto", "never"]}, True, "digits")
    (job,) = planned(tmp_path, "base2new", methods, datasets=["digits"])
    assert [run.trains for run in job.runs] == [True, False, False, False]
    assert [run.method.name for run in job.runs] == [
        *["CoOp_AnchorOPT"] * 2,
        *["averaging=never"] * 2,
    ]
    never = job.runs[2]
    assert never.model == job.runs[0].folder and never.score == "base"
    assert never.settings["TRAINER.ANCHOROPT.ENSEMBLE"] == "never"
    assert "tiny-averaging=never" in str(never.folder)
    # Alone the method needs a training too, which is no row of the tables.
    (job,) = planned(tmp_path, "base2new", methods[1:], datasets=["digits"])
    assert [run.reported for run in job.runs] == [False, True, True]


def test_factors_vary_alone_or_together():
    grid = parse_grid(["kd_weight=0,1", "soft_tokens=4,8"])
    alone = varied(coop()[1], grid, True, "digits")
    assert [method.name for method in alone] == [
        *("CoOp_AnchorOPT", "kd_weight=0", "soft_tokens=8")
    ]
    together = varied(coop()[1], grid, False, "digits")
    assert [method.name for method in together[1:]] == [
        *("kd_weight=0", "kd_weight=0, soft_tokens=8", "soft_tokens=8")
    ]
    assert together[0].defaults == {"kd_weight": 1.0, "soft_tokens": 4}
    assert together[2].settings == {
        "TRAINER.ANCHOROPT.KD_WEIGHT": "0",
        "TRAINER.ANCHOROPT.N_CTX": "8",
    }


@pytest.mark.parametrize(
    ("factor", "opts", "value"),
    [
        ("soft_tokens", ["TRAINER.COOP.N_CTX", "2"], 2),
        ("pooling", ["TRAINER.ANCHOROPT.PRESET", "reference"], "unshifted"),
        ("OPTIM.LR", ["OPTIM.LR", "0.3"], 0.3),
    ],
)
def test_default_values_are_those_of_the_runs(factor, opts, value):
    methods = varied(coop()[1], {factor: [value, 8]}, True, "digits", opts=opts)
    assert methods[0].defaults == {factor: value} and len(methods) == 2


@pytest.mark.parametrize("alone", [True, False])
def test_equal_values_of_a_factor_are_one_row(alone):
    grid = {"kd_weight": ["0", "0.0", "1", "1e0", "2", "2.0"], "position": ["soft", "soft"]}
    names = [method.name for method in varied(coop()[1], grid, alone, "digits")]
    assert len(names) == len({*names}) == 4


def test_changes_together_follow_the_changes_of_one_factor():
    together = [{"kd_weight": 0, "averaging": "never"}]
    methods = varied(coop()[1], {"kd_weight": [0, 1]}, True, "digits", together)
    names = [method.name for method in methods[1:]]
    assert names == ["kd_weight=0", "kd_weight=0, averaging=never"]
    both = methods[2]
    assert both.settings == {"TRAINER.ANCHOROPT.KD_WEIGHT": 0}
    assert both.at_test == {"TRAINER.ANCHOROPT.ENSEMBLE": "never"}
    assert methods[0].defaults == {"kd_weight": 1.0, "averaging": "auto"}


def words_of(module, *words):
    parser = Parser()
    add_ablate(parser)
    return with_preset(parser.parse_args(words), module.PRESETS, module.KEYS)


def test_settings_of_a_preset_come_before_those_of_the_command_line():
    given = ["OPTIM.LR", "0.1", "OPTIM.MAX_EPOCH", "3"]
    opts = words_of(ablate, "--preset", "embedded", *given).opts
    assert opts[:2] == ["OPTIM.MAX_EPOCH", "20"] and opts[-4:] == given


def test_settings_of_a_preset_are_a_section(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("settings: [OPTIM.LR]\n")
    monkeypatch.setattr(ablate, "PRESETS", tmp_path)
    with pytest.raises(UserError, match=r"mine.yaml: settings is not a section of `KEY: value`"):
        words_of(ablate, "--preset", "mine")


def test_splits_of_shapes_are_data_sets_that_share_no_anchors(tmp_path):
    names = ["shapes", "shapes_by_shape", "shapes_by_fill", "shapes_shuffled"]
    jobs = planned(tmp_path, "base2new", coop()[1:], datasets=names)
    assert [job.runs[0].settings["DATASET.CLASS_SPLIT"] for job in jobs] == [
        *("", "shape", "fill", "shuffled")
    ]
    assert len({job.anchors for job in jobs}) == 4
    assert [job.runs[1].settings["DATASET.CLASS_SPLIT"] for job in jobs][1:] == [
        *("shape", "fill", "shuffled")
    ]


_NODE = "TRAINER.ANCHOROPT"
PUBLISHED = {"CoOp": "COOP", "CoCoOp": "COCOOP", "MaPLe": "MAPLE", "DePT": "COOP"}
OF_A_CELL = ["N_CTX", "PROMPT_CE_WEIGHT", "KD_WEIGHT", "KD_TEMPERATURE"]
OF_STAGE_ONE = ["ANCHOR_EPOCHS", "ANCHOR_MSE_WEIGHT", "MAX_TEMPLATE_LENGTH"]


@pytest.mark.parametrize("host", PUBLISHED)
def test_published_settings_are_those_of_a_run(tmp_path, host, monkeypatch):
    config, settings = published_settings(host)
    assert sorted(settings) == sorted(read_protocol("base2new").datasets)
    monkeypatch.setattr("train.check", lambda *args: None)  # the data sets are not here
    method = host_method(host, config, anchoropt=True, of_dataset=settings)
    jobs = planned(tmp_path, "base2new", [method], datasets=list(settings))
    assert len(jobs) == len(settings)
    for job in jobs:
        of_cell = settings[job.runs[0].dataset]
        for key in ["OPTIM.MAX_EPOCH", *(f"{_NODE}.{name}" for name in OF_A_CELL + OF_STAGE_ONE)]:
            assert {run.settings[key] for run in job.runs} == {of_cell[key]}, key
        trained = job.runs[0].settings
        assert (trained["MODEL.BACKBONE.NAME"], trained["DATASET.NUM_SHOTS"]) == ("ViT-B/16", 16)


def test_a_cell_of_the_published_settings():
    # MaPLe on StanfordCars: the only value that is not the published one (0).
    cars = published_settings("MaPLe")[1]["stanford_cars"]
    assert [cars[f"{_NODE}.{name}"] for name in OF_A_CELL] == [4, 10, 0, 1]
    assert [cars[f"{_NODE}.{name}"] for name in OF_STAGE_ONE] == [40, 100, 10]
    dept = published_settings("DePT")[1]["oxford_flowers"]
    assert [dept[f"{_NODE}.{name}"] for name in OF_A_CELL] == [8, 10, 0, 1]
    assert (dept["OPTIM.MAX_EPOCH"], dept["TRAINER.LINEAR_PROBE.WEIGHT"]) == (10, 0.9)


@pytest.mark.parametrize("host", PUBLISHED)
def test_no_published_run_starts_from_words(tmp_path, host, monkeypatch, capsys, clip):
    """Neither a file nor a run does so, whatever the yaml of the plain host has."""
    assert "CTX_INIT" not in (CHECKOUT.configs / "published" / f"{host}.yaml").read_text()
    config, settings = published_settings(host)
    monkeypatch.setattr("train.check", lambda *args: None)
    method = host_method(host, config, anchoropt=True, of_dataset=settings)
    depth = ["TRAINER.MAPLE.PROMPT_DEPTH", "2"]
    for job in planned(tmp_path, "base2new", [method], depth, datasets=list(settings)):
        for run in job.runs:
            cfg = train.setup_cfg(train.build_parser().parse_args(list(run.argv)))
            trainer = object.__new__(TRAINER_REGISTRY.get(host))
            trainer.cfg = host_cfg(cfg, host, PUBLISHED[host], cfg.TRAINER.ANCHOROPT.N_CTX)
            n_ctx = settings[run.dataset][f"{_NODE}.N_CTX"]
            assert trainer.build_learner(["ring"], clip).ctx.shape == (n_ctx, 64)
            assert f'Initial context: "{" ".join("X" * n_ctx)}"' in capsys.readouterr().out


def test_the_published_preset_names_existing_files(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    places = ["--root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
    words = ["--preset", "published", "--datasets", "caltech101", "dtd", *places, "--dry-run"]
    with pytest.raises(UserError) as stop:
        compare.main("", words)
    fault = str(stop.value)
    # Four hosts with and without AnchorOPT, 5 seeds, 2 data sets, train and test; 4 of zero-shot.
    out = " ".join(capsys.readouterr().out.split())
    assert f"{4 * 2 * 5 * 2 * 2 + 4} runs, 0 of them finished" in out
    assert "CoOp_AnchorOPT (released), CoCoOp" in out and "(our defaults)" not in out
    assert "run the released method, bugs included (TRAINER.ANCHOROPT.PRESET reference)" in out
    assert fault.startswith("no anchors and no descriptions for caltech101")
    assert fault.endswith("(--templates)")
    assert not (tmp_path / "out").exists()


def test_both_methods_are_rows_of_their_own(tmp_path):
    """Those of our defaults lie where an earlier version's ``--preset published`` wrote them."""
    (tmp_path / "data").mkdir()
    methods = compare.methods_of(["CoCoOp"], None, ["dtd"], published=True, which="both")
    jobs = planned(tmp_path, "base2new", methods[1:], datasets=["dtd"])
    runs = {job.runs[0].method.name: job.runs[0] for job in jobs}
    assert list(runs) == [
        *("CoCoOp", "CoCoOp_AnchorOPT (released)", "CoCoOp_AnchorOPT (our defaults)")
    ]
    _, released, ours = runs.values()
    assert released.method.reference == ours.method.reference == "CoCoOp"
    assert released.settings["TRAINER.ANCHOROPT.PRESET"] == "reference"
    assert released.settings["TRAINER.ANCHOROPT.POSITION"] == "gumbel", "what the preset sets"
    assert ours.settings["TRAINER.ANCHOROPT.PRESET"] == ""
    assert released.settings["TRAINER.ANCHOROPT.KD_TEMPERATURE"] == 4
    config = published_settings("CoCoOp")[0]
    folder = tmp_path / "base2new/train_base/dtd/shots_16/CoCoOp_AnchorOPT"
    assert ours.folder == folder / config / "seed1"
    assert released.folder == folder / f"{config}-preset=reference" / "seed1"
    place = {"protocol": "base2new", "backbone": "ViT-B/16", "shots": 16}
    place["datasets"] = " ".join(sorted(read_protocol("base2new").datasets))
    assert published_numbers(released.method.name, **place)["HM"].value == 79.39
    assert published_numbers(ours.method.name, **place) == {}
    (alone,) = compare.methods_of(["CoOp"], "tiny", ["digits"], zero_shot=False)[1:]
    assert alone.name == "CoOp_AnchorOPT" and alone.templates


@pytest.mark.parametrize(
    ("opts", "chosen", "starts"),
    [
        ([], {}, False),
        ([], {"templates": True}, True),
        ([], {"descriptions": "templates"}, True),
        (["TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", __file__], {}, True),
        (["TRAINER.ANCHOROPT.DESCRIPTIONS", __file__], {}, True),
        (["TRAINER.ANCHOROPT.ANCHOR", "random"], {}, True),
    ],
)
@pytest.mark.parametrize("which", ["released", "defaults"])
def test_published_runs_start_with_anchors_or_descriptions(tmp_path, opts, chosen, starts, which):
    for name in ("data", "templates"):
        (tmp_path / name).mkdir()
    (tmp_path / "templates/texture_prompts_full.json").write_text("{}")
    if "descriptions" in chosen:
        chosen = {"descriptions": tmp_path / chosen["descriptions"]}
    kinds = {"published": True, "templates": False, "which": which}
    methods = compare.methods_of(["CoOp"], None, ["dtd"], **{**kinds, **chosen})
    jobs = planned(tmp_path, "base2new", methods, opts, datasets=["dtd"])
    if starts:
        check_anchors(jobs)
        if "descriptions" in chosen:
            file = jobs[-1].runs[0].settings["TRAINER.ANCHOROPT.DESCRIPTIONS"]
            assert file == str(tmp_path / "templates/texture_prompts_full.json")
        return
    message = "no anchors and no descriptions for dtd: .*anchor_weights.*templates.*--templates"
    with pytest.raises(UserError, match=message):
        check_anchors(jobs)


def test_what_the_command_changes_of_the_released_method_is_told(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    words = [*TINY, "--method", "released", "--anchoropt", "with", "--root", str(tmp_path / "data")]
    words += ["--dry-run", "--output-dir", str(tmp_path / "out"), "--seeds", "1"]
    keys = ["TRAINER.ANCHOROPT.POOLING", "eot", "OPTIM.MAX_EPOCH", "2"]
    assert compare.main("", [*words, *keys]) == 0, "digits have descriptions"
    out = " ".join(capsys.readouterr().out.split())
    assert "Changed in all rows: TRAINER.ANCHOROPT.POOLING eot. " in out


def test_presets_name_existing_files(tmp_path):
    for path in sorted((CHECKOUT.configs / "presets" / "compare").glob("*.yaml")):
        for host in read_yaml(path)["hosts"]:
            folder = CHECKOUT.configs / "trainers" / host
            assert folder.is_dir() and (path.stem != "embedded" or (folder / "tiny.yaml").is_file())


@pytest.mark.parametrize(
    ("script", "preset"),
    [(compare, "splits"), (compare, "embedded"), (ablate, "embedded"), (ablate, "embedded_all")],
)
def test_presets_can_be_planned(tmp_path, capsys, monkeypatch, script, preset):
    monkeypatch.setattr(
        "anchoropt_plugin.experiments.command.estimate", lambda *args: Estimate([], 1)
    )
    places = ["--root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
    assert script.main("", ["--preset", preset, *places, "--dry-run"]) == 0
    assert "0 of them finished" in capsys.readouterr().out


def test_the_anchors_alone_have_published_numbers():
    _, alone = varied(coop()[1], {"averaging": ["anchors"]}, True, "dtd")
    place = {"protocol": "base2new", "backbone": "ViT-B/16", "shots": 16, "datasets": "dtd"}
    numbers = published_numbers(alone.name, **place)
    assert [numbers[score].value for score in ("base", "new")] == [55.787, 62.56]


def test_published_numbers_need_the_same_place():
    eleven = " ".join(sorted(read_protocol("base2new").datasets))
    place = {"protocol": "base2new", "backbone": "ViT-B/16", "shots": 16, "datasets": eleven}
    numbers = published_numbers("CoOp_AnchorOPT", **place)
    assert [numbers[c].value for c in ("base", "new", "HM")] == [81.24, 76.27, 78.68]
    assert "2511.21188" in numbers["HM"].source
    for other in ({"shots": 4}, {"backbone": "tiny"}, {"datasets": "digits"}):
        assert published_numbers("CoOp_AnchorOPT", **{**place, **other}) == {}


TINY = ["--hosts", "CoOp", "--config", "tiny", "--datasets", "digits"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "embeded"], "unknown preset 'embeded' .did you mean 'embedded'"),
        (["--protocol", "base2nu", *TINY], "unknown protocol 'base2nu' .did you mean 'base2new'"),
        ([*TINY, "--hosts", "CoOpp"], "unknown host 'CoOpp' .did you mean 'CoOp'"),
        ([*TINY, "--hosts", "ZeroshotCLIP"], "unknown host 'ZeroshotCLIP'"),
        ([*TINY, "--datasets", "digit"], "unknown data set 'digit' .did you mean 'digits'"),
        ([*TINY, "--datasets", "../datasets/digits"], "unknown data set"),
        ([*TINY, "--config", "small"], "unknown config of CoOp 'small'"),
        ([*TINY, "OPTIM.MAX_EPOC", "3"], "unknown config key OPTIM.MAX_EPOC"),
        ([*TINY, "OPTIM.MAX_EPOCH", "0"], "OPTIM.MAX_EPOCH is 0, but must be positive"),
        ([*TINY, "TRAINER.ANCHOROPT.POSITION", "sof"], "POSITION is 'sof'"),
        ([*TINY, "--jobs", "0"], "--jobs is 0"),
        ([*TINY, "OPTIM.MAX_EPOCH", "3", "--seeds", "1"], "--seeds comes after KEY VALUE pairs"),
        ([*TINY, "--sedes", "1"], "there is no flag --sedes"),
        ([*TINY, "--executor", "slrm"], "did you mean 'slurm'"),
        ([*TINY, "--seeds", "1", "--anchoropt", "both", "digits"], "'digits' is neither a flag"),
        ([], "nothing to compare"),
        (["--datasets", "digits"], "no host is given: give --hosts"),
        (["--datasets", "digits", "--hosts", "CoOp"], "no --config is given"),
        (["--preset", "published", "--datasets", "digits"], "nothing is published for CoOp"),
        (
            ["--preset", "published", "TRAINER.ANCHOROPT.PRESET", "reference"],
            "give --method or TRAINER.ANCHOROPT.PRESET, not both",
        ),
    ],
)
def test_compare_refuses(tmp_path, words, message):
    out = ["--output-dir", str(tmp_path / "out"), "--root", str(tmp_path / "data")]
    with pytest.raises(UserError, match=message):
        compare.main("", [*out, *words])
    assert not list(tmp_path.iterdir())


def test_experiments_are_commands_of_the_package(tmp_path, capsys):
    for command, flag in (("compare", "--hosts"), ("ablate", "--host")):
        words = [command, flag, "CoOp", "--config", "tiny", "--root", str(tmp_path)]
        words += ["--grid", "position=soft"] if command == "ablate" else []
        words += ["--datasets", "digits", "OPTIM.MAX_EPOCH", "0"]
        assert main(words) == 2
        assert "OPTIM.MAX_EPOCH is 0, but must be positive" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["compare", "ablate"])
def test_after_ctrl_c_the_command_says_how_to_go_on(monkeypatch, capsys, command):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"anchoropt_plugin.experiments.{command}.run", stopped)
    assert main([command, "--config", "tiny"]) == 130
    wanted = "interrupted; the same command goes on with the unfinished runs\n"
    assert capsys.readouterr().err == wanted


def test_an_estimate_says_for_how_many_runs_the_time_is_unknown(tmp_path):
    (run, *_) = planned(tmp_path, "base2new", coop(), datasets=["digits"])[0].runs
    finished, new = Kind(run, 1, finished=[6.0, 8.0]), Kind(run, 6)
    assert str(Estimate([finished], 1)) == "about 0 min 07 s, by finished runs"
    together = Estimate([finished], 4, [[finished, finished]])  # a training and its test
    assert str(together) == "about 0 min 14 s, by finished runs"
    assert str(Estimate([finished, new], 1)) == (
        "about 0 min 07 s for 1 of them, by finished runs; the time of the other 6 is unknown: "
        "no run of their kinds is finished yet"
    )
    timed = Kind(run, 2, parts=Parts(1.0, 0.0, 1.0, 1.0))
    assert str(Estimate([timed, new], 1)).endswith("is unknown: their steps cannot be timed")


def test_a_narrow_terminal_folds_names_and_keeps_the_times(tmp_path):
    (run, *_) = planned(tmp_path, "base2new", coop(), datasets=["digits"])[1].runs
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    follow([Event("started", run), Event("at", run, 1, 8)], 4, console)
    said = console.file.getvalue()
    assert "1/8" in said and "…" not in said and said.count("0:00:00 so far, -:--:-- left") >= 2


def test_a_table_of_times_has_no_room_for_the_reason(tmp_path):
    (run, *_) = planned(tmp_path, "base2new", coop(), datasets=["digits"])[0].runs
    console = Console(width=80, file=io.StringIO())
    console.print(
        Estimate([Kind(run, 2, fault="the folder of the data set is missing")], 1).table()
    )
    assert "unknown" in console.file.getvalue() and "missing" not in console.file.getvalue()


def test_a_narrow_terminal_breaks_no_name_in_a_table_of_times(tmp_path):
    (run, *_) = planned(tmp_path, "base2new", coop(), datasets=["digits"])[1].runs
    method = replace(run.method, name="MyMethodOfTwentyTwo_AnchorOPT")
    long = replace(run, method=method, shots=1)
    console = Console(width=80, file=io.StringIO())
    kinds = [Kind(run, 2, parts=Parts(1.0, 0.0, 1.0, 1.0)), Kind(long, 1, finished=[2.0])]
    console.print(Estimate(kinds, 1).table())
    said = console.file.getvalue()
    assert "…" not in said and "CoOp_AnchorOPT, digits" in said
    assert "16 shots" in said and "1 shots" not in said
    assert "MyMethodOfTwentyTwo_AnchorOPT," in said and "finished runs took" in said
    assert len({len(line) for line in said.splitlines()[1:] if line}) == 1  # fits into 80 columns


@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize("of", ["base2new", "few_shot"])
def test_the_control_is_announced_where_it_is_a_row(tmp_path, monkeypatch, is_own, of):
    plans = []
    monkeypatch.setattr(ablate, "run_experiment", lambda *args: plans.append(args) or 0)
    monkeypatch.setattr(ablate, "varied", lambda default, *_: [default])  # asks train.py for keys
    words = ["--host", "MyCoOp" if is_own else "CoOp", "--protocol", of, "--datasets", "digits"]
    words += ["--grid", "OPTIM.MAX_EPOCH=2,3"]
    if is_own:
        fork = write_fork(tmp_path / "fork")
        words += ["--repository", str(fork), "--config", "configs/my.yaml"]
    assert ablate.main("", [*words, *([] if is_own else ["--config", "tiny"])]) == 0
    ((experiment, *_),) = plans
    has_control = of == "base2new" and not is_own
    assert [*experiment.computed] == ["CoOp, averaged with zero-shot on new"] * has_control
    assert ("the last row is a control without" in experiment.about) == has_control


ABLATE = ["--host", "CoOp", "--config", "tiny", "--datasets", "digits"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (ABLATE, "nothing is varied"),
        ([*ABLATE, "--grid", "positon=soft"], "unknown factor 'positon' .did you mean 'position'"),
        ([*ABLATE, "--grid", "position"], "--grid position does not have the form KEY=v1,v2"),
        ([*ABLATE, "--grid", "OPTIM.LRR=1"], "unknown config key OPTIM.LRR"),
        ([*ABLATE, *["--grid", "kd_weight=0"] * 2], "--grid kd_weight is given twice"),
        (
            [*ABLATE, "--grid", "kd_weight=0", "--grid", "TRAINER.ANCHOROPT.KD_WEIGHT=2"],
            "kd_weight and TRAINER.ANCHOROPT.KD_WEIGHT vary the same key, .*KD_WEIGHT: leave one",
        ),
        (
            [*ABLATE, "--grid", "averaging=never", "TRAINER.ANCHOROPT.ENSEMBLE", "always"],
            "ENSEMBLE is given for all rows, but the row averaging=never has a value of its own",
        ),
        ([*ABLATE, "--grid", "position=sof"], "POSITION is 'sof'"),
        (["--grid", "position=soft"], "give --host and --config, or --preset"),
        ([*ABLATE, "--grid-file", "nowhere.yaml"], "cannot open the config file nowhere.yaml"),
    ],
)
def test_ablate_refuses(tmp_path, words, message):
    out = ["--output-dir", str(tmp_path / "out"), "--root", str(tmp_path / "data")]
    with pytest.raises(UserError, match=message):
        ablate.main("", [*out, *words])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_run_is_refused_at_once(tmp_path):
    (job,) = planned(tmp_path, "base2new", coop()[:1], datasets=["digits"])
    folder = job.runs[0].folder
    (folder / "prompt_learner").mkdir(parents=True)
    (folder / "prompt_learner/checkpoint").write_text("model.pth.tar-3\n")
    (folder / "config.yaml").write_text("OPTIM:\n  MAX_EPOCH: 3\n")
    with pytest.raises(UserError, match=r"other settings: OPTIM.MAX_EPOCH was 3, now 50"):
        planned(tmp_path, "base2new", coop()[:1], datasets=["digits"])


def test_an_installed_dassl_is_refused(monkeypatch, tmp_path):
    (tmp_path / "train.py").touch()
    (tmp_path / "trainers").mkdir()
    theirs = type("TrainerX", (), {"__module__": "dassl.engine.trainer"})
    monkeypatch.setattr("dassl.engine.TrainerX", theirs)
    with pytest.raises(UserError, match=r"the installed Dassl does not write: pip uninstall dassl"):
        _ = Checkout(tmp_path).train


def test_zero_shot_is_tested_once_and_never_trained(tmp_path):
    method = zero_shot_method(CHECKOUT.configs / "trainers/CoOp/tiny.yaml")
    jobs = planned(tmp_path, "base2new", [method], datasets=["digits"], seeds=[1, 2])
    assert [(run.score, run.trains) for job in jobs for run in job.runs] == [
        *(("base", False), ("new", False))
    ]
