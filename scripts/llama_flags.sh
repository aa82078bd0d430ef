#!/bin/sh
# Prints the CMake flags llama.cpp is built with on this machine, one line.
set -eu
flags="-DGGML_NATIVE=OFF"
has() { grep -qw "$1" /proc/cpuinfo 2>/dev/null; }
if has avx512_vnni && has avx512bw && has avx512vbmi; then
    flags="$flags -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_VBMI=ON"
fi
# Laptops since 2021 multiply bytes without having AVX-512.
if has avx_vnni && ! has avx512_vnni; then
    flags="$flags -DGGML_AVX_VNNI=ON"
fi
if has avx512_bf16; then
    flags="$flags -DGGML_AVX512_BF16=ON"
fi
if has amx_tile && has amx_int8; then
    flags="$flags -DGGML_AMX_TILE=ON -DGGML_AMX_INT8=ON -DCMAKE_CXX_FLAGS=\"-fno-tree-dse -fno-dse\""
fi
printf '%s\n' "$flags"
