"""cluster.yaml (or what HAI_CLUSTER_FILE names), cluster.kuberay.yaml and their image, checked without a cloud."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from cluster_rules import job_problems, problems

import hai
from hai.cli import app
from hai.config import load_config

pytest.importorskip("googleapiclient")

ROOT = Path(hai.__file__).resolve().parents[1]
FILE = Path(os.environ.get("HAI_CLUSTER_FILE") or ROOT / "cluster.yaml")
KUBERAY = ROOT / "cluster.kuberay.yaml"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def accepted_by_ray(config: dict[str, Any]) -> bool:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))
    return True


def broken(config: Any, path: str, value: Any) -> Any:
    """Copy a file's content with one value changed, or without it where the value is None."""
    config = copy.deepcopy(config)
    *way, last = (int(key) if key.isdecimal() else key.replace("%", ".") for key in path.split("."))
    place = config
    for key in way:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return config


def test_the_cluster_file_is_good() -> None:
    config = read(FILE)
    assert accepted_by_ray(config)
    assert problems(config) == []


GPU = "available_node_types.gpu"
HEAD = "available_node_types.head"
BROKEN = [  # each passes Ray's own check
    ("provider.region", None, "provider.region"),
    ("provider.project_id", None, "provider.project_id"),
    ("provider.availability_zone", "europe-west4-a", "provider.availability_zone"),
    ("provider.use_internal_ips", False, "use_internal_ips"),
    ("provider.cache_stopped_nodes", None, "cache_stopped_nodes"),
    ("auth.ssh_private_key", None, "auth.ssh_private_key"),
    ("auth.ssh_proxy_command", "nc proxy %h 22", "ssh_proxy_command"),
    ("auth.ssh_proxy_use_node_id", None, "ssh_proxy_command"),
    ("docker.image", "rayproject/ray:latest", "docker.image"),
    ("docker.run_options", ["--user=root"], "RAY_AUTH_MODE=token"),
    ("docker.worker_run_options", ["--env=RAY_AUTH_MODE=disabled"], "RAY_AUTH_MODE=token"),
    ("docker.head_run_options", ["--env=RAY_JOB_STOP_WAIT_TIME_S=30"], "HAI_GROWS_TO"),
    ("docker.head_run_options.0", "--env=RAY_JOB_STOP_WAIT_TIME_S=3", "RAY_JOB_STOP_WAIT_TIME_S"),
    (f"{GPU}.max_workers", 3, "HAI_GROWS_TO"),
    ("file_mounts", {}, "file_mounts"),
    ("head_start_ray_commands.1", "ray start --head --port=6379 --dashboard-host=0.0.0.0", "dashboard-host"),
    ("head_start_ray_commands.1", "ray start --head --port=6379 --dashboard-host=127.0.0.1", "--autoscaling-config"),
    ("worker_start_ray_commands.1", "ray start --address=$RAY_HEAD_IP:6380", "worker_start_ray_commands"),
    (f"{GPU}.initialization_commands", [], "configure-docker"),
    (f"{GPU}.node_config.machineTyp", "g2-standard-8", "machineTyp: no such field"),
    (f"{GPU}.node_config.disks.0.initializeParams.diskSize", 200, "diskSize: no such field"),
    (f"{GPU}.node_config.scheduling", [{"provisioningModel": "SPOT"}], "scheduling: must be a mapping"),
    (f"{GPU}.node_config.scheduling.provisioningModel", "SPOTTY", "must be one of"),
    (f"{GPU}.node_config.scheduling.provisioningModel", "STANDARD", "must be SPOT"),
    (f"{GPU}.node_config.scheduling.instanceTerminationAction", "STOP", "must be DELETE"),
    (f"{GPU}.node_config.scheduling.onHostMaintenance", "MIGRATE", "onHostMaintenance"),
    (f"{GPU}.node_config.guestAccelerators.0.acceleratorCount", "1", "must be of type integer"),
    (f"{GPU}.node_config.guestAccelerators.0.acceleratorCount", 2, "resources.GPU"),
    (f"{GPU}.node_config.machineType", "g2-standard-16", "resources.CPU"),
    (f"{GPU}.resources", {"CPU": 8}, "resources.GPU"),
    (f"{GPU}.min_workers", 1, "min_workers 0"),
    (f"{GPU}.node_config.disks.0.autoDelete", False, "autoDelete"),
    (f"{GPU}.node_config.disks.0.initializeParams.diskType", "zones/us-east1-b/diskTypes/pd-ssd", "not of zone"),
    (f"{GPU}.node_config.networkInterfaces", None, "public address"),
    (f"{GPU}.node_config.networkInterfaces.0.accessConfigs", [{"type": "ONE_TO_ONE_NAT"}], "public address"),
    (f"{GPU}.node_config.serviceAccounts", None, "serviceAccounts"),
    (f"{GPU}.node_config.serviceAccounts.0.email", "12-compute@developer.gserviceaccount.com", "serviceAccounts"),
    (
        f"{GPU}.node_config.serviceAccounts.0.email",
        "ray-autoscaler-sa-v1@my-project.iam.gserviceaccount.com",
        "serviceAccounts",
    ),
    (
        f"{GPU}.node_config.serviceAccounts.0.email",
        "hai-head@my-project.iam.gserviceaccount.com",
        "give each its own rights",
    ),
    (f"{GPU}.node_config.metadata.items.1.value", True, "must be of type string"),
    (f"{GPU}.node_config.metadata.items.1.value", "false", "block-project-ssh-keys"),
    (f"{GPU}.node_config.tags", None, "tags"),
    (f"{HEAD}.resources", {"CPU": 4}, "workers train on the head"),
    (f"{HEAD}.node_config.scheduling.provisioningModel", "SPOT", "a spot head"),
    (f"{HEAD}.node_config.guestAccelerators", [{"acceleratorType": "nvidia-l4", "acceleratorCount": 1}], "no GPU"),
]


