"""What must be true of a cluster file beyond what Ray's own check asks, found without a cloud.

Every rule gives one line for each place where it is broken; an empty list is a good file. The fields of a machine are
compared with the Compute API's own description, which google-api-python-client brings along.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hai.launch.preemption import NOTICE_FILE
from hai.launch.room import GROWS_TO, machines_of

__all__ = ["job_problems", "problems"]

SCALARS = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}
FOREIGN = ("-compute@developer", "ray-autoscaler", "@appspot", "default")  # accounts that may do more than is needed


def problems(config: Mapping[str, Any]) -> list[str]:
    """List what is wrong with a cluster file for `ray up` on Google Cloud."""
    types, head = config.get("available_node_types", {}), config.get("head_node_type", "")
    found = [*_provider(config), *_ssh(config), *_docker(config), *_commands(config)]
    for name, kind in types.items():
        where = f"available_node_types.{name}"
        node = kind["node_config"]
        found += _unlike(_compute("Instance"), node, f"{where}.node_config")
        found += _machine(config, kind, where)
        found += _head(kind, where) if name == head else _worker(config, kind, where)
    accounts = Counter(account.get("email") for kind in types.values() for account in _accounts(kind))
    found += [f"{email}: on {count} kinds of machines; give each its own rights" for email, count in accounts.items()
              if count > 1]  # fmt: skip
    return found


def _provider(config: Mapping[str, Any]) -> Iterator[str]:
    provider = config.get("provider", {})
    if provider.get("type") != "gcp":
        yield f"provider.type = {provider.get('type')}; must be gcp"
    for key in ("project_id", "region", "availability_zone"):
        if not provider.get(key):
            yield f"provider.{key}: missing"
    if not re.fullmatch(rf"{provider.get('region')}-[a-z]", provider.get("availability_zone") or ""):
        yield f"provider.availability_zone = {provider.get('availability_zone')}; must be a zone of the region"
    if provider.get("use_internal_ips") is not True:
        yield "provider.use_internal_ips: must be true"
    if provider.get("cache_stopped_nodes", True):
        yield "provider.cache_stopped_nodes: must be false; stopped machines keep disks that cost money"


def _ssh(config: Mapping[str, Any]) -> Iterator[str]:
    auth, provider = config.get("auth", {}), config.get("provider", {})
    if not auth.get("ssh_private_key"):
        yield "auth.ssh_private_key: missing; Ray would put a key of its own into the whole project"
    proxy = auth.get("ssh_proxy_command", "")
    if not auth.get("ssh_proxy_use_node_id") or "start-iap-tunnel %h 22 --listen-on-stdin" not in proxy:
        yield "auth.ssh_proxy_command: machines without a public address are reached by name through start-iap-tunnel"
    for flag, key in (("project", "project_id"), ("zone", "availability_zone")):
        if f"--{flag}={provider.get(key)}" not in proxy.split():
            yield f"auth.ssh_proxy_command: --{flag} is not provider.{key} = {provider.get(key)}"


def _docker(config: Mapping[str, Any]) -> Iterator[str]:
    docker, provider = config.get("docker", {}), config.get("provider", {})
    registry = f"{provider.get('region')}-docker.pkg.dev"
    if not str(docker.get("image")).startswith(f"{registry}/{provider.get('project_id')}/"):
        yield f"docker.image = {docker.get('image')}; must be in {registry}/{provider.get('project_id')}"
    everywhere, on_head = docker.get("run_options", []), docker.get("head_run_options", [])
    text = json.dumps(config)
    if "--env=RAY_AUTH_MODE=token" not in everywhere or "RAY_AUTH_MODE=disabled" in text:
        yield "docker.run_options: RAY_AUTH_MODE=token is missing; a part of Ray would answer anybody"
    if "~/.ray" not in config.get("file_mounts", {}):
        yield "file_mounts: ~/.ray is missing; without its auth_token no machine joins"
    if "--env=RAY_JOB_STOP_WAIT_TIME_S=30" not in on_head:
        yield "docker.head_run_options: RAY_JOB_STOP_WAIT_TIME_S=30 is missing; ray job stop kills after 3 s"
    kinds = [kind for name, kind in config["available_node_types"].items() if name != config.get("head_node_type")]
    said = [option.split("=", 2)[2].rstrip('"') for option in on_head if GROWS_TO in option]
    if not _says_what_comes(said, [(kind.get("max_workers", 0), kind["resources"]) for kind in kinds]):
        yield f"docker.head_run_options: {GROWS_TO} is not what the workers of available_node_types come to"
    for where, commands in _initializations(config):
        if not any(f"gcloud auth configure-docker {registry} --quiet" in command for command in commands):
            yield f"{where}: gcloud auth configure-docker {registry} is missing; the image cannot be pulled"


def _commands(config: Mapping[str, Any]) -> Iterator[str]:
    head, worker = (" ".join(config.get(f"{name}_start_ray_commands", [])) for name in ("head", "worker"))
    if "--dashboard-host=127.0.0.1" not in head:
        yield "head_start_ray_commands: --dashboard-host=127.0.0.1 is missing; the network would see the dashboard"
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in head:
        yield "head_start_ray_commands: --autoscaling-config is missing; no machine would be started"
    if "--address=$RAY_HEAD_IP:6379" not in worker or "--port=6379" not in head:
        yield "worker_start_ray_commands: --address is not the head's port"


def _machine(config: Mapping[str, Any], kind: Mapping[str, Any], where: str) -> Iterator[str]:
    """What holds for the head and for workers."""
    node, provider = kind["node_config"], config.get("provider", {})
    project, region, zone = (provider.get(key) for key in ("project_id", "region", "availability_zone"))
    if not re.fullmatch(r"[a-z][a-z0-9]*-[a-z0-9-]+", str(node.get("machineType"))):
        yield f"{where}.node_config.machineType = {node.get('machineType')}; must name a kind of machine"
    boots = [disk for disk in _list(node, "disks") if disk.get("boot")]
    if len(boots) != 1 or not all(disk.get("autoDelete") for disk in boots):
        yield f"{where}.node_config.disks: must be one that boots and goes with its machine (autoDelete)"
    for parameters in (disk.get("initializeParams", {}) for disk in boots):
        if parameters.get("diskType", "").split("/")[:2] != ["zones", zone]:
            yield f"{where}.node_config.disks: diskType is not of zone {zone}"
        if "/images/" not in parameters.get("sourceImage", ""):
            yield f"{where}.node_config.disks: sourceImage is missing"
    interfaces = _list(node, "networkInterfaces")
    if not interfaces:
        yield f"{where}.node_config.networkInterfaces: missing; Ray would give the machine a public address"
    for interface in interfaces:
        if "accessConfigs" in interface or "ipv6AccessConfigs" in interface:
            yield f"{where}.node_config.networkInterfaces: accessConfigs are a public address"
        if not str(interface.get("subnetwork")).startswith(f"projects/{project}/regions/{region}/"):
            yield f"{where}.node_config.networkInterfaces: subnetwork is not of {project} in {region}"
    emails = [str(account.get("email")) for account in _accounts(kind)]
    own = [email for email in emails if email.endswith(f"@{project}.iam.gserviceaccount.com")]
    if len(own) != 1 or len(emails) != 1 or any(word in emails[0] for word in FOREIGN):
        yield f"{where}.node_config.serviceAccounts = {emails}; must be one account made for it"
    items = _list(node.get("metadata", {}), "items")
    metadata = {item.get("key"): item.get("value") for item in items}
    if not str(metadata.get("ssh-keys")).startswith(f"{config.get('auth', {}).get('ssh_user')}:"):
        yield f"{where}.node_config.metadata: no ssh-keys for auth.ssh_user"
    if metadata.get("block-project-ssh-keys") != "true":
        yield f"{where}.node_config.metadata: block-project-ssh-keys is not true; keys of the whole project would do"
    if not _list(node.get("tags", {}), "items"):
        yield f"{where}.node_config.tags: missing; the firewall's rules are for a tag"


def _head(kind: Mapping[str, Any], where: str) -> Iterator[str]:
    node, resources = kind["node_config"], kind["resources"]
    if _list(node, "guestAccelerators") or resources.get("GPU"):
        yield f"{where}: the head needs no GPU"
    if resources.get("CPU") != 0:
        yield f"{where}.resources.CPU = {resources.get('CPU')}; must be 0, or workers train on the head"
    if _dict(node, "scheduling").get("provisioningModel") != "STANDARD":
        yield f"{where}.node_config.scheduling: a spot head takes the whole cluster along"


def _worker(config: Mapping[str, Any], kind: Mapping[str, Any], where: str) -> Iterator[str]:
    node, resources = kind["node_config"], kind["resources"]
    counts = [card.get("acceleratorCount") for card in _list(node, "guestAccelerators")]
    gpus = sum(count for count in counts if isinstance(count, int))
    if not gpus or resources.get("GPU") != gpus:
        yield f"{where}.resources.GPU = {resources.get('GPU')}; guestAccelerators has {gpus}"
    cpus = str(node.get("machineType")).rpartition("-")[2]
    if str(resources.get("CPU")) != cpus:
        yield f"{where}.resources.CPU = {resources.get('CPU')}; machineType has {cpus}"
    scheduling = _dict(node, "scheduling")
    if scheduling.get("provisioningModel") != "SPOT":
        yield f"{where}.node_config.scheduling.provisioningModel: must be SPOT"
    if scheduling.get("instanceTerminationAction") != "DELETE":
        yield f"{where}.node_config.scheduling.instanceTerminationAction: must be DELETE, or its disk stays and costs"
    if scheduling.get("onHostMaintenance") != "TERMINATE" or scheduling.get("automaticRestart") is not False:
        yield f"{where}.node_config.scheduling: with a GPU, onHostMaintenance: TERMINATE and automaticRestart: false"
    if kind.get("min_workers") != 0 or not 0 < kind.get("max_workers", 0) <= config.get("max_workers", 0):
        yield f"{where}: must go from min_workers 0 to at most max_workers of the file"


def _initializations(config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    common = config.get("initialization_commands", [])
    yield "initialization_commands", common
    for name, kind in config["available_node_types"].items():
        yield f"available_node_types.{name}.initialization_commands", kind.get("initialization_commands", common)


def _unlike(schema: Mapping[str, Any], value: Any, where: str) -> Iterator[str]:
    """Compare with the description of an API: unknown fields, types, words that are none of the choices."""
    schema = _compute(schema["$ref"]) if "$ref" in schema else schema
    kind = schema.get("type")
    if kind == "object":
        if not isinstance(value, dict):
            yield f"{where}: must be a mapping"
            return
        known = schema.get("properties", {})
        for key, inner in value.items():
            if key not in known and "additionalProperties" not in schema:
                yield f"{where}.{key}: no such field in the Compute API"
            else:
                yield from _unlike(known.get(key) or schema["additionalProperties"], inner, f"{where}.{key}")
    elif kind == "array":
        if not isinstance(value, list):
            yield f"{where}: must be a list"
            return
        for number, inner in enumerate(value):
            yield from _unlike(schema["items"], inner, f"{where}.{number}")
    elif kind == "string" and schema.get("format") in ("int64", "uint64") and type(value) is int:
        return  # what a JSON client may write too
    elif not isinstance(value, SCALARS[str(kind)]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{where} = {value!r}; must be of type {kind}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{where} = {value}; must be one of {', '.join(schema['enum'])}"


@functools.cache
def _descriptions() -> dict[str, Any]:
    import googleapiclient.discovery_cache

    folder = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    return dict(json.loads((folder / "compute.v1.json").read_text(encoding="utf-8"))["schemas"])


def _compute(name: str) -> dict[str, Any]:
    return dict(_descriptions()[name])


def _accounts(kind: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _list(kind["node_config"], "serviceAccounts")


def _list(mapping: Any, key: str) -> list[dict[str, Any]]:
    value = mapping.get(key) if isinstance(mapping, dict) else None
    return [one for one in value if isinstance(one, (dict, str))] if isinstance(value, list) else []


def _dict(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _says_what_comes(said: list[str], kinds: list[tuple[int, Mapping[str, Any]]]) -> bool:
    """Say whether HAI_GROWS_TO is there once and means these numbers of machines."""
    coming = [{"Alive": True, "Resources": resources} for count, resources in kinds for _ in range(count)]
    return len(said) == 1 and sorted(machines_of([], {GROWS_TO: said[0]})) == sorted(machines_of(coming, {}))


def job_problems(job: Mapping[str, Any], accounts: set[str]) -> list[str]:
    """List what is wrong with a RayJob.

    Args:
        job: the resource.
        accounts: the service accounts that the same file makes.
    """
    cluster = job["spec"].get("rayClusterSpec", {})
    found = list(_job(job["spec"], cluster))
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    found += _pod(head, "headGroupSpec", accounts)
    for group in groups:
        found += _pod(group, f"workerGroupSpecs.{group.get('groupName')}", accounts)
        found += _group(group, f"workerGroupSpecs.{group.get('groupName')}")
    limits = [(group.get("maxReplicas", 0), _container(group)["resources"]["limits"]) for group in groups]
    coming = [
        (count, {"CPU": int(limit["cpu"]), "GPU": int(limit.get("nvidia.com/gpu", 0))}) for count, limit in limits
    ]
    if not _says_what_comes([value for name, value in _environment(head).items() if name == GROWS_TO], coming):
        found.append(f"headGroupSpec: {GROWS_TO} is not what workerGroupSpecs comes to")
    images = {_container(group)["image"] for group in [head, *groups]}
    if len(images) > 1:
        found.append(f"image: {sorted(images)}; head and workers must have the same")
    return found


def _job(spec: Mapping[str, Any], cluster: Mapping[str, Any]) -> Iterator[str]:
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "rayClusterSpec.authOptions.mode: must be token"
    if not cluster.get("enableInTreeAutoscaling"):
        yield "rayClusterSpec.enableInTreeAutoscaling: must be true, or no worker comes"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes: must be true, or the cluster stays and costs"
    if not spec.get("backoffLimit"):
        yield "backoffLimit: missing; a lost head would end the run"
    head = cluster["headGroupSpec"]
    if head.get("serviceType") != "ClusterIP":
        yield "headGroupSpec.serviceType: must be ClusterIP, or the dashboard is open to the world"
    if head["rayStartParams"].get("num-cpus") != "0":
        yield 'headGroupSpec.rayStartParams.num-cpus: must be "0", or workers train on the head'
    if _environment(head).get("RAY_JOB_STOP_WAIT_TIME_S") != "30":
        yield "headGroupSpec: RAY_JOB_STOP_WAIT_TIME_S=30 is missing; ray job stop kills after 3 s"


def _pod(group: Mapping[str, Any], where: str, accounts: set[str]) -> Iterator[str]:
    pod, container = group["template"]["spec"], _container(group)
    if pod.get("serviceAccountName") not in accounts:
        yield f"{where}.serviceAccountName = {pod.get('serviceAccountName')}; the file makes {sorted(accounts)}"
    if not pod.get("securityContext", {}).get("runAsNonRoot") or container["securityContext"].get("privileged"):
        yield f"{where}.securityContext: must be runAsNonRoot"
    if pod.get("hostNetwork") or pod.get("restartPolicy") != "Never":
        yield f"{where}: a pod must have a network of its own and restartPolicy: Never"
    values = [*group["rayStartParams"].values(), *_environment(group).values()]
    if not all(isinstance(value, str) for value in values):
        yield f"{where}: values of rayStartParams and env must be strings; put them into quotes"
    if container["resources"]["requests"] != container["resources"]["limits"]:
        yield f"{where}.resources: requests and limits differ"


def _group(group: Mapping[str, Any], where: str) -> Iterator[str]:
    pod, container = group["template"]["spec"], _container(group)
    if group.get("minReplicas") != 0 or not group.get("maxReplicas"):
        yield f"{where}: must go from minReplicas 0 to maxReplicas"
    if pod.get("nodeSelector", {}).get("cloud.google.com/gke-spot") != "true":
        yield f"{where}.nodeSelector: must be gke-spot machines"
    if container["resources"]["limits"].get("nvidia.com/gpu") != "1":
        yield f"{where}.resources: must have one nvidia.com/gpu"
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [""])[-1]
    waits = re.search(r"sleep (\d+)", command)
    if f"touch ${NOTICE_FILE}" not in command or NOTICE_FILE not in _environment(group) or waits is None:
        yield f"{where}.lifecycle.preStop: must make the file of {NOTICE_FILE} and wait"
    elif int(waits[1]) >= pod.get("terminationGracePeriodSeconds", 0):
        yield f"{where}.terminationGracePeriodSeconds: must be longer than preStop waits"


def _container(group: Mapping[str, Any]) -> dict[str, Any]:
    return dict(group["template"]["spec"]["containers"][0])


def _environment(group: Mapping[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value") for item in _container(group).get("env", [])}
