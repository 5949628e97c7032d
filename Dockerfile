# Two stages: what installs stays behind. BASE_IMAGE (with Python 3.11 or newer and venv) and PYPI can be overridden
# where no public registry is reached. No compiler anywhere: every dependency comes as a wheel, for amd64 and arm64.
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE} AS build
ARG PYPI=https://pypi.org/simple
COPY pyproject.toml README.md LICENSE /src/
COPY agent /src/agent
RUN python3 -m venv /opt/gpu-health-agent \
 && /opt/gpu-health-agent/bin/pip install --no-cache-dir --only-binary :all: --index-url "${PYPI}" /src \
 && /opt/gpu-health-agent/bin/pip uninstall --quiet --yes setuptools pip
# Only the Kubernetes client's ApiClient and credentials are used; its generated APIs and models take 120 MB.
RUN cd /opt/gpu-health-agent/lib/python3*/site-packages/kubernetes \
 && rm -r aio && find client/api client/models -type f -name '[!_]*' -delete

FROM ${BASE_IMAGE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="gpu-health-agent" \
      org.opencontainers.image.description="Sees GPU faults on a Kubernetes node, moves pods away, and says why" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/gpu-health-agent /opt/gpu-health-agent
ENV PATH=/opt/gpu-health-agent/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 9836
ENTRYPOINT ["gpu-health-agent"]
CMD ["run"]
