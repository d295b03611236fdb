"""The well-known process_func in datasets.map, as published. Times JSON Lines to Arrow; then compares with the given shards.

usage: seed_map.py BASE ROWS NUM_PROC [SHARD...]
"""

import json
import sys
import time
from typing import Any

import pandas as pd
from datasets import Dataset, concatenate_datasets, disable_caching, disable_progress_bars
from transformers import AutoTokenizer

base, rows, num_proc, *shards = sys.argv[1:]
disable_caching()
disable_progress_bars()
tokenizer: Any = AutoTokenizer.from_pretrained(base)


# The function exactly as published.
def process_func(example):
    MAX_LENGTH = 384    # Llama分词器会将一个中文字切分为多个token,因此需要放开一些最大长度,保证数据的完整性
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


# The time begins after the libraries are imported and the tokenizer is loaded.
started = time.perf_counter()
dataset = Dataset.from_pandas(pd.read_json(rows, lines=True))
mapped = dataset.map(process_func, remove_columns=dataset.column_names, num_proc=int(num_proc) if num_proc != "1" else None)
seconds = time.perf_counter() - started

result = {"seconds": seconds, "rows": len(mapped)}
if shards:
    ours = concatenate_datasets([Dataset.from_file(shard) for shard in shards])
    result["oursRows"] = len(ours)
    result["tokens"] = sum(len(ids) for ids in ours["input_ids"])
    # Nothing predicts the first label of a sequence. It is -100 in both, because a prompt stands before every answer.
    result["different"] = [
        index
        for index, (theirs, own) in enumerate(zip(mapped, ours, strict=False))
        if theirs["input_ids"] != own["input_ids"] or theirs["labels"] != own["labels"] or own["seq_lengths"] != [len(own["input_ids"])]
    ][:10]
print(json.dumps(result))
