"""The model card of a release or a fine-tuned model: what it is, how sparse, from what data, how to use it."""

from pathlib import Path
from typing import Any

import yaml

Facts = dict[str, Any]
# The hub's own word for it. Whoever publishes says what the license is; we guess none.
UNKNOWN_LICENSE = "unknown"
# By the end of the architecture's name: the hub's pipeline tag, and the class that loads it.
PIPELINES = {
    "ForMaskedLM": ("fill-mask", "AutoModel"),
    "ForPreTraining": ("fill-mask", "AutoModel"),
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "ForQuestionAnswering": ("question-answering", "AutoModelForQuestionAnswering"),
    "ForMultipleChoice": ("multiple-choice", "AutoModelForMultipleChoice"),
}
TAG = "sparse-pretrain"
# In the place of the masks' digest: there is no mask file, the zeros are the masks.
ZEROS = "zeros"
# In the place of paths of the machine that trained the model.
LOCAL = "a local folder"


def model_card(facts: Facts, name: str, license_id: str = UNKNOWN_LICENSE) -> str:
    """Return the README.md of a release or of a fine-tuned model.

    Args:
        facts: the content of a release's `sparsity.json`; of a fine-tuned model what is known of it.
        name: of the model, for the title and the examples: a hub name, or a folder's.
        license_id: the hub's identifier of the weights' license.
    """
    sections = [
        front_matter(facts, license_id),
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


def front_matter(facts: Facts, license_id: str = UNKNOWN_LICENSE) -> str:
    """Return the YAML block that model hubs read."""
    fields: dict[str, Any] = {
        "license": license_id,
        "library_name": "transformers",
        "pipeline_tag": pipeline(facts)[0],
        "tags": [TAG],
    }
    if facts["masks_digest"]:
        fields["tags"] += ["sparse", "pruning", "prune-once-for-all"]
    source = base_model(facts)
    if source is not None:
        fields["base_model"] = source
    if facts.get("datasets"):
        fields["datasets"] = facts["datasets"]
    return "---\n" + yaml.safe_dump(fields, sort_keys=False) + "---"


def pipeline(facts: Facts) -> tuple[str, str]:
    """Return the hub's pipeline tag and the class that loads the model."""
    found = [value for end, value in PIPELINES.items() if facts["architecture"].endswith(end)]
    return found[0] if found else ("feature-extraction", "AutoModel")


def base_model(facts: Facts) -> str | None:
    """Return the hub name of the model that training began with, None when it was none of the hub's."""
    model = facts["recipe"].get("model")
    source = model.get("source") if isinstance(model, dict) else model
    return source if is_hub_name(source) else None


def hub_datasets(names: list[str]) -> list[str]:
    """Return the hub's data sets among names as manifests and recipes give them: `owner/name/config/split`."""
    found = []
    for name in names:
        parts = name.split("/")
        if parts[0] and not parts[0].startswith((".", "~")) and not Path("/".join(parts[:-1])).exists():
            found.append("/".join(parts[: min(2, max(len(parts) - 1, 1))]))
    return list(dict.fromkeys(found))


def is_hub_name(value: object) -> bool:
    """Tell a hub name (one slash at most) from a path of the machine that trained the model."""
    return (
        isinstance(value, str)
        and value.count("/") <= 1
        and not value.startswith((".", "/", "~"))
        and value != LOCAL
        and not Path(value).exists()
    )


def without_paths(value: Any) -> Any:
    """Return settings with every absolute path of the machine that trained the model taken out."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    return LOCAL if isinstance(value, str) and value.startswith(("/", "~")) else value


def shown_setting(key: str, value: object) -> str:
    """Return `key = value`, without paths of the machine that trained the model."""
    if key == "teacher":
        sources = value if isinstance(value, list) else [value]
        shown = [str(source) if is_hub_name(source) else LOCAL for source in sources]
        return f"{key} = {', '.join(shown)}"
    return f"{key} = {LOCAL if key == 'precomputed' else value}"


def summary(facts: Facts) -> str:
    """Return the first paragraph."""
    prunable, total = facts["prunable"], facts["total"]
    if not facts["masks_digest"]:
        return f"A dense `{facts['architecture']}` with {total['weights']:,} parameters (no pruning)."
    masks = (
        "fine-tuning can keep their pattern by reading it off them."
        if facts["masks_digest"] == ZEROS
        else "`masks.safetensors` holds their pattern at one bit a weight, so that fine-tuning can keep it."
    )
    return (
        f"A sparse `{facts['architecture']}`: {prunable['sparsity']:.2%} of the {prunable['weights']:,} prunable "
        f"weights are exactly zero ({total['sparsity']:.2%} of all {total['weights']:,} parameters). The zeros are "
        f"stored in ordinary dense tensors; {masks}"
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
    factory = pipeline(facts)[1]
    loading = f"""```python
from transformers import {factory}, AutoTokenizer

model = {factory}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""
    if not facts["masks_digest"]:
        return loading
    return f"""{loading}

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
    lines = []
    if "step" in facts:
        lines.append(f"- optimizer steps: {facts['step']:,}")
    if facts.get("data_fingerprint"):
        lines.append(f"- data fingerprint: `{facts['data_fingerprint']}`")
    lines += [f"- {key}: {value:.4f}" for key, value in facts["metrics"].items()]
    recipe = facts["recipe"]
    for section in ("pruning", "distillation", "batch", "optimizer", "learning_rate", "training"):
        values = recipe.get(section)
        if isinstance(values, dict):
            given = {key: value for key, value in values.items() if value not in (None, [], {})}
            shown = ", ".join(shown_setting(key, value) for key, value in given.items())
            lines.append(f"- {section.replace('_', ' ')}: {shown}")
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    if versions:
        lines.append(f"- versions: {versions}")
    text = "\n".join(lines) or "Nothing is recorded of its training."
    if facts["masks_digest"] and recipe.get("pruning"):
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
