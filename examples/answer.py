"""Answer a prompt with a chat model, always with the likeliest next token.

    python examples/answer.py MODEL_DIR "prompt" [--max-new-tokens 48]

prints the answer and nothing else.
"""

from __future__ import annotations

import argparse
import warnings


def answer(model_dir: str, prompt: str, max_new_tokens: int) -> str:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir).eval()
    messages = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    return " ".join(text.split()) + ("" if new[-1] == tokenizer.eos_token_id else " ...")


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer a prompt with a chat model.")
    parser.add_argument("model_dir")
    parser.add_argument("prompt")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(answer(arguments.model_dir, arguments.prompt, arguments.max_new_tokens))


if __name__ == "__main__":
    main()
