"""Collect the published prompts of the 27 data sets of the CLIP paper into ostension/text/data/prompts.json.

    git clone https://github.com/openai/CLIP
    python scripts/build_prompts.py path/to/CLIP

Reads `data/prompts.md` (26 sets) and `notebooks/Prompt_Engineering_for_ImageNet.ipynb` (ImageNet's 1,000 class names as
OpenAI edited them, the 80 templates and, in its text, the seven that forward selection chose). MIT licence. The lists are
read as Python literals; nothing is executed. Class names and templates are kept letter by letter, misspellings included,
because results depend on them.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from pathlib import Path

from ostension.files import write_text
from ostension.text.prompts import PROMPTS_FILE

# Our name of each set, its heading in prompts.md, and the numbers of classes and templates that must be found there.
SETS = {
    "birdsnap": ("Birdsnap", 500, 1),
    "caltech101": ("Caltech101", 102, 34),
    "cifar10": ("CIFAR10", 10, 18),
    "cifar100": ("CIFAR100", 100, 18),
    "clevr_counts": ("CLEVRCounts", 8, 1),
    "country211": ("Country211", 211, 5),
    "dtd": ("DescribableTextures", 47, 8),
    "eurosat": ("EuroSAT", 10, 3),
    "fer2013": ("FacialEmotionRecognition2013", 7, 6),
    "fgvc_aircraft": ("FGVCAircraft", 100, 2),
    "flowers102": ("Flowers102", 102, 1),
    "food101": ("Food101", 101, 1),
    "gtsrb": ("GTSRB", 43, 3),
    "hateful_memes": ("HatefulMemes", 2, 1),
    "imagenet": ("ImageNet", 1000, 80),
    "kinetics700": ("Kinetics700", 700, 28),
    "kitti": ("KITTI", 4, 1),
    "mnist": ("MNIST", 10, 1),
    "oxford_pets": ("OxfordPets", 37, 1),
    "pcam": ("PatchCamelyon", 2, 1),
    "resisc45": ("RESISC45", 45, 18),
    "sst2": ("SST2", 2, 1),
    "stanford_cars": ("StanfordCars", 196, 8),
    "stl10": ("STL10", 10, 2),
    "sun397": ("SUN397", 397, 2),
    "ucf101": ("UCF101", 101, 48),
    "voc2007": ("PascalVOC2007", 20, 1),
}

# CoOp's hand-written templates, one a data set (CUSTOM_TEMPLATES in trainers/zsclip.py of KaiyangZhou/CoOp, MIT licence).
COOP = {
    "caltech101": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "flowers102": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "imagenet": "a photo of a {}.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}.",
    "sun397": "a photo of a {}.",
    "ucf101": "a photo of a person doing {}.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path, help="a checkout of openai/CLIP")
    folder = parser.parse_args().clip
    found = read_markdown((folder / "data" / "prompts.md").read_text(encoding="utf-8"))
    cells = read_notebook((folder / "notebooks" / "Prompt_Engineering_for_ImageNet.ipynb").read_text(encoding="utf-8"))
    found["ImageNet"] = {"classes": cells["imagenet_classes"], "templates": cells["imagenet_templates"]}
    best = cells["selected"]
    sets = {}
    for name, (title, num_classes, num_templates) in SETS.items():
        published = found.pop(title)
        classes = [[item] if isinstance(item, str) else item for item in published["classes"]]
        templates = published["templates"]
        assert len(classes) == num_classes, f"{title} has {len(classes)} classes, not {num_classes}"
        assert len(templates) == num_templates, f"{title} has {len(templates)} templates, not {num_templates}"
        assert all(template.count("{}") == 1 for template in templates), title
        sets[name] = {"title": title, "classes": classes, "templates": templates}
    assert not found, f"sets without a name of ours: {sorted(found)}"
    assert len(best) == 7
    assert set(best) <= set(sets["imagenet"]["templates"])
    write_text(PROMPTS_FILE, layout({"openai_imagenet_best7": best}, COOP, sets))
    print(f"{PROMPTS_FILE}: {len(sets)} sets, {sum(len(one['classes']) for one in sets.values())} classes")


def read_markdown(text: str) -> dict[str, dict[str, list]]:
    """The lists `classes` and `templates` under every heading of prompts.md."""
    sections = re.findall(r"^## (\w+)\n\n```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {title: literals(body) for title, body in sections}


def read_notebook(text: str) -> dict[str, list]:
    """The notebook's lists, and under "selected" the templates that a cell of text numbers 1 to 7."""
    lists: dict[str, list] = {}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("imagenet_"):
            lists.update(literals(source))
        elif "sequential forward selection" in source:
            lists["selected"] = re.findall(r"^\d\. (.+)$", source, re.MULTILINE)
    return lists


def literals(source: str) -> dict[str, list]:
    """Every `name = [...]` of a piece of Python."""
    assignments = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assignments if isinstance(node.targets[0], ast.Name)}


def layout(templates: dict, coop: dict, sets: dict) -> str:
    """The JSON text with one class or template a line."""

    def listed(items: list, indent: str) -> str:
        lines = ",\n".join(f"{indent}  {json.dumps(item, ensure_ascii=False)}" for item in items)
        return f"[\n{lines}\n{indent}]"

    blocks = [
        f"    {json.dumps(name)}: {{\n"
        f'      "title": {json.dumps(one["title"])},\n'
        f'      "templates": {listed(one["templates"], "      ")},\n'
        f'      "classes": {listed([names[0] if len(names) == 1 else names for names in one["classes"]], "      ")}\n'
        "    }"
        for name, one in sets.items()
    ]
    named = [f"    {json.dumps(name)}: {listed(items, '    ')}" for name, items in templates.items()]
    named += [f"    {json.dumps('coop_' + name)}: [{json.dumps(template)}]" for name, template in coop.items()]
    return '{\n  "templates": {\n' + ",\n".join(named) + '\n  },\n  "sets": {\n' + ",\n".join(blocks) + "\n  }\n}\n"


if __name__ == "__main__":
    main()
