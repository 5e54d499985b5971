"""Tables of experiments against numbers computed by hand, and their formats."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from anchoropt_plugin.experiments.experiment import Experiment
from anchoropt_plugin.experiments.figures import legend_of
from anchoropt_plugin.experiments.formats import (
    caption_of,
    csv_of,
    latex_table,
    markdown_table,
    rich_table,
)
from anchoropt_plugin.experiments.plan import Method
from anchoropt_plugin.experiments.protocols import read_protocol
from anchoropt_plugin.experiments.report import texts_of_stage_one
from anchoropt_plugin.experiments.tables import tables

BASE = {"CoOp": [80.0, 82.0, 84.0], "CoOp_AnchorOPT": [81.0, 85.0, 85.5]}
NEW = {"CoOp": [60.0, 61.0, 59.0], "CoOp_AnchorOPT": [70.0, 74.0, 66.0]}


def rows(group="digits", base=BASE, new=NEW, backbone="tiny"):
    return [
        {
            "method": method,
            "reference": "CoOp" if method == "CoOp_AnchorOPT" else "",
            "trainer": method,
            "group": group,
            "score": score,
            "shots": 16,
            "seed": seed,
            "has_seeds": True,
            "accuracy": value,
            "MODEL.BACKBONE.NAME": backbone,
        }
        for score, of in (("base", base), ("new", new))
        for method, values in of.items()
        for seed, value in enumerate(values, start=1)
    ]


def made(entries, protocol="base2new"):
    return tables(pd.DataFrame(entries), read_protocol(protocol))


def harmonic(a, b):
    return 2 * a * b / (a + b)


def test_means_deviations_differences_and_p():
    (table,) = made(rows())
    assert table.columns == ["base", "new", "HM"]
    ours, theirs = table.rows["CoOp_AnchorOPT"], table.rows["CoOp"]
    assert (
        theirs["base"].mean == 82.0 and theirs["base"].std == 2.0 and theirs["base"].delta is None
    )
    assert ours["new"].mean == 70.0 and ours["new"].delta == 10.0
    # The harmonic mean of the means; the deviation is over the harmonic means of the seeds.
    assert ours["HM"].mean == pytest.approx(harmonic(np.mean([81.0, 85.0, 85.5]), 70.0))
    per_seed = {m: [harmonic(*pair) for pair in zip(BASE[m], NEW[m], strict=True)] for m in BASE}
    assert ours["HM"].std == pytest.approx(np.std(per_seed["CoOp_AnchorOPT"], ddof=1))
    assert ours["HM"].delta == pytest.approx(ours["HM"].mean - theirs["HM"].mean)
    differences = np.subtract(per_seed["CoOp_AnchorOPT"], per_seed["CoOp"])
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(3))
    # Student's t with two degrees of freedom, in closed form.
    assert ours["HM"].p == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t))


def test_pairs_have_the_same_seed_and_missing_seeds_are_shown():
    entries = [row for row in rows() if not (row["method"] == "CoOp" and row["seed"] == 2)]
    (table,) = made(entries)
    assert table.rows["CoOp"]["base"].seeds == 2
    differences = np.array([1.0, 1.5])
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(2))
    expected = 1 - 2 / math.pi * math.atan(t)  # one degree of freedom
    assert table.rows["CoOp_AnchorOPT"]["base"].p == pytest.approx(expected)
    assert table.rows["CoOp_AnchorOPT"]["base"].delta == pytest.approx(differences.mean())
    assert "| CoOp (2 of 3 seeds) |" in markdown_table(table)


def test_a_harmonic_mean_and_a_difference_mix_no_seeds():
    """A failed test, and a failed training of another seed: seed 1 alone has everything."""
    lost = [("CoOp", "new", 2), ("CoOp_AnchorOPT", "base", 3), ("CoOp_AnchorOPT", "new", 3)]
    entries = [row for row in rows() if (row["method"], row["score"], row["seed"]) not in lost]
    (table,) = made(entries)
    ours, theirs = table.rows["CoOp_AnchorOPT"]["HM"], table.rows["CoOp"]["HM"]
    assert theirs.mean == pytest.approx(harmonic((80 + 84) / 2, (60 + 59) / 2))
    assert ours.mean == pytest.approx(harmonic((81 + 85) / 2, (70 + 74) / 2))
    assert ours.delta == pytest.approx(harmonic(81, 70) - harmonic(80, 60)) and ours.p is None
    assert "| CoOp (new: 2, HM: 2 of 3 seeds) |" in markdown_table(table)


def test_one_seed_has_no_deviation_and_no_p():
    (table,) = made([row for row in rows() if row["seed"] == 1])
    cell = table.rows["CoOp_AnchorOPT"]["base"]
    assert (cell.mean, cell.std, cell.delta, cell.p) == (81.0, None, 1.0, None)


def test_equal_differences_have_no_p_in_any_column():
    """The same drop on base and rise on new in each seed: there is no deviation to test with."""
    ours = [value + 1.5 for value in BASE["CoOp"]], [value - 2.0 for value in NEW["CoOp"]]
    base, new = ({**of, "CoOp_AnchorOPT": x} for of, x in zip((BASE, NEW), ours, strict=True))
    (table,) = made(rows(base=base, new=new))
    assert [cell.p for cell in table.rows["CoOp_AnchorOPT"].values()] == [None] * 3
    (table,) = made(rows(base=base))  # only those on base are equal: new has a deviation
    cells = table.rows["CoOp_AnchorOPT"]
    assert cells["base"].p is None and cells["HM"].p > 0


def test_over_data_sets_the_averages_are_averaged():
    other = {"CoOp": [50.0, 52.0, 54.0], "CoOp_AnchorOPT": [60.0, 62.0, 64.0]}
    *single, average = made(rows() + rows("shapes", base=other, new=other))
    assert [table.title for table in single] == ["digits", "shapes"]
    assert average.title == "average of 2 data sets"
    ours = average.rows["CoOp"]
    assert ours["base"].mean == pytest.approx((82.0 + 52.0) / 2)
    assert ours["HM"].mean == pytest.approx(harmonic((82 + 52) / 2, (60 + 52) / 2))
    assert ours["base"].std == pytest.approx(2.0)  # of the seeds' averages 65, 67, 69


def test_the_average_says_which_seeds_all_data_sets_have():
    fewer = [row for row in rows("shapes") if row["seed"] != 2]
    *_, average = made(rows() + fewer)
    assert average.title == "average of 2 data sets, seeds 1, 3"


def test_a_method_that_lacks_a_data_set_has_no_average():
    only = {"CoOp": [50.0, 52.0, 54.0]}
    *_, average = made(rows() + rows("shapes", base=only, new=only))
    assert list(average.rows) == ["CoOp"]


def test_data_sets_without_a_common_method_have_no_average():
    one, other = ({name: BASE[name]} for name in BASE)
    made_of_two = made(rows(base=one, new=one) + rows("shapes", base=other, new=other))
    assert [table.title for table in made_of_two] == ["digits", "shapes"]


def test_the_average_of_the_eleven_has_published_numbers():
    names = read_protocol("base2new").datasets
    *_, average = made([row for n in names for row in rows(n, backbone="ViT-B/16")])
    assert average.rows["CoOp_AnchorOPT"]["HM"].published.value == 78.68
    assert "81.24 / 76.27 / 78.68" in markdown_table(average)
    *_, other = made([row for n in names for row in rows(n)])
    assert not other.published


def test_cross_dataset_averages_the_targets_alone():
    entries = rows("imagenet")
    for row in entries:
        row["score"] = {"base": "imagenet", "new": "dtd"}[row["score"]]
    more = [{**row, "score": "sun397", "accuracy": 40.0} for row in rows("imagenet")[:6]]
    (table,) = made(entries + more, "cross_dataset")
    assert table.columns == ["imagenet", "dtd", "sun397", "average"]
    assert table.rows["CoOp"]["average"].mean == pytest.approx((60.0 + 40.0) / 2)


def test_few_shot_has_a_column_for_each_number_of_images():
    entries = rows()
    for row in entries:
        row["shots"] = {"base": 1, "new": 2}[row["score"]]
        row["score"] = str(row["shots"])
    (table,) = made(entries, "few_shot")
    assert table.columns == ["1", "2", "average"]
    assert table.rows["CoOp"]["average"].mean == pytest.approx((82.0 + 60.0) / 2)
    assert "Too few" not in markdown_table(table)


def test_shots_that_are_not_there_are_told():
    """Eight shots are all six images of each class, or three of one class: not eight."""
    entries = rows() + rows("shapes")
    for row in entries:
        row["shots"] = row["score"] = {"base": 4, "new": 8}[row["score"]]
        row["score"] = str(row["score"])
        most = min(row["shots"], 6)
        row |= {"fewest_images": most, "most_images": most}
        if row["group"] == "shapes" and row["seed"] == 2:
            row["fewest_images"] = 3
    without = {**entries[0], "method": "ZeroshotCLIP", "fewest_images": None, "most_images": None}
    digits, shapes, average = made([*entries, without], "few_shot")
    says = "Too few images for {} shots: the training images per class are {}."
    for text in (markdown_table(digits), latex_table(digits)):
        assert says.format(8, 6) in text and "for 4" not in text
    both = f"{says.format(4, '3 to 4')} {says.format(8, '3 to 6')}"
    assert both in markdown_table(shapes) and both in markdown_table(average)


@pytest.mark.parametrize("differs", [False, True])
def test_rows_that_predict_the_same_are_told(differs):
    """A setting without effect, as a number of soft tokens that the words decide, is no finding."""
    entries = [{**row, "predictions": f"{row['method']}{row['seed']}"} for row in rows()]
    entries += [{**row, "method": "other"} for row in entries if row["method"] == "CoOp"]
    entries[-1]["predictions"] += "x" * differs
    entries.append({**rows()[0], "method": "computed"})  # without predictions of its own
    (table,) = made(entries)
    told = "The predictions of CoOp and other are the same." in markdown_table(table)
    assert told != differs


def test_a_summary_of_one_score_has_no_column():
    entries = [{**row, "score": "16"} for row in rows() if row["score"] == "base"]
    (table,) = made(entries, "few_shot")
    assert table.columns == ["16"]
    assert "| method | 16 shots | Δ 16 shots |" in markdown_table(table)
    protocol = read_protocol("few_shot")
    experiment = Experiment("", "", protocol, [])
    assert "average" not in caption_of(experiment, [table])
    assert "HM is the harmonic mean" in caption_of(
        Experiment("", "", read_protocol("base2new"), []), made(rows())
    )


def test_a_score_that_all_methods_share_is_said_once():
    base = {"CoOp": [80.0, 82.0, 84.0], "CoOp_AnchorOPT": [80.0, 82.0, 84.0]}
    (table,) = made(rows(base=base))
    text = markdown_table(table)
    assert "| method | new | HM | Δ HM |" in text
    says = "Mean ± sample standard deviation of 3 seeds. In all rows: base 82.0 ± 2.0."
    assert text.endswith(f"|\n\n{says}\n")
    caption = "\\caption{digits: accuracy in per cent. " + says.replace("±", r"$\pm$") + "}\n"
    assert caption in latex_table(table)
    console = Console(width=100, file=io.StringIO())
    console.print(rich_table(table))
    assert says in " ".join(console.file.getvalue().split())
    assert len(pd.read_csv(io.StringIO(csv_of([table])))) == 6, "the csv file has all"


def test_the_number_of_seeds_is_told():
    """Zero-shot CLIP has no seeds, and the host has lost one."""
    entries = [row for row in rows() if not (row["method"] == "CoOp" and row["seed"] == 2)]
    (table,) = made(entries)
    assert table.of_seeds in legend_of(table) and table.of_seeds == "2 to 3 seeds"
    assert "deviation of 2 to 3 seeds.\n" in markdown_table(table)
    without = {**entries[0], "method": "ZeroshotCLIP", "has_seeds": False}
    (table,) = made([*entries, without])
    assert "deviation of 2 to 3 seeds (without ±: one seed).\n" in markdown_table(table)
    (table,) = made([row for row in entries if row["seed"] == 1])
    assert "Each number is of one seed." in markdown_table(table)
    assert "whiskers" not in legend_of(table)


def test_latex_escapes_what_it_would_read_as_a_command():
    (table,) = made([{**row, "method": r"100%_{#1}\x ~^$&<"} for row in rows("a_b")])
    latex, name = latex_table(table), r"100\%\_\{\#1\}\textbackslash{}x "
    assert name + r"\textasciitilde{}\textasciicircum{}\$\&$<$ &" in latex
    assert r"\caption{a\_b: " in latex


def test_the_caption_explains_what_the_tables_show():
    experiment = Experiment("", "", read_protocol("base2new"), [])
    entries = rows()
    one_test = caption_of(experiment, made(entries))
    assert (
        "Δ is the difference, over the seeds that both have," in one_test
        and "; p is from" in one_test
        and "large p" in one_test
    )
    assert "For HM, p is from the HM of the single seeds" in one_test and "Holm" not in one_test
    few_shot = [{**row, "score": {"base": "1", "new": "2"}[row["score"]]} for row in entries]
    experiment_of_few = Experiment("", "", read_protocol("few_shot"), [])
    assert "single seeds" not in caption_of(experiment_of_few, made(few_shot, "few_shot"))
    third = [{**row, "method": "x", "accuracy": row["accuracy"] - row["seed"]} for row in entries]
    third = [{**row, "reference": "CoOp"} for row in third if row["reference"]]
    tables_of_three = made([*entries, *third])
    assert "Holm is p corrected" in caption_of(experiment, tables_of_three)
    one_seed = caption_of(experiment, made([row for row in entries if row["seed"] == 1]))
    assert one_seed.endswith("and the default.") and "p is" not in one_seed
    alone = caption_of(experiment, made([row for row in entries if row["method"] == "CoOp"]))
    assert "Δ" not in alone and alone.endswith("over seeds.")


def test_a_narrow_terminal_neither_breaks_nor_cuts_off_a_name():
    names = {"CoOp": "CoOp"} | {
        name: f"TRAINER.SMOOTH.EPS={value}"
        for name, value in {"CoOp_AnchorOPT": "0.05", "other": "0.025"}.items()
    }
    entries = rows() + [{**r, "method": "other"} for r in rows() if r["method"] != "CoOp"]
    (table,) = made([{**row, "method": names[row["method"]]} for row in entries])
    console = Console(width=60, file=io.StringIO())
    console.print(rich_table(table))
    said = console.file.getvalue()
    cells = [line.strip("│").split("│")[0].strip() for line in said.splitlines() if "│" in line]
    assert "…" not in said and [cell for cell in cells if cell] == [*names.values()]


def test_formats():
    entries = rows()
    (table,) = made(entries)
    text = markdown_table(table)
    assert "| method | base | new | HM | Δ HM |" in text
    assert "| CoOp | 82.0 ± 2.0 | 60.0 ± 1.0 |" in text
    latex = latex_table(table)
    assert r"CoOp\_AnchorOPT & 83.8 $\pm$ 2.5" in latex and latex.count(r"\\") == 3
    cells = pd.read_csv(io.StringIO(csv_of([table])))
    assert len(cells) == 6
    found = cells.set_index(["method", "column"]).loc[("CoOp", "base")]
    assert (found["mean"], found["std"], found["seeds"]) == (82.0, 2.0, 3)
    row = table.rows["CoOp_AnchorOPT"]
    row["base"] = row["base"]._replace(delta=-1e-9)
    assert "-0.0000" not in csv_of([table])


def test_no_results_give_no_tables():
    assert made([]) == []
    assert Method("m", "CoOp_AnchorOPT", None).host == "CoOp"


def test_the_texts_of_stage_1_are_those_of_the_trainings_that_had_one():
    keys = {"ANCHOR": "learned", "ANCHOR_WEIGHTS": "", "DESCRIPTIONS": "a.json"}
    one = {"does": "train", "trainer": "CoOp_AnchorOPT", "group": "digits"}
    one |= {f"TRAINER.ANCHOROPT.{key}": value for key, value in keys.items()}
    shapes = {**one, "group": "shapes", "TRAINER.ANCHOROPT.DESCRIPTIONS": ""}
    others = [("ANCHOR", "random"), ("ANCHOR_WEIGHTS", "a.pt")]
    without = [{**one, f"TRAINER.ANCHOROPT.{key}": value} for key, value in others]
    without += [{**one, "does": "test"}, {**one, "trainer": "CoOp"}]
    without = [{**row, "TRAINER.ANCHOROPT.DESCRIPTIONS": "b.json"} for row in without]
    computed = {"group": "digits"}
    told = texts_of_stage_one(pd.DataFrame([one, one, shapes, *without, computed]))
    assert told == "digits: a.json; shapes: templates"
    assert texts_of_stage_one(pd.DataFrame(without)) == texts_of_stage_one(pd.DataFrame()) == ""
