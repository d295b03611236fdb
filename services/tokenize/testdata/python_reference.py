"""What Python makes of the same rows: JSON lines in, JSON lines out. Arguments: folder of the base, max_length of the seed."""

import json
import sys

if len(sys.argv) > 1:  # reading shards needs neither arguments nor transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])


# Literally as published, but for MAX_LENGTH.
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


def render(messages, generation):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)


def chat(messages):
    """The template's text, cut after each generation prompt behind which a trained turn stands; content and end of such a turn are trained."""
    whole = render(messages, False)
    cuts = [(len(render(messages[:i], True)), m["content"]) for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train", True)]
    ids, labels, at = [], [], 0
    for cut, content in cuts:
        prompt = encode(whole[at:cut])
        answer = encode(content + tokenizer.eos_token)
        assert whole.startswith(content + tokenizer.eos_token, cut)
        ids += prompt + answer
        labels += [-100] * len(prompt) + answer
        at = cut + len(content + tokenizer.eos_token)
    rest = encode(whole[at:])
    return {"ids": ids + rest, "labels": labels + [-100] * len(rest), "whole": encode(whole)}


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
        answer = chat(asked["messages"])
    elif "raw" in asked:
        answer = {"ids": encode(asked["raw"])}
    elif "plain" in asked:
        answer = {"ids": encode(asked["plain"], split_special_tokens=True)}
    else:
        answer = read_shard(asked["shard"])
    print(json.dumps(answer), flush=True)
