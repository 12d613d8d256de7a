"""A llama so small that ten thousand requests take a minute."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, KV_HEADS, HEAD = 2, 2, 16


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

# Tools as Hermes and its like are shown them, though without control tokens: this model has none.
HERMES = """\
{% if tools %}Call these as <tool_call>{"name": ..., "arguments": {...}}</tool_call>:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{% endfor %}{% endfor %}
{% if add_generation_prompt %}assistant: {% endif %}
"""
# It says that tools are known, and shows none: what they are called must not fill the context.
TOOLS_TEMPLATE = "{% if tools %}<tool_call>{% endif %}" + CHAT_TEMPLATE


def tiny_llama(path: Path, chat_template: str | None = None, context: int = 512) -> Path:
    """Write one of two layers to `path`, a token for each byte, random but the same every time.

    Its weights are large enough for its logits to differ clearly. With `chat_template` it takes
    conversations, too.
    """
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: id for id, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(path / "tokenizer.json"))
    if chat_template:
        (path / "chat_template.jinja").write_text(chat_template)
    return path
