"""Lines of several networks that write together, and of one that learned from others: whose they are and their cost."""

import json
import sys

import pytest
from saved_models import save_model, saved_config

from dimba_jax import commandline
from dimba_jax.config import from_config_dict, to_dict


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Data, and workdirs of networks at the end of their seven steps, with the minutes that each took."""
    place = tmp_path_factory.mktemp("study")
    (place / "data").mkdir()
    for name, count in (("train", 6), ("valid", 3), ("test", 3)):
        rows = [json.dumps({"src": f"q{i}", "trg": f"{i}a"}) + "\n" for i in range(count)]
        (place / "data" / f"{name}.jsonl").write_text("".join(rows))
    for seed, says in ((3, {"k": 0.5, "m": 0.4}), (4, {"z": 0.5, "m": 0.4}), (5, {"m": 0.9})):
        finished(place / "runs" / f"DiffuTran-{seed}", [30.0 * seed, 60.0], seed=seed, says=says)
    return place


def finished(workdir, seconds, steps=7, step=7, seed=0, says=None, **groups):
    groups["training"] = {"steps": steps} | groups.get("training", {})
    config = saved_config(**groups)
    save_model(workdir, config, step=step, seed=seed, says=says)
    starts = [{"git_commit": commit} for commit in ("abcdef0123", "0123abcdef")]  # the second went on
    (workdir / "run.json").write_text(json.dumps({"config": to_dict(config), "starts": starts}))
    (workdir / "wall.json").write_text(json.dumps(seconds))


@pytest.fixture
def run(trained, study, monkeypatch, tmp_path, capsys):
    """Runs run.py; its exit status and what it said. Trainings that it starts are in `run.started`, and do nothing."""

    def call(*flags, work=trained / "runs"):
        module = study("qqp", "run")

        def start(config, workdir, given, minutes=None, **options):
            call.started.append((config, workdir, list(given)))
            return call.train(workdir)

        monkeypatch.setattr(sys.modules["seq2seq"], "run_training", start)
        base = [f"--data={trained / 'data'}", f"--work={work}", f"--results={tmp_path / 'results.json'}"]
        monkeypatch.setattr(sys, "argv", ["run.py", *base, "--mbr=1", "--nospeed", *flags])
        try:
            module.main()
        except SystemExit as exit:
            shown = capsys.readouterr()
            return exit.code, shown.out + shown.err
        return 0, capsys.readouterr().out

    call.started, call.train = [], lambda workdir: 0
    return call


def lines_of(tmp_path, system):
    lines = json.loads((tmp_path / "results.json").read_text())
    return {line["subset"]: line for line in lines if line["system"] == system}


SEED = ["--system=DiffuTran", "--score_only", "--seed=3"]


def test_a_line_of_networks_that_write_together(tmp_path, run):
    status, said = run(*SEED, "--with_seeds=4,5", "--label=three")
    assert status == 0, said
    found = lines_of(tmp_path, "three")
    assert set(found) == {"all"} and not run.started  # all rows occur in training
    line = found["all"]
    assert (line["seed"], line["weights"], line["network_calls"]) == ("3+4+5", "DiffuTran", 6)  # of two steps
    assert line["train_minutes"] == 1.5 + 2.0 + 2.5 + 3 * 1.0 and line["train_steps"] == 7
    assert "commit" not in line  # each may have its own
    assert run(*SEED, "--mbr=1")[0] == 0
    assert lines_of(tmp_path, "DiffuTran")["all"]["commit"] == "abcdef0"
    alone = lines_of(tmp_path, "DiffuTran")["all"]
    assert (alone["seed"], alone["network_calls"], alone["train_minutes"]) == (3, 2, 2.5) and "weights" not in alone
    assert line["params"] == 3 * alone["params"] > 0
    assert lines_of(tmp_path, "three")["all"] == line

    status, said = run(*SEED, "--with_seeds=4", "--calls=1,2", "--label=two")
    assert status == 0, said
    lines = json.loads((tmp_path / "results.json").read_text())
    curve = [line for line in lines if line["system"] == "two" and line["subset"] == "all"]
    assert {(line["seed"], line["steps"], line["network_calls"]) for line in curve} == {("3+4", 1, 2), ("3+4", 2, 4)}
    assert {line["params"] for line in curve} == {2 * alone["params"]}

    for flags in (["--label=two"], ["--with_seeds=4,5", "--label=two"]):  # of as many networks each time
        status, said = run(*SEED, *flags)
        assert "--label=two" in str(status) and "other lines of this name" in str(status)


def test_networks_are_named_and_trained_to_the_end(tmp_path, run, trained):
    status, said = run(*SEED, "--with_seeds=4")
    assert status == 2 and "--with_seeds scores several networks: add --label=NAME" in said
    status, said = run("--system=DiffuTran", "--seed=3", "--with_seeds=4", "--label=two")
    assert status == 2 and "add --score_only or --calls" in said
    status, said = run(*SEED, "--with_seeds=4,", "--label=two")
    assert status == 2 and "--with_seeds" in said
    finished(trained / "runs" / "DiffuTran-8", [1.0], step=6)
    status, said = run(*SEED, "--with_seeds=4,8", "--label=three")
    assert status == 3 and "DiffuTran-8 is at step 6 of 7: train it to the end" in said
    status, said = run("--system=DiffuTran", "--score_only", "--seed=8")
    assert status == 3 and "DiffuTran-8 is at step 6 of 7" in said
    assert not (tmp_path / "results.json").exists() and not run.started


def test_networks_of_one_line_were_trained_alike_and_are_in_one_line_alone(tmp_path, run, trained):
    for flags, message in (
        (["--with_seeds=3"], "--with_seeds: a network is named twice"),
        (["--with_seeds=4,4"], "--with_seeds: a network is named twice"),
    ):
        status, said = run(*SEED, *flags, "--label=two")
        assert status == 2 and message in said
    status, said = run(*SEED, "--with_seeds=99", "--label=two")
    assert "DiffuTran-99 holds no checkpoint" in str(status)
    finished(trained / "runs" / "DiffuTran-6", [1.0], process={"label_smoothing": 0.1})
    status, said = run(*SEED, "--with_seeds=6", "--label=two")
    assert "was not trained as" in str(status) and "DiffuTran-3 was" in str(status)
    assert not (tmp_path / "results.json").exists()

    assert run(*SEED, "--with_seeds=4", "--label=two")[0] == 0
    status, said = run(*SEED, "--with_seeds=5", "--label=two")
    assert "line of the networks 3+4, and 3 cannot be in another" in str(status)
    before = (tmp_path / "results.json").read_text()
    assert run("--system=DiffuTran", "--score_only", "--seed=4", "--with_seeds=3", "--label=two")[0] == 0
    assert len(json.loads((tmp_path / "results.json").read_text())) == len(json.loads(before))
    assert lines_of(tmp_path, "two")["all"]["together"] == "distributions"


STUDENT = "--system=DiffuMamba-H distilled"


def test_teachers_are_for_training_the_student_alone(tmp_path, run):
    for flags in (
        [STUDENT],
        ["--system=DiffuMamba-H", "--teachers=0"],
        [STUDENT, "--score_only", "--teachers=0"],
        [STUDENT, "--calls=2", "--teachers=0"],
    ):
        status, said = run(*flags)
        assert (
            status == 2
            and "--teachers is for training DiffuMamba-H distilled and DiffuTran distilled, which need it" in said
        )
    status, said = run(STUDENT, "--teachers=0,0")
    assert status == 2 and "--teachers: a network is named twice" in said
    for flag in ("--config.training.teachers=a", "--config.process.distillation=0.5"):
        status, said = run("--system=DiffuMamba-H", flag)
        assert status == 2 and "would be another system under this one's name" in said
    assert not run.started and not (tmp_path / "results.json").exists()


def test_a_student_learns_from_its_teachers_and_costs_their_minutes_too(tmp_path, run):
    work = tmp_path / "runs"
    for seed in (0, 2):
        finished(work / f"DiffuMamba-H-{seed}", [60.0 * (seed + 1), 30.0])
    teachers = ",".join(str(work / f"DiffuMamba-H-{seed}") for seed in (0, 2))

    def learn(workdir):
        settings = {"process": {"distillation": 0.5}, "training": {"teachers": teachers}}
        finished(workdir, [600.0], says={"k": 0.9}, **settings)
        return 0

    finished(work / "DiffuMamba-H-1", [1.0], step=6)
    status, said = run(STUDENT, "--seed=1", "--teachers=0,1", work=work)
    assert "DiffuMamba-H-1 is at step 6 of 7: train it to the end" in str(status) and not run.started
    wall = work / "DiffuMamba-H-2" / "wall.json"
    wall.rename(tmp_path / "wall.json")
    status, said = run(STUDENT, "--seed=1", "--teachers=0,2", work=work)
    assert "DiffuMamba-H-2 has no wall.json" in str(status) and not run.started
    (tmp_path / "wall.json").rename(wall)
    status, said = run(STUDENT, "--seed=1", "--teachers=0,9", work=work)
    assert "DiffuMamba-H-9 holds no checkpoint" in str(status) and not run.started
    run.train = learn
    status, said = run(STUDENT, "--seed=1", "--teachers=2,0", work=work)  # in any order: it goes on with the same
    assert status == 0, said
    ((config, workdir, given),) = run.started
    assert workdir == work / "DiffuMamba-H_distilled-1" and "--seed=1" in given
    command = ["train", f"--config={config}", *given]
    define = commandline.Flags()
    define.config("recipe", command)
    define.seed(0, "seed")
    student = from_config_dict(define.parse(command).config)
    assert student.training.teachers == teachers and student.process.distillation == 0.5

    line = lines_of(tmp_path, "DiffuMamba-H distilled")["all"]
    assert line["teachers"] == ["DiffuMamba-H-0", "DiffuMamba-H-2"]
    status, said = run(STUDENT, "--seed=1", "--teachers=0,7", work=work)
    assert "DiffuMamba-H_distilled-1 holds a student of other teachers" in str(status) and len(run.started) == 1
    assert line["train_minutes"] == 10.0 + 1.5 + 3.5 and (line["seed"], line["network_calls"]) == (1, 2)
    status, said = run("--system=DiffuMamba-H", "--seed=2", "--score_only", work=work)
    assert status == 0, said
    teacher = lines_of(tmp_path, "DiffuMamba-H")["all"]
    assert teacher["train_minutes"] == 3.5 and teacher["params"] == line["params"]  # the teachers' are not used

    # another student, of one of these teachers and of a third
    finished(work / "DiffuMamba-H-7", [300.0])
    teachers = f"{work / 'DiffuMamba-H-2'},{work / 'DiffuMamba-H-7'}"
    learn(work / "DiffuMamba-H_distilled-5")
    status, said = run(STUDENT, "--seed=1", "--score_only", "--with_seeds=5", "--label=pair", work=work)
    assert status == 0, said
    pair = lines_of(tmp_path, "pair")["all"]
    assert pair["teachers"] == ["DiffuMamba-H-0", "DiffuMamba-H-2", "DiffuMamba-H-7"]
    assert pair["train_minutes"] == 2 * 10.0 + 1.5 + 3.5 + 5.0  # each training once
    moved = tmp_path / "moved"
    work.rename(moved)
    assert run(STUDENT, "--seed=1", "--score_only", work=moved)[0] == 0
    assert lines_of(tmp_path, "DiffuMamba-H distilled")["all"]["train_minutes"] == 15.0
    (moved / "DiffuMamba-H-2").rename(tmp_path / "away")
    status, said = run(STUDENT, "--seed=1", "--score_only", work=moved)
    assert "DiffuMamba-H-2, whose wall.json is not there" in str(status)
