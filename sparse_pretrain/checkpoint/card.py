"""The model card of a release: what it is, how sparse, from what data, how to use it."""

from typing import Any

import yaml

Facts = dict[str, Any]


def model_card(facts: Facts, name: str) -> str:
    """Return the README.md of a release.

    Args:
        facts: the content of the release's `sparsity.json`.
        name: of the released model, for the title and the examples.
    """
    sections = [
        front_matter(facts),
        f"# {name}",
        summary(facts),
        "## Sparsity",
        sparsity_table(facts),
        "## How to use it",
        usage(facts, name),
        "## How it was trained",
        training(facts),
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(facts: Facts) -> str:
    """Return the YAML block that model hubs read."""
    recipe = facts["recipe"]
    source = (recipe.get("model") or {}).get("source")
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["sparse-pretrain"],
    }
    if facts["masks_digest"]:
        fields["tags"] += ["sparse", "pruning", "prune-once-for-all"]
    if is_hub_name(source):
        fields["base_model"] = source
    return "---\n" + yaml.safe_dump(fields, sort_keys=False) + "---"


def is_hub_name(value: object) -> bool:
    """Tell a hub name (one slash at most) from a path of the machine that trained the model."""
    return isinstance(value, str) and value.count("/") <= 1 and not value.startswith((".", "/", "~"))


def shown_setting(key: str, value: object) -> str:
    """Return `key = value`, without paths of the machine that trained the model."""
    if key == "teacher":
        sources = value if isinstance(value, list) else [value]
        shown = [str(source) if is_hub_name(source) else "a local folder" for source in sources]
        return f"{key} = {', '.join(shown)}"
    return f"{key} = {'a local folder' if key == 'precomputed' else value}"


def summary(facts: Facts) -> str:
    """Return the first paragraph."""
    prunable, total = facts["prunable"], facts["total"]
    if not facts["masks_digest"]:
        return f"A dense `{facts['architecture']}` with {total['weights']:,} parameters (no pruning)."
    return (
        f"A sparse `{facts['architecture']}`: {prunable['sparsity']:.2%} of the {prunable['weights']:,} prunable "
        f"weights are exactly zero ({total['sparsity']:.2%} of all {total['weights']:,} parameters). The zeros are "
        "stored in ordinary dense tensors; `masks.safetensors` holds their pattern at one bit a weight, so that "
        "fine-tuning can keep it."
    )


def sparsity_table(facts: Facts) -> str:
    """Return a Markdown table with a row per prunable weight."""
    rows = ["| weight | shape | weights | zeros | sparsity |", "|---|---|--:|--:|--:|"]
    for row in facts["layers"]:
        shape = " x ".join(str(size) for size in row["shape"])
        rows.append(
            f"| `{row['name']}` | {shape} | {row['weights']:,} | {row['zeros']:,} | {row['sparsity']:.4%} |"
        )
    for key, label in (("prunable", "all prunable weights"), ("total", "whole model")):
        part = facts[key]
        rows.append(f"| **{label}** | | {part['weights']:,} | {part['zeros']:,} | {part['sparsity']:.4%} |")
    return "\n".join(rows)


def usage(facts: Facts, name: str) -> str:
    """Return how to load it and how to fine-tune it with its zeros kept."""
    return f"""```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

Fine-tune it with the zeros locked:

```bash
sparse-pretrain finetune finetune-sst2 model={name}
```

or in your own `Trainer`:

```python
from sparse_pretrain.finetune.mask_lock import MaskLock

trainer = Trainer(model=model, ..., callbacks=[MaskLock.from_source(model, "{name}")])
```"""


def training(facts: Facts) -> str:
    """Return data, metrics, method and versions."""
    lines = [f"- optimizer steps: {facts['step']:,}", f"- data fingerprint: `{facts['data_fingerprint']}`"]
    lines += [f"- {key}: {value:.4f}" for key, value in facts["metrics"].items()]
    recipe = facts["recipe"]
    for section in ("pruning", "distillation", "batch", "optimizer", "learning_rate"):
        values = recipe.get(section)
        if values:
            given = {key: value for key, value in values.items() if value not in (None, [], {})}
            shown = ", ".join(shown_setting(key, value) for key, value in given.items())
            lines.append(f"- {section.replace('_', ' ')}: {shown}")
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    if versions:
        lines.append(f"- versions: {versions}")
    text = "\n".join(lines)
    if facts["masks_digest"]:
        text += f"\n\nMethod: {method(recipe)} (after Zafrir et al. 2021, *Prune Once for All*, arXiv 2111.05754)."
    return text


def method(recipe: Facts) -> str:
    """Return in a few words how a recipe prunes; keys that an older recipe lacks have the paper's values."""
    section = recipe.get("pruning") or {}
    kinds = {
        key: (section.get(key) or {}).get("kind", default)
        for key, default in (("structure", "element"), ("scorer", "magnitude"), ("allocation", "uniform"))
    }
    groups = {
        "element": "single weights",
        "block": "blocks",
        "n_of_m": "N:M patterns",
        "rows": "rows",
        "columns": "columns",
        "coupled": "attention heads and feed-forward channels",
    }
    teacher = " with a teacher in the step" if recipe.get("distillation") else ""
    schedule = section.get("schedule", "cubic").replace("_", "-")
    return (
        f"{schedule} {kinds['scorer']} pruning of {groups[kinds['structure']]}, {kinds['allocation']} allocation, "
        f"during pre-training{teacher}"
    )
