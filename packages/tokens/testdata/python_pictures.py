"""What transformers' own processor makes of conversations with pictures: JSON lines in, JSON lines out. Argument: folder of the base."""

import json
import sys

import torch
from PIL import Image
from transformers import Idefics3Processor

torch.set_num_threads(1)  # tiny pictures: threads would wait for each other longer than they work
processors = {}
for line in sys.stdin:
    asked = json.loads(line)
    if asked["dir"] not in processors:
        processors[asked["dir"]] = Idefics3Processor.from_pretrained(asked["dir"])
    processor = processors[asked["dir"]]
    pictures = [Image.new("RGB", tuple(size)) for size in asked["pictures"]]
    text = processor.apply_chat_template(asked["messages"], add_generation_prompt=False, tokenize=False)
    result = processor(text=text, images=[pictures] if pictures else None, add_special_tokens=False)
    print(json.dumps({"ids": result["input_ids"][0]}), flush=True)
