"""``report``: its numbers against plain computations, and its page in a browser."""

from __future__ import annotations

import html
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score

from anchoropt_plugin.__main__ import main
from anchoropt_plugin.files.predictions import PREDICTIONS, Predictions, write_predictions
from anchoropt_plugin.files.training_images import digest_of_files
from anchoropt_plugin.report import measures, page
from anchoropt_plugin.report.figures import reliability_diagram
from tests.browsing import found_browser, opened

NAMES = [*"abcdefg", "<i>&", "狐 with a long name of many words"]
N_IMAGES = 400


@pytest.fixture(scope="module")
def truth():
    """Labels (n,) and probabilities (n, C); the class g has no image."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 3, 4, 5, 7, 8], N_IMAGES)
    logits = rng.normal(size=(N_IMAGES, len(NAMES))) * 2
    logits[np.arange(N_IMAGES), labels] += 2
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def rows_of(labels, probabilities, path=lambda number: f"/none/{number}.png", n_top=5):
    for number, (label, row) in enumerate(zip(labels, probabilities, strict=True)):
        top = np.argsort(-row)[:n_top]
        yield path(number), NAMES[label], [NAMES[place] for place in top], row[top]


@pytest.fixture(scope="module")
def predictions(truth):
    images, names, top, values = zip(*rows_of(*truth), strict=True)
    return Predictions(images, names, top, [value[0] for value in values])


def slow_ece(right, probabilities):
    """Return the ECE with a loop over bins, as in the code of Guo et al."""
    error = 0.0
    for b in range(15):
        inside = [
            place
            for place, p in enumerate(probabilities)
            if b / 15 < p <= (b + 1) / 15 or (b == 0 and p == 0)
        ]
        if inside:
            accuracy = sum(right[place] for place in inside) / len(inside)
            probability = sum(probabilities[place] for place in inside) / len(inside)
            error += len(inside) / len(right) * abs(accuracy - probability)
    return error


def test_the_calibration_error_equals_a_loop_over_bins(truth, predictions):
    labels, probabilities = truth
    right = (probabilities.argmax(1) == labels).tolist()
    found = measures.calibration(predictions)
    assert found.error == pytest.approx(slow_ece(right, probabilities.max(1)), abs=1e-12)
    assert 0.05 < found.error < 0.5 and found.count.sum() == N_IMAGES


def test_the_bins_are_open_below_and_closed_above():
    edges = [b / 15 for b in range(16)]
    right = [place % 3 == 0 for place in range(16)]
    top = [["cat"] if hit else ["dog"] for hit in right]
    found = measures.calibration(Predictions(["x"] * 16, ["cat"] * 16, top, edges))
    assert found.count.tolist() == [2] + [1] * 14
    assert found.error == pytest.approx(slow_ece(right, edges), abs=1e-12)
    upper, lower = reliability_diagram(found).axes
    assert all(bar.get_y() == 0 for axis in (upper, lower) for bar in axis.patches)
    assert upper.get_ylim() == (0, 1) and lower.get_ylim()[0] == 0


def test_accuracies_and_confusions_equal_scikit_learn(truth, predictions):
    labels, probabilities = truth
    for k in (1, 5):
        wanted = top_k_accuracy_score(labels, probabilities, k=k, labels=range(len(NAMES)))
        assert measures.top_accuracy(predictions, k) == pytest.approx(100 * wanted)
    names, counts = measures.confusion(predictions)
    assert sorted(names) == sorted(NAMES) and names[-1] == "g", "without an image, so last"
    order = [NAMES.index(name) for name in names]
    wanted = confusion_matrix(labels, probabilities.argmax(1), labels=order)
    assert counts.tolist() == wanted.tolist()
    i, j = measures.confusions(counts)[0]
    assert counts[i, j] == (wanted - np.diag(np.diag(wanted))).max()
    wrong = wanted - np.diag(np.diag(wanted))
    made = [wrong[c].sum() + wrong[:, c].sum() for c in range(len(NAMES))]
    assert sorted(made)[-3:] == sorted(made[c] for c in measures.most_confused(counts, 3))


def test_mistakes_come_in_the_order_of_their_probability(truth, predictions):
    labels, probabilities = truth
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    wanted = sorted(wrong.tolist(), key=lambda place: -probabilities[place].max())
    assert measures.mistakes(predictions) == wanted


# ---------------------------------------------------------------------- the page
@pytest.fixture
def folder(tmp_path, truth):
    """A folder with a test alone, and images of several sizes and modes."""
    sizes = [(8, 8, "L"), (900, 300, "RGB"), (30, 200, "RGBA")]
    for number, (width, height, mode) in enumerate(sizes):
        Image.new(mode, (width, height)).save(tmp_path / f"{number}.png")
    for number in range(3, N_IMAGES):
        (tmp_path / f"{number}.png").symlink_to(tmp_path / f"{number % 3}.png")
    write_predictions(tmp_path, rows_of(*truth, lambda number: str(tmp_path / f"{number}.png")))
    return tmp_path


def shown(folder):
    """Return the page as text, without tags and the content of images."""
    text = (folder / page.PAGE).read_text(encoding="utf-8")
    assert "http" not in text.replace("http://www.w3.org", "")
    body = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_a_page_has_the_numbers_of_the_table(folder, truth, capsys):
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr() == (f"{folder / page.PAGE}\n", "")
    labels, probabilities = truth
    right = probabilities.argmax(1) == labels
    text = shown(folder)
    source = (folder / page.PAGE).read_text(encoding="utf-8")
    assert f"{100 * right.mean():.1f} % top-1 accuracy" in text
    recalls = recall_score(labels, probabilities.argmax(1), labels=sorted({*labels}), average=None)
    assert f"{100 * recalls.mean():.1f} % mean over the classes" in text
    ece = slow_ece(right.tolist(), probabilities.max(1))
    assert f"{100 * ece:.1f} % calibration error (ECE)" in text
    assert f"{(~right).sum()} of {N_IMAGES} predictions are wrong; the 24" in text
    place = max(np.flatnonzero(~right), key=lambda number: probabilities[number].max())
    first = f"{NAMES[probabilities[place].argmax()]} {probabilities[place].max():.1%} truth: "
    assert first + NAMES[labels[place]] in text
    for label in sorted({*labels}):
        of_class = labels == label
        share = right[of_class].mean()
        assert f" {NAMES[label]} {of_class.sum()} {share:.1%} " in text
    head = re.findall(r"<tr><th>class</th>(.+?)</tr>", source)
    texts = [re.findall(r'<th class="text">(.+?)</th>', names) for names in head]
    assert texts == [["prediction"], ["most often taken for"]], "other columns are numbers"
    assert re.search(r'<td class="text">[a-h]</td><td>\d+</td><td>[\d.]+%</td></tr>', source)
    assert text.count("<i>&") > 3
    assert "<i>" not in source, "names are text, not html"
    assert source.count("data:image/jpeg") == 24 and source.count("data:image/svg") == 1
    assert "Training" not in text and "Position matrix" not in text
    assert "Files: figures/calibration.png, .pdf, .svg." in text
    names = {path.name for path in (folder / page.FIGURES).iterdir()}
    assert names == {f"calibration.{kind}" for kind in ("png", "pdf", "svg")}


def test_the_same_run_gives_the_same_page(folder):
    pages = []
    for _ in range(2):
        assert main(["report", str(folder)]) == 0
        pages.append((folder / page.PAGE).read_bytes())
    assert pages[0] == pages[1]


def test_images_that_are_gone_are_left_blank_and_named(folder, capsys):
    (folder / "1.png").unlink()
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr().err
    pattern = rf"\d+ of 24 images of the gallery are left blank: the image {folder}/\d+\.png is mis"
    assert re.match(pattern, said) and said.count("\n") == 1
    assert 'class="missing"' in (folder / page.PAGE).read_text(encoding="utf-8")


def test_a_table_of_ones_own_without_further_classes(tmp_path):
    (tmp_path / PREDICTIONS).write_text(
        "image,truth,prediction,probability\nx.png,cat,cat,0.9\ny.png,dog,dog,0.8\n"
    )
    assert main(["report", str(tmp_path)]) == 0
    text = shown(tmp_path)
    assert "100.0 % top-1" in text and "top-5" not in text and "0 of 2 predictions" in text
    assert "15.0 % calibration error" in text


def test_of_many_classes_the_most_confused_are_shown(tmp_path):
    rng = np.random.default_rng(1)
    names = [f"class {number} of a taxonomy" for number in range(120)]
    rows = []
    for number in range(600):
        wrong = number % 120 < 20 and rng.random() < 0.5
        top = [names[(number + wrong + shift) % 120] for shift in range(5)]
        rows.append(("", names[number % 120], top, [0.5, 0.1, 0.1, 0.1, 0.1]))
    write_predictions(tmp_path, rows)
    assert main(["report", str(tmp_path)]) == 0
    text = shown(tmp_path)
    assert "Confusion matrix of the 30 classes with most mistakes" in text
    assert "class 119 of a taxonomy 100.0%" in text
    assert "In all rows: images 5." in text


@pytest.mark.parametrize(
    ("results", "says"),
    [
        (None, "has no predictions.csv: test the run again (train.py --eval-only --model-dir "),
        ({"total": N_IMAGES, "correct": 1}, "are of two tests: test again"),
        ({"total": 3}, "are of two tests: test again"),
        ([], "does not hold the results of a test"),
    ],
)
def test_mistakes_are_one_line_and_leave_the_page_that_was_there(folder, capsys, results, says):
    (folder / page.PAGE).write_text("before")
    if results is None:
        (folder / PREDICTIONS).unlink()
        (folder / "config.yaml").touch()
    (folder / "results.json").write_text(json.dumps(results or []))
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert (folder / page.PAGE).read_text() == "before"


def test_a_table_of_another_test_with_the_same_counts_is_refused(folder, truth, capsys):
    labels, probabilities = truth
    right = int((probabilities.argmax(1) == labels).sum())
    digest = write_predictions(folder, rows_of(*truth))
    results = {"total": N_IMAGES, "correct": right, "predictions": digest}
    (folder / "results.json").write_text(json.dumps(results))
    assert main(["report", str(folder)]) == 0
    write_predictions(folder, rows_of(labels[::-1], probabilities[::-1]))
    capsys.readouterr()
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "predictions.csv was changed, or copied from elsewhere, after the test" in said
    assert said.count("\n") == 1
    of_training = "up to 16 training images per class"
    for trained in (False, True):  # zero-shot CLIP has no training images
        numbers = {**results, "after_training": trained, "settings": {"DATASET.NUM_SHOTS": 16}}
        numbers["training"] = {"SEED": 1} if trained else {}
        (folder / "results.json").write_text(json.dumps(numbers))
        write_predictions(folder, rows_of(*truth))
        assert main(["report", str(folder)]) == 0
        assert (
            (of_training in shown(folder)) == trained == ("no trained model" not in shown(folder))
        )
    numbers["images_per_class"] = {"fewest": 6, "most": 12}
    (folder / "results.json").write_text(json.dumps(numbers))
    assert main(["report", str(folder)]) == 0
    assert "6 to 12 training images per class" in shown(folder)
    numbers["settings"]["DATASET.SUBSAMPLE_CLASSES"] = "new"
    numbers["training"]["DATASET.SUBSAMPLE_CLASSES"] = "base"
    (folder / "results.json").write_text(json.dumps(numbers))
    assert main(["report", str(folder)]) == 0
    assert "classes: new" in shown(folder) and "trained on classes: base" in shown(folder)
    del results["predictions"]  # of an earlier version
    (folder / "results.json").write_text(json.dumps(results))
    assert main(["report", str(folder)]) == 0


def test_images_that_were_changed_after_the_test_are_told(folder, truth, capsys):
    paths = [str(folder / f"{number}.png") for number in range(N_IMAGES)]
    right = int((truth[1].argmax(1) == truth[0]).sum())
    images = {"files": digest_of_files(paths)}
    results = {"total": N_IMAGES, "correct": right, "images": images}
    (folder / "results.json").write_text(json.dumps(results))
    assert main(["report", str(folder)]) == 0
    assert not capsys.readouterr().err
    Image.effect_noise((32, 32), 90).save(paths[1])
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().err.startswith("Note: image files were changed after the test")


def test_a_table_of_ones_own_with_two_spellings_is_refused(tmp_path, capsys):
    (tmp_path / PREDICTIONS).write_text(
        "image,truth,prediction,probability\nx.png,red fox,Red_Fox,0.9\n"
    )
    assert main(["report", str(tmp_path)]) == 2
    assert "the class 'Red_Fox' is 'red fox' above" in capsys.readouterr().err
    assert not (tmp_path / page.PAGE).exists()


def test_without_matplotlib_the_extra_is_named(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(folder)]) == 2
    wanted = "error: report needs matplotlib: pip install 'anchoropt-plugin[report]'\n"
    assert capsys.readouterr().err == wanted


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_all_of_it_and_fetches_nothing(folder, tmp_path, width):
    browser = found_browser()
    assert main(["report", str(folder)]) == 0
    seen, said, asked = opened(browser, folder / page.PAGE, tmp_path, width)
    assert seen["images"] == 25 and seen["broken"] == 0
    assert seen["width"] <= 0  # no scrolling sideways
    assert said == [] and asked == set()
