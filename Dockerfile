# Everything that a run needs, installed from the hash locks; a run fetches nothing but what its download rules name.
#
#   docker build --target cpu -t better-synth .     laptops: linux/amd64, Python 3.11
#   docker build -t better-synth:cuda .             NVIDIA GPUs (driver 580 or later): Python 3.12
#   docker build --build-arg TORCH=cuda12 -t better-synth:cuda12 .     the same for drivers from 525 on
#   mkdir -p output && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/output:/bundle" better-synth \
#     snakemake submit.zip output/reports/index.html
#
# The folder mounted at /bundle is the work tree: submit.zip, output/, input/, solution/ and .snakemake/ appear in it, and a killed
# run goes on there. /app, the code, belongs to root; caches go to /tmp. So the run also works with --read-only --tmpfs /tmp:exec,
# --cap-drop ALL, --network none and any --user who may write to the folder.
#
# flash-attn is left out: training uses PyTorch's own scaled-dot-product attention, which contains FlashAttention-2; flash-attn
# has no wheel for this PyTorch, and its source needs the CUDA compiler and hours on a small machine.

# Digests of the multi-architecture indexes, as the public build files of several unrelated projects state them; the authors built
# both targets on a stand-in (tests/container/run). NVIDIA removes old images: keep a copy of a built one (docker save).
ARG CPU_BASE=docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
ARG CUDA_BASE=docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04@sha256:f8ef28f579ea42a44b415d2c5d46f788e6a9b395c6c83f2929416e1fc192c143
ARG CUDA12_BASE=docker.io/nvidia/cuda:12.8.1-base-ubuntu24.04@sha256:133c78a0575303be34164d0b90137a042172bdf60696af01a3c424ab402d86e2
# cuda, or cuda12: the base and requirements/torch-${TORCH}.lock; podman 4.3 takes it from --build-arg alone
ARG TORCH=cuda

FROM ${CPU_BASE} AS cpu-base
ARG CPU_BASE
ENV TORCH=cpu TOOLKIT_IMAGE=${CPU_BASE}

FROM ${CUDA_BASE} AS cuda-system
ARG CUDA_BASE
ENV TORCH=cuda TOOLKIT_IMAGE=${CUDA_BASE}

FROM ${CUDA12_BASE} AS cuda12-system
ARG CUDA12_BASE
ENV TORCH=cuda12 TOOLKIT_IMAGE=${CUDA12_BASE}

# Triton and DeepSpeed compile small host programs at run time: g++ and Python's headers; the CUDA libraries come with PyTorch.
FROM ${TORCH}-system AS cuda-base
ARG APT_SNAPSHOT=20261101T000000Z
# hadolint ignore=DL3008
RUN rm -f /etc/apt/sources.list.d/cuda*.list \
    && printf 'APT::Snapshot "%s";\n' "${APT_SNAPSHOT}" >/etc/apt/apt.conf.d/50snapshot \
    && apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/*


# DeepSpeed is built from source, and writes a set of names in the order that Python's hash seed gives
FROM cpu-base AS cpu-packages
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never PYTHONHASHSEED=0
COPY requirements /requirements
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --require-hashes --requirement /requirements/uv.lock \
    && /opt/uv/bin/uv venv --python "$(command -v python3)" /opt/venv \
    && /opt/uv/bin/python /requirements/install.py /opt/venv/bin/python /requirements/common.lock "/requirements/torch-${TORCH}.lock"

FROM cuda-base AS cuda-packages
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never PYTHONHASHSEED=0
COPY requirements /requirements
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --require-hashes --requirement /requirements/uv.lock \
    && /opt/uv/bin/uv venv --python "$(command -v python3)" /opt/venv \
    && /opt/uv/bin/python /requirements/install.py /opt/venv/bin/python /requirements/common.lock "/requirements/torch-${TORCH}.lock"

FROM cpu-base AS code
COPY . /image/app
RUN chmod -R a+rX,go-w /image/app && mkdir -m 1777 /image/bundle


FROM cpu-base AS cpu
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Better Synth, rebuilt by one command (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${TOOLKIT_IMAGE}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=cpu-packages /opt/venv /opt/venv
COPY --from=code /image /
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app PYTHONPYCACHEPREFIX=/tmp/bytecode HOME=/tmp USER=bundle LC_ALL=C.UTF-8 \
    SNAKEMAKE_PROFILE=/app/workflow/profiles/local
RUN python -B -m toolkit bundle sbom --system --output /opt/sbom.cdx.json
USER 10001:10001
WORKDIR /bundle
ENTRYPOINT ["/app/workflow/container-entry"]
CMD ["snakemake", "submit.zip", "output/reports/index.html"]

FROM cuda-base AS cuda
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Better Synth, rebuilt by one command (CUDA)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${TOOLKIT_IMAGE}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=cuda-packages /opt/venv /opt/venv
COPY --from=code /image /
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app PYTHONPYCACHEPREFIX=/tmp/bytecode HOME=/tmp USER=bundle LC_ALL=C.UTF-8 \
    SNAKEMAKE_PROFILE=/app/workflow/profiles/local
RUN python -B -m toolkit bundle sbom --system --output /opt/sbom.cdx.json
USER 10001:10001
WORKDIR /bundle
ENTRYPOINT ["/app/workflow/container-entry"]
CMD ["snakemake", "submit.zip", "output/reports/index.html"]
