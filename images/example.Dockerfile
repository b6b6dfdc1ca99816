# Stands in for docker.io/library/nginx and docker.io/curlimages/curl where there is no registry.
ARG BASE=docker.io/library/debian:trixie-slim
FROM ${BASE}
RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends nginx-light curl \
 && rm -rf /var/lib/apt/lists /var/cache/apt/archives /var/cache/debconf /var/log/*
ENV PATH=/usr/sbin:/usr/bin
STOPSIGNAL SIGQUIT
USER 101:101
