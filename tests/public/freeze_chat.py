"""Freeze what transformers makes of conversations under the chat templates that TRL carries.

The templates are those of TRL's `chat_templates` (Apache-2.0, copied there from the models), and
SmolLM2's from its GGUF file. Environment: torch, transformers 5.23, trl 1.16, gguf.

    cd tests/public && python freeze_chat.py SmolLM2-135M-Instruct.Q4_1.gguf
"""

import datetime
import json
import pathlib
import sys

import gguf
import tokenizers
import transformers
import trl

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from models import chats  # noqa: E402

TRAINING = ("qwen2_5", "qwen3", "llama3", "gemma")
MASKED = ("answered", "letters", "trained")


def tokenizer_of(name: str, template: str):
    bos, eos = chats.ENDS[name]
    backend = tokenizers.Tokenizer.from_str(chats.source())
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        chat_template=template,
    )


def ids(tokenizer, messages, reply: bool, **options) -> list[int] | None:
    """None where the template refuses the conversation."""
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=reply, return_dict=False, **options
        )
    except Exception as error:
        print(f"refused: {error}")
        return None


def masked(tokenizer, messages) -> dict[str, list[int]]:
    made = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    return {"ids": made["input_ids"], "mask": made["assistant_masks"]}


def main() -> None:
    folder = pathlib.Path(trl.__file__).parent / "chat_templates"
    file = gguf.GGUFReader(sys.argv[1])
    templates = {"smollm2": file.fields["tokenizer.chat_template"].contents()}
    for name in set(chats.ENDS) - {"smollm2"}:
        templates[name] = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    training = {n: (folder / f"{n}_training.jinja").read_text(encoding="utf-8") for n in TRAINING}
    made = {
        "package": f"transformers {transformers.__version__}, templates of trl {trl.__version__}",
        "date": datetime.date.today().isoformat(),
        "templates": dict(sorted(templates.items())),
        "training": training,
        "ids": {},
        "masks": {},
    }
    for name, template in made["templates"].items():
        tokenizer = tokenizer_of(name, template)
        made["ids"][name] = {
            key: [ids(tokenizer, messages, reply) for reply in (False, True)]
            for key, messages in chats.CONVERSATIONS.items()
        } | {
            key: [ids(tokenizer, messages, r, sanitize_control_tokens=True) for r in (False, True)]
            for key, messages in chats.INTRUDERS.items()
        }
    for name, template in training.items():
        tokenizer = tokenizer_of(name, template)
        made["masks"][name] = {key: masked(tokenizer, chats.CONVERSATIONS[key]) for key in MASKED}
    (HERE / "frozen" / "chat.json").write_text(
        json.dumps(made, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
