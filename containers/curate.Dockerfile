# The curation stages in an image: no compiler, no network at run time.
#   docker build -f containers/curate.Dockerfile -t hpc-curate .
# PyAV's wheel brings its own FFmpeg libraries, so nothing of Debian's is needed.
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir '/src[curate]' && rm -rf /src
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
ENTRYPOINT ["hpc"]
