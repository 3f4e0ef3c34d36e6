"""Metrics come back as they were written, and a figure that is not one stops the run."""

from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from rerankjax.run.metrics import metric_writer, read_metrics


def scalars(directory: Path) -> list[tuple[int, str, float]]:
    """Every scalar in the directory's event file: records of length (8 bytes), checksum (4), data, checksum (4)."""
    (path,) = directory.glob("tensorboard/events.*")
    data, found = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


def test_rows_and_events_hold_what_was_written(tmp_path: Path) -> None:
    with metric_writer(tmp_path) as write:
        write(0, loss=0.1, accuracy=np.float32(0.5))
        assert read_metrics(tmp_path) == [{"step": 0, "loss": 0.1, "accuracy": 0.5}]  # not only once closed
        write(7, loss=np.float64(1e-300))
    assert read_metrics(tmp_path)[1] == {"step": 7, "loss": 1e-300}
    events = scalars(tmp_path)
    assert [(step, tag) for step, tag, _ in events] == [(0, "loss"), (0, "accuracy"), (7, "loss")]
    assert [value for *_, value in events] == pytest.approx([0.1, 0.5, 0.0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_names_metric_and_step(tmp_path: Path, value: float) -> None:
    with metric_writer(tmp_path) as write:
        write(2, kl=0.1)
        with pytest.raises(FloatingPointError, match=rf"kl is {value} at step 3"):
            write(3, loss=1.0, kl=value)
    assert read_metrics(tmp_path) == [{"step": 2, "kl": 0.1}]
