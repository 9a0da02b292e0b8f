"""The denoising strip: its stages and labels, and the command's one-line errors."""

import pytest

from dimba_jax import strip
from dimba_jax.config import ConfigError


def test_stages_run_from_noise_to_the_text(make_model, tmp_path):
    png = tmp_path / "strip.png"
    text = strip.draw_strip(make_model("abc"), "hi", png, stages=3)
    lines = text.splitlines()
    assert lines[0] == "prompt: hi"
    assert [line[:8] for line in lines[2:]] == ["t = 1.00", "t = 0.60", "t = 0.00"]  # 0, 2 and 5 steps of 5
    assert lines[-1].endswith("|  abc") and not lines[2].endswith("|  abc")
    assert png.read_bytes().startswith(b"\x89PNG") and png.with_suffix(".txt").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("stages", [1, 7])
def test_stages_must_fit_the_steps(make_model, tmp_path, stages):
    with pytest.raises(ConfigError, match=f"stages={stages}: with 5 sampling steps take from 2 to 6"):
        strip.draw_strip(make_model(), "hi", tmp_path / "strip.png", stages=stages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output=x.png"], "--checkpoint is missing"),
        (["--checkpoint=x"], "--output is missing"),
        (["--checkpoint=x", "--output=nowhere/x.png"], "there is no folder"),
        (["--checkpoint=nowhere", "--output=x.png"], "nowhere"),
        (["--checkpoint=x", "--output=x.png", "prompt"], "unexpected argument 'prompt'"),
    ],
)
def test_errors_are_one_message(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert strip.main(["strip", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("strip: ") and message in said and "Traceback" not in said
