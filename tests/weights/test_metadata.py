"""A checkpoint's metadata comes back, and nonsense in it is refused."""

import io
import json

import numpy as np
import pytest

from tinygmf import create_model, load_model, save_model
from tinygmf.config import Settings
from tinygmf.weights.checkpoint import CheckpointError, load_weights, read_checkpoint, write_tensors
from tinygmf.weights.reading import find_weights, read_metadata

SUFFIXES = [".pth", ".safetensors"]


@pytest.fixture(scope="module")
def model():
    return create_model("groupmixformer_nano", num_classes=3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_and_size_travel_inside_the_file(model, tmp_path, suffix):
    model.settings = Settings(image_size=64, classes=("Äpfel", "two words", "c,d"), crop=1.0)
    path = tmp_path / f"mine{suffix}"
    save_model(model, path)
    assert load_model(path).settings == model.settings


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_metadata_has_the_usual_settings(tmp_path, suffix):
    write_tensors({"x": np.zeros(2, np.float32)}, tmp_path / f"x{suffix}")
    assert read_checkpoint(tmp_path / f"x{suffix}").metadata == {}
    assert Settings.from_json({}) == Settings()


def test_a_dense_networks_backbone_is_shown_pictures_of_the_size_it_learned_from(tmp_path, caplog):
    """What is skipped is reported for a file, but not for a bundled network."""
    own = load_weights("scenes-segment")
    assert own.settings.image_size == 256 and caplog.text == ""
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes(find_weights("scenes-segment").read_bytes())
    assert load_weights(copy).settings == own.settings
    assert "mine.safetensors: skipped what is not part of the network" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": "large"},
        {"image_size": -1},
        {"image_size": 10**12},
        {"classes": "cat"},
        {"classes": [1]},
        {"mean": [0.5, float("nan"), 0.5]},
        {"std": 0.2},
        {"crop": [[]]},
        {"crop": 1e9},
        {"crop": 1e-300},
    ],
)
def test_nonsense_in_the_metadata_is_one_line(model, tmp_path, wrong):
    path = tmp_path / "x.safetensors"
    save_model(model, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["tinygmf"] = json.dumps(Settings().to_json() | wrong)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: metadata: expected") as error:
        load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_metadata_alone_is_what_comes_with_the_tensors_and_little_is_read(
    tmp_path, monkeypatch, suffix
):
    path, about = tmp_path / f"x{suffix}", {"step": 3, "rows": [[1, 0.5]], "classes": ["Äpfel"]}
    write_tensors({"x": np.zeros(1_000_000, np.float32)}, path, about)
    assert read_checkpoint(path).metadata == about
    read = []

    class Counting(io.FileIO):
        def read(self, size=-1):
            content = super().read(size)
            read.append(len(content))
            return content

    monkeypatch.setattr("tinygmf.weights.reading.open", lambda p, _: Counting(p), raising=False)
    assert read_metadata(path) == about
    assert 0 < sum(read) < 100_000


def test_metadata_that_could_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="names and metadata of at most 2000000 bytes"):
        write_tensors({"x": np.zeros(1, np.float32)}, path, {"text": 2_000_000 * "x"})
    assert not list(tmp_path.iterdir())
