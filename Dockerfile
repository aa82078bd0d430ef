# A laptop or a server that answers from a bundle: no torch, no compiler, not root, nothing written.
#   docker build --target edge -t retort-edge .
#   docker run --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -e RETORT_API_KEY=... \
#       -v "$PWD/runs/default/10-bundle:/bundle:ro" retort-edge
# A run on an NVIDIA GPU:
#   docker build --target train --build-arg USER_ID="$(id -u)" -t retort-train .
#   mkdir -p runs ~/.cache/huggingface
#   docker run --gpus all --ipc=host -v "$PWD/runs:/retort/runs" \
#       -v "$HOME/.cache/huggingface:/home/retort/.cache/huggingface" retort-train default

FROM python:3.11-bookworm AS build
# For any x86-64 with AVX2; `--build-arg LLAMA_FLAGS="$(sh scripts/llama_flags.sh)"` for this one.
ARG LLAMA_FLAGS=-DGGML_NATIVE=OFF
WORKDIR /retort
COPY Makefile README.md LICENSE constraints.txt models.txt pyproject.toml ./
COPY scripts scripts
RUN make wheels FLAGS="$LLAMA_FLAGS"
COPY serve serve
COPY apps apps
RUN python3 -m venv /opt/retort
RUN /opt/retort/bin/pip install --no-cache-dir -c constraints.txt --find-links "$(make --silent wheels FLAGS="$LLAMA_FLAGS")" ".[serve,apps,cpu]"
RUN /opt/retort/bin/pip uninstall --yes pip

FROM python:3.11-slim-bookworm AS edge
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --no-create-home retort
COPY --from=build /opt/retort /opt/retort
ENV PATH=/opt/retort/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER retort
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "-m", "serve"]
CMD ["/bundle", "--host", "0.0.0.0"]

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS train
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential cmake git python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
# As above: for any x86-64 with AVX2, since the machine it runs on may be another.
ARG LLAMA_FLAGS=-DGGML_NATIVE=OFF
# The mounted folders belong to whoever runs the container, and the image's own user has 1000.
ARG USER_ID=1000
RUN userdel --remove ubuntu && useradd --create-home --uid "$USER_ID" retort && install --directory --owner retort /retort
USER retort
WORKDIR /retort
COPY --chown=retort . .
RUN make setup deepspeed EXTRA=cuda FLAGS="$LLAMA_FLAGS"
ENTRYPOINT [".venv/bin/python", "-m", "pipeline.all"]
CMD ["default"]
