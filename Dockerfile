# Stages: what installs stays behind. BASE_IMAGE (with Python 3.11 or newer and venv) and PYPI can be overridden
# where no public registry is reached. No compiler anywhere: every dependency comes as a wheel, for amd64 and arm64.
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE} AS build
ARG PYPI=https://pypi.org/simple
COPY pyproject.toml LICENSE /src/
COPY agent /src/agent
# An empty one: it would be a description in the package's metadata, and each edit of it another image.
RUN touch /src/README.md
RUN python3 -m venv /opt/gpu-health-agent \
 && /opt/gpu-health-agent/bin/pip install --no-cache-dir --only-binary :all: --index-url "${PYPI}" /src \
 && /opt/gpu-health-agent/bin/pip uninstall --quiet --yes setuptools pip \
 && rm -f /opt/gpu-health-agent/bin/gpu-kit-*
# Only the Kubernetes client's ApiClient and credentials are used; its generated APIs and models take 120 MB.
RUN cd /opt/gpu-health-agent/lib/python3*/site-packages/kubernetes \
 && rm -r aio && find client/api client/models -type f -name '[!_]*' -delete

# DCGM's client library and Python bindings from NVIDIA's package, where DCGM=4 asks for them; nothing by default.
FROM ${BASE_IMAGE} AS dcgm
ARG DCGM=none
ARG NVIDIA=https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64
RUN mkdir /dcgm && if [ "${DCGM}" != none ]; then \
      apt-get update && apt-get install --yes --no-install-recommends ca-certificates curl \
   && curl --fail --silent --show-error --location --output /tmp/keyring.deb "${NVIDIA}/cuda-keyring_1.1-1_all.deb" \
   && dpkg --install /tmp/keyring.deb && apt-get update \
   && apt-get install --yes --no-install-recommends "datacenter-gpu-manager-${DCGM}-core" \
   && cp --parents --archive /usr/lib/*-linux-gnu/libdcgm.so* \
      "/usr/share/datacenter-gpu-manager-${DCGM}/bindings/python3" /dcgm; fi

FROM ${BASE_IMAGE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="gpu-health-agent" \
      org.opencontainers.image.description="Sees GPU faults on a Kubernetes node, moves pods away, and says why" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Docker's own Python images come without compiled modules: half a second of CPU at each start of each process.
RUN python3 -m compileall -q -x site-packages "$(python3 -c 'import os; print(os.path.dirname(os.__file__))')"
COPY --from=build /opt/gpu-health-agent /opt/gpu-health-agent
COPY --from=dcgm /dcgm /
ENV PATH=/opt/gpu-health-agent/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 9836
ENTRYPOINT ["gpu-health-agent"]
CMD ["run"]
