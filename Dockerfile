# The image of a cluster's machines, for `ray up` (cluster.yaml) and KubeRay (cluster.kuberay.yaml). Some 8 GB with CUDA.
#
# Command:  gcloud builds submit --tag us-central1-docker.pkg.dev/PROJECT/hai/hai:latest --timeout=1h

FROM python:3.12-slim-bookworm

# For Ray: SSH and rsync from the head to the others, ps and uptime, and what KubeRay probes with.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends openssh-client procps rsync wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 hai

WORKDIR /hai

# First what changes seldom, so that a change of code rebuilds seconds and not gigabytes.
COPY pyproject.toml constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt uv \
 && uv pip install --system --no-cache --compile-bytecode --constraint constraints.txt --requirement pyproject.toml \
    --extra cluster --extra sweep

COPY README.md ./
COPY hai hai
RUN uv pip install --system --no-cache --compile-bytecode --no-deps .

COPY configs configs
COPY ray_jobs ray_jobs
