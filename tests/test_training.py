"""Training: resumed, shared between processes, with scales of each image's own, saved with what is known of it."""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ddviz
from ddviz import InputError, Recipe, datasets, models, train
from ddviz.batches import Share
from ddviz.networks import Normalize
from ddviz.objectives import Batch, GaussianAugmentation
from ddviz.sigma import Ascent
from ddviz.smoothing import SMOOTHINGS
from ddviz.trainer import Precision, Trainer
from ddviz.trainfolder import SIGMA_EDGES, TrainFolder, sigma_counts

CPU = torch.device("cpu")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: another number of threads rounds differently


class Small(nn.Module):
    """BatchNorm's statistics and dropout's random state must survive a restart, too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bn, self.drop, self.fc = nn.BatchNorm2d(1), nn.Dropout(0.2), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.bn(x).flatten(1)))


def settings(folder: Path, **changed) -> Recipe:
    fast = {"ds": False, "epochs": 3, "batch": 100, "eval_images": 50, "checkpoint_steps": 5, "dtype": "float32"}
    return Recipe(**{**fast, "run_root": str(folder), **changed})


@pytest.fixture(autouse=True)
def _quiet_cores(one_thread):
    pass


# --- what is learned


@pytest.mark.parametrize("objective", ["gaussian", "smoothadv", "macer"])
@pytest.mark.parametrize("norm", list(SMOOTHINGS))
def test_every_objective_learns_digits(tmp_path, objective, norm):
    recipe = settings(
        tmp_path, objective=objective, norm=norm, epochs=12, samples=2, batch=50, ds=True, warmup=6, lr=0.05
    )
    training = train(replace(recipe, macer_lambda=0.5, gamma=2.0, beta=1.0))
    first, last = training.history[0], training.history[-1]
    assert last.loss < 0.9 * first.loss and last.noisy_accuracy > 0.4 and len(training.history) == 12
    assert (training.sigma != recipe.sigma).float().mean() > 0.9 and training.steps == (12 * 24, 12 * 24)


def test_scales_start_at_sigma_and_take_k_steps_of_algorithm_1_after_the_warm_up(tmp_path):
    """The scales after training are those of Ascent, called by hand once an epoch on the images as they are."""
    recipe = settings(tmp_path, ds=True, warmup=1, iterations=2, augment=False, batch=1200, lr=1e-12, search_samples=3)
    network = models.load("digits").network
    images = datasets.load("digits", split="train")
    seen: list[Tensor] = []
    training = train(recipe, network=network, on_epoch=lambda so_far: seen.append(so_far.sigma))
    assert torch.equal(seen[0], torch.full((1200,), 0.25))
    x, search = images.images(images.indices), recipe.make_search()
    assert (search.iterations, search.samples) == (2, 3)
    from ddviz.noise import NoiseKey, Stage

    sigma = seen[0]
    for epoch in (1, 2):
        seed = NoiseKey(0, epoch, Stage.TRAIN).block_seed(0)
        sigma = search(network, x, sigma, seed=seed).chosen
        assert torch.allclose(seen[epoch], sigma, atol=1e-5)
    assert torch.equal(training.sigma, seen[2]) and not torch.equal(seen[1], seen[2])


def test_the_search_leaves_statistics_gradients_and_mode_alone():
    network = Small().train()
    recipe = Recipe(ds=True, dtype="float32")
    trainer = Trainer(recipe, Precision(network, CPU, torch.float32), 4, CPU, Share())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trainer._search(0, torch.tensor([2, 0, 1]), torch.rand(3, 1, 8, 8))
    assert (trainer.sigma != 0.25).tolist() == [True, True, True, False]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert network.training and network.bn.training and network.drop.training


def test_noise_is_new_at_every_draw_step_and_image(tmp_path):
    trainer = Trainer(Recipe(), Precision(Small(), CPU, torch.float32), 4, CPU, Share())
    x = torch.zeros(4, 1, 8, 8)
    draw = trainer._drawer(x)
    first, second = draw(3), draw(3)
    trainer.step = 1
    noise = torch.cat([first, second, trainer._drawer(x)(3)]).flatten(0, 1).flatten(1)
    close = torch.corrcoef(noise) > 0.9
    assert torch.equal(close, torch.eye(len(noise), dtype=torch.bool))


@pytest.mark.parametrize("samples", [1, 5])
def test_processes_together_draw_the_noise_of_one(samples):
    x = torch.zeros(40, 1, 8, 8)
    model = Precision(Small(), CPU, torch.float32)
    whole = Trainer(Recipe(), model, 40, CPU, Share())._drawer(x)
    parts = []
    for rank in range(2):
        trainer = Trainer(Recipe(), model, 40, CPU, Share())
        trainer.share = Share(rank, 2)
        parts.append(trainer._drawer(x[:20]))
    for _ in range(2):
        assert torch.equal(torch.cat([draw(samples) for draw in parts]), whole(samples))


# --- what is yours


def test_your_network_images_and_objective_are_used(tmp_path):
    network, batches = Small(), []
    whole = datasets.load("digits", split="train")
    images = replace(whole, indices=whole.indices[5:405])

    def own(model: nn.Module, batch: Batch) -> Tensor:
        batches.append(batch)
        return cross_entropy(model(batch.x + batch.noise(1)[:, 0]), batch.y)

    before = network.fc.weight.detach().clone()
    training = train(settings(tmp_path, augment=False), network=network, images=images, objective=own)
    assert len(batches) == 12 and {batch.epoch for batch in batches} == {0, 1, 2} and training.base.network is network
    assert not torch.equal(before, network.fc.weight) and not network.training
    sums = {round(image.sum().item(), 3) for image in images.images(images.indices)}
    assert {round(image.sum().item(), 3) for batch in batches for image in batch.x} == sums


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": 5000}, "expected at least batch = 5000 training images and a test image, got 1200"),
        ({"dataset": "cifar10", "data_root": "nowhere"}, "cifar10 was not found"),
        ({"init": "zoo:digits-cnn-cohen-0.3-fs"}, r"the zoo has no 'digits-cnn-cohen-0.3-fs'\. Nearest: .*0\.25-fs"),
        ({"init": "missing.pt"}, "expected a checkpoint file at missing.pt, found nothing"),
        ({"lr": 1e30}, r"the weights became NaN or infinite by step 5\. Set a lower lr"),
        ({"lr": 1e30, "ds": True, "warmup": 0}, r"the weights became NaN or infinite by step [1-5]\. Set a lower lr"),
        ({"arch": "cifar_resnet20"}, "the network cannot take images of shape"),
        ({"normalize": "cifar10"}, "expected images of 3 channels, which the network normalises, got 1"),
        ({"init": "zoo:cifar10-resnet20-cohen-0.25-fs"}, "holds a cifar_resnet20, not a digits_cnn"),
    ],
)
def test_mistakes_end_with_one_message_and_leave_no_weights(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        train(settings(tmp_path, **changed))
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("checkpoint.pt"))


def test_an_objective_must_return_one_number(tmp_path):
    with pytest.raises(InputError, match=r"expected the objective to return a scalar loss, got shape \(100,\)"):
        train(settings(tmp_path), objective=lambda model, batch: model(batch.x)[:, 0])
    with pytest.raises(InputError, match="expected the objective to return a scalar loss, got NoneType"):
        train(settings(tmp_path, name="none"), objective=lambda model, batch: None)  # type: ignore[arg-type,return-value]


def test_your_network_must_fit_the_images_and_have_something_to_train(tmp_path):
    with pytest.raises(InputError, match=r"expected 10 classes .* got a network with 3"):
        train(settings(tmp_path), network=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(InputError, match="expected a network with parameters to train"):
        train(settings(tmp_path), network=nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)))


def test_both_splits_must_have_the_same_classes(tmp_path):
    other = replace(datasets.load("digits"), classes=("a", "b"))
    with pytest.raises(InputError, match=r"expected the same classes to train and to test on, got 0, .*, 9 and a, b"):
        train(settings(tmp_path), test_images=other)


def test_no_images_are_not_the_recipe_s(tmp_path):
    none = replace(datasets.load("digits"), indices=[])
    with pytest.raises(InputError, match="got 0 and 597"):
        train(settings(tmp_path), images=none)
    with pytest.raises(InputError, match="a test image, got 1200 and 0"):
        train(settings(tmp_path), test_images=none)


def test_a_folder_without_a_default_network_asks_for_one(tmp_path):
    images = replace(datasets.load("digits", split="train"), name="own")
    recipe = settings(tmp_path, dataset=str(tmp_path), run_root=str(tmp_path / "runs"))
    with pytest.raises(InputError, match="expected arch to name a network"):
        train(recipe, images=images, test_images=images)


# --- what is kept


def state_of(folder: Path, title: str) -> tuple[dict, list]:
    found = TrainFolder(folder / title).load()
    assert found is not None
    return found


@pytest.mark.parametrize("killed_at", [2, 7, 12, 24, 29, 35])
def test_a_killed_run_resumes_and_ends_with_the_same_weights(tmp_path, killed_at):
    """Killed before the first checkpoint, between two, at one, in the warm-up, after it, in the last step."""
    calls = 0

    def killing(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == killed_at + 1:
            raise KeyboardInterrupt
        return GaussianAugmentation(samples=2)(model, batch)

    recipe = settings(tmp_path / "killed", ds=True, warmup=1)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, network=Small(), objective=killing)
    torch.rand(killed_at)  # the world's random state moved on
    resumed = train(recipe, network=Small(), objective=killing)
    saved = [step for step in range(killed_at + 1) if step % 5 == 0 or step % 12 == 0]
    assert calls == 36 + 1 + killed_at - saved[-1]  # nothing is done twice but what came after the last checkpoint
    unbroken = train(replace(recipe, run_root=str(tmp_path / "unbroken")), network=Small(), objective=killing)
    assert resumed.history == unbroken.history and torch.equal(resumed.sigma, unbroken.sigma)
    assert models.digest(resumed.base.network) == models.digest(unbroken.base.network) and resumed.seconds > 0
    for mine, other in zip(resumed.base.network.parameters(), unbroken.base.network.parameters(), strict=True):
        assert torch.equal(mine, other)
    (first, _), (second, _) = (state_of(tmp_path / name, recipe.title) for name in ("killed", "unbroken"))
    assert torch.equal(first["network"]["bn.running_var"], second["network"]["bn.running_var"])


@pytest.mark.slow
def test_a_process_killed_by_the_system_loses_nothing(tmp_path):
    recipe = settings(tmp_path / "killed", epochs=40, ds=True, checkpoint_steps=4)
    command = [sys.executable, *recipe.command.split()[1:], "--run_root", recipe.run_root]
    checkpoint = TrainFolder(tmp_path / "killed" / recipe.title).checkpoint
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=ONE_THREAD)
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        subprocess.run(command, stdout=log, stderr=log, check=True, env=ONE_THREAD)
    unbroken = train(replace(recipe, run_root=str(tmp_path / "unbroken")))
    resumed = TrainFolder(checkpoint.parent).weights
    assert models.from_checkpoint(resumed).digest == models.from_checkpoint(unbroken.weights).digest


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = train(settings(tmp_path))

    def never(model: nn.Module, batch: Batch) -> Tensor:
        raise AssertionError

    written = first.weights.stat().st_mtime_ns
    again = train(settings(tmp_path), on_epoch=never)  # type: ignore[arg-type]
    assert again.history == first.history and again.weights.stat().st_mtime_ns == written
    assert all(map(torch.equal, again.base.network.parameters(), first.base.network.parameters()))


def test_other_settings_are_refused_by_name(tmp_path):
    train(settings(tmp_path))
    with pytest.raises(InputError, match=r"lr was 0\.1 when .* was begun and is 0\.05 now"):
        train(settings(tmp_path, lr=0.05))
    with pytest.raises(InputError, match=r"objective was 'gaussian' when .* and is '.*<lambda>' now"):
        train(settings(tmp_path), objective=lambda model, batch: model(batch.x).sum())


def test_other_images_are_refused(tmp_path):
    """As many, with the same labels: only the pixels differ."""
    images = datasets.load("digits", split="train")
    train(settings(tmp_path), images=images)
    with pytest.raises(InputError, match=r"images was '.*' when .* was begun"):
        train(settings(tmp_path), images=replace(images, read=lambda index: images.read(index) / 2))


def test_a_run_of_your_own_objective_and_network_is_taken_up_again(tmp_path):
    """In the same kernel, where the network is trained already, and in another, where it is random."""
    first = train(settings(tmp_path), network=Small(), objective=partial(scaled, factor=2.0))
    for network in (first.base.network, Small()):
        again = train(settings(tmp_path), network=network, objective=partial(scaled, factor=2.0))
        assert again.history == first.history and again.base.network is network
        assert all(map(torch.equal, network.state_dict().values(), first.base.network.state_dict().values()))


def scaled(model: nn.Module, batch: Batch, factor: float) -> Tensor:
    return factor * GaussianAugmentation()(model, batch)


def test_weights_left_by_other_settings_are_not_taken_for_these(tmp_path):
    first = train(settings(tmp_path))
    (first.weights.parent / "checkpoint.pt").unlink()
    with pytest.raises(InputError, match=r"lr was 0\.1 when"):
        train(settings(tmp_path, lr=0.01))
    written = first.weights.read_bytes()
    first.weights.write_bytes(b"old")
    assert len(train(settings(tmp_path)).weights.read_bytes()) == len(written)


@pytest.mark.parametrize("length", [0, 1000])
def test_a_damaged_checkpoint_is_named(tmp_path, length):
    training = train(settings(tmp_path))
    checkpoint = training.weights.parent / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged .* Remove .* to train anew"):
        train(settings(tmp_path))


def test_weights_are_saved_with_their_recipe_and_load_as_a_checkpoint(tmp_path):
    training = train(settings(tmp_path, ds=True))
    base = models.load("digits", checkpoint=training.weights)
    told = base.metadata
    assert (told["arch"], told["sigma"], told["ds"], told["epochs"]) == ("digits_cnn", "0.25", "True", "3")
    assert told["command"].startswith("python -m ddviz train --epochs=3 --batch=100 --")
    assert float(told["noisy_accuracy"]) == pytest.approx(training.history[-1].noisy_accuracy, abs=1e-4)
    assert not any(str(tmp_path) in value for value in told.values())
    for kept, trained in zip(base.network.parameters(), training.base.network.parameters(), strict=True):
        assert torch.equal(kept, trained.half().float())
    lines = (training.weights.parent / "history.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["epoch", "1", "2", "3"]


def test_weights_of_your_own_network_say_so_and_load_where_the_architecture_is_known(tmp_path):
    network = models.load("digits").network
    training = train(settings(tmp_path), network=network, objective=scaled_twice)
    base = models.from_checkpoint(training.weights)
    assert (base.arch, base.normalize, base.metadata["objective"]) == ("digits_cnn", "none", "scaled_twice")
    assert (base.metadata["own"], base.metadata["command"]) == ("network, objective", "")


def scaled_twice(model: nn.Module, batch: Batch) -> Tensor:
    return scaled(model, batch, 2.0)


def test_weights_beyond_half_precision_and_networks_of_several_parts_are_kept_whole(tmp_path):
    norm = nn.BatchNorm2d(4)
    norm.running_var.fill_(2e5)  # type: ignore[union-attr]
    parts = nn.Sequential(Normalize([0.4] * 3, [0.2] * 3), nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(4, 2))
    models.save_weights(parts, tmp_path / "w.safetensors", {})
    kept = load_file(tmp_path / "w.safetensors")
    assert kept.keys() == parts.state_dict().keys() and torch.equal(kept["2.running_var"], norm.running_var)  # type: ignore[arg-type]
    assert kept["1.weight"].dtype == torch.float16


def test_scales_are_counted_in_tenths_of_octaves():
    sigma = torch.tensor([0.25, 0.25 * 1.05, 0.25 / 1.05, 0.01, 3.0])
    counts = sigma_counts(sigma, 0.25)
    assert len(counts) == len(SIGMA_EDGES) - 1 == 40 and sum(counts) == 5
    assert (counts[20], counts[19], counts[0], counts[-1]) == (2, 1, 1, 1)


# --- how the work is done


def in_two_processes(recipe: Recipe) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, *shlex.split(recipe.command)[1:], "--run_root", recipe.run_root]
    return subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["smoothadv", "macer"])
def test_two_processes_train_as_one(tmp_path, objective):
    recipe = settings(tmp_path / "two", objective=objective, samples=2, ds=True, epochs=2, checkpoint_steps=7, lr=0.05)
    done = in_two_processes(recipe)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("of test images right") == 1
    one = train(replace(recipe, run_root=str(tmp_path / "one")))
    (alone, history), (shared, shared_history) = (state_of(tmp_path / name, recipe.title) for name in ("one", "two"))
    for key, value in alone["network"].items():
        assert torch.allclose(shared["network"][key], value, atol=2e-4), key
    assert torch.allclose(shared["sigma"], alone["sigma"], atol=1e-3) and (alone["sigma"] != 0.25).float().mean() > 0.9
    assert [epoch.loss for epoch in shared_history] == pytest.approx([epoch.loss for epoch in history], rel=1e-3)
    assert models.from_checkpoint(tmp_path / "two" / recipe.title / one.weights.name).arch == "digits_cnn"


@pytest.mark.slow
def test_processes_share_a_mistake(tmp_path):
    """Found by the first one alone, said once, and no process waits for another."""
    recipe = settings(tmp_path, epochs=1)
    train(recipe)
    done = in_two_processes(replace(recipe, lr=0.05))
    assert done.returncode != 0 and done.stderr.count("InputError: lr was 0.1 when") == 1
    assert "ddviz/" not in done.stderr  # torchrun has a traceback of its own, ours is none


def test_lower_precision_learns_nearly_the_same(tmp_path):
    runs = [train(settings(tmp_path / dtype, dtype=dtype, epochs=1)) for dtype in ("float32", "bfloat16")]
    assert runs[0].history[0].loss == pytest.approx(runs[1].history[0].loss, rel=0.02)
    assert runs[0].history[0].loss != runs[1].history[0].loss


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at all
def test_compiled_training_gives_the_same_weights(tmp_path, monkeypatch):
    """Traced as for the compiler, run as it is."""
    plain, calls, compile_ = train(settings(tmp_path / "plain", ds=True, epochs=1, warmup=0)), [], nn.Module.compile

    def traced(self):
        calls.append(self)
        compile_(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", traced)
    compiled = train(settings(tmp_path / "compiled", ds=True, epochs=1, warmup=0, compile=True))
    assert len(calls) == 1 and isinstance(calls[0], Precision)
    assert models.from_checkpoint(compiled.weights).arch == "digits_cnn"
    for one, other in zip(compiled.base.network.parameters(), plain.base.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_training_on_cuda(tmp_path, compiled):
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)
    )
    training = train(Recipe(epochs=10, ds=True, warmup=5, compile=compiled, run_root=str(tmp_path)), network=network)
    assert training.history[-1].noisy_accuracy > 0.6


def test_the_public_names_are_there():
    assert ddviz.train is train and isinstance(Recipe().make_search(), Ascent)
