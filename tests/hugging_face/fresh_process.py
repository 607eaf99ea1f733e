"""Loads an exported folder in a process of its own, draws and answers, and saves what came out.

Arguments: folder, packages that cannot be imported (comma-separated), file to write.
"""

import sys

folder, blocked, out = sys.argv[1:]


class Blocker:
    """Refuses imports, as if the packages were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked.split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker())

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModel, AutoProcessor  # noqa: E402

remote_code = {"trust_remote_code": True}
if "ufork" not in blocked.split(","):
    import ufork  # noqa: F401 - after transformers, which must not matter

    remote_code = {}

model = AutoModel.from_pretrained(folder, **remote_code)
processor = AutoProcessor.from_pretrained(folder, **remote_code)
drawings = model.draw(["a dog", "a red cat"], processor, seeds=[4, 5])
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}]
inputs = processor(images=Image.fromarray(drawings[0].numpy()), text=processor.apply_chat_template(messages))
tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
with torch.no_grad():
    image_tokens = inputs["input_ids"][:, : processor.tokens_per_image]
    drawn = torch.cat((torch.tensor([processor.tokenizer.encode("a dog")]), image_tokens), dim=1)
    codes = model.encode_images(inputs["pixel_values"])
    results = {
        "drawings": drawings,
        "answer": processor.decode(tokens, skip_special_tokens=True).strip(),
        "text tokens": inputs["input_ids"][0],
        "text logits": model(**inputs).logits[0],
        "drawn tokens": drawn[0],
        "codes": codes[0],
        "code logits": model(input_ids=drawn, codes=codes, task="generation").logits[0],
    }
torch.save(results, out)
