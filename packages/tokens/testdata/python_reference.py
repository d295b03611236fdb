"""Python's results for the same rows: JSON lines in, JSON lines out. Arguments: folder of the base, `process_func`'s MAX_LENGTH."""

import json
import sys
from typing import Any

if len(sys.argv) > 1:  # reading shards needs neither arguments nor transformers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(sys.argv[1])


# `process_func` exactly as published, except that MAX_LENGTH is an argument.
def process_func(example):
    MAX_LENGTH = int(sys.argv[2])    # Llama分词器会将一个中文字切分为多个token,因此需要放开一些最大长度,保证数据的完整性
    input_ids, attention_mask, labels = [], [], []
    # 构建指令部分的编码
    instruction = tokenizer(
        f"<|im_start|>system\n现在你要扮演皇帝身边的女人--甄嬛<|im_end|>\n"
        f"<|im_start|>user\n{example['instruction'] + example['input']}<|im_end|>\n"
        f"<|im_start|>assistant\n", 
        add_special_tokens=False
    )
    # 构建输出部分的编码
    response = tokenizer(f"{example['output']}", add_special_tokens=False)
    
    # 合并输入和输出的input_ids,并添加pad_token_id作为结束标志
    input_ids = instruction["input_ids"] + response["input_ids"] + [tokenizer.pad_token_id]# 这里相加是拼接
    # 合并注意力掩码,并作为pad_token_id添加关注标记(1)
    attention_mask = instruction["attention_mask"] + response["attention_mask"] + [1]  # eos token 也需要关注
    # 构建labels,instruction部分的labels设置为-100,表示在计算损失是忽略这部分损失
    labels = [-100] * len(instruction["input_ids"]) + response["input_ids"] + [tokenizer.pad_token_id]
    
    # 如果序列长度超过MAX_LENGTH,则进行截断
    if len(input_ids) > MAX_LENGTH:  # 截断
        input_ids = input_ids[:MAX_LENGTH]
        attention_mask = attention_mask[:MAX_LENGTH]
        labels = labels[:MAX_LENGTH]
    # 将处理后的input_ids、attention_mask和labels组织成一个字典,供后续训练使用。
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels
    }


def encode(text, **options):
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]


tokenizers = {}


def tokenizer_of(asked):
    directory = asked.get("dir", sys.argv[1])
    if directory not in tokenizers:
        tokenizers[directory] = AutoTokenizer.from_pretrained(directory)
    return tokenizers[directory]


def as_the_engine_does(message, parts):
    """
    Messages as vLLM renders them: arguments of calls are parsed, and Loraline's own fields `train` and `weight` are removed.
    parts: the template goes through the parts of contents.
    """
    message = {key: value for key, value in message.items() if key not in ("train", "weight")}
    if parts:
        message["content"] = [{"type": "text", "text": message["content"]}]
    if "reasoning" in message:
        message["reasoning_content"] = message["reasoning"]
    if "tool_calls" in message:
        message["tool_calls"] = json.loads(message["tool_calls"])
        for call in message["tool_calls"]:
            if isinstance(call["function"]["arguments"], str):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return message


def chat(asked):
    """
    The trained part begins after the prompt that makes the model answer and ends with the token at which the model stops. If a
    later turn changes how an earlier one is rendered, each trained turn gets its own sequence and stands at its end.
    """
    tok = tokenizer_of(asked)
    stops = asked.get("stops") or [tok.eos_token]
    messages = [as_the_engine_does(message, asked.get("parts", False)) for message in asked["messages"]]
    tools = json.loads(asked["tools"]) if "tools" in asked else None

    def render(part, generation):
        return tok.apply_chat_template(part, tools=tools, tokenize=False, add_generation_prompt=generation)

    try:
        whole = render(messages, False)
        turns = []
        for index, message in enumerate(asked["messages"]):
            if message["role"] != "assistant" or not message.get("train", True):
                continue
            prompt = render(messages[:index], True)
            through = render(messages[: index + 1], False)
            assert through.startswith(prompt), (prompt, through)
            end = min(at + len(stop) for stop in stops if (at := through.find(stop, len(prompt))) != -1)
            turns.append((through, len(prompt), end))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if all(whole.startswith(through[:end]) for through, _, end in turns):
        return {"samples": [cut(tok, whole, [(start, end) for _, start, end in turns], asked)]}
    return {"samples": [cut(tok, through, [(start, end)], asked) for through, start, end in turns]}


def cut(tok, text, spans, asked):
    whole = tok(text, add_special_tokens=False)["input_ids"]
    if asked.get("joint"):  # the tokenizer gives a part of the text other ids when it is encoded alone
        offsets = tok(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        labels = [id if any(a <= start < b for a, b in spans) else -100 for id, (start, end) in zip(whole, offsets, strict=True)]
        return {"ids": whole, "labels": labels, "whole": whole}
    ids, labels, at = [], [], 0
    for start, end in [*spans, (len(text), len(text))]:
        prompt = tok(text[at:start], add_special_tokens=False)["input_ids"]
        answer = tok(text[start:end], add_special_tokens=False)["input_ids"]
        ids += prompt + answer
        labels += [-100] * len(prompt) + answer
        at = end
    return {"ids": ids, "labels": labels, "whole": whole}


def read_shard(path):
    import pyarrow

    with pyarrow.memory_map(path) as source:
        table = pyarrow.ipc.open_stream(source).read_all()
    result = {"rows": table.to_pydict(), "metadata": {k.decode(): v.decode() for k, v in table.schema.metadata.items()}}
    try:
        from datasets import Dataset
    except ImportError:
        return result
    assert Dataset.from_file(path).to_dict() == result["rows"]
    return {**result, "datasets": True}


for line in sys.stdin:
    asked = json.loads(line)
    if "seed" in asked:
        row = process_func(asked["seed"])
        answer = {"ids": row["input_ids"], "labels": row["labels"]}
    elif "messages" in asked:
        answer = chat(asked)
    elif "raw" in asked:
        answer = {"ids": encode(asked["raw"])}
    elif "plain" in asked:
        answer = {"ids": encode(asked["plain"], split_special_tokens=True)}
    else:
        answer = read_shard(asked["shard"])
    print(json.dumps(answer), flush=True)
