"""cluster/kuberay against KubeRay's own definitions, and what a grid needs of it."""

import gzip
import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.cluster.files import KUBERAY, ROOT, VARIANTS, built, documents, of_kind

pytestmark = pytest.mark.long

RAW = {"RayJob": "rayjob/rayjob.yaml", "RayCluster": "raycluster/raycluster.yaml"}
DEFINITIONS = {"RayJob": "ray.io_rayjobs.yaml.gz", "RayCluster": "ray.io_rayclusters.yaml.gz"}
KUBERNETES = "1.32"


def closed(schema: Any) -> Any:
    """The schema with unknown fields forbidden, as Kubernetes forbids them with strict validation."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    done = {name: closed(part) for name, part in schema.items()}
    kept = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not kept:
        done.setdefault("additionalProperties", False)
    return done


@pytest.fixture(scope="session")
def definitions() -> dict[str, Any]:
    """Schemas of KubeRay's kinds, beside the project."""
    data = Path(os.environ.get("RAYLAB_SHARED_DATA", ROOT.parent / "shared" / "data"))
    folder = data.parent / "schemas" / "kuberay"
    if not folder.is_dir():
        pytest.skip(f"KubeRay's definitions are not at {folder}: the YAMLs were NOT checked")
    schemas = {}
    for kind, name in DEFINITIONS.items():
        told = yaml.safe_load(gzip.decompress((folder / name).read_bytes()))
        (version,) = [one for one in told["spec"]["versions"] if one["name"] == "v1"]
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
        }
        schemas[kind] = closed(schema)
    return schemas


def faults(schema: Any, document: dict[str, Any]) -> list[str]:
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{fault.json_path}: {fault.message[:200]}" for fault in found]


@pytest.mark.parametrize("kind", RAW)
def test_the_files_are_what_kuberay_defines(definitions, kind):
    (document,) = documents(KUBERAY / RAW[kind])
    assert document["kind"] == kind
    assert faults(definitions[kind], document) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"maxReplica": 3}, "maxReplica"),
        ({"maxReplicas": "3"}, "3"),
        ({"template": {"spec": {"containers": [{"name": "a", "imagePull": "x"}]}}}, "imagePull"),
    ],
)
def test_a_mistake_would_be_found(definitions, change, word):
    (document,) = documents(KUBERAY / RAW["RayCluster"])
    document["spec"]["workerGroupSpecs"][0] |= change
    (fault,) = faults(definitions["RayCluster"], document)
    assert word in fault


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_applied_is_what_kubernetes_defines(definitions, variant):
    found = built(variant)
    names = {(document["kind"], document["metadata"]["name"]) for document in found}
    for document in found:
        kind = document["kind"]
        if kind in definitions:
            assert faults(definitions[kind], document) == []
        elif not document["apiVersion"].startswith("kueue."):
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        if kind not in ("ClusterQueue", "ResourceFlavor"):
            assert document["metadata"]["namespace"] == "raylab"
    cluster = cluster_of(found)
    for pod in pods_of(cluster):
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        for volume in pod["volumes"]:
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or ("PersistentVolumeClaim", claim["claimName"]) in names
        for source in pod["containers"][0]["envFrom"]:
            ((kind, reference),) = source.items()
            assert (kind.removesuffix("Ref").lower(), reference["name"]) in {
                (one.lower(), name) for one, name in names
            }


def cluster_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    for document in found:
        if document["kind"] in DEFINITIONS:
            return document["spec"].get("rayClusterSpec", document["spec"])
    raise AssertionError("no cluster")


def pods_of(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_job_brings_the_cluster_that_can_also_stand_alone():
    (job,), (cluster,) = (documents(KUBERAY / path) for path in RAW.values())
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_stand_in_one_place(variant):
    """What is to be filled in stands in capitals, in one file; the image is nowhere else."""
    names = (KUBERAY / "names" / "kustomization.yaml").read_text()
    text = yaml.safe_dump_all(built(variant))
    for placeholder in ("REGISTRY", "ACCOUNT:role/ROLE", "SHARED-STORAGE-CLASS"):
        assert placeholder in names
        assert placeholder in text
    assert "image: raylab\n" not in text


def test_the_cluster_grows_on_spot_nodes_and_shrinks_to_nothing():
    (document,) = documents(KUBERAY / RAW["RayCluster"])
    cluster = document["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"]) == (0, 0)
    assert workers["maxReplicas"] > 0
    tolerated = {one["key"] for one in workers["template"]["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "tolerations" not in cluster["headGroupSpec"]["template"]["spec"]  # never on spot
    assert cluster["authOptions"]["mode"] == "token"


def test_the_cluster_runs_the_ray_that_the_package_asks_for():
    (document,) = documents(KUBERAY / RAW["RayCluster"])
    asked = f'"ray[default,train,tune,data]=={document["spec"]["rayVersion"]}"'
    assert asked in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_pods_are_not_root_and_have_limits_probes_and_shared_memory(variant):
    for pod in pods_of(cluster_of(built(variant))):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsUser"] == 1000
        assert container["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/dev/shm", "/models", "/data", "/scratch"} <= mounted
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }


def test_the_job_ends_leaves_nothing_and_is_not_tried_again_for_bad_input():
    job = of_kind(documents(KUBERAY / RAW["RayJob"]), "RayJob")["spec"]
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["backoffLimit"] > 0  # a lost head
    assert job["entrypoint"].startswith("python -m raylab.jobs.submitted raylab run ")


def test_the_job_under_kueue_may_scale():
    job = of_kind(built("kueue"), "RayJob")
    queue = of_kind(built("kueue"), "LocalQueue")["metadata"]["name"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue
    assert job["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"


def test_metrics_are_for_prometheus_alone():
    """They answer without a token."""
    policy = of_kind(documents(KUBERAY / "names" / "networkpolicy.yaml"), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    own, *others = policy["ingress"]
    assert own["from"] == [{"podSelector": {}}]
    assert all(rule["ports"] and "ipBlock" not in str(rule) for rule in others)
