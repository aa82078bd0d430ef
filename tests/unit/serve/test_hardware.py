import pytest

from serve.hardware import cpu_has_fast_bfloat16


@pytest.mark.parametrize(
    ("flags", "limit", "fast"),
    [
        ({"avx2", "avx512_bf16"}, None, True),
        ({"avx2", "amx_bf16"}, "DEFAULT", True),
        ({"avx2", "amx_bf16"}, "AVX512_CORE_AMX", True),
        ({"avx2", "avx512_bf16"}, "AVX512_CORE_BF16", True),
        ({"avx2", "avx512_bf16"}, "AVX512_CORE", False),
        ({"avx2", "amx_bf16"}, "avx2", False),
        ({"avx2"}, None, False),
    ],
)
def test_bfloat16_is_fast_where_the_processor_has_it_and_may_use_it(
    flags, limit, fast, monkeypatch
):
    monkeypatch.setattr("serve.hardware.cpu_flags", lambda: frozenset(flags))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert cpu_has_fast_bfloat16() is fast
