"""Sweeps on digits through the command line: killed and continued, with every trial accounted for."""

import os
import random
import re
import statistics
import time
from collections import Counter
from types import SimpleNamespace

import optuna
import pytest
from conftest import EXPERIMENTS, Driver, processes_in
from mlflow.tracking import MlflowClient

from cifar_lab.config import load_config
from cifar_lab.errors import UsageError, UserError
from cifar_lab.execution.space import Range, parse_space
from cifar_lab.execution.trial import Prune, open_study

LINEAR = str(EXPERIMENTS / "linear.toml")
SEARCHED = ("--set", "optim.learning_rate=0.0005..0.1:log", "--set", "trainer.batch_size=32..256")
EPOCHS = 8
SWEEP = ("sweep", LINEAR, "--data", "digits", "--epochs", str(EPOCHS), *SEARCHED, "--set", "data.translate=1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.learning_rate=0.05..0.5:log", Range(0.05, 0.5, True)),
        ("optim.learning_rate = 1e-3..1", Range(1e-3, 1.0, False)),
        ("optim.learning_rate=1..5:log", Range(1.0, 5.0, True)),
        ("trainer.batch_size=32..256", Range(32, 256, False)),
        ("trainer.batch_size=32..256:log", Range(32, 256, True)),
    ],
)
def test_ranges_are_of_the_numbers_that_the_setting_has(text, expected):
    space = parse_space("linear", LINEAR, [text, "data.flip=false"])
    assert space.fixed == ("data.flip=false",)
    (found,) = space.ranges.values()
    assert found == expected
    assert type(found.low) is type(found.high) is type(expected.low)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.learning_rate=0.5"], "nothing to search; give a range, such as"),
        (["optim.learning_rate=0.5..0.05"], "write section.key=low..high with low below high"),
        (["optim.learning_rate=0..1:log"], "with :log both above 0"),
        (["optim.learning_rate=a..b"], "write section.key=low..high"),
        (["optim.learning_rate=nan..1"], "write section.key=low..high"),
        (["optim.learning_rate=-1.0..1.0"], "optim.learning_rate = -1.0: Input should be greater than 0"),
        (["optim.momentum=0.5..1.5"], "optim.momentum = 1.5: Input should be less than 1"),
        (["trainer.batch_size=1.5..3.5"], "trainer.batch_size = 1.5: Input should be a valid integer"),
        (["optim.lr=0.1..0.2"], "unknown key optim.lr"),
    ],
)
def test_wrong_ranges_are_named_before_anything_is_trained(overrides, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_space("linear", LINEAR, overrides)


def test_a_study_has_the_recipe_that_it_began_with(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('[model]\nkind = "linear"\n')
    space = parse_space("x", str(file), ["optim.learning_rate=0.1..0.2"])
    file.write_text('[model]\nkind = "cnn"\n')
    assert space.config({"optim.learning_rate": 0.15}).model.kind == "linear"


def test_trials_that_cannot_be_read_cost_one_line(workplace):
    (workplace / "optuna.db").write_text("no database" * 1000)
    with pytest.raises(
        UserError, match=r"the trials in \S+/optuna.db can't be read \(.*file is not a database\); move it"
    ):
        open_study("x")


def finished(folder, study_name):
    """Checks that Optuna's trials and MLflow's runs of a finished sweep agree; returns trials, runs and parent."""
    study = optuna.load_study(study_name=study_name, storage=f"sqlite:///{folder / 'optuna.db'}")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment_id = client.get_experiment_by_name("digits").experiment_id
    (parent,) = client.search_runs([experiment_id], f"tags.study = '{study_name}' and tags.kind = 'sweep'")
    runs = {}
    for run in client.search_runs([experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"):
        assert run.data.tags["trial"] not in runs
        runs[run.data.tags["trial"]] = run
        assert not [name for name in run.data.metrics if name.startswith("test")]
    assert set(runs) == {str(trial.number) for trial in study.trials}
    for trial in study.trials:
        run = runs[str(trial.number)]
        points = [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "val/acc")]
        assert dict(points) == pytest.approx(trial.intermediate_values)
        assert [step for step, _ in points] == list(range(1, len(points) + 1))
        for key, value in trial.params.items():
            assert float(run.data.params[key]) == pytest.approx(value, rel=1e-3)
    return study.trials, runs, parent


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_with_every_trial_accounted_for(unused):
    moments = random.Random(0)
    for _ in range(2):
        driver = Driver(unused, *SWEEP, "--trials", "12")
        driver.wait("trials to go")
        driver.wait("epoch")
        time.sleep(moments.uniform(0.5, 2.5))
        assert driver.process.is_alive(), driver.output()
        driver.process.kill()
        driver.process.join()
        deadline = time.monotonic() + 20
        while processes_in(unused) and time.monotonic() < deadline:
            time.sleep(0.1)
    left = re.search(r"(\d+) of 12 trials to go", driver.output()).group(1)
    driver = Driver(unused, *SWEEP, "--trials", "12")
    assert driver.wait() == 0, driver.output()
    assert int(re.search(r"(\d+) of 12 trials to go", driver.output()).group(1)) <= int(left)
    name = re.search(r"(linear-[0-9a-f]{6}) on scikit-learn digits", driver.output()).group(1)

    trials, runs, parent = finished(unused, name)
    assert len(trials) == 12
    states = Counter(trial.state.name.lower() for trial in trials)
    assert f"12 trials: {', '.join(f'{n} {state}' for state, n in sorted(states.items()))}" in driver.output()
    assert states["pruned"] > 0
    assert "val/acc of seed 0" in driver.output()
    assert len({tuple(trial.params.values()) for trial in trials}) == 12  # the start was not sampled twice
    for trial in trials:
        run, epochs = runs[str(trial.number)], len(trial.intermediate_values)
        assert run.info.status == "FINISHED"
        assert (run.data.tags.get("pruned") == "true") == (trial.state.name == "PRUNED") == (epochs < EPOCHS)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["optim.learning_rate"] == "0.0005..0.1:log"
    assert not list((unused / "checkpoints").glob("*/last.ckpt"))

    best = max((trial for trial in trials if trial.state.name == "COMPLETE"), key=lambda trial: trial.value)
    config = load_config(str(unused / "experiments" / f"{name}.toml"))
    assert config.optim.learning_rate == pytest.approx(best.params["optim.learning_rate"], rel=1e-3)
    assert config.trainer.batch_size == best.params["trainer.batch_size"]
    assert (config.data.translate, config.trainer.epochs) == (1, EPOCHS)
    text = (unused / "experiments" / f"{name}.toml").read_text()
    assert f"trial {best.number} of 12" in text
    assert "%" not in text  # the score is no result

    before = text, [run.to_dictionary() for run in runs.values()]
    again = Driver(unused, *SWEEP, "--trials", "12")
    assert again.wait() == 0, again.output()
    assert "0 of 12 trials to go" in again.output()
    text = (unused / "experiments" / f"{name}.toml").read_text()
    assert (text, [run.to_dictionary() for run in finished(unused, name)[1].values()]) == before
    for command, message in (
        (("best",), "no run has finished"),
        (("compare", name), "no finished runs with that name"),
    ):
        driver = Driver(unused, *command)
        assert driver.wait() == 1
        assert message in driver.output()


@pytest.mark.slow
def test_failed_trials_count_and_a_second_sweep_at_once_is_refused(unused):
    sweep = (*SWEEP[:4], "--epochs", "1", "--set", "optim.learning_rate=1e37..1e38", "--trials", "2")
    driver = Driver(unused, *sweep)
    driver.wait("trials to go")
    other = Driver(unused, *sweep)
    assert other.wait() == 1
    assert re.search("the sweep linear-[0-9a-f]{6} is running in another process\n", other.output())
    assert driver.wait() == 1, driver.output()
    assert len(re.findall(r"trial \d failed: train loss is (?:nan|inf) at epoch 1, step \d+", driver.output())) == 2
    assert "2 trials: 2 fail" in driver.output()
    assert "no trial was completed, so there is no best trial" in driver.output()
    assert not (unused / "experiments").exists()


SEEDS = ("sweep", LINEAR, "--data", "digits", "--epochs", str(EPOCHS), *SEARCHED, "--trials", "10", "--seeds", "5,1")


def of_seeds(folder):
    """Of the only sweep: Optuna's trials, MLflow's run of each, and the runs of each by seed; asserts their tree."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment_id = client.get_experiment_by_name("digits").experiment_id
    (sweep,) = client.search_runs([experiment_id], "tags.kind = 'sweep'")
    parents, runs = {}, {}
    for run in client.search_runs([experiment_id], "tags.kind = 'trial-repeats'"):
        number = run.data.tags["trial"]
        assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
        assert (run.data.tags["seeds"], run.info.run_name) == ("5,1", f"{sweep.info.run_name}-trial{number}")
        assert number not in parents
        parents[number], runs[number] = run, {}
    for run in client.search_runs([experiment_id], "tags.kind = 'trial'"):
        number, seed = run.data.tags["trial"], run.data.tags["seed"]
        assert run.data.tags["mlflow.parentRunId"] == parents[number].info.run_id
        assert run.info.run_name == f"{parents[number].info.run_name}-seed{seed}"
        assert seed not in runs[number]
        runs[number][seed] = run
    storage = f"sqlite:///{folder / 'optuna.db'}"
    return optuna.load_study(study_name=sweep.info.run_name, storage=storage).trials, parents, runs, client


@pytest.mark.slow
def test_trials_of_several_seeds_are_judged_by_their_mean_and_continued_after_a_kill(unused):
    driver = Driver(unused, *SEEDS, "--jobs", "1")
    driver.wait("trial0-seed1")
    driver.process.kill()
    driver.process.join()
    deadline = time.monotonic() + 20
    while processes_in(unused) and time.monotonic() < deadline:
        time.sleep(0.1)
    _, _, runs, _ = of_seeds(unused)
    assert [(seed, run.info.status == "FINISHED") for seed, run in sorted(runs["0"].items())] == [
        ("1", False),
        ("5", True),
    ]
    before = runs["0"]["5"]
    driver = Driver(unused, *SEEDS)
    assert driver.wait() == 0, driver.output()
    trials, parents, runs, client = of_seeds(unused)
    assert runs["0"]["5"].info.run_id == before.info.run_id
    assert runs["0"]["5"].info.end_time == before.info.end_time  # not trained again
    assert len(trials) == len(parents) == 10
    states = Counter(trial.state.name for trial in trials)
    assert states["PRUNED"] > 0
    for trial in trials:
        parent, seeds = parents[str(trial.number)], runs[str(trial.number)]
        scores = {seed: run.data.metrics["val/acc"] for seed, run in seeds.items()}
        first = client.get_metric_history(seeds["5"].info.run_id, "val/acc")
        assert {point.step: point.value for point in first} == pytest.approx(trial.intermediate_values)
        assert parent.info.status == "FINISHED"
        assert (parent.data.tags.get("pruned") == "true") == (trial.state.name == "PRUNED")
        assert (len(first) < EPOCHS) == (trial.state.name == "PRUNED")
        if trial.state.name == "COMPLETE":
            mean, std = statistics.mean(scores.values()), statistics.stdev(scores.values())
            assert scores.keys() == {"5", "1"}
            shown = [parent.data.metrics[name] for name in ("n", "val/acc_mean", "val/acc_std")]
            assert shown == pytest.approx([2, mean, std])
            assert trial.value == pytest.approx(mean)
            assert f"| 1 | {scores['1']:.4f} |" in parent.data.tags["mlflow.note.content"]
            assert not [name for name in parent.data.metrics if name.startswith("test")]
    assert not list((unused / "checkpoints").glob("*/last.ckpt"))

    best = max((trial for trial in trials if trial.state.name == "COMPLETE"), key=lambda trial: trial.value)
    (file,) = (unused / "experiments").iterdir()
    text = file.read_text()
    assert f"trial {best.number} of 10, which has the highest mean val/acc of seeds 5, 1." in text
    compared = f"{LINEAR}[trainer.epochs={EPOCHS}] {file.stem}"
    assert f'make experiment compare EXPERIMENTS="{compared}" SEEDS=0,2,3,4,6,7,8,9 ' in text
    again = Driver(unused, *SEEDS)
    assert again.wait() == 0, again.output()
    assert "0 of 10 trials to go, mean val/acc of seeds 5, 1" in again.output()
    assert [trial.value for trial in of_seeds(unused)[0]] == [trial.value for trial in trials]


@pytest.mark.slow
def test_a_trial_fails_with_its_first_seed_that_fails(unused):
    sweep = (*SWEEP[:4], "--epochs", "1", "--set", "optim.learning_rate=1e37..1e38", "--trials", "2", "--seeds", "3")
    driver = Driver(unused, *sweep, "--jobs", "1")
    assert driver.wait() == 1, driver.output()
    assert re.findall(r"trial (\d), seed (\d) failed: train loss is", driver.output()) == [("0", "0"), ("1", "0")]
    assert "2 trials: 2 fail" in driver.output()


@pytest.mark.slow
def test_samples_that_cannot_be_trained_are_failed_trials(unused):
    driver = Driver(unused, *SWEEP[:4], "--set", "data.train_size=50000..60000", "--trials", "2")
    assert driver.wait() == 1, driver.output()
    assert len(re.findall(r"trial [01] failed: data.train_size = \d+", driver.output())) == 2
    assert "2 trials: 2 fail" in driver.output()


def test_other_seeds_do_not_report_and_stop_when_their_trial_has_ended(workplace):
    study = open_study("x")
    study.ask()
    first, other = (Prune("x", 0, decides) for decides in (True, False))

    def end_epoch(callback, epoch):
        trainer = SimpleNamespace(current_epoch=epoch, max_epochs=3, should_stop=False)
        trainer.callback_metrics = {"val/acc": 0.5 if callback is first else 0.9}
        callback.on_train_epoch_end(trainer, None)
        return trainer.should_stop

    assert [end_epoch(callback, 0) for callback in (other, first)] == [False, False]
    assert study.trials[0].intermediate_values == {1: 0.5}
    study.tell(0, state=optuna.trial.TrialState.PRUNED)
    assert [end_epoch(callback, 1) for callback in (other, first)] == [True, True]
    assert not end_epoch(other, 2)  # the last epoch is done, so nothing was stopped early
    assert study.trials[0].intermediate_values == {1: 0.5}


def test_the_seeds_belong_to_the_study(workplace):
    one, several, same = (
        parse_space("x", LINEAR, ["optim.learning_rate=0.1..0.2"], seeds) for seeds in ((0,), (0, 1), (0, 1))
    )
    assert one.study_name("hash") == "x-004ec3"  # as before there were several: such studies go on
    assert several.study_name("hash") == same.study_name("hash") != one.study_name("hash")
    with pytest.raises(UsageError, match="a trial can have 20 seeds, not 21"):
        parse_space("x", LINEAR, ["optim.learning_rate=0.1..0.2"], tuple(range(21)))


@pytest.mark.slow
def test_an_interrupted_sweep_says_so_and_goes_on(unused):
    driver = Driver(unused, *SWEEP, "--trials", "3", "--jobs", "1")
    driver.wait("epoch")
    os.kill(driver.process.pid, 2)
    assert driver.wait() == 130, driver.output()
    assert "the same command continues where it stopped" in driver.output()
    assert "Traceback" not in driver.output()
    assert not processes_in(unused)
    driver = Driver(unused, *SWEEP, "--trials", "3", "--jobs", "1")
    assert driver.wait() == 0, driver.output()
    name = re.search("linear-[0-9a-f]{6}", driver.output()).group()
    assert [trial.state.name for trial in finished(unused, name)[0]] == ["COMPLETE"] * 3
