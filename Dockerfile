# The loader as an image, on a base with the docker command. `.dist/build` makes the program first:
#
#   .dist/build && docker build --platform linux/arm64 -t loader .
#   docker run -d --name loader --restart always -p 127.0.0.1:8080:8080 --env-file loader.env \
#     --read-only --cap-drop ALL --security-opt no-new-privileges --ulimit core=0 \
#     --stop-timeout 20 --log-driver local --log-opt max-size=10m \
#     -v loader-models:/var/lib/loader/models -v loader-logs:/var/log/loader -v /opt/azaion:/opt/azaion:ro \
#     -v /var/run/docker.sock:/var/run/docker.sock --group-add "$(stat -c %g /var/run/docker.sock)" loader
#
# `--group-add` gives the user below access to the socket, even if root owns it with mode 0660. If only root may use it (mode
# 0600), run with `--user 0:0 --cap-add DAC_OVERRIDE`: without that capability root cannot write volumes, which the user owns.
# There is no RUN here, so any machine can build an ARM64 image without an emulator.
ARG BASE=docker:28-cli

# The directories that the user below may write to, made without a shell.
FROM scratch AS directories
WORKDIR /var/lib/loader/models
WORKDIR /var/log/loader

FROM ${BASE}
# A test on another processor uses another file in target/dist.
ARG PROGRAM=loader-aarch64-unknown-linux-musl
COPY target/dist/${PROGRAM} /usr/local/bin/loader
COPY --from=directories --chown=65534:65534 /var/lib/loader /var/lib/loader
COPY --from=directories --chown=65534:65534 /var/log/loader /var/log/loader

ENV BIND_ADDR=0.0.0.0:8080 \
    MODEL_CACHE_DIR=/var/lib/loader/models \
    LOG_DIR=/var/log/loader
VOLUME ["/var/lib/loader/models", "/var/log/loader"]
EXPOSE 8080
# A number, so that the base needs no such user; on Alpine and Debian it is `nobody`.
USER 65534:65534
WORKDIR /var/lib/loader
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 CMD ["/usr/local/bin/loader", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/loader"]
# The base may have a command of its own, which would become the loader's argument.
CMD []
