"""A GGUF file -> a directory with bfloat16 safetensors, for peers that cannot read it.

    python -m bench.export_hf MODEL.gguf DIRECTORY

Needs transformers and accelerate, which `make test` installs.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(gguf: Path, directory: Path) -> None:
    quantized = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    # A model that came from GGUF refuses to be saved, so a plain one takes its weights.
    config = quantized.config.to_dict()
    config.pop("quantization_config", None)
    plain = type(quantized)(type(quantized.config).from_dict(config)).bfloat16()
    plain.load_state_dict(quantized.state_dict())
    plain.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
