from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import dog_breed  # noqa: E402
import dog_data  # noqa: E402
import toy_breeds  # noqa: E402


def put(path, colour=(200, 10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "val"):
        for name in ("akita", "boxer"):
            for number in range(3):
                put(tmp_path / "dogs" / part / name / f"{number}.jpg")
    return tmp_path / "dogs"


def test_drawings_are_the_same_for_the_same_seed():
    assert len(toy_breeds.BREEDS) >= 8
    first, again, other = (toy_breeds.draw(toy_breeds.BREEDS[0], seed) for seed in (1, 1, 2))
    assert first.size == (160, 160)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_drawn_data_set_is_not_drawn_again(tmp_path):
    toy_breeds.write_dataset(tmp_path, train_per_breed=2, val_per_breed=1, size=32)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 3 * len(toy_breeds.BREEDS)
    times = [path.stat().st_mtime_ns for path in files]
    toy_breeds.write_dataset(tmp_path, train_per_breed=2, val_per_breed=1, size=32)
    assert times == [path.stat().st_mtime_ns for path in files]
    put(tmp_path / "train" / "no_breed_any_more" / "0000.jpg")
    put(tmp_path / "train" / "pictures_of_mine" / "rex.jpg")
    toy_breeds.write_dataset(tmp_path, train_per_breed=1, val_per_breed=1, size=32)
    assert len(list(tmp_path.rglob("*.jpg"))) == 2 * len(toy_breeds.BREEDS) + 1
    assert not (tmp_path / "train" / "no_breed_any_more").exists()
    assert (tmp_path / "train" / "pictures_of_mine" / "rex.jpg").exists()


def test_two_folders_and_one(folder, tmp_path):
    samples = dog_data.find_samples(str(folder), data_dir=tmp_path)
    assert (samples.classes, len(samples.train), len(samples.val)) == (["akita", "boxer"], 6, 6)
    whole = dog_data.find_samples(str(folder / "train"), data_dir=tmp_path, val_fraction=0.34)
    assert (len(whole.train), len(whole.val)) == (4, 2)
    assert whole == dog_data.find_samples(str(folder / "train"), data_dir=tmp_path, val_fraction=0.34)


def test_kaggles_layout(tmp_path):
    for name in "abcdef":
        put(tmp_path / "train" / f"{name}.jpg")
    rows = "".join(f"{name},{'akita' if name < 'd' else 'boxer'}\n" for name in "abcdef")
    (tmp_path / "labels.csv").write_text("id,breed\n" + rows)
    samples = dog_data.find_samples(str(tmp_path), data_dir=tmp_path)
    assert sorted(path.stem for path, _ in samples.train + samples.val) == list("abcdef")
    (tmp_path / "labels.csv").write_text("id,breed\n" + rows + "ghost,akita\n")
    with pytest.raises(FileNotFoundError, match=r"1 files missing.*ghost\.jpg"):
        dog_data.find_samples(str(tmp_path), data_dir=tmp_path)
    (tmp_path / "labels.csv").write_text("name,kind\n")
    with pytest.raises(ValueError, match="id and breed are needed"):
        dog_data.find_samples(str(tmp_path), data_dir=tmp_path)


def test_broken_pictures(folder, tmp_path):
    broken = folder / "train" / "akita" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:-80])
    samples = dog_data.find_samples(str(folder), data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"akita/1\.jpg"):
        dog_data.without_broken(samples, skip=False)
    left = dog_data.without_broken(samples, skip=True)
    assert left.broken == [broken]
    assert len(left.train) == 5


def test_folders_that_can_not_be_used(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean 'oxford-pets'"):
        dog_data.find_samples("oxford-pet", data_dir=tmp_path)
    (folder / "train" / "collie").mkdir()
    with pytest.raises(ValueError, match="collie has no pictures"):
        dog_data.find_samples(str(folder), data_dir=tmp_path)
    put(folder / "train" / "collie" / "0.jpg")
    with pytest.raises(ValueError, match="different classes: collie"):
        dog_data.find_samples(str(folder), data_dir=tmp_path)
    put(tmp_path / "single" / "akita" / "0.jpg")
    with pytest.raises(ValueError, match="one class only"):
        dog_data.find_samples(str(tmp_path / "single"), data_dir=tmp_path)


def run(*arguments, cwd):
    command = [sys.executable, str(EXAMPLES / "dog_breed.py"), "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_the_script_from_end_to_end(tmp_path):
    toy_breeds.write_dataset(tmp_path / "dogs", train_per_breed=6, val_per_breed=2, size=64)
    options = ["--data", "dogs", "--image-size", "64", "--epochs", "1", "--unfreeze-epochs", "1", "--workers", "0"]
    result = run(*options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "tensorboard --logdir" in result.stdout
    assert "validation accuracy" in result.stdout
    assert "2 views of 60 samples" in result.stdout
    for name in ("lr_finder_head.png", "confusion.png", "hardest.png", "checkpoint.pt", "dogs.safetensors"):
        assert (tmp_path / "runs" / "dogs" / name).stat().st_size > 1000
    card = (tmp_path / "runs" / "dogs" / "dogs.md").read_text()
    assert "Apache-2.0" in card
    assert "Pictures of 10 classes: bramble\\_terrier" in card or "Pictures of 10 classes: bramble_terrier" in card
    assert "File of the initial weights" in card
    assert "the first has 64 x 64 pixels, all are read at 64 x 64" in result.stdout


def test_a_second_run_leaves_the_first_as_it_was(tmp_path):
    assert dog_breed.free_folder(tmp_path / "dogs") == tmp_path / "dogs"
    (tmp_path / "dogs").mkdir()
    assert dog_breed.free_folder(tmp_path / "dogs") == tmp_path / "dogs"
    (tmp_path / "dogs" / "dogs.md").write_text("a card")
    (tmp_path / "dogs-2").mkdir()
    (tmp_path / "dogs-2" / "dogs.md").write_text("a card")
    assert dog_breed.free_folder(tmp_path / "dogs") == tmp_path / "dogs-3"


def test_results_are_named_after_the_data(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for data, name in (("toy", "dogs"), ("oxford-pets", "pets"), (str(tmp_path / "ants_and_bees"), "ants_and_bees")):
        monkeypatch.setattr(sys, "argv", ["dog_breed.py", "--data", data])
        options = dog_breed.parse_arguments()
        assert (options.name, options.log_dir) == (name, Path("runs") / name)


def test_the_script_tells_what_is_wrong(tmp_path):
    result = run("--data", "nowhere", cwd=tmp_path)
    assert result.returncode == 1
    assert "there is no folder 'nowhere'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "got '0'; give an integer of at least 1"),
        (["--epochs", "-1"], "got '-1'"),
        (["--epochs", "0"], "nothing to train"),
    ],
)
def test_options_that_make_no_sense(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dog_breed.py", *arguments])
    with pytest.raises(SystemExit):
        dog_breed.parse_arguments()
    assert message in capsys.readouterr().err
