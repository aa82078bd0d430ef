"""llama.cpp's own server, from the package xllamacpp: the peer of `python -m serve`.

    PEER/bin/python benchmarks/peer_server.py FILE.gguf THREADS SLOTS CONTEXT_TOKENS

For an environment of its own (`pip install xllamacpp`), as it brings its own llama.cpp. Prints its
address and serves until its standard input ends.
"""

import sys

import xllamacpp


def main(path: str, threads: int, slots: int, context_tokens: int) -> None:
    options = xllamacpp.CommonParams()
    options.model.path = path
    options.n_parallel = slots
    options.n_ctx = slots * context_tokens
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    options.n_gpu_layers = 0
    options.warmup = True
    # Its default reads prompts in `n_batch` tokens beside those being answered, as it sees fit.
    server = xllamacpp.Server(options)
    print(f"version {xllamacpp.__version__}", flush=True)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], *(int(number) for number in sys.argv[2:5]))
