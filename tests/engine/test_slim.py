"""What make slim leaves."""

from test_rename import clone, git, run

from anneal import testing as photos

__all__ = ["clone"]
# In one process, as the imports take most of the time.
TRAIN_AND_TEST = """
import sys
import pytest
from anneal.cli.entry import main
main(sys.argv[1:])
sys.exit(pytest.main(["-q", "tests/data/test_folder.py", "tests/test_optim.py"]))
"""


def test_what_is_left_trains_and_passes_its_tests(clone):
    (clone / "not-committed").touch()
    assert "commit them first" in run(clone, "scripts/slim.py").stderr
    (clone / "not-committed").unlink()
    assert run(clone, "scripts/slim.py").returncode == 0
    assert "mnist" not in git(clone, "ls-files").lower()
    assert [path.name for path in (clone / "configs").iterdir()] == ["photos_resnet18.yaml"]
    for words in (["check"], ["format", "--check"]):
        done = run(clone, "-m", "ruff", *words, ".")
        assert done.returncode == 0, done.stdout
    photos.image_folder(clone / "data/photos")
    sizes = {"batch_size": 4, "num_workers": 0, "train_size": 32, "val_resize": 40, "val_size": 32}
    flags = [f"--data.{name}={value}" for name, value in sizes.items()]
    flags += ["--trainer.precision=32-true", "--trainer.accelerator=cpu", "--data.progressive=null"]
    flags += ["--trainer.max_epochs=1", "--model.width=8"]
    done = run(clone, "-c", TRAIN_AND_TEST, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(clone.glob("runs/photos_resnet18-*/checkpoints/last.ckpt"))) == 1
