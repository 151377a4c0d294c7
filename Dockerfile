# The interpreter and packages of requirements.lock, for `docker run` and for Snakemake's `--sdm apptainer`: how to
# build and use it is in docs/environments.md. It holds no code: stages run that of the checkout, as everywhere.
FROM python:3.11-slim

# a machine without a GPU saves 2.5 GB: --build-arg PIP_EXTRA_INDEX_URL=(PyTorch's CPU index)
ARG PIP_EXTRA_INDEX_URL

# DVC and Snakemake ask Git about the checkout, which belongs to whoever mounts it
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system safe.directory '*'

# torch first and alone, the lock as constraints, as in the Makefile
COPY requirements.lock pyproject.toml /tmp/
RUN cd /tmp \
    && pip install --no-cache-dir --constraint requirements.lock torch \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['pipeline'], sep='\n')" > wanted.txt \
    && pip install --no-cache-dir --constraint requirements.lock --requirement wanted.txt

# workflow/run takes this Python, whatever environments the checkout or the caller has
ENV SELFDISTILL_IMAGE=1 HOME=/tmp
RUN useradd study
USER study
WORKDIR /selfdistill
