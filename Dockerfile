# docker build -t retort . && docker run --rm -v "$PWD/runs:/retort/runs" retort
FROM python:3.11-bookworm
RUN useradd --create-home retort && mkdir /retort && chown retort /retort
USER retort
WORKDIR /retort
COPY --chown=retort . .
RUN make setup
CMD ["make", "all"]
