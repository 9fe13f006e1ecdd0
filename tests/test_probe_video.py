"""Probe sets of videos: the thing is the evidence, it is where the set says, and the files are a data set."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from dart.cli.loading import load
from dart.compare.data import open_data
from llava.eval.probe import video
from llava.eval.probe.scenes import ANSWERS
from llava.files import ROOT

MODEL = ROOT / "playground" / "models" / "qwen2_5-vl-tiny"


def test_clips_are_what_their_set_says():
    for name, shown in video.SHOWN.items():
        made = video.clips(name, 0, 12)
        assert set(Counter(clip.answer for clip in made)) == set(ANSWERS["color"])
        for clip in made:
            things = [thing for scene in clip.scenes for thing in scene.things]
            assert len(clip.scenes) == video.MOMENTS and len(things) == shown
            assert {thing.color for thing in things} == {clip.answer} and things[0].kind in clip.question
            assert len({(thing.x, thing.y) for thing in things}) == shown
            frames = [np.asarray(frame) for frame in clip.frames()]
            assert all((a == b).all() for a, b in zip(frames[::2], frames[1::2], strict=True))
            hidden = [np.asarray(frame) for frame in clip.frames(thing=False)]
            assert sum((a != b).any() for a, b in zip(frames[::2], hidden[::2], strict=True)) == shown
            assert all((hidden[0] == frame).all() for frame in hidden)  # the ground is still
        assert video.clips(name, 0, 3) == made[:3] and video.clips(name, 1, 3) != made[:3]


def test_the_files_are_a_data_set(tmp_path):
    made = video.clips("blinking", 0, 2)
    video.write(tmp_path / "set", made)
    data = open_data(str(tmp_path / "set"))
    assert [list(sample.references) for sample in data.samples] == [[clip.answer] for clip in made]
    (film,) = data.samples[1].films(8)
    assert [np.asarray(frame).sum() for frame in film.frames] == [np.asarray(f).sum() for f in made[1].frames()]
    before = (tmp_path / "set" / "questions.jsonl").stat().st_mtime_ns
    video.write(tmp_path / "set", made)
    assert (tmp_path / "set" / "questions.jsonl").stat().st_mtime_ns == before


def test_the_evidence_is_the_thing_in_the_models_tokens():
    loaded = load(str(MODEL), "cpu", None, None)
    clip = video.clips("blinking", 0, 1)[0]
    mask = video.evidence(loaded, clip).numpy().reshape(video.MOMENTS, 16, 16)
    (moment,) = [k for k, scene in enumerate(clip.scenes) if scene.things]
    thing = clip.scenes[moment].things[0]
    rows, columns = np.nonzero(mask[moment])
    assert mask.sum() == mask[moment].sum() > 4
    for places, middle in ((rows, thing.y), (columns, thing.x)):
        assert abs((places.min() + places.max() + 1) / 2 / 16 - middle) < 1 / 16
        assert places.max() - places.min() + 1 <= 2 * video.RADIUS * 16 + 2


def test_a_validation_tells_the_evidence_from_the_rest(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(video, "SHOWN", {"blinking": 1})
    monkeypatch.setattr(video, "METHODS", {"evs": (320,)})
    out = tmp_path / "video.json"
    video.main(["--data", str(tmp_path), "--questions", "2", "--validate", str(MODEL), "--out", str(out)])
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"]
    assert json.loads(out.read_text())["rows"] == rows
    assert rows["blinking"] == {
        "unpruned": 100.0, "blind": 0.0, "without-evidence": 0.0, "evidence-alone": 100.0, "evs-320": 100.0
    }  # fmt: skip


def test_bad_input_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        video.main(["--questions", "0"])
    assert capsys.readouterr().err.strip().endswith("--questions must be 1 or more, got 0")
