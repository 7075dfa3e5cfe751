"""What no restart mends ends a training run at once; what may pass is tried again."""

import pytest
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from raylab.experiment.config import ConfigError
from raylab.jobs.cluster import root_cause
from raylab.jobs.failures import EndAtOnce


@pytest.mark.parametrize(("error", "attempts"), [(ConfigError, 1), (OSError, 2)])
def test_a_lasting_failure_is_not_tried_again(ray_cluster, tmp_path, error, attempts):
    tries = tmp_path / "tries"

    def work(config) -> None:
        with open(config["tries"], "a") as file:
            file.write("x")
        raise config["error"]("as it is")

    trainer = TorchTrainer(
        work,
        train_loop_config={"tries": str(tries), "error": error},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.1}),
        run_config=ray.train.RunConfig(
            name="fails",
            storage_path=str(tmp_path / "runs"),
            failure_config=ray.train.FailureConfig(max_failures=1),
            callbacks=[EndAtOnce()],
        ),
    )
    with pytest.raises(ray.train.TrainingFailedError) as failed:
        trainer.fit()
    cause = root_cause(failed.value)
    assert (type(cause), str(cause)) == (error, "as it is")
    assert tries.read_text() == "x" * attempts
