"""What vlkit brings is found from anywhere, and asked for by name."""

import pathlib

import pytest

import vlkit
from vlkit import bundled
from vlkit.errors import MediaError, ModelError
from vlkit.media.video import probe_clip


def test_samples_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, sample in vlkit.samples().items():
        assert sample.name == name and sample.path.is_file() and sample.path.is_absolute()
        assert sample.about and sample.about_zh and sample.licence and sample.source
        assert vlkit.sample(name) == sample.path


def test_boxes_of_samples_lie_in_their_upright_pictures():
    count = 0
    for sample in vlkit.samples().values():
        width, height = vlkit.load_image(sample.path).size
        for box in sample.boxes:
            assert 0 <= box.x1 < box.x2 <= width and 0 <= box.y1 < box.y2 <= height
            count += 1
    assert count >= 40


def test_clips_have_the_length_rate_and_boxes_that_they_say():
    clips = vlkit.clips()
    assert sum(bool(clip.movers) for clip in clips.values()) >= 5
    assert not clips.keys() & vlkit.samples().keys()
    for name, clip in clips.items():
        assert clip.name == name and vlkit.sample(name) == clip.path
        info = probe_clip(clip.path)
        assert info.fps == pytest.approx(clip.fps, rel=0.01)
        assert info.duration == pytest.approx(clip.duration, abs=0.02)
        for box in [box for mover in clip.movers for box in (mover.first, mover.last)]:
            assert 0 <= box.x1 < box.x2 <= info.size[0] and 0 <= box.y1 < box.y2 <= info.size[1]


def test_unknown_sample_lists_those_there_are():
    with pytest.raises(MediaError, match=r"'unicorn' not found; samples = \[.*'cat'"):
        vlkit.sample("unicorn")


def test_the_model_is_there():
    assert (bundled.bundled_path("tiny-qwen2-vl") / "model.safetensors").is_file()


def test_missing_data_folder_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "files", lambda package: tmp_path / package)
    with pytest.raises(ModelError, match=r"data folder is missing .*reinstall vlkit"):
        bundled.bundled_path()
    installed = tmp_path / "vlkit" / "data"
    (installed / "tiny-qwen2-vl").mkdir(parents=True)
    assert bundled.bundled_path("samples") == pathlib.Path(installed, "samples")
