"""Results and events of a run: written whole, read strictly, the same after every kill."""

from __future__ import annotations

import json

import pytest

from anchoropt_plugin import UserError
from anchoropt_plugin.files import run_events
from anchoropt_plugin.files.run_events import (
    append_event,
    read_events,
    read_results,
    rewind,
    write_results,
)
from anchoropt_plugin.process import distributed

RESULTS = {
    **{"split": "test", "after_training": True, "total": 3, "correct": 2},
    **{"accuracy": 200 / 3, "error_rate": 100 / 3, "macro_f1": 50.0},
}


def epoch(folder, number, **values):
    append_event(folder, "epoch", epoch=number, epochs=3, **values)


def test_events_come_back_in_order_and_numbers_to_the_bit(tmp_path):
    assert read_events(tmp_path) == [] and read_results(tmp_path) == {}
    append_event(tmp_path, "anchors")
    epoch(tmp_path, 1, loss=0.1 + 0.2)
    epoch(tmp_path, 2, loss=float("nan"))
    anchors, first, second = read_events(tmp_path)
    assert anchors == {"event": "anchors"}
    assert first == {"event": "epoch", "epoch": 1, "epochs": 3, "loss": 0.1 + 0.2}
    assert second["loss"] != second["loss"]
    write_results(tmp_path, RESULTS)
    assert read_results(tmp_path) == RESULTS


def test_a_line_that_is_being_written_is_ignored(tmp_path):
    epoch(tmp_path, 1)
    whole = (tmp_path / run_events.EVENTS).read_bytes()
    for torn in (b"{", b'{"event": "epoch", "epoch": 2, "epochs": 3}'):
        (tmp_path / run_events.EVENTS).write_bytes(whole + torn)
        assert [event["epoch"] for event in read_events(tmp_path)] == [1]
    epoch(tmp_path, 2)
    assert [event["epoch"] for event in read_events(tmp_path)] == [1, 2]


def test_the_last_line_of_an_epoch_counts(tmp_path):
    for loss in (1.0, 2.0):
        epoch(tmp_path, 1, loss=loss)
    assert [event["loss"] for event in read_events(tmp_path)] == [2.0]


def test_an_event_that_is_there_is_not_added_again(tmp_path):
    for _ in range(2):
        append_event(tmp_path, "anchors")
    assert (tmp_path / run_events.EVENTS).read_text() == '{"event": "anchors"}\n'


def test_a_resumed_training_keeps_its_epochs_and_has_no_results(tmp_path):
    append_event(tmp_path, "anchors")
    for number in (1, 2, 3):
        epoch(tmp_path, number)
    for done, kept in ((3, [1, 2, 3]), (1, [1]), (0, [])):
        write_results(tmp_path, RESULTS)
        rewind(tmp_path, done)
        assert read_results(tmp_path) == {}
        events = read_events(tmp_path)
        assert [event["epoch"] for event in events if event["event"] == "epoch"] == kept
        assert any(event["event"] == "anchors" for event in events) == bool(done)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "5",
        "{}",
        "[" * 10_000,
        '{"event": 5}',
        '{"event": "epoch"}',
        '{"event": "epoch", "epoch": "1", "epochs": 3}',
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path, line):
    epoch(tmp_path, 1)
    with (tmp_path / run_events.EVENTS).open("a") as file:
        file.write(f"{line}\n")
    for read in (lambda: read_events(tmp_path), lambda: rewind(tmp_path, 2)):
        with pytest.raises(UserError, match=r"events\.jsonl, line 2: not an event of a run"):
            read()
    rewind(tmp_path, 0)
    assert read_events(tmp_path) == []


@pytest.mark.parametrize(
    "text", ["5", "{}", json.dumps({**RESULTS, "correct": "2"}), json.dumps({"accuracy": 1.0})]
)
def test_what_is_no_result_is_refused(tmp_path, text):
    (tmp_path / run_events.RESULTS).write_text(text)
    with pytest.raises(UserError, match=r"results\.json does not hold the results of a test"):
        read_results(tmp_path)
    (tmp_path / run_events.RESULTS).write_text("{")
    with pytest.raises(UserError, match=r"results\.json, line 1: not valid json"):
        read_results(tmp_path)


def test_results_that_were_edited_are_refused(tmp_path):
    write_results(tmp_path, RESULTS)
    path = tmp_path / run_events.RESULTS
    path.write_text(path.read_text().replace(str(RESULTS["accuracy"]), "99.5"))
    with pytest.raises(UserError, match=r"results\.json was edited after its test: remove it"):
        read_results(tmp_path)
    path.write_text(json.dumps(RESULTS))  # of an earlier version
    assert read_results(tmp_path) == RESULTS


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path, monkeypatch):
    epoch(tmp_path, 1)
    write_results(tmp_path, RESULTS)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    epoch(tmp_path, 2)
    write_results(tmp_path, {})
    rewind(tmp_path, 0)
    assert [event["epoch"] for event in read_events(tmp_path)] == [1]
    assert read_results(tmp_path) == RESULTS


def test_without_an_output_folder_nothing_is_written(tmp_path):
    append_event(tmp_path / "none", "anchors")
    write_results(tmp_path / "none", RESULTS)
    rewind(tmp_path / "none", 0)
    assert not list(tmp_path.iterdir())