@pytest.mark.parametrize(("path", "value", "said"), BROKEN, ids=[f"{path}={value}" for path, value, _ in BROKEN])
def test_what_ray_would_accept_is_found(path: str, value: Any, said: str) -> None:
    config = broken(read(ROOT / "cluster.yaml"), path, value)
    assert accepted_by_ray(config)
    assert [line for line in problems(config) if said in line]


def kuberay() -> tuple[Any, set[str]]:
    account, job = yaml.safe_load_all(KUBERAY.read_text(encoding="utf-8"))
    assert (account["kind"], job["kind"], job["apiVersion"]) == ("ServiceAccount", "RayJob", "ray.io/v1")
    return job, {account["metadata"]["name"]}


def test_the_job_of_kuberay_is_good_and_runs_a_command_that_exists() -> None:
    job, accounts = kuberay()
    assert job_problems(job, accounts) == []
    python, script, *words = job["spec"]["entrypoint"].split()
    assert (python, script) == ("python", "/hai/ray_jobs/train.py")
    typer.main.get_command(app).commands["train"].make_context("train", list(words))  # type: ignore[attr-defined]
    load_config(ROOT / words[words.index("--config") + 1].removeprefix("/hai/"))
    image = read(ROOT / "cluster.yaml")["docker"]["image"]
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] == image


WORKER = "spec.rayClusterSpec.workerGroupSpecs.0"
POD = f"{WORKER}.template.spec"
BROKEN_JOB = [
    ("spec.rayClusterSpec.authOptions.mode", "disabled", "authOptions"),
    ("spec.rayClusterSpec.enableInTreeAutoscaling", False, "enableInTreeAutoscaling"),
    ("spec.rayClusterSpec.headGroupSpec.serviceType", "LoadBalancer", "ClusterIP"),
    ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "num-cpus"),
    ("spec.shutdownAfterJobFinishes", None, "shutdownAfterJobFinishes"),
    ("spec.backoffLimit", None, "backoffLimit"),
    (f"{WORKER}.maxReplicas", 8, "HAI_GROWS_TO"),
    (f"{POD}.serviceAccountName", "default", "serviceAccountName"),
    (f"{POD}.securityContext", {}, "runAsNonRoot"),
    (f"{POD}.restartPolicy", "Always", "restartPolicy"),
    (f"{POD}.terminationGracePeriodSeconds", 10, "terminationGracePeriodSeconds"),
    (f"{POD}.nodeSelector", {}, "gke-spot"),
    (f"{POD}.containers.0.lifecycle.preStop.exec.command", ["/bin/sh", "-c", "ray stop"], "preStop"),
    (f"{POD}.containers.0.env", [], "preStop"),
    (f"{POD}.containers.0.image", "rayproject/ray:2.60.0", "the same"),
    (f"{POD}.containers.0.resources.requests.cpu", "1", "requests and limits differ"),
]


@pytest.mark.parametrize(("path", "value", "said"), BROKEN_JOB, ids=[f"{path}={v}" for path, v, _ in BROKEN_JOB])
def test_what_is_wrong_with_a_job_is_found(path: str, value: Any, said: str) -> None:
    job, accounts = kuberay()
    assert [line for line in job_problems(broken(job, path, value), accounts) if said in line]


def test_the_commands_of_the_page_make_a_good_file_of_any_region(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^sed .*$", page, re.MULTILINE)
    assert len(commands) == 2
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "hai-cluster.pub").write_text("ssh-ed25519 AAAA/+ab hai\n", encoding="utf-8")
    for name in ("cluster.yaml", "cluster.kuberay.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    names = {"HOME": str(tmp_path), "PROJECT": "faces-7", "REGION": "europe-west4", "ZONE": "europe-west4-b"}
    for command in commands:
        subprocess.run(["bash", "-ec", command], cwd=tmp_path, env={**os.environ, **names}, check=True)
    for name in ("my-cluster.yaml", "my-job.yaml"):
        text = (tmp_path / name).read_text(encoding="utf-8").split("\n\n", 1)[1]
        assert not re.search("my-project|us-central1|MY-PUBLIC-KEY", text)
    config = read(tmp_path / "my-cluster.yaml")
    assert accepted_by_ray(config)
    assert problems(config) == []
    assert "ubuntu:ssh-ed25519 AAAA/+ab hai" in str(config)


def test_the_image_is_made_from_what_is_there() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "README.md", "hai", "configs", "ray_jobs"} == set(copied)
    assert all((ROOT / name).exists() and f"!{name}" in let_through for name in copied)
    assert "WORKDIR /hai" in lines
    (version,) = re.findall(r"^FROM python:3\.(\d+)-slim", "\n".join(lines), re.MULTILINE)
    assert int(version) >= int(project["requires-python"].removeprefix(">=3."))
    extras = re.findall(r"--extra (\w+)", "\n".join(lines))
    wishes = [wish for extra in extras for wish in project["optional-dependencies"][extra]]
    assert {"ray", "google-api-python-client", "optuna"} <= {re.split(r"[\[>=]", wish)[0] for wish in wishes}
