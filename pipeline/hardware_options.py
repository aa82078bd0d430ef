"""What a run will stand on, for its forecast: recipe section `hardware`."""

from __future__ import annotations

from pydantic import Field, model_validator

from serve.messages import Record


class HardwareOptions(Record):
    """Read by `--dry-run`, and to refuse an actor with fewer GPUs than its teacher wants: what a
    run does is said by `teacher`, `training` and `scale`."""

    gpus: int = Field(0, ge=0, le=65_536, description="in all; 0: this machine's processors")
    gpu_memory_gib: float | None = Field(None, gt=0.0, description="of one, as 24 or 80")
    gpu_tflops: float | None = Field(None, gt=0.0, description="of one, dense bfloat16")
    gpu_gb_per_s: float | None = Field(None, gt=0.0, description="memory bandwidth of one")
    cores: int | None = Field(
        None, ge=1, le=65_536, description="that the files are examined on; none: this machine's"
    )
    price_per_gpu_hour: float | None = Field(None, ge=0.0, description="in any currency")

    @model_validator(mode="after")
    def _a_gpu_is_described(self) -> HardwareOptions:
        said = (self.gpu_memory_gib, self.gpu_tflops, self.gpu_gb_per_s)
        if self.gpus and None in said:
            raise ValueError("gpus need gpu_memory_gib, gpu_tflops and gpu_gb_per_s")
        return self

    def is_default(self) -> bool:
        return self == HardwareOptions()
