# One image for every process of the project; the first word of the command is its role (bin/entrypoint).
ARG PYTHON=python:3.13-slim-bookworm

FROM ${PYTHON} AS packages
WORKDIR /build
COPY requirements.txt .
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: -r requirements.txt

FROM ${PYTHON}
# What WeasyPrint needs of the system (requirements.txt has the rest). Debian keeps the versions of a release together.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin handoff \
    && install -d -o handoff -g handoff -m 0750 /data
# Nothing is written outside /data and /tmp, so that the root file system may be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp \
    HANDOFF_HOME=/data
COPY --from=packages /opt/venv /opt/venv
WORKDIR /srv/handoff
COPY . .
# Readable for the user below, whatever the umask of the checkout.
RUN chmod -R a+rX . && python -m compileall -q .
USER 10001:10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s CMD ["bin/entrypoint", "healthy"]
ENTRYPOINT ["/srv/handoff/bin/entrypoint"]
CMD ["web"]
