"""cluster/aws.yaml and gcp.yaml as `ray up` reads them: its own schema, its defaults, and what a grid needs."""

import copy
import subprocess

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.files import CLUSTER

CLOUDS = ("aws", "gcp")
PRIVATE = "profile", "account"


@pytest.fixture(params=CLOUDS)
def cloud(request):
    return yaml.safe_load((CLUSTER / f"{request.param}.yaml").read_text())


def test_ray_takes_it(cloud):
    prepared = prepare_config(copy.deepcopy(cloud))
    validate_config(prepared)  # its ray-schema.json
    assert prepared["setup_commands"] == []  # its default would install another Ray
    assert prepared["head_setup_commands"] == []
    assert prepared["head_start_ray_commands"] != prepared["worker_start_ray_commands"]


def test_a_mistake_would_be_found(cloud):
    cloud["rsync_excluded"] = []
    with pytest.raises(jsonschema.ValidationError, match="rsync_excluded"):
        validate_config(prepare_config(cloud))


def test_names_stand_in_one_place():
    """What stands in capitals to be filled in stands in `metadata.names`; YAML's own references bring it elsewhere."""
    for name in CLOUDS:
        lines = (CLUSTER / f"{name}.yaml").read_text().splitlines()
        start, end = lines.index("  names:"), lines.index("cluster_name: raylab")
        others = [line.split(" #")[0] for line in lines[end:]]
        for placeholder in (
            "REGISTRY",
            "AMI",
            "PROJECT",
            "INSTANCE-PROFILE",
            "SERVICE-ACCOUNT",
            "IMAGE-FAMILY",
        ):
            assert not [line for line in others if placeholder in line]
        assert any("REGISTRY" in line for line in lines[start:end])


def test_workers_have_the_rights_of_the_bucket_and_disks(cloud):
    """Ray gives an instance profile to the head alone, and makes disks of its image's size."""
    for node in cloud["available_node_types"].values():
        config = node["node_config"]
        assert config.get("IamInstanceProfile") or config["serviceAccounts"][0]["email"]
        disks = config.get("BlockDeviceMappings") or config["disks"]
        sizes = [
            (d.get("Ebs") or {}).get("VolumeSize") or d["initializeParams"]["diskSizeGb"]
            for d in disks
        ]
        assert max(sizes) >= 300
        image = config.get("ImageId") or config["disks"][0]["initializeParams"]["sourceImage"]
        assert image


def test_it_scales_from_nothing_on_spot_nodes(cloud):
    head, workers = (cloud["available_node_types"][name] for name in ("head", "gpu-spot"))
    assert (head["resources"]["CPU"], head["max_workers"]) == (0, 0)
    assert (workers["min_workers"], workers["max_workers"]) == (0, cloud["max_workers"])
    assert "spot" in str(workers["node_config"]).lower()
    assert "spot" not in str(head["node_config"]).lower()
    assert cloud["provider"]["cache_stopped_nodes"] is False


def test_no_folder_is_hashed_and_the_token_reaches_every_node(cloud):
    """`file_mounts: "."` hashed a virtual environment and the laboratory at each update."""
    assert cloud["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    for commands in (cloud["head_start_ray_commands"], cloud["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token ray start" in commands[-1]
    assert "--dashboard-host=127.0.0.1" in cloud["head_start_ray_commands"][-1]


@pytest.mark.parametrize("part", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_knows_the_options_that_it_is_started_with(cloud, part):
    from ray.scripts.scripts import cli

    words = cloud[part][-1].partition("ray start ")[2].split()
    cli.commands["start"].make_context("start", words)


@pytest.mark.parametrize("part", ["initialization_commands", "head_start_ray_commands"])
def test_its_commands_are_shell(cloud, part):
    for command in cloud[part]:
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_batch_job_is_shell_and_ray_knows_what_it_asks():
    from ray.scripts.scripts import cli

    text = (CLUSTER / "slurm.sbatch").read_text()
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in text.splitlines() if line.startswith("srun ray ")]
    assert line.startswith("srun ray symmetric-run --address ")
    known = {option for one in cli.commands["symmetric-run"].params for option in one.opts}
    assert {"--address", "--min-nodes"} <= known
    assert line.endswith(" -- \\")
