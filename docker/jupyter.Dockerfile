# JupyterLab with the course's packages on NVIDIA's PyTorch. Build from the repository's root:
#   docker build -f docker/jupyter.Dockerfile -t course-jupyter .
FROM nvcr.io/nvidia/pytorch:26.05-py3
WORKDIR /tmp/course
COPY requirements requirements
# The course's versions, and not those that the image holds on to (PIP_CONSTRAINT); PyTorch, which is not among
# them, stays the image's own.
RUN PIP_CONSTRAINT= pip install --no-cache-dir -r requirements/course.txt \
 && PIP_CONSTRAINT= pip install --no-cache-dir --no-deps --require-hashes -r requirements/sglang.hash.txt \
 && python3 -m ipykernel install --sys-prefix --name module-3.3 --display-name "Module 3.3"
# Any user may write here, because the home folder is mounted only in part.
ENV JUPYTER_CONFIG_DIR=/tmp/jupyter JUPYTER_DATA_DIR=/tmp/jupyter/data JUPYTER_RUNTIME_DIR=/tmp/jupyter/runtime \
    IPYTHONDIR=/tmp/ipython MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["python3", "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=8888", \
            "--ServerApp.port_retries=0", "--ServerApp.open_browser=False"]
