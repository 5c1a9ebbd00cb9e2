# `unils` in a container, from the locked versions:
#
#   docker build --build-arg ACCELERATOR=cuda -t unils .       # or tpu, or cpu (the default)
#   docker run --rm -v "$PWD:/data" unils decode --audio a.wav --audio2 b.wav --out motion.npz
#
# Training needs shared memory for its data workers: docker run --shm-size=16g ...

FROM node:22-slim AS viewer
WORKDIR /viewer
COPY unils_jax/outputs/viewer/ ./
RUN npm ci --no-audit --no-fund && npm run build

FROM python:3.11-slim AS install
ARG ACCELERATOR=cpu
WORKDIR /build
RUN pip install --no-cache-dir uv
COPY pyproject.toml uv.lock README.md LICENSE THIRD_PARTY.md ./
COPY unils_jax/ unils_jax/
COPY data_pipelines/ data_pipelines/
COPY configs/ configs/
COPY --from=viewer /viewer/dist/ unils_jax/outputs/viewer/dist/
# A GPU's or a TPU's JAX is an extra; the CPU's is the plain one.
RUN if [ "$ACCELERATOR" = cpu ]; then extras=render,serve; else extras="render,serve,$ACCELERATOR"; fi \
  && uv export --quiet --frozen --all-extras --no-emit-project --no-hashes --no-header --no-annotate --output-file locked.txt \
  && python -m venv /opt/unils \
  && /opt/unils/bin/pip install --no-cache-dir --constraint locked.txt ".[$extras]"

FROM python:3.11-slim
# Off-screen OpenGL for videos.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libegl1 libgl1-mesa-dri libosmesa6 \
  && rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 1000 unils && mkdir /data && chown unils /data
COPY --from=install /opt/unils /opt/unils
ENV PATH=/opt/unils/bin:$PATH PYTHONUNBUFFERED=1
USER unils
WORKDIR /data
ENTRYPOINT ["unils"]
