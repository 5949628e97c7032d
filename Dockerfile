# Two stages: what compiles stays behind. BASE_IMAGE and PYPI can be overridden where no public registry is reached.
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE} AS build
ARG PYPI=https://pypi.org/simple
COPY pyproject.toml README.md LICENSE /src/
COPY agent /src/agent
RUN python3 -m venv /opt/gpu-health-agent \
 && /opt/gpu-health-agent/bin/pip install --no-cache-dir --index-url "${PYPI}" /src \
 && /opt/gpu-health-agent/bin/pip uninstall --yes pip \
 && /opt/gpu-health-agent/bin/python -m compileall -q /opt/gpu-health-agent

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="gpu-health-agent" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/gpu-health-agent /opt/gpu-health-agent
ENV PATH=/opt/gpu-health-agent/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 9836
ENTRYPOINT ["gpu-health-agent"]
CMD ["run"]
