# The gateway alone: no engine, no PyTorch. Build from the repository's root:
#   docker build -f docker/gateway.Dockerfile -t course-gateway .
FROM python:3.11-slim
WORKDIR /app
COPY requirements/course.txt requirements/course.txt
# The versions of the course's own environment, of the few packages that the gateway imports.
RUN pip install --no-cache-dir -c requirements/course.txt \
      docker fastapi httptools httpx jsonschema msgspec numpy prometheus-client psutil pydantic-settings pyyaml tqdm uvicorn uvloop
COPY utils utils
RUN useradd --system --no-create-home gateway
USER gateway
EXPOSE 8080
# `exec` form: SIGTERM reaches Python, and it drains.
ENTRYPOINT ["python", "-m", "utils.gateway"]
