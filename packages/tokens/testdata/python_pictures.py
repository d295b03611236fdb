"""What transformers' own processor makes of conversations with pictures: JSON lines in, JSON lines out. Each names the folder of its base."""

import json
import sys

import torch
from PIL import Image
from transformers import Idefics3Processor, InternVLProcessor, LlavaProcessor, PixtralProcessor, Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor

QWENS = (Qwen2VLProcessor, Qwen2_5_VLProcessor, Qwen3VLProcessor)
CLASSES = {each.__name__: each for each in (Idefics3Processor, InternVLProcessor, LlavaProcessor, PixtralProcessor, *QWENS)}


def load(folder):
    with open(f"{folder}/preprocessor_config.json") as file:
        named = CLASSES[json.load(file)["processor_class"]]
    return named.from_pretrained(folder)


torch.set_num_threads(1)  # tiny pictures: threads would wait for each other longer than they work
processors = {}
for line in sys.stdin:
    asked = json.loads(line)
    if asked["dir"] not in processors:
        processors[asked["dir"]] = load(asked["dir"])
    processor = processors[asked["dir"]]
    pictures = [Image.new("RGB", tuple(size)) for size in asked["pictures"]]
    text = processor.apply_chat_template(asked["messages"], add_generation_prompt=False, tokenize=False)
    given = [pictures] if isinstance(processor, Idefics3Processor) else pictures
    result = processor(text=text, images=given if pictures else None, add_special_tokens=False)
    print(json.dumps({"ids": [int(each) for each in result["input_ids"][0]]}), flush=True)  # some give a tensor
